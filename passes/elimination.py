"""Predict what removing units costs, by structured optimal brain surgeon (Hassibi & Stork 1993, in blocks).

A layer that reads units computes x W from rows x with second moments G. Without the columns S of x that belong to a
unit, and with the rest of W solved anew, the squared error grows by tr W_S^T (inverse(G)_SS)^-1 W_S; W and inverse(G)
of what is left follow by block elimination. Greedily the unit that costs least goes next; where the model is looked
at, units that are gone and units that are left change places as long as that costs less.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

SWAPS = 16
"""The most that change places at a look."""
CANDIDATES = 4
"""Steps that are tried to be put back for a swap: those that win back most."""
WORTH = 1e-3
"""Part of what putting a step back wins that a swap must save."""


@dataclass(frozen=True)
class Problem:
    """A layer that reads units.

    Attributes
    ----------
    gram : ndarray, shape (width, width)
        Second moments of its rows, positive definite.
    matrix : ndarray, shape (width, outputs)
        Its weight.
    columns : dict of int to ndarray of int
        By unit, which columns of the rows are its own.
    importance : float
        Error of the model's outputs for every unit of squared error of the layer's.
    """

    gram: FloatArray
    matrix: FloatArray
    columns: dict[int, IntArray]
    importance: float


@dataclass(frozen=True)
class Elimination:
    """What removing step by step came to.

    Attributes
    ----------
    order : list of int
        Indices of the steps as they go, the one that stays last.
    costs : ndarray of float64, shape (len(order) - 1,)
        What each costs when those before it have gone.
    matrices : dict of int to list of ndarray
        By the number of steps gone, for every problem what its matrix is solved to then; rows that are gone are 0.
    """

    order: list[int]
    costs: FloatArray
    matrices: dict[int, list[FloatArray]]


def eliminate(
    problems: Sequence[Problem], steps: Sequence[IntArray], *, ordered: bool = False, looks: Collection[int] = ()
) -> Elimination:
    """Remove units step by step, all but one step.

    Parameters
    ----------
    problems : sequence of Problem
        The layers that read the units.
    steps : sequence of ndarray of int
        Units that go at once.
    ordered : bool, default False
        Whether to go through the steps in the order given, instead of taking the cheapest first.
    looks : collection of int, default ()
        After how many steps to note what the matrices are.

    Returns
    -------
    Elimination
    """
    states = [_State(problem, steps) for problem in problems]
    order, costs, matrices = list[int](), list[float](), {}
    left = list(range(len(steps)))
    for stop in sorted({look for look in looks if look < len(steps)} | {max(len(steps) - 1, 0)}):
        count = stop - len(order)
        if ordered or stop not in looks:
            gone, prices = _descend(states, left, count, ordered=ordered)
        else:
            start = deepcopy(states)
            gone, prices = _descend(states, left, count)
            better = _swap(states, gone, [index for index in left if index not in gone])
            if set(better) != set(gone):
                states = start
                gone, prices = _descend(states, better, count)
        order, costs, left = order + gone, costs + prices, [index for index in left if index not in gone]
        if stop in looks:
            matrices[stop] = [state.matrix.copy() for state in states]
    return Elimination([*order, *left], np.array(costs), matrices)


def _descend(
    states: Sequence[_State], among: Sequence[int], count: int, *, ordered: bool = False
) -> tuple[list[int], list[float]]:
    """Remove steps one by one, the cheapest first unless ordered; return them with what each costs."""
    left, gone, costs = list(among), list[int](), list[float]()
    while len(gone) < count:
        prices = _prices(states, left)
        place = 0 if ordered else int(np.argmin(prices))
        gone.append(left.pop(place))
        costs.append(max(float(prices[place]), 0.0))
        for state in states:
            state.remove(gone[-1])
    return gone, costs


def _swap(states: Sequence[_State], gone: Sequence[int], left: Sequence[int]) -> list[int]:
    """Let steps that are gone and steps that are left change places as long as it pays; return what is gone then."""
    gone, left = list(gone), list(left)
    for _ in range(SWAPS):
        gains = np.sum([state.gains(gone) for state in states], axis=0) if states else np.zeros(len(gone))
        for place in np.argsort(-gains)[:CANDIDATES]:
            back = gone[place]
            for state in states:
                state.restore(back)
            prices = _prices(states, left)
            other = int(np.argmin(prices)) if left else 0
            pays = bool(left) and float(prices[other]) < (1 - WORTH) * float(gains[place])
            if pays:
                gone[place], left[other] = left[other], back
            for state in states:
                state.remove(gone[place])
            if pays:
                break
        else:
            break
    return gone


def _prices(states: Sequence[_State], steps: Sequence[int]) -> FloatArray:
    return np.sum([state.prices(steps) for state in states], axis=0) if states else np.zeros(len(steps))


def cost_of(problem: Problem, units: IntArray) -> float:
    """Return what removing units all at once costs one layer."""
    none = np.zeros(0, dtype=np.int64)
    columns = np.concatenate([none, *(problem.columns.get(int(unit), none) for unit in units)])
    weights = problem.matrix[columns]
    if not len(columns):
        return 0.0
    chosen = np.eye(len(problem.gram))[:, columns]
    block = np.linalg.solve(problem.gram, chosen)[columns]  # of the inverse
    return problem.importance * float((weights * np.linalg.solve(block, weights)).sum())


class _State:
    """A problem in the course of elimination; rows and columns of the inverse that are gone are 0."""

    def __init__(self, problem: Problem, steps: Sequence[IntArray]) -> None:
        self.problem = problem
        self.inverse = np.linalg.inv(problem.gram)
        self.matrix = problem.matrix.copy()
        none = np.zeros(0, dtype=np.int64)
        self.columns = [np.concatenate([none, *(problem.columns.get(int(u), none) for u in step)]) for step in steps]

    def __deepcopy__(self, memo: object) -> _State:
        other = copy(self)
        other.inverse, other.matrix = self.inverse.copy(), self.matrix.copy()
        return other

    def prices(self, steps: Sequence[int]) -> FloatArray:
        """What removing each of some steps that are left would cost."""
        found = np.zeros(len(steps))
        for width, places in self._by_width(steps):  # all steps of as many columns at once
            columns = np.stack([self.columns[steps[place]] for place in places])
            if width == 1:
                energy = np.einsum("io,io->i", self.matrix, self.matrix)[columns[:, 0]]
                found[places] = energy / np.diagonal(self.inverse)[columns[:, 0]]
            else:
                blocks = self.inverse[columns[:, :, None], columns[:, None]]
                weights = self.matrix[columns]
                found[places] = (weights * np.linalg.solve(blocks, weights)).sum(axis=(1, 2))
        return found * self.problem.importance

    def gains(self, steps: Sequence[int]) -> FloatArray:
        """What putting each of some steps that are gone back would win."""
        gram, found = self.problem.gram, np.zeros(len(steps))
        missed = gram @ (self.problem.matrix - self.matrix)
        for width, places in self._by_width(steps):
            columns = np.stack([self.columns[steps[place]] for place in places])
            across = (self.inverse @ gram[:, columns.ravel()]).reshape(-1, len(places), width)
            explained = np.einsum("spk,kst->spt", gram[columns], across, optimize=True)
            blocks = gram[columns[:, :, None], columns[:, None]] - explained
            weights = missed[columns]
            found[places] = (weights * np.linalg.solve(blocks, weights)).sum(axis=(1, 2))
        return found * self.problem.importance

    def _by_width(self, steps: Sequence[int]) -> list[tuple[int, list[int]]]:
        """Places of steps by the number of columns that they have here; those with none are left out."""
        widths = [len(self.columns[step]) for step in steps]
        return [(width, [i for i, other in enumerate(widths) if other == width]) for width in {*widths} - {0}]

    def remove(self, step: int) -> None:
        """Take a step's columns out."""
        columns = self.columns[step]
        if len(columns) == 0:
            return
        across = self.inverse[:, columns]
        solved = np.linalg.solve(across[columns], np.concatenate([self.matrix[columns], across.T], axis=1))
        outputs = self.matrix.shape[1]
        self.matrix -= across @ solved[:, :outputs]
        self.inverse -= across @ solved[:, outputs:]
        self.matrix[columns] = 0
        self.inverse[columns] = 0
        self.inverse[:, columns] = 0

    def restore(self, step: int) -> None:
        """Put a step's columns back: the inverse of a matrix with a border."""
        columns, gram = self.columns[step], self.problem.gram
        if len(columns) == 0:
            return
        across = self.inverse @ gram[:, columns]
        block = np.linalg.inv(gram[np.ix_(columns, columns)] - gram[columns] @ across)
        back = block @ (gram[columns] @ (self.problem.matrix - self.matrix))
        self.matrix -= across @ back
        self.matrix[columns] = back
        self.inverse += across @ block @ across.T
        self.inverse[:, columns] = -across @ block
        self.inverse[columns] = self.inverse[:, columns].T
        self.inverse[np.ix_(columns, columns)] = block
