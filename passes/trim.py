"""Remove units: choose by APoZ, by a fraction of every group, or until enough weights are gone.

The default is Network Trimming's rule (Hu et al. 2016, section 3.2): the units whose APoZ is more than one standard
deviation above the mean of their group go, dead ones first of all.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from graphprune.errors import TargetError
from graphprune.ir.cost import weights_left
from graphprune.ir.coupling.units import BoolArray, Coupling
from graphprune.passes.choice import Queue, Step, queues, take
from graphprune.passes.criteria import Scores

SHARES = (1.0, 0.5, 0.25, 0.125)
"""What part of the rule's units to try, largest first."""
SLACK = 0.005
"""How much worse than with zeros alone the outputs may be: about one answer of the 256 that are asked."""


def by_fraction(coupling: Coupling, queues: Sequence[Queue], fraction: float, align: int = 1) -> BoolArray:
    """Choose a fraction of every group's units, in the order in which they go.

    Parameters
    ----------
    coupling : Coupling
    queues : sequence of Queue
    fraction : float
        In [0, 1), of what was there before the first round of pruning; rounded down to whole units, and one unit of
        every group stays.
    align : int, default 1
        As for `aligned`.

    Returns
    -------
    ndarray of bool, shape (units,)
        What goes.
    """
    steps: list[Step] = []
    for queue in queues:
        # The small constant keeps 0.3 of 10 units from being 2.
        count = int(np.floor(fraction * (len(queue.steps) + queue.gone) + 1e-9)) - queue.gone
        steps.extend(queue.steps[: max(min(count, queue.most), 0)])
    return take(coupling, aligned(coupling, _in_order(steps), align))


def by_threshold(coupling: Coupling, scores: Scores) -> list[Step]:
    """Choose dead units, and units whose APoZ is more than one standard deviation above their group's mean.

    Parameters
    ----------
    coupling : Coupling
    scores : Scores
        Units scored by another criterion than ``apoz`` are left alone unless they are dead.

    Returns
    -------
    list of Step
        The furthest above first, so that any prefix is a choice too; dead units before all.
    """
    steps = []
    for queue in queues(coupling, scores):
        for step in queue.steps[: queue.most]:
            dead = step.rank == float("inf")
            if dead or (queue.criterion == "apoz" and step.rank > 1):
                steps.append(step)
    return _in_order(steps)


def by_trial(coupling: Coupling, steps: list[Step], trial: Callable[[BoolArray], float], align: int = 1) -> BoolArray:
    """Choose as much of a removal as the outputs bear.

    Parameters
    ----------
    coupling : Coupling
    steps : list of Step
        From `by_threshold`.
    trial : callable
        Gives how much worse the outputs become by a removal, 0 for not at all.
    align : int, default 1
        As for `aligned`.

    Returns
    -------
    ndarray of bool, shape (units,)
        The largest of `SHARES` of the steps with which the outputs are no worse, but for `SLACK`, than with the dead
        units alone removed.
    """
    dead = sum(step.rank == float("inf") for step in steps)
    least = take(coupling, aligned(coupling, steps[:dead], align))
    if len(steps) == dead:
        return least
    limit = trial(least) + SLACK
    for share in SHARES:
        count = dead + round(share * (len(steps) - dead))
        removed = take(coupling, aligned(coupling, steps[:count], align))
        if trial(removed) <= limit:
            return removed
    return least


def aligned(coupling: Coupling, steps: Sequence[Step], align: int) -> list[Step]:
    """Leave out the last steps of every group of convolution channels, until what it keeps is a multiple of a number.

    Parameters
    ----------
    coupling : Coupling
    steps : sequence of Step
        In the order in which they go.
    align : int
        What kept channels of convolutions should be a multiple of (`graphprune.ir.kernels`); where no removal leaves
        one, none of the group go.
    """
    if align == 1:
        return list(steps)
    own: dict[int, int] = {}  # units of its group that a step takes
    taken = Counter(step.group for step in steps)
    for step in steps:
        own.setdefault(step.group, int(np.isin(step.units, coupling.groups[step.group].units).sum()))
    for index, count in taken.items():
        group = coupling.groups[index]
        if any(len(coupling.graph.initializers[name].dims) > 2 for name, _ in group.axes):
            fits = (n for n in range(count, 0, -1) if (len(group.units) - n * own[index]) % align == 0)
            taken[index] = next(fits, 0)
    chosen = []
    for step in steps:
        if taken[step.group] > 0:
            taken[step.group] -= 1
            chosen.append(step)
    return chosen


def by_rank(queues: Sequence[Queue]) -> list[Step]:
    """Return all steps that may go, the furthest above their group's mean first."""
    return _in_order([step for queue in queues for step in queue.steps[: queue.most]])


def by_weights(
    coupling: Coupling,
    steps: Sequence[Step],
    most_left: int,
    *,
    weights_outside: int,
    weights_before: int,
    align: int = 1,
) -> BoolArray:
    """Choose the first steps, until few enough weights are left.

    Parameters
    ----------
    coupling : Coupling
    steps : sequence of Step
        In the order in which they go: from `by_rank`, or by what they are predicted to cost
        (`graphprune.passes.allocation.in_order`).
    most_left : int
        How many weights may be left.
    weights_outside : int
        Weights of the model that are not initializers of the main graph; they stay.
    weights_before : int
        Weights of the original, for the error message.
    align : int, default 1
        As for `aligned`.

    Returns
    -------
    ndarray of bool, shape (units,)
        The shortest prefix of the steps that satisfies it.

    Raises
    ------
    TargetError
        When removing all that may go is not enough.
    """

    def left(removed: BoolArray) -> int:
        return weights_left(coupling, removed) + weights_outside

    removed = until(coupling, steps, lambda removed: left(removed) <= most_left, align)
    if (least := left(removed)) > most_left:
        reachable = 1 - least / weights_before
        raise TargetError(
            f"removing units alone leaves {least:,} of {weights_before:,} weights, and at most {most_left:,} may be "
            "left",
            reachable=reachable,
            hint=f"the most that removal alone reaches is --target {_floor(reachable)}; lower --target, "
            + ("give --align off, " if align > 1 and steps else "")
            + "or let --structural leave a larger part of it to zeros; graphprune inspect tells why units stay",
        )
    return removed


def until(coupling: Coupling, steps: Sequence[Step], enough: Callable[[BoolArray], bool], align: int = 1) -> BoolArray:
    """Return the removal that the shortest prefix of some steps makes with which it is enough; all, where none is.

    Parameters
    ----------
    coupling : Coupling
    steps : sequence of Step
        In the order in which they go.
    enough : callable
        Whether a removal is; with more gone it stays so.
    align : int, default 1
        As for `aligned`.

    Returns
    -------
    ndarray of bool, shape (units,)
    """

    def taken(count: int) -> BoolArray:
        return take(coupling, aligned(coupling, steps[:count], align))

    counts = range(len(steps) + 1)
    return taken(min(bisect_left(counts, True, key=lambda count: enough(taken(count))), len(steps)))


def _in_order(steps: list[Step]) -> list[Step]:
    return sorted(steps, key=lambda step: -step.rank)


def _floor(value: float) -> float:
    return float(np.floor(value * 1e4) / 1e4)
