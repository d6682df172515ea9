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

from graphprune.ir.coupling.resolving import Resolved, resolve

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
    """All atoms of a graph, with the joins, products and freezes noted so far."""

    def __init__(self) -> None:
        self.count = 0
        self._joins: list[tuple[IdArray, IdArray]] = []
        self._products: list[IdArray] = []
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
        self._joins.append((a.ravel(), b.ravel()))

    def tie(self, ids: IdArray, axes: Sequence[int]) -> IdArray | None:
        """Join an array along some of its axes, so that only whole rows of the others go.

        Returns
        -------
        ndarray or None
            The array with extent 1 on these axes; None when it names no other, and nothing is joined.
        """
        if not set(support(ids)) - set(axes):
            return None
        for axis in set(support(ids)) & set(axes):
            first = ids.take([0], axis)
            self.join(first, ids)
            ids = first
        return ids

    def factor(self, ids: IdArray) -> list[IdArray]:
        """Let each position of an array go exactly when its place on one of the axes goes.

        Parameters
        ----------
        ids : ndarray
            Naming two axes or more: heads and head dimensions, say.

        Returns
        -------
        list of ndarray
            For each axis, from the first to the last, its ids, of extent 1 on all others.
        """
        factors = {}
        for axis in outermost_first(ids):
            rows = np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1)
            _, place = np.unique(rows, axis=0, return_inverse=True)
            factors[axis] = along(self.new((int(place.max()) + 1,))[place.ravel()], ids.ndim, axis)
        self.product(ids, list(factors.values()))
        return [factors[axis] for axis in sorted(factors)]

    def fuse(self, arrays: Sequence[IdArray]) -> IdArray:
        """Return one array for several over the same axes: a position goes when it goes in one of them."""
        if len(arrays) == 1:
            return arrays[0]
        stack = np.stack(np.broadcast_arrays(*arrays))
        tuples, place = np.unique(stack.reshape(len(arrays), -1), axis=1, return_inverse=True)
        fused = self.new((tuples.shape[1],))
        self.product(fused, list(tuples))
        return np.asarray(fused[place.ravel()].reshape(stack.shape[1:]))

    def product(self, ids: IdArray, factors: Sequence[IdArray]) -> None:
        """Note that each of the ids goes exactly when one of its factors goes.

        Parameters
        ----------
        ids : ndarray
        factors : sequence of ndarray
            Two or more, each broadcastable to ``ids``.
        """
        self._products.append(np.stack([a.ravel() for a in np.broadcast_arrays(ids, *factors)]))

    def freeze(self, ids: IdArray, reason: Reason) -> None:
        """Note that none of these ids may go."""
        index = self._reason_index.setdefault(reason, len(self.reasons))
        if index == len(self.reasons):
            self.reasons.append(reason)
        self._frozen.append((ids.ravel(), index))

    def resolve(self) -> Resolved:
        """Join everything, and find what every id goes with."""
        return resolve(self.count, self._joins, self._products, self._frozen)


def outermost_first(ids: IdArray) -> list[int]:
    """Return the axes that an array names, in the order in which they lie in the axis that was split."""
    steps = {axis: int(ids.take([1], axis).flat[0] - ids.take([0], axis).flat[0]) for axis in support(ids)}
    return sorted(steps, key=lambda axis: -abs(steps[axis]))


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
