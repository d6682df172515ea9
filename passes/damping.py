"""How far to trust second moments of few rows when weights are zeroed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import numpy as np
import numpy.typing as npt

from graphprune.passes.patterns import Choice
from graphprune.passes.ridge import CAUTION, SecondMoments, centred
from graphprune.passes.sparse import sparse

FloatArray = npt.NDArray[np.float64]

LEVELS = (1e-3, 1e-2, 1e-1, 1.0)
"""What may be added to the diagonal of the second moments, in parts of its mean."""
PLENTY = 16
"""Rows for every column of the matrix from which on the choice hardly matters."""
LITTLE = 1e-2


def damping(parts: Sequence[SecondMoments], dense: FloatArray, choose: Choice, *, biased: bool = True) -> float:
    """Return what to add to the diagonal, found by how well other data takes what one part of it leads to.

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
        lost = sparse(fitted.damped(level), dense, choose, "wanda") - dense
        drift = (fitted.mean - judge.mean)[:, None] @ lost
        errors.append(float((lost * (judge.covariance @ lost)).sum() + (drift**2).sum()))
    return LEVELS[int(np.argmin(errors))]
