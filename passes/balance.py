"""Rounds: the smallest sets of units that may go together where several parts must keep equal counts.

With one balance a round takes one unit of every part. With two that cut across each other (a grouped convolution before
a channel shuffle, and one behind it) a round must take equal numbers from the parts of both: units are then the edges
of a bipartite graph between the parts of the one and of the other, and a round is a subgraph of given degrees. Every
part loses the same share of its positions, which is why such a subgraph exists as long as all of a part's units are
free: the share itself is a fractional solution, and bipartite degree constraints have whole ones wherever they have
any (König).
With more balances than two a round takes the same share of every intersection of their parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from graphprune.ir.coupling.units import FROZEN

IntArray = npt.NDArray[np.int64]
Place = tuple[int, int]
"""A balance, 0 or 1, and one of its parts."""


def rounds(balances: Sequence[IntArray], order: IntArray) -> list[IntArray] | None:
    """Cut units into rounds.

    Parameters
    ----------
    balances : sequence of ndarray, each of shape (parts, positions)
        One or more, with parts that are not all of the same units. Unit numbers; FROZEN where a position must stay.
    order : ndarray of int, shape (units,)
        All units of the balances, those that should go first in front.

    Returns
    -------
    list of ndarray, or None
        Units that go together, round by round; as many as there are. None where a unit lies in several parts of one
        balance.
    """
    distinct = _distinct(balances)
    if any(_repeats(parts) for parts in distinct):
        return None
    if len(distinct) > 2:
        return _equal_shares(distinct, order)
    whole = int(np.gcd.reduce([parts.shape[1] for parts in distinct]))
    quota = [parts.shape[1] // whole for parts in distinct]
    places: dict[int, list[Place]] = {int(unit): [] for unit in order}
    for number, parts in enumerate(distinct):
        for part, row in enumerate(parts):
            for unit in row[row != FROZEN]:
                places[int(unit)].append((number, part))
    left = [int(unit) for unit in order]
    result: list[IntArray] = []
    while left:
        taken = _Round(left, places, quota).fill(
            [(n, p) for n, parts in enumerate(distinct) for p in range(len(parts))]
        )
        if taken is None:
            break
        result.append(np.array(taken, dtype=np.int64))
        gone = set(taken)
        left = [unit for unit in left if unit not in gone]
    return result


def _distinct(balances: Sequence[IntArray]) -> list[IntArray]:
    found: dict[frozenset[tuple[int, ...]], IntArray] = {}
    for parts in balances:
        # Parts of the same units keep equal counts by themselves.
        key = frozenset(tuple(sorted(row.tolist())) for row in parts)
        if len(key) > 1:
            found.setdefault(key, np.unique(_once(np.sort(parts, axis=1)), axis=0))
    return list(found.values())


def _once(parts: IntArray) -> IntArray:
    """Name every unit once, where all have equally many positions: channels that go by whole groups, say.

    The rows are sorted, so that each unit's n positions lie side by side, and every n-th place hits one of them.
    """
    often = {int(count) for row in parts for count in np.unique(row[row != FROZEN], return_counts=True)[1]}
    return parts[:, :: often.pop()] if len(often) == 1 else parts


def _equal_shares(balances: Sequence[IntArray], order: IntArray) -> list[IntArray]:
    """Rounds for any number of balances: the same share of the units of every intersection of their parts.

    Coarse: the share is one over the greatest common divisor of the intersections' sizes.
    """
    cells: dict[tuple[int, ...], list[int]] = {}
    part_of = [{int(unit): part for part, row in enumerate(parts) for unit in row} for parts in balances]
    for unit in order.tolist():
        cells.setdefault(tuple(parts.get(unit, -1) for parts in part_of), []).append(unit)
    if any((parts == FROZEN).any() for parts in balances):
        return []  # a part with positions that stay would lose less than its share
    count = int(np.gcd.reduce([len(cell) for cell in cells.values()]))
    shares = [np.array(cell, dtype=np.int64).reshape(count, -1) for cell in cells.values()]
    return list(np.concatenate(shares, axis=1))


def _repeats(parts: IntArray) -> bool:
    free = parts[parts != FROZEN]
    return bool(len(np.unique(free)) != free.size)


class _Round:
    """Units chosen so that every part has its quota, found by augmenting paths."""

    def __init__(self, units: list[int], places: dict[int, list[Place]], quota: list[int]) -> None:
        self.places = places
        self.quota = quota
        self.by_place: dict[Place, list[int]] = {}
        for unit in units:
            for place in places[unit]:
                self.by_place.setdefault(place, []).append(unit)
        self.chosen: dict[int, None] = {}
        self.count: dict[Place, int] = {}

    def fill(self, every: list[Place]) -> list[int] | None:
        """Choose units until every place has its quota; None when it cannot be."""
        for place in every:
            while self.count.get(place, 0) < self.quota[place[0]]:
                if not self._augment(place, set()):
                    return None
        return list(self.chosen)

    def _augment(self, place: Place, seen: set[Place]) -> bool:
        """Give a place one unit more without taking one from any that is full."""
        seen.add(place)
        free = [unit for unit in self.by_place.get(place, ()) if unit not in self.chosen]
        for unit in free:
            other = self._other(unit, place)
            if other is None or self.count.get(other, 0) < self.quota[other[0]]:
                self._set(unit, True)
                return True
        for (
            unit
        ) in free:  # the other place is full: it gives up a unit whose own first place finds another, or needs none
            other = self._other(unit, place)
            assert other is not None
            if other in seen:
                continue
            seen.add(other)
            for swapped in [u for u in self.by_place[other] if u in self.chosen]:
                first = self._other(swapped, other)
                if first is not None and first in seen:
                    continue
                self._set(swapped, False)
                self._set(unit, True)
                if first is None or self._augment(first, seen):
                    return True
                self._set(unit, False)
                self._set(swapped, True)
        return False

    def _other(self, unit: int, place: Place) -> Place | None:
        return next((found for found in self.places[unit] if found != place), None)

    def _set(self, unit: int, chosen: bool) -> None:
        if chosen:
            self.chosen[unit] = None
        else:
            del self.chosen[unit]
        for place in self.places[unit]:
            self.count[place] = self.count.get(place, 0) + (1 if chosen else -1)
