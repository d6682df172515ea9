"""Second moments of a layer's input, and of what its output lacks: all that least squares needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

LARGE = 1e15
"""Sums of products of larger values may exceed single precision."""


@dataclass(frozen=True)
class SecondMoments:
    """Sums over samples and places of the products of a layer's rows with each other and with errors.

    A row is what the layer multiplies by its weight at one place (`graphprune.ir.layers`), with a 1 behind it for the
    bias. Moments of the same layer add up, whatever part of the data they were taken on.

    Attributes
    ----------
    count : int
        Rows summed.
    gram : ndarray of float64, shape (groups, width + 1, width + 1)
        Sum of row row^T.
    cross : ndarray of float64, shape (groups, width + 1, outputs)
        Sum of row error^T.
    energy : ndarray of float64, shape (groups, outputs)
        Sum of error^2.
    """

    count: int
    gram: FloatArray
    cross: FloatArray
    energy: FloatArray

    @np.errstate(invalid="ignore")  # what is not finite stays so
    def __add__(self, other: SecondMoments) -> SecondMoments:
        """Return the moments of both sets of rows together."""
        return SecondMoments(
            self.count + other.count,
            self.gram + other.gram,
            self.cross + other.cross,
            self.energy + other.energy,
        )


@np.errstate(over="ignore", invalid="ignore")  # what is not finite stays so in the sums
def second_moments(rows: npt.NDArray[np.floating], errors: npt.NDArray[np.floating]) -> SecondMoments:
    """Return the second moments of one batch.

    Parameters
    ----------
    rows : ndarray, shape (n, groups, width)
    errors : ndarray, shape (n, groups, outputs)
        What the layer's outputs lack.

    Returns
    -------
    SecondMoments
        Products are summed in single precision within the batch (in double where the rows are, or are too large for
        it), about the batch's mean so that a large one costs no digits, and in float64 from there on.
    """
    kind = np.promote_types(np.promote_types(rows.dtype, errors.dtype), np.float32)
    if max(np.abs(rows).max(initial=0), np.abs(errors).max(initial=0)) > LARGE:
        kind = np.dtype(np.float64)
    mean = rows.mean(axis=0, dtype=np.float64).astype(kind)
    centred = np.ones((*rows.shape[1:-1], rows.shape[2] + 1, rows.shape[0]), kind)
    centred[:, :-1] = (rows - mean).transpose(1, 2, 0)
    errors = np.ascontiguousarray(errors.transpose(1, 0, 2), kind)
    gram = np.matmul(centred, centred.swapaxes(1, 2)).astype(np.float64)
    cross = np.matmul(centred, errors).astype(np.float64)
    back = mean.astype(np.float64)[:, :, None]
    gram[:, :-1] += back * gram[:, -1:]
    gram[:, :, :-1] += gram[:, :, -1:] * back.swapaxes(1, 2)
    cross[:, :-1] += back * cross[:, -1:]
    return SecondMoments(rows.shape[0], gram, cross, np.square(errors, dtype=np.float64).sum(axis=1))
