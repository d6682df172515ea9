"""Legal choices: which units may go together, and in which order.

A choice is legal when every part of a balance keeps the same number of positions and every axis of every tensor keeps
at least one. Units outside any balance go one by one; units in a balance go in rounds, one from each part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphprune.ir.coupling.atoms import Reason, support
from graphprune.ir.coupling.units import FROZEN, BoolArray, Coupling
from graphprune.passes.balance import rounds
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
    costs : tuple of float
        Predicted squared error of the outputs that each step but the last adds when those before it have gone, relative
        to the outputs' variance; empty where nothing was predicted.
    gone : int
        Steps that were taken in earlier rounds of pruning.
    """

    steps: tuple[Step, ...]
    groups: tuple[int, ...]
    criterion: str
    costs: tuple[float, ...] = ()
    gone: int = 0

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
        Units in more balances than can be solved are in none.
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
    loose = np.ones(coupling.units, dtype=np.bool_)
    for balances in _clusters(coupling):
        units = np.unique(np.concatenate([parts.ravel() for parts in balances]))
        units = units[units != FROZEN]
        loose[units] = False
        found = rounds(balances, _in_order(units, scores)) or []
        groups = tuple(np.unique(group_of[units]).tolist())
        result.append(Queue(tuple(step(together) for together in found), groups, scores.criteria[groups[0]]))
    for index, group in enumerate(coupling.groups):
        order = _in_order(group.units[loose[group.units]], scores)
        if len(order):
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
    gone = np.zeros(coupling.units + 1, dtype=np.bool_)  # FROZEN indexes the last entry
    for step in steps:
        gone[step.units] = True
    for arrays in coupling.ids.values():
        while _starved(arrays, gone):
            # The step taken last that feeds the axis is the one that matters most.
            units = np.concatenate([ids.ravel() for ids in arrays])
            back = next(step for step in reversed(steps) if gone[step.units[0]] and np.isin(step.units, units).any())
            gone[back.units] = False
    return gone[:-1]


def _starved(arrays: Sequence[IntArray], gone: BoolArray) -> bool:
    """Whether nothing is left of an axis of a tensor; arrays over the same axes count together."""
    lost: dict[tuple[int, ...], BoolArray] = {}
    for ids in arrays:
        axes = support(ids)
        lost[axes] = lost[axes] | gone[ids] if axes in lost else gone[ids]
    return any(bool(array.all()) for array in lost.values())


def _clusters(coupling: Coupling) -> list[list[IntArray]]:
    """Balances that share units."""
    clusters: list[tuple[set[int], list[IntArray]]] = []
    for parts in coupling.balances:
        if len(np.unique(np.sort(parts, axis=1), axis=0)) == 1:
            continue  # of the same units, each as often: equal by themselves
        units, balances = set(parts[parts != FROZEN].tolist()), [parts]
        for cluster in [cluster for cluster in clusters if cluster[0] & units]:
            clusters.remove(cluster)
            units |= cluster[0]
            balances = [*cluster[1], *balances]
        if units:
            clusters.append((units, balances))
    return [balances for _, balances in clusters]


def _in_order(units: IntArray, scores: Scores) -> IntArray:
    """Dead units first, whose removal costs nothing, then the highest scores."""
    return units[np.lexsort((-scores.values[units], ~scores.dead[units]))]
