"""Share out what has to go, between groups of units and between weights, so that the predicted error is least.

Errors of different places add up (to first order, independent errors do); every curve is replaced by its lower convex
hull, and the piece goes next that costs least for every weight that it takes away: Lagrange's condition.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from graphprune.ir.coupling.atoms import support
from graphprune.ir.coupling.units import FROZEN, Coupling
from graphprune.passes.choice import Queue, Step
from graphprune.passes.curves import LEVELS, ZeroCurve, hull


@dataclass(frozen=True)
class Share:
    """What is to be zeroed.

    Attributes
    ----------
    kept : dict of str to int
        By weight, how many of its entries may stay; weights that stay whole are not in it.
    error : float
        Predicted squared error of the outputs, relative to their variance.
    """

    kept: dict[str, int]
    error: float


def share_zeros(curves: Sequence[ZeroCurve], sizes: Mapping[str, int], needed: int) -> Share:
    """Share out zeros between weights.

    Parameters
    ----------
    curves : sequence of ZeroCurve
        Of the weights before anything was removed.
    sizes : mapping of str to int
        Entries that are left of them.
    needed : int
        How many entries have to be zero.

    Returns
    -------
    Share
        All but the last percent of every weight may go; beyond that all weights give alike.
    """
    pieces = []
    for curve in curves:
        size = sizes.get(curve.weight, 0)
        part = size / max(curve.size, 1)  # what was removed takes its part of the error with it
        corners = hull(curve.errors, LEVELS)
        for start, stop in pairwise(corners):
            count = (LEVELS[stop] - LEVELS[start]) * size
            cost = (curve.errors[stop] - curve.errors[start]) * part
            if count > 0:
                pieces.append((cost / count, curve.weight, count))
    gone: dict[str, float] = {}
    error, missing = 0.0, float(needed)
    for slope, weight, count in sorted(pieces):
        taken = min(count, missing)
        if taken <= 0:
            break
        gone[weight] = gone.get(weight, 0.0) + taken
        error, missing = error + slope * taken, missing - taken
    left = {weight: sizes[weight] - count for weight, count in gone.items()}
    return Share(_rounded(_trimmed(left, missing), sum(sizes[weight] for weight in left) - needed), error)


def share_whole(
    curves: Sequence[ZeroCurve], sizes: Mapping[str, int], least: Mapping[str, int], needed: int | None
) -> Share:
    """Choose which weights take a pattern that says how many of their entries stay.

    Parameters
    ----------
    curves : sequence of ZeroCurve
    sizes : mapping of str to int
        Entries of every weight.
    least : mapping of str to int
        What the pattern leaves of them.
    needed : int or None
        How many entries have to be zero; None for as many as the pattern gives.
    """
    offers = []
    for curve in curves:
        count = sizes.get(curve.weight, 0) - least.get(curve.weight, sizes.get(curve.weight, 0))
        if count > 0:
            part = count / sizes[curve.weight]
            cost = float(np.interp(part, LEVELS, curve.errors)) * sizes[curve.weight] / max(curve.size, 1)
            offers.append((cost / count, curve.weight, count, cost))
    kept: dict[str, int] = {}
    error, gone = 0.0, 0
    for _, weight, count, cost in sorted(offers):
        if needed is not None and gone >= needed:
            break
        kept[weight] = sizes[weight] - count
        error, gone = error + cost, gone + count
    return Share(kept, error)


def _trimmed(kept: dict[str, float], missing: float) -> dict[str, float]:
    """Take what is still missing from all weights in proportion to what they keep."""
    total = sum(kept.values())
    if missing <= 0 or not total:
        return kept
    return {weight: max(count * (1 - missing / total), 0.0) for weight, count in kept.items()}


def _rounded(kept: Mapping[str, float], together: int) -> dict[str, int]:
    """Round to whole entries, so many together: those with the largest fractions are rounded up."""
    whole = {weight: int(count) for weight, count in kept.items()}
    fractions = sorted(kept, key=lambda weight: whole[weight] - kept[weight])
    for weight in fractions[: max(together - sum(whole.values()), 0)]:
        whole[weight] += 1
    return whole


def in_order(
    coupling: Coupling,
    queues: Sequence[Queue],
    *,
    block: int = 1,
    worth: Mapping[str, float] | None = None,
    most: float = np.inf,
) -> list[Step]:
    """Return the steps of all queues in the order in which they should go.

    Parameters
    ----------
    coupling : Coupling
    queues : sequence of Queue
        With what each step costs.
    block : int, default 1
        Of convolutions so many channels go at once that what is left is a multiple of this.
    worth : mapping of str to float, optional
        What each weight is worth, its multiply-accumulates for one; the number of its entries without it.
    most : float, default inf
        What all together may cost; a queue whose next block costs more than is left of it is passed over.

    Returns
    -------
    list of Step
        Each time the piece of a queue that costs least for what goes with it, given what is gone already.
    """
    sizes = _Sizes(coupling, worth)
    pieces = [_pieces(queue, block if _is_convolved(coupling, queue) else 1) for queue in queues]
    heap = [(0.0, index, 0) for index, own in enumerate(pieces) if own]
    order: list[Step] = []
    while heap:
        _, index, piece = heapq.heappop(heap)
        start, stop, cost = pieces[index][piece]
        slope = cost / sizes.of(queues[index].steps[start])
        if heap and slope > heap[0][0] * (1 + 1e-9):  # what has gone since made it worth less than another
            heapq.heappush(heap, (slope, index, piece))
            continue
        if cost * (stop - start) > most:
            continue
        most -= cost * (stop - start)
        for step in queues[index].steps[start:stop]:
            order.append(step)
            sizes.remove(step)
        if piece + 1 < len(pieces[index]):
            following = pieces[index][piece + 1]
            slope = following[2] / sizes.of(queues[index].steps[following[0]])
            heapq.heappush(heap, (slope, index, piece + 1))
    return order


def _is_convolved(coupling: Coupling, queue: Queue) -> bool:
    """Whether the units are channels of convolutions."""
    axes = (axis for group in queue.groups for axis in coupling.groups[group].axes)
    return any(len(coupling.graph.initializers[name].dims) > 2 for name, _ in axes)


def _pieces(queue: Queue, block: int) -> list[tuple[int, int, float]]:
    """First step, last step but one, and cost a step of every piece of the hull."""
    errors = np.concatenate([[0.0], np.cumsum(queue.costs)])
    together = len(queue.steps[0].units) if queue.steps else 1
    places = [n for n in range(len(errors)) if n == 0 or (len(queue.steps) - n) * together % block == 0]
    corners = [places[corner] for corner in hull(errors[places], places)]
    return [(a, b, float((errors[b] - errors[a]) / (b - a))) for a, b in pairwise(corners)]


class _Sizes:
    """How many weights, or what they are worth, go with a unit, as others go."""

    def __init__(self, coupling: Coupling, worth: Mapping[str, float] | None) -> None:
        self.places: dict[int, list[tuple[tuple[str, tuple[int, ...]], float]]] = {}
        self.left: dict[str, float] = {}
        self.part: dict[tuple[str, tuple[int, ...]], float] = {}
        for name, tensor in coupling.graph.initializers.items():
            if not coupling.graph.is_weight(name):
                continue
            entries = float(np.prod(tensor.dims, dtype=np.float64))
            self.left[name] = entries if worth is None else worth.get(name, 0.0)
            for ids in coupling.ids.get(name, ()):
                key = (name, support(ids))
                self.part[key] = 1.0
                units, counts = np.unique(ids[ids != FROZEN], return_counts=True)
                for unit, count in zip(units.tolist(), counts.tolist(), strict=True):
                    self.places.setdefault(unit, []).append((key, count / ids.size))

    def of(self, step: Step) -> float:
        """Weights that go with a step now, at least 1."""
        places = (place for unit in step.units.tolist() for place in self.places.get(unit, ()))
        return max(sum(self.left[key[0]] * part / self.part[key] for key, part in places), 1.0)

    def remove(self, step: Step) -> None:
        """Take a step's units out."""
        for unit in step.units.tolist():
            for key, part in self.places.get(unit, ()):
                now = max(self.part[key] - part, 1e-9)
                self.left[key[0]] *= now / self.part[key]
                self.part[key] = now
