"""Atoms: the identity of every position of every axis, and the union-find that joins them.

The ids of a tensor are a tuple of *id arrays*. Each has the tensor's rank, the full extent on the axes whose
positions it names, and extent 1 on all others; so data-movement operators act on it by the very numpy operation
that they do on data. A position of the tensor goes when any of the ids over it goes. An activation of a
convolution carries one array [1, C, 1, 1]; its weight two, [O, 1, 1, 1] and [1, I, 1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IdArray = npt.NDArray[np.int64]
Ids = tuple[IdArray, ...]


@dataclass(frozen=True)
class Reason:
    """Why something is left alone.

    Attributes
    ----------
    node : str
        The node that asks for it, empty for the graph itself.
    op : str
        Its operator.
    text : str
        The reason, for the user.
    """

    node: str
    op: str
    text: str


class Atoms:
    """All atoms of a graph, with the joins and freezes noted so far."""

    def __init__(self) -> None:
        self.count = 0
        self._left: list[IdArray] = []
        self._right: list[IdArray] = []
        self._frozen: list[tuple[IdArray, int]] = []
        self.reasons: list[Reason] = []
        self._reason_index: dict[Reason, int] = {}

    def new(self, shape: Sequence[int]) -> IdArray:
        """Return fresh ids, all different, in the given shape."""
        size = int(np.prod(shape, dtype=np.int64))
        ids = np.arange(self.count, self.count + size, dtype=np.int64).reshape(tuple(shape))
        self.count += size
        return ids

    def join(self, left: IdArray, right: IdArray) -> None:
        """Make two arrays of ids, broadcast against each other, the same position by position."""
        a, b = np.broadcast_arrays(left, right)
        self._left.append(a.ravel())
        self._right.append(b.ravel())

    def freeze(self, ids: IdArray, reason: Reason) -> None:
        """Note that none of these ids may go."""
        index = self._reason_index.setdefault(reason, len(self.reasons))
        if index == len(self.reasons):
            self.reasons.append(reason)
        self._frozen.append((ids.ravel(), index))

    def resolve(self) -> tuple[IdArray, IdArray]:
        """Join everything.

        Returns
        -------
        roots : ndarray, shape (count,)
            For every id the smallest id that it is joined with.
        frozen : ndarray, shape (count,)
            For every id the index of the first reason that freezes it, -1 for none.
        """
        roots = _components(self.count, _concatenate(self._left), _concatenate(self._right))
        by_root = np.full(self.count, len(self.reasons), dtype=np.int64)
        for ids, index in self._frozen:
            np.minimum.at(by_root, roots[ids], index)
        by_root[by_root == len(self.reasons)] = -1
        return roots, by_root[roots]


def support(ids: IdArray) -> tuple[int, ...]:
    """Return the axes whose positions an id array names."""
    return tuple(axis for axis, extent in enumerate(ids.shape) if extent > 1)


def along(ids: IdArray, rank: int, axis: int) -> IdArray:
    """Lay a vector of ids along one axis of a tensor of that rank."""
    shape = [1] * rank
    shape[axis] = ids.size
    return ids.reshape(shape)


def lift(ids: IdArray, rank: int) -> IdArray:
    """Add leading axes, as broadcasting does."""
    return ids.reshape((1,) * (rank - ids.ndim) + ids.shape)


def collapse(ids: IdArray) -> IdArray:
    """Shrink every axis along which the ids do not change to extent 1."""
    for axis, extent in enumerate(ids.shape):
        if extent > 1:
            first = ids.take([0], axis=axis)
            if bool((ids == first).all()):
                ids = first
    return ids


def _concatenate(parts: list[IdArray]) -> IdArray:
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


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
