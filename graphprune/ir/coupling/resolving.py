"""From the joins, products and freezes of atoms to what goes with what: a union-find, all in whole arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IdArray = npt.NDArray[np.int64]

DEEPEST = 6
"""How often a factor may be a product itself: an axis that is split again and again."""


@dataclass(frozen=True)
class Resolved:
    """What has become of the ids.

    Attributes
    ----------
    members : ndarray, shape (most factors, count)
        For every id the atoms with any of which it goes: for most one, itself or the smallest id that it is joined
        with; for a product its factors. -1 where there are no more.
    frozen : ndarray, shape (count,)
        For every id the index of the first reason that freezes it, -1 for none.
    """

    members: IdArray
    frozen: IdArray


def resolve(
    count: int,
    joins: Sequence[tuple[IdArray, IdArray]],
    products: Sequence[IdArray],
    frozen: Sequence[tuple[IdArray, int]],
) -> Resolved:
    """Join everything, and find what every id goes with.

    Parameters
    ----------
    count : int
        Ids there are: 0 to count - 1.
    joins : sequence of (ndarray, ndarray)
        Ids that are the same, pair by pair.
    products : sequence of ndarray, each of shape (1 + factors, ids)
        Ids, and below them their factors: an id goes exactly when one of its factors goes.
    frozen : sequence of (ndarray, int)
        Ids that stay, with the index of the reason.

    Returns
    -------
    Resolved
    """
    left = _concatenate([pair[0] for pair in joins])
    right = _concatenate([pair[1] for pair in joins])
    while True:
        roots = _components(count, left, right)
        rooted = [roots[rows] for rows in products]
        members, endless = _members(count, rooted)
        more = [_same_factors(rows, endless) for rows in _by_number(rooted, endless)]
        if not any(len(pair[0]) for pair in more):
            break
        left = np.concatenate([left, *(pair[0] for pair in more)])
        right = np.concatenate([right, *(pair[1] for pair in more)])
    return Resolved(members[:, roots], _frozen(count, roots, members, rooted, frozen)[roots])


def _frozen(
    count: int, roots: IdArray, members: IdArray, products: Sequence[IdArray], frozen: Sequence[tuple[IdArray, int]]
) -> IdArray:
    """For every root the first reason that freezes it, -1 for none."""
    free = max((index for _, index in frozen), default=0) + 1
    by_root = np.full(count, free, dtype=np.int64)
    for ids, index in frozen:
        np.minimum.at(by_root, roots[ids], index)
    _freeze_factors(by_root, products)
    # A product stays when all of its factors do; -1, for no factor, is never the largest.
    reason = np.where(members >= 0, by_root[members], -1).max(axis=0, initial=-1)
    reason[reason == free] = -1
    return np.asarray(reason)


def _concatenate(parts: list[IdArray]) -> IdArray:
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _by_number(products: Sequence[IdArray], endless: npt.NDArray[np.bool_]) -> list[IdArray]:
    """Products put together by their number of factors; an id of several numbers is marked as ``endless``."""
    by_number = {
        count: np.concatenate([rows for rows in products if len(rows) == count], axis=1)
        for count in sorted({len(rows) for rows in products})
    }
    seen = np.zeros(len(endless), dtype=np.int64)
    for count, rows in by_number.items():
        endless[rows[0][(seen[rows[0]] != 0) & (seen[rows[0]] != count)]] = True
        seen[rows[0]] = count
    return list(by_number.values())


def _same_factors(rows: IdArray, endless: npt.NDArray[np.bool_]) -> tuple[IdArray, IdArray]:
    """What must be joined for an id that is a product twice to have the same factors both times, in order.

    Where an id is endlessly its own factor, or has another number of factors elsewhere, all of them are joined with
    the id itself: then it goes when they go, in any case.
    """
    ids, place = np.unique(rows[0], return_index=True)
    first = place[np.searchsorted(ids, rows[0])]
    others = [np.where(endless[rows[0]], rows[0], factor[first]) for factor in rows[1:]]
    left, right = np.concatenate(list(rows[1:])), np.concatenate(others)
    return left[left != right], right[left != right]


def _freeze_factors(by_root: IdArray, products: Sequence[IdArray]) -> None:
    """Where a product stays, all of its factors stay."""
    while True:
        before = by_root.copy()
        for rows in products:
            for factor in rows[1:]:
                np.minimum.at(by_root, factor, by_root[rows[0]])
        if bool((by_root == before).all()):
            return


def _members(count: int, products: Sequence[IdArray]) -> tuple[IdArray, npt.NDArray[np.bool_]]:
    """Replace every product by its factors, those that are products themselves by theirs, and so on.

    Returns
    -------
    members : ndarray, shape (most factors, count)
    endless : ndarray of bool, shape (count,)
        Ids for which this does not end: they are factors of themselves.
    """
    width = max((len(rows) - 1 for rows in products), default=1)
    factors = np.full((width, count), -1, dtype=np.int64)
    factors[0] = np.arange(count)
    for rows in products:
        others = rows[:, (rows[1:] != rows[0]).any(axis=0)]
        factors[: len(others) - 1, others[0]] = others[1:]
    members = np.arange(count, dtype=np.int64)[np.newaxis]
    for _ in range(DEEPEST):
        factors_of = np.where(members >= 0, factors[:, np.maximum(members, 0)], -1)
        moving = (factors_of >= 0) & (factors_of != members)
        if not moving.any():
            break
        members = _distinct(factors_of.reshape(-1, count))
    return members, np.asarray(moving.any(axis=(0, 1)))


def _distinct(members: IdArray) -> IdArray:
    """Each column's different entries in their order, -1 between and behind them."""
    for row in range(1, len(members)):
        members[row][(members[:row] == members[row]).any(axis=0)] = -1
    return members[(members >= 0).any(axis=1)] if members.size else members


def _components(count: int, left: IdArray, right: IdArray) -> IdArray:
    """Connected components by hooking roots onto smaller roots and halving paths, all in whole arrays."""
    parent = np.arange(count, dtype=np.int64)
    while True:
        a, b = parent[left], parent[right]
        apart = a != b
        if not apart.any():
            return parent
        left, right, a, b = left[apart], right[apart], a[apart], b[apart]
        np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))
        while True:
            grand = parent[parent]
            if bool((grand == parent).all()):
                break
            parent = grand
