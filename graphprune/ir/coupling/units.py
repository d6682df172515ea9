"""From joined atoms to units, groups and constraints: what can be chosen for removal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from graphprune.ir.coupling.atoms import IdArray, Reason, collapse, support
from graphprune.ir.coupling.resolving import Resolved
from graphprune.ir.coupling.splits import Shuffle
from graphprune.ir.graph import Graph
from graphprune.ir.nodes import Node

if TYPE_CHECKING:
    from graphprune.ir.coupling.coupler import Coupler

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
        The first initializer of two axes or more that carries them; the first of all where there is none.
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
    frozen : ndarray of bool
        Which positions, broadcastable to the tensor.
    reason : Reason
    """

    tensor: str
    axis: int
    frozen: BoolArray
    reason: Reason

    @property
    def positions(self) -> int:
        """How many of the axis's positions are frozen."""
        others = tuple(axis for axis in range(self.frozen.ndim) if axis != self.axis)
        return int(self.frozen.any(axis=others).sum())


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
    shuffles : dict of int to Shuffle
        By index the nodes that put the positions of one axis in another order.
    declined : tuple of Declined
    """

    graph: Graph
    ids: dict[str, tuple[IdArray, ...]]
    units: int
    groups: tuple[Group, ...]
    balances: tuple[IdArray, ...]
    contractions: tuple[Contraction, ...]
    shuffles: dict[int, Shuffle]
    declined: tuple[Declined, ...]

    def along(self, name: str, axis: int) -> list[IdArray]:
        """Return the unit numbers along one axis.

        Returns
        -------
        list of ndarray, each of shape (extent,)
            Most axes that carry units have one; a position of an axis with several, such as heads and head dimensions
            merged, goes when any of its units goes.
        """
        return [ids.ravel() for ids in self.ids.get(name, ()) if support(ids) == (axis,)]

    def lost(self, name: str, axis: int, removed: BoolArray) -> BoolArray | None:
        """Return which positions along one axis go, None when none does.

        Parameters
        ----------
        name : str
            Tensor name.
        axis : int
        removed : ndarray of bool, shape (units,)
        """
        gone = np.append(removed, False)
        lost = [gone[units] for units in self.along(name, axis)]
        together: BoolArray = np.any(lost, axis=0) if lost else np.zeros(0, dtype=np.bool_)
        return together if together.any() else None

    def loses(self, name: str, removed: BoolArray) -> bool:
        """Return whether a tensor loses positions; without laying out which, as `keeps` does."""
        gone = np.append(removed, False)
        return any(bool(gone[ids].any()) for ids in self.ids.get(name, ()))

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
    resolved = coupler.atoms.resolve()
    weights = {name: arrays for name, arrays in coupler.ids_of.items() if coupler.graph.is_weight(name)}
    holds_weights = np.zeros(coupler.atoms.count + 1, dtype=np.bool_)  # -1, for no factor, indexes the last entry
    for arrays in weights.values():
        for ids in arrays:
            holds_weights[resolved.members[:, ids.ravel()]] = True
    balances = [parts for parts in coupler.balances if not _settled(parts, coupler, resolved)]
    roots = resolved.members[0]
    lone = (roots == np.arange(len(roots))) & (resolved.frozen == -1) & holds_weights[:-1]
    unit_of = np.full(coupler.atoms.count + 1, FROZEN, dtype=np.int64)
    unit_of[:-1][lone] = np.arange(lone.sum())
    table = unit_of[resolved.members]
    ids_of = {
        name: tuple(units for ids in arrays for units in _units(ids, table)) for name, arrays in coupler.ids_of.items()
    }
    return Coupling(
        graph=coupler.graph,
        ids=ids_of,
        units=int(lone.sum()),
        groups=tuple(_groups({name: ids_of[name] for name in weights}, int(lone.sum()))),
        balances=tuple(table[:, parts].max(axis=0) for parts in balances),  # of one free factor at most
        contractions=tuple(coupler.contractions),
        shuffles=coupler.splits.shuffles,
        declined=tuple(_declined(coupler, resolved)),
    )


def _settled(parts: IdArray, coupler: Coupler, resolved: Resolved) -> bool:
    """Whether parts keep equal counts whatever is removed: all hold the same positions of several factors each.

    Where positions of several free factors have to be counted and this does not hold, factors are frozen: first those
    that not all parts hold as often, then the others where they meet in some parts and not in all.
    """
    members = resolved.members[:, parts]  # [factors, parts, positions]
    free = np.append(resolved.frozen == -1, False)  # -1, for no factor, indexes the last entry
    if (free[members].sum(axis=0) <= 1).all():
        return False
    for unequal in (_unequally_often, _unequally_met):
        free[unequal(np.where(free[members], members, -1))] = False
    held = ~free[resolved.members].any(axis=0) & (resolved.frozen == -1)
    if held.any():
        text = "rows and columns of a split axis cut across parts that must keep equal counts"
        coupler.atoms.reasons.append(Reason("", "", text))
        resolved.frozen[held] = len(coupler.atoms.reasons) - 1
    return True


def _unequally_often(members: IdArray) -> IdArray:
    """Factors that some parts hold more often than others; of members [factors, parts, positions], -1 for none."""
    known = np.unique(members)
    counts = np.stack(
        [np.bincount(np.searchsorted(known, part.ravel()), minlength=len(known)) for part in members.swapaxes(0, 1)]
    )
    return np.asarray(known[(counts != counts[0]).any(axis=0) & (known >= 0)])


def _unequally_met(members: IdArray) -> IdArray:
    """All factors, if not every part holds the same positions of several factors; none otherwise."""
    held = [part[:, np.lexsort(part)] for part in np.sort(members, axis=0).swapaxes(0, 1)]
    known = np.unique(members)
    return np.asarray(known[(known >= 0) & any((part != held[0]).any() for part in held)])


def _units(ids: IdArray, table: IdArray) -> list[IdArray]:
    """The unit numbers that ids stand for: one array, and where they are products one for every factor.

    Parameters
    ----------
    ids : ndarray
    table : ndarray, shape (most factors, ids)
        Unit numbers by id.
    """
    first, *others = (row[ids] for row in table)
    more = [units for units in others if (units != FROZEN).any()]
    if not more:
        return [first]
    return [_narrowed(units) for units in (first, *more) if (units != FROZEN).any()]


def _narrowed(units: IdArray) -> IdArray:
    """Leave out the axes along which the units do not change, if any is left."""
    narrow = collapse(units)
    return narrow if narrow.size > 1 else units


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
        matrices = (name for name, _ in group_axes if ids_of[name][0].ndim > 1)
        yield Group(next(matrices, group_axes[0][0]), group_axes, np.array(units, dtype=np.int64))


def _declined(coupler: Coupler, resolved: Resolved) -> Iterator[Declined]:
    """Frozen positions of the weights that contractions read, and of all others that are matrices or more.

    Where only the heads of heads and head dimensions merged on one axis are frozen, or the other way round, no position
    is: that is told, too.
    """
    reasons = coupler.atoms.reasons
    graph = coupler.graph
    operands = {name: None for c in coupler.contractions for name in graph.sources(c.node.input(c.weight))}
    for name, tensor in graph.initializers.items():
        if graph.is_weight(name) and sum(extent > 1 for extent in tensor.dims) > 1:
            operands[name] = None
    for name in operands:
        for ids in coupler.ids_of.get(name, ()):
            found = resolved.frozen[ids]
            for index in np.unique(found[found >= 0]):
                yield Declined(name, support(ids)[-1], found == index, reasons[index])
            factors = resolved.members[:, ids[found < 0]]
            partly = resolved.frozen[factors[factors >= 0]]
            for index in np.unique(partly[partly >= 0]):
                why = replace(reasons[index], text=f"an axis that it is merged of stays: {reasons[index].text}")
                yield Declined(name, support(ids)[-1], np.zeros(ids.shape, dtype=np.bool_), why)
