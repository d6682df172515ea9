"""How far to trust second moments of few rows when weights are zeroed, and what to take for the rest.

Where calibration data says too little, a layer's inputs are taken to vary as its weights do. Training adds inputs to
weights, step by step, so that the weights of each output lie where its inputs lie (Radhakrishnan et al. 2024, the
neural feature ansatz; in a classifier, along the mean features of each class: Papyan, Han and Donoho 2020, neural
collapse). So the weights tell of the inputs of all training data, such as the classes that no calibration sample has.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import numpy as np
import numpy.typing as npt

from graphprune.passes.patterns import Choice
from graphprune.passes.ridge import CAUTION, LEAST, Centred, SecondMoments, centred
from graphprune.passes.sparse import sparse

FloatArray = npt.NDArray[np.float64]

LEVELS = (1e-3, 1e-2, 1e-1, 3e-1, 1.0, 3.0)
"""What may be added to the second moments, in parts of the mean of their diagonal."""
ALONG = 0.8
"""Share of it that lies along the weights; the rest is the same in all directions."""
STEPS = 20
"""Steps of the solver at each of them: as many again take as long again, and another is hardly ever the best."""
PLENTY = 16
"""Rows for every column of the matrix from which on the choice hardly matters."""
LITTLE = 1e-2


def damping(parts: Sequence[SecondMoments], dense: FloatArray, choose: Choice, *, biased: bool = True) -> float:
    """Return how much to add (`damped`), found by how well other data takes what one part of it leads to.

    Parameters
    ----------
    parts : sequence of SecondMoments
        The last judges the others.
    dense : ndarray, shape (groups, width, outputs)
        The weight to be made sparse.
    choose : callable
    biased : bool, default True
        Whether the layer has a bias.
    """
    if sum(part.count for part in parts) >= PLENTY * dense.shape[1]:
        return LITTLE
    if len(parts) == 1:
        return CAUTION
    fitted, judge = centred(reduce(add, parts[:-1]), biased=biased), centred(parts[-1], biased=biased)
    errors = []
    for level in LEVELS:
        # Which entries stay matters less here than how they are solved for: the quickest method will do.
        lost = sparse(damped(fitted, level, dense), dense, choose, "wanda", STEPS) - dense
        drift = (fitted.mean - judge.mean)[:, None] @ lost
        errors.append(float((lost * (judge.covariance @ lost)).sum() + (drift**2).sum()))
    return LEVELS[int(np.argmin(errors))]


def damped(rows: Centred, level: float, dense: FloatArray) -> FloatArray:
    """Return the covariance of rows, with what stands for the inputs that they lack: positive definite.

    Parameters
    ----------
    rows : Centred
    level : float
        What is added, in parts of the mean variance.
    dense : ndarray, shape (groups, width, outputs)
        The weight that the rows are multiplied by.

    Returns
    -------
    ndarray, shape (groups, width, width)
    """
    width = max(dense.shape[1], 1)
    variance = np.trace(rows.covariance, axis1=1, axis2=2)[:, None, None] / width
    weights = dense @ dense.swapaxes(1, 2)
    energy = np.trace(weights, axis1=1, axis2=2)[:, None, None] / width
    even = np.broadcast_to(np.eye(width), weights.shape)
    along = np.divide(weights, energy, out=even.copy(), where=energy > 0)
    return np.asarray(rows.covariance + level * variance * (ALONG * along + (1 - ALONG) * even) + LEAST * even)
