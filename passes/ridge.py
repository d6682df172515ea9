"""Least squares for a layer: the change of its weight and bias that makes up best for what its output lacks.

With rows x (what the layer multiplies by its weight W) and errors e, the change D and the bias b minimise
E|e - x D - b|^2 + ridge |D|^2: shrinkage towards the weight that is there. How much to shrink is tried out: the part of
the data that a change was not computed from says how good it is (cross-validation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Self = TypeVar("Self")

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
"""Ridges to try, in parts of the mean variance of a row's entries."""
CAUTION = 1e-1
"""Ridge where there is no data left to try any on."""
LEAST = 1e-12


class SecondMoments(Protocol):
    """Sums over rows; see `graphprune.calib.moments.SecondMoments`."""

    @property
    def count(self) -> int:
        """Rows summed."""

    @property
    def gram(self) -> FloatArray:
        """Sum of row row^T, with a 1 behind every row."""

    @property
    def cross(self) -> FloatArray:
        """Sum of row error^T."""

    @property
    def energy(self) -> FloatArray:
        """Sum of error^2."""

    def __add__(self: Self, other: Self) -> Self:
        """Return the moments of both."""


@dataclass(frozen=True)
class Centred:
    """Moments about the mean, for one row.

    Attributes
    ----------
    covariance : ndarray, shape (groups, width, width)
        Of the rows.
    cross : ndarray, shape (groups, width, outputs)
        Covariance of rows and errors.
    mean : ndarray, shape (groups, width)
        Of the rows.
    error : ndarray, shape (groups, outputs)
        Mean error.
    variance : ndarray, shape (groups, outputs)
        Of the errors.
    """

    covariance: FloatArray
    cross: FloatArray
    mean: FloatArray
    error: FloatArray
    variance: FloatArray

    def damped(self, ridge: float) -> FloatArray:
        """Return the covariance plus a ridge, in parts of the mean variance: positive definite."""
        width = max(self.covariance.shape[1], 1)
        level = ridge * np.trace(self.covariance, axis1=1, axis2=2) / width + LEAST
        return np.asarray(self.covariance + level[:, None, None] * np.eye(width))


@dataclass(frozen=True)
class Solution:
    """What least squares found.

    Attributes
    ----------
    change : ndarray, shape (groups, width, outputs)
        To add to the layer's matrix.
    shift : ndarray, shape (groups, outputs)
        To add to the bias.
    ridge : float
        What it was shrunk by, in parts of the mean variance.
    before, after : float
        Mean squared error without and with it, summed over the outputs, on data that it was not computed from.
    rows : Centred
        Of all data.
    """

    change: FloatArray
    shift: FloatArray
    ridge: float
    before: float
    after: float
    rows: Centred


@np.errstate(over="ignore", invalid="ignore")  # what is not finite stays so
def centred(moments: SecondMoments, *, biased: bool = True) -> Centred:
    """Return moments about the mean; about zero for a layer that has no bias."""
    n = max(moments.count, 1)
    mean, error = moments.gram[:, :-1, -1] / n, moments.cross[:, -1] / n
    if not biased:
        mean, error = np.zeros_like(mean), np.zeros_like(error)
    return Centred(
        moments.gram[:, :-1, :-1] / n - mean[:, :, None] * mean[:, None],
        moments.cross[:, :-1] / n - mean[:, :, None] * error[:, None],
        mean,
        error,
        np.maximum(moments.energy / n - error**2, 0),
    )


def solve(parts: Sequence[SecondMoments], *, biased: bool = True) -> Solution:
    """Find the change of weight and bias.

    Parameters
    ----------
    parts : sequence of SecondMoments
        Of disjoint parts of the data; the last judges the others, and the change is then computed from all.
    biased : bool, default True
        Whether the layer has a bias.

    Returns
    -------
    Solution
        No change at all where that is better on the part that judges, or the moments are not finite.
    """
    whole = centred(reduce(add, parts), biased=biased)
    none = np.zeros_like(whole.cross), np.zeros_like(whole.error)
    ridge, before, after = CAUTION, _total(whole), float("nan")
    if not np.isfinite(whole.covariance).all() or not np.isfinite(before):
        return Solution(*none, np.inf, before, after, whole)
    if len(parts) > 1:
        ridge, before, after = _judged(
            centred(reduce(add, parts[:-1]), biased=biased), centred(parts[-1], biased=biased)
        )
        if after >= before:
            return Solution(*none, np.inf, before, before, whole)
    change = _change(whole, ridge) if np.isfinite(ridge) else none[0]
    shift = whole.error - (whole.mean[:, None] @ change)[:, 0]
    return Solution(change, shift, ridge, before, after, whole)


def _judged(fitted: Centred, judge: Centred) -> tuple[float, float, float]:
    """The ridge with the least error on other data, the error without any change, and that least one."""
    before = _total(judge)
    best, least = np.inf, float((judge.variance + (judge.error - fitted.error) ** 2).sum())  # the bias alone
    for ridge in RIDGES:
        change = _change(fitted, ridge)
        explained = (change * (2 * judge.cross - judge.covariance @ change)).sum()
        shift = fitted.error - (fitted.mean[:, None] @ change)[:, 0]
        missed = judge.error - shift - (judge.mean[:, None] @ change)[:, 0]
        error = float(judge.variance.sum() - explained + (missed**2).sum())
        if error < least:
            best, least = ridge, error
    return best, before, least


def _total(moments: Centred) -> float:
    return float((moments.variance + moments.error**2).sum())


def _change(moments: Centred, ridge: float) -> FloatArray:
    return np.asarray(np.linalg.solve(moments.damped(ridge), moments.cross))
