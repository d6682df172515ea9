"""From joined atoms to units, groups and constraints: what can be chosen for removal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from graphprune.ir.atoms import IdArray, Reason, support
from graphprune.ir.graph import Graph, Node

if TYPE_CHECKING:
    from graphprune.ir.coupler import Coupler

FROZEN = -1
"""Unit number of a position that must stay."""

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Contraction:
    """A place where units are consumed: an activation's axis is summed over against a weight.

    Attributes
    ----------
    node : Node
    data, weight : int
        Input slots of the activation and of what it is multiplied with.
    data_axis : int or None
        The activation's axis that is summed over; None where that is no axis of an input: the hidden state of a
        recurrent operator, which meets the weight inside, or the one channel of a depthwise convolution; and where
        the activation's rank is not known, so that nothing of it can be removed.
    weight_axis : int
        The weight's axis that meets it.
    output_axis : int
        The weight's axis that becomes the output's channels.
    groups : int
        Number of groups of a grouped convolution; the output channels of group g see the g-th part of the
        activation's channels.
    """

    node: Node
    data: int
    weight: int
    data_axis: int | None
    weight_axis: int
    output_axis: int
    groups: int = 1


@dataclass(frozen=True)
class Group:
    """Units that live on the same axes: one hidden layer, one residual stage.

    Attributes
    ----------
    name : str
        The first initializer that carries them.
    axes : tuple of (str, int)
        Initializers and axes that the units live on.
    units : ndarray of int
        Unit numbers, in the order of their first position.
    """

    name: str
    axes: tuple[tuple[str, int], ...]
    units: IdArray


@dataclass(frozen=True)
class Declined:
    """An axis of a weight, or part of it, that is left alone.

    Attributes
    ----------
    tensor : str
        Initializer name.
    axis : int
    positions : int
        How many of the axis's positions are frozen.
    reason : Reason
    """

    tensor: str
    axis: int
    positions: int
    reason: Reason


@dataclass(frozen=True)
class Coupling:
    """What can be removed from a graph, and what must go together.

    Attributes
    ----------
    graph : Graph
    ids : dict of str to tuple of ndarray
        For every tensor its id arrays, as unit numbers; FROZEN where a position must stay.
    units : int
        Number of units.
    groups : tuple of Group
    balances : tuple of ndarray, each of shape (parts, positions)
        Unit numbers of parts that must keep equal counts.
    contractions : tuple of Contraction
        Where units are consumed.
    declined : tuple of Declined
    """

    graph: Graph
    ids: dict[str, tuple[IdArray, ...]]
    units: int
    groups: tuple[Group, ...]
    balances: tuple[IdArray, ...]
    contractions: tuple[Contraction, ...]
    declined: tuple[Declined, ...]

    def vector(self, name: str, axis: int) -> IdArray | None:
        """Return the unit numbers along one axis, None when it has none of its own."""
        for ids in self.ids.get(name, ()):
            if support(ids) == (axis,):
                return ids.ravel()
        return None

    def keeps(self, name: str, removed: BoolArray) -> BoolArray | None:
        """Return which positions of a tensor stay, broadcastable to its shape; None when all do.

        Parameters
        ----------
        name : str
            Tensor name.
        removed : ndarray of bool, shape (units,)
        """
        gone = np.append(removed, False)  # FROZEN indexes the last entry
        keep: BoolArray | None = None
        for ids in self.ids.get(name, ()):
            lost = gone[ids]
            if lost.any():
                keep = ~lost if keep is None else keep & ~lost
        return keep


def number_units(coupler: Coupler) -> Coupling:
    """Resolve the joins of a finished walk and number what is left free."""
    roots, reason_of = coupler.atoms.resolve()
    weights = {name: arrays for name, arrays in coupler.ids_of.items() if coupler.graph.is_float(name)}
    holds_weights = np.zeros(len(roots), dtype=np.bool_)
    for arrays in weights.values():
        for ids in arrays:
            holds_weights[roots[ids.ravel()]] = True
    free = (reason_of == -1) & holds_weights[roots]
    unit_of = np.full(len(roots), FROZEN, dtype=np.int64)
    names, numbers = np.unique(roots[free], return_inverse=True)
    unit_of[free] = numbers
    ids_of = {name: tuple(unit_of[ids] for ids in arrays) for name, arrays in coupler.ids_of.items()}
    return Coupling(
        graph=coupler.graph,
        ids=ids_of,
        units=len(names),
        groups=tuple(_groups({name: ids_of[name] for name in weights}, len(names))),
        balances=tuple(unit_of[parts] for parts in coupler.balances),
        contractions=tuple(coupler.contractions),
        declined=tuple(_declined(coupler, reason_of)),
    )


def _groups(ids_of: dict[str, tuple[IdArray, ...]], count: int) -> Iterator[Group]:
    """Units that occur on exactly the same axes of the same initializers, in the order of the walk."""
    axes: list[tuple[str, int]] = []
    seen_on: list[list[int]] = [[] for _ in range(count)]
    for name, arrays in ids_of.items():
        for ids in arrays:
            axes.append((name, support(ids)[-1]))
            for unit in np.unique(ids[ids != FROZEN]):
                seen_on[unit].append(len(axes) - 1)
    members: dict[tuple[int, ...], list[int]] = {}
    for unit, keys in enumerate(seen_on):
        members.setdefault(tuple(keys), []).append(unit)
    for places, units in members.items():
        group_axes = tuple(axes[place] for place in places)
        yield Group(group_axes[0][0], group_axes, np.array(units, dtype=np.int64))


def _declined(coupler: Coupler, reason_of: IdArray) -> Iterator[Declined]:
    """Frozen positions of the weights that contractions read, and of all others that are matrices or more."""
    graph = coupler.graph
    operands = {name: None for c in coupler.contractions for name in graph.sources(c.node.input(c.weight))}
    for name, tensor in graph.initializers.items():
        if graph.is_float(name) and sum(extent > 1 for extent in tensor.dims) > 1:
            operands[name] = None
    for name in operands:
        for ids in coupler.ids_of.get(name, ()):
            found = reason_of[ids.ravel()]
            for index in np.unique(found[found >= 0]):
                frozen = int((found == index).sum())
                yield Declined(name, support(ids)[-1], frozen, coupler.atoms.reasons[index])
