"""Error curves: what zeroing a part of a weight is predicted to cost, and the lower hull that a choice follows.

A prediction from a layer's own moments has the right shape; how much of it reaches the model's outputs is measured at a
few points, and the curve is bent through these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphprune.passes.patterns import largest
from graphprune.passes.sparse import refit

FloatArray = npt.NDArray[np.float64]

LEVELS = (0.0, 0.15, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.87, 0.92, 0.96, 0.99)
"""Fractions of a weight's entries that are set to zero, of those that are none yet."""
MEASURED = (0.5, 0.87)
"""At which of them the model is run."""
STEPS = 15
"""Steps of the solver for one point of a curve."""


@dataclass(frozen=True)
class ZeroCurve:
    """What zeroing a weight costs.

    Attributes
    ----------
    weight : str
        Initializer.
    size : int
        Its entries that are not zero.
    errors : ndarray of float64, shape (len(LEVELS),)
        Predicted squared error of the model's outputs, relative to their variance, at every level.
    """

    weight: str
    size: int
    errors: FloatArray


def local_errors(gram: FloatArray, dense: FloatArray) -> tuple[FloatArray, dict[float, FloatArray]]:
    """Zero more and more of a layer's weight, those entries first that matter least, and solve for the others.

    Parameters
    ----------
    gram : ndarray, shape (groups, width, width)
        Second moments of its rows, positive definite.
    dense : ndarray, shape (groups, width, outputs)

    Returns
    -------
    errors : ndarray, shape (len(LEVELS),)
        Squared error of the layer's output.
    solutions : dict of float to ndarray
        The weight at the levels of `MEASURED`.
    """
    spread = np.sqrt(np.einsum("gkk->gk", gram))[:, :, None]
    scaled = (gram / (spread * spread.swapaxes(1, 2))).astype(np.float32)
    goal = dense * spread
    size = float(np.abs(goal).max(initial=0)) or 1.0  # in units of it no square overflows
    goal = (goal / size).astype(np.float32)
    right, errors, solutions = scaled @ goal, [0.0], {}
    for level in LEVELS[1:]:
        kept = largest(round((1 - level) * np.count_nonzero(goal)))(np.abs(goal))
        solution = refit(scaled, right, kept, goal, STEPS)
        lost = solution - goal
        errors.append(max(float((lost * (scaled @ lost)).sum(dtype=np.float64)) * size**2, errors[-1]))
        if level in MEASURED:
            solutions[level] = solution.astype(np.float64) * size / spread
    return np.array(errors), solutions


def bent(shape: FloatArray, measured: Mapping[int, float]) -> FloatArray:
    """Return a growing curve of another's shape that goes through measured points.

    Parameters
    ----------
    shape : ndarray, shape (n,)
        A growing curve that starts at 0.
    measured : mapping of int to float
        By place on the curve what was measured there.
    """
    places = [place for place in sorted(measured) if shape[place] > 0 and measured[place] > 0]
    if not places:
        return shape
    ratios = [np.log(measured[place] / shape[place]) for place in places]
    # Between the points the ratio follows the logarithm of the curve itself.
    at = np.log(np.maximum(shape, np.finfo(np.float64).tiny))
    factors = np.exp(np.interp(at, at[places], ratios))
    return np.maximum.accumulate(shape * factors)


def hull(errors: FloatArray | Sequence[float], places: FloatArray | Sequence[float]) -> list[int]:
    """Return the indices of the corners of a curve's lower convex hull."""
    corners: list[int] = []
    for index in range(len(errors)):
        while len(corners) > 1:
            first, second = corners[-2:]
            rise = (errors[second] - errors[first]) * (places[index] - places[second])
            if rise < (errors[index] - errors[second]) * (places[second] - places[first]):
                break
            corners.pop()
        corners.append(index)
    return corners
