"""Predict what removing units costs, by structured optimal brain surgeon (Hassibi & Stork 1993, in blocks).

A layer that reads units computes x W from rows x with second moments G. Without the columns S of x that belong to a
unit, and with the rest of W solved anew, the squared error grows by tr W_S^T (inverse(G)_SS)^-1 W_S; W and inverse(G)
of what is left follow by block elimination. Greedily the unit that costs least goes next.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


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
    left = list(range(len(steps)))
    order, costs, matrices = [], [], {}
    while len(left) > 1:
        prices = np.sum([state.prices() for state in states], axis=0) if states else np.zeros(len(steps))
        best = left[0] if ordered else min(left, key=lambda index: float(prices[index]))
        order.append(best)
        costs.append(max(float(prices[best]), 0.0))
        left.remove(best)
        for state in states:
            state.remove(best)
        if len(order) in looks:
            matrices[len(order)] = [state.matrix.copy() for state in states]
    return Elimination([*order, *left], np.array(costs), matrices)


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
    """A problem in the course of elimination."""

    def __init__(self, problem: Problem, steps: Sequence[IntArray]) -> None:
        self.importance = problem.importance
        self.inverse = np.linalg.inv(problem.gram)
        self.matrix = problem.matrix.copy()
        none = np.zeros(0, dtype=np.int64)
        self.columns = [np.concatenate([none, *(problem.columns.get(int(u), none) for u in step)]) for step in steps]
        self.gone = np.zeros(len(steps), dtype=np.bool_)
        self.width = {len(columns) for columns in self.columns}

    def prices(self) -> FloatArray:
        """What every step costs now; 0 for those that are gone."""
        found = np.zeros(len(self.columns))
        for width in self.width - {0}:  # all steps of as many columns at once
            indices = [i for i, columns in enumerate(self.columns) if len(columns) == width and not self.gone[i]]
            if not indices:
                continue
            columns = np.stack([self.columns[i] for i in indices])
            if width == 1:
                energy = np.einsum("io,io->i", self.matrix, self.matrix)[columns[:, 0]]
                found[indices] = energy / np.diagonal(self.inverse)[columns[:, 0]]
            else:
                blocks = self.inverse[columns[:, :, None], columns[:, None]]
                weights = self.matrix[columns]
                found[indices] = (weights * np.linalg.solve(blocks, weights)).sum(axis=(1, 2))
        return found * self.importance

    def remove(self, step: int) -> None:
        """Take a step's columns out."""
        self.gone[step] = True
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
        self.inverse[columns, columns] = 1
