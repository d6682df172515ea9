"""Choose which weights of a layer to zero, and what the others become, so that its outputs change least.

For rows x with second moments G and a dense weight W the cost of another weight V is tr (V - W)^T G (V - W). All
methods work on rows scaled to unit energy, choose which entries of V stay, and solve for these exactly (`refit`):

- ``magnitude``: the largest weights stay (Han et al. 2015);
- ``wanda``: the largest weights times the energy of what they multiply (Sun et al. 2023);
- ``obs``: the weights w stay whose removal would cost most, w^2 / inverse(G)_kk (optimal brain surgeon, Hassibi & Stork
  1993), decided for a few rows of V after the other, while the rows behind make up for what is gone (SparseGPT, Frantar
  & Alistarh 2023);
- ``admm``: least squares and the choice of the largest entries take turns, tied more and more firmly together (Boyd et
  al. 2011, section 9.1; ALPS, Meng et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from graphprune.passes.patterns import Choice

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

ROUNDS = 80
PENALTY, LAST_PENALTY = 0.01, 20.0
"""What ties the two solutions together at first and at last, in parts of a row's energy; it grows evenly."""
WORK = 2e11
"""Multiply-adds that a solver may take, so that layers of thousands of inputs take a minute and not an hour."""
FEWEST = 12
"""Rounds or steps that it takes however large the layer is."""
SETTLED = 20
"""Rounds after which a choice that no longer changes is taken."""
BLOCK = 128
"""Rows of a weight that ``obs`` decides about at once."""
LEAST_VALUE = 1e-6
WIDEST = 2048
"""Wider layers, whose eigenvectors take too long, are sparsified by ``wanda`` instead of ``admm``."""
TOLERANCE = 1e-9
STEPS = 60


def sparse(gram: FloatArray, dense: FloatArray, choose: Choice, method: str = "admm", steps: int = STEPS) -> FloatArray:
    """Return the sparse weight that is closest to a dense one in what it computes.

    Parameters
    ----------
    gram : ndarray, shape (groups, width, width)
        Second moments of the rows, positive definite.
    dense : ndarray, shape (groups, width, outputs)
    choose : callable
        Which entries of an array of magnitudes of that shape may stay; see `graphprune.passes.patterns`.
    method : str, default "admm"
        A key of `METHODS`.
    steps : int, default 60
        The most steps of `refit`.

    Returns
    -------
    ndarray, shape (groups, width, outputs)
    """
    spread = np.sqrt(np.einsum("gkk->gk", gram))
    scaled = gram / (spread[:, :, None] * spread[:, None])
    goal = dense * spread[:, :, None]
    kept = choose(np.abs(dense)) if method == "magnitude" else METHODS[method](scaled, goal, choose)
    return np.asarray(refit(scaled, scaled @ goal, kept, goal, steps) / spread[:, :, None])


def _wanda(gram: FloatArray, goal: FloatArray, choose: Choice) -> BoolArray:
    return choose(np.abs(goal))


def _obs(gram: FloatArray, goal: FloatArray, choose: Choice) -> BoolArray:
    # Row k of the triangle, over its diagonal entry, says how the rows behind make up for a change of row k, with
    # those before it settled; the square of the entry is what inverse(G)_kk is by then.
    triangle = np.linalg.cholesky(np.linalg.inv(gram)).swapaxes(1, 2)
    spread = np.einsum("gkk->gk", triangle)[:, :, None]
    left, score = goal.copy(), np.zeros_like(goal)
    for start in range(0, goal.shape[1], BLOCK):
        stop = min(start + BLOCK, goal.shape[1])
        score[:, start:] = np.abs(left[:, start:]) / spread[:, start:]
        goes = ~choose(score)
        errors = np.zeros_like(left[:, start:stop])
        for k in range(start, stop):
            errors[:, k - start] = goes[:, k] * left[:, k] / spread[:, k]
            left[:, k:stop] -= triangle[:, k, k:stop, None] * errors[:, None, k - start]
        left[:, stop:] -= triangle[:, start:stop, stop:].swapaxes(1, 2) @ errors
    return choose(score)


def _admm(gram: FloatArray, goal: FloatArray, choose: Choice) -> BoolArray:
    if goal.shape[1] > WIDEST:
        return _wanda(gram, goal, choose)
    # In single precision, which is twice as fast: only which weights stay is decided here.
    values, vectors = (part.astype(np.float32) for part in np.linalg.eigh(gram))
    goal = goal.astype(np.float32)
    values, back = np.maximum(values, LEAST_VALUE)[:, :, None], vectors.swapaxes(1, 2)
    pull = values * (back @ goal)
    kept = choose(np.abs(goal))
    chosen, dual, penalty = goal * kept, np.zeros_like(goal), PENALTY
    rounds = affordable(ROUNDS, 2 * values.shape[1] * goal.size)
    growth = (LAST_PENALTY / PENALTY) ** (1 / rounds)
    for number in range(rounds):
        fitted = vectors @ ((pull + np.float32(penalty) * (back @ (chosen - dual))) / (values + np.float32(penalty)))
        tied = fitted + dual
        before, kept = kept, choose(np.abs(tied))
        chosen = tied * kept
        dual = tied - chosen
        penalty *= growth
        if number > SETTLED and penalty > 1 and np.array_equal(before, kept):
            break
    return kept


METHODS: dict[str, Callable[[FloatArray, FloatArray, Choice], BoolArray]] = {
    "admm": _admm,
    "magnitude": _wanda,  # on rows that were not scaled
    "obs": _obs,
    "wanda": _wanda,
}


def refit(gram: FloatArray, right: FloatArray, kept: BoolArray, start: FloatArray, steps: int = STEPS) -> FloatArray:
    """Solve for the weights that stay: minimise tr V^T G V / 2 - tr V^T right over V that is 0 elsewhere.

    All columns at once, by conjugate gradients with the diagonal of G as preconditioner.

    Parameters
    ----------
    gram : ndarray, shape (groups, width, width)
    right, start : ndarray, shape (groups, width, outputs)
    kept : ndarray of bool, shape (groups, width, outputs)
    steps : int, default 60
        The most steps; fewer in a very large layer.
    """
    diagonal = np.einsum("gkk->gk", gram)[:, :, None]
    solution = start * kept
    left = (right - gram @ solution) * kept
    step = left / diagonal
    energy = (left * step).sum(axis=1, keepdims=True)
    first = float(energy.sum())
    for _ in range(affordable(steps, gram.shape[1] * start.size)):
        pushed = (gram @ step) * kept
        length = _ratio(energy, (step * pushed).sum(axis=1, keepdims=True))
        solution = solution + length * step
        left = left - length * pushed
        preconditioned = left / diagonal
        now = (left * preconditioned).sum(axis=1, keepdims=True)
        if float(now.sum()) <= TOLERANCE * first:
            break
        step = preconditioned + _ratio(now, energy) * step
        energy = now
    return np.asarray(solution)


def affordable(wanted: int, work: int) -> int:
    """Return how many rounds, of so many multiply-adds each, a solver may take."""
    return min(wanted, max(int(WORK / max(work, 1)), FEWEST))


def _ratio(one: FloatArray, other: FloatArray) -> FloatArray:
    return np.asarray(np.divide(one, other, out=np.zeros_like(one), where=other > 0))
