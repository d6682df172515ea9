"""Legal choices: which units may go together, and in which order.

A choice is legal when every part of a balance keeps the same number of positions and every axis of every tensor keeps
at least one. Units outside any balance go one by one; units in a balance go in rounds, one from each part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphprune.ir.atoms import Reason
from graphprune.ir.units import FROZEN, BoolArray, Coupling
from graphprune.passes.criteria import Scores, normalised

IntArray = npt.NDArray[np.int64]

CROSSING = Reason("", "", "parts that must keep equal counts cut across each other")
"""Why the units of an empty queue are left alone."""


@dataclass(frozen=True)
class Step:
    """Units that go at once.

    Attributes
    ----------
    units : ndarray of int
    score : float
        Mean score, comparable within the queue.
    rank : float
        Mean score in standard deviations above the mean of the group, comparable between queues; infinite where all
        of the units are dead.
    group : int
        Index of the group that the first of the units belongs to.
    """

    units: IntArray
    score: float
    rank: float
    group: int


@dataclass(frozen=True)
class Queue:
    """The units of one group, or of groups that are balanced against each other, in the order in which they go.

    Attributes
    ----------
    steps : tuple of Step
        Dead units first, then the highest scores.
    groups : tuple of int
        Indices of the groups that they belong to.
    criterion : str
    """

    steps: tuple[Step, ...]
    groups: tuple[int, ...]
    criterion: str

    @property
    def most(self) -> int:
        """How many steps can be taken: one has to stay."""
        return max(len(self.steps) - 1, 0)


def queues(coupling: Coupling, scores: Scores) -> list[Queue]:
    """Return all units that may go, as queues.

    Parameters
    ----------
    coupling : Coupling
    scores : Scores

    Returns
    -------
    list of Queue
        A group whose units are in balances that cut across each other has none.
    """
    group_of = np.full(coupling.units, -1, dtype=np.int64)
    ranks = np.zeros(coupling.units)
    for index, group in enumerate(coupling.groups):
        group_of[group.units] = index
        ranks[group.units] = normalised(group, scores)

    def step(units: IntArray) -> Step:
        rank = np.inf if scores.dead[units].all() else ranks[units].mean()
        return Step(units, float(scores.values[units].mean()), float(rank), int(group_of[units[0]]))

    result = []
    balanced = _clusters(coupling, group_of)
    for groups, parts in balanced:
        rounds = _rounds(parts, scores) if parts is not None else []
        criterion = scores.criteria[groups[0]]
        result.append(Queue(tuple(step(units) for units in rounds), groups, criterion))
    taken = {group for groups, _ in balanced for group in groups}
    for index, group in enumerate(coupling.groups):
        if index not in taken:
            order = _in_order(group.units, scores)
            steps = tuple(step(order[place : place + 1]) for place in range(len(order)))
            result.append(Queue(steps, (index,), scores.criteria[index]))
    return result


def take(coupling: Coupling, steps: Sequence[Step]) -> BoolArray:
    """Return the removal that these steps make, less what would leave an axis without a position.

    Parameters
    ----------
    coupling : Coupling
    steps : sequence of Step
        In falling order of what should go.

    Returns
    -------
    ndarray of bool, shape (units,)
    """
    removed = np.zeros(coupling.units, dtype=np.bool_)
    for step in steps:
        removed[step.units] = True
    for ids in (ids for arrays in coupling.ids.values() for ids in arrays):
        starved = _starved(ids, removed)
        while starved is not None:
            # The step taken last that feeds the axis is the one that matters most.
            back = next(step for step in reversed(steps) if np.isin(step.units, starved).any())
            removed[back.units] = False
            starved = _starved(ids, removed)
    return removed


def _starved(ids: IntArray, removed: BoolArray) -> IntArray | None:
    gone = np.append(removed, False)[ids]
    return ids.ravel() if bool(gone.all()) else None


def _clusters(coupling: Coupling, group_of: IntArray) -> list[tuple[tuple[int, ...], list[IntArray] | None]]:
    """Groups tied by balances, with the parts of the one balance that they are in; None for several."""
    clusters: list[tuple[set[int], list[list[IntArray]]]] = []
    for parts in coupling.balances:
        free = parts[parts != FROZEN]
        groups = set(group_of[free].tolist())
        rows = [row[row != FROZEN] for row in parts]
        same = [cluster for cluster in clusters if cluster[0] & groups]
        balances = [rows, *(balance for cluster in same for balance in cluster[1])]
        clusters = [cluster for cluster in clusters if cluster not in same]
        clusters.append((groups.union(*(cluster[0] for cluster in same)), balances))
    result: list[tuple[tuple[int, ...], list[IntArray] | None]] = []
    for groups, balances in clusters:
        if groups:
            single = all(_same_parts(balances[0], other) for other in balances[1:]) and _disjoint(balances[0])
            result.append((tuple(sorted(groups)), balances[0] if single else None))
    return result


def _same_parts(left: list[IntArray], right: list[IntArray]) -> bool:
    return {tuple(sorted(part)) for part in left} == {tuple(sorted(part)) for part in right}


def _disjoint(parts: list[IntArray]) -> bool:
    units = np.concatenate(parts)
    return len(np.unique(units)) == len(units)


def _rounds(parts: list[IntArray], scores: Scores) -> list[IntArray]:
    """One unit of each part a round; as many rounds as the smallest part has units."""
    ordered = [_in_order(part, scores) for part in parts]
    count = min(len(part) for part in ordered)
    return [np.array([part[place] for part in ordered], dtype=np.int64) for place in range(count)]


def _in_order(units: IntArray, scores: Scores) -> IntArray:
    """Dead units first, whose removal costs nothing, then the highest scores."""
    return units[np.lexsort((-scores.values[units], ~scores.dead[units]))]
