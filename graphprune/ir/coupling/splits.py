"""Axes that a Reshape splits into several: what becomes of their rows and columns.

Reshaped from [C] to [a, b], every position keeps an id of its own, so that operators which only move data can move the
ids whole. What happens then decides what may be removed:

- The positions are put back on one axis in another order by moves alone (a channel shuffle): any of them may go, and
  surgery puts one Gather in the place of the moves (`Shuffle`).
- The two axes are used apart (heads and head dimensions): a position goes exactly when its row or its column goes.
- The axis is taken apart along one of its parts (query, key and value of one projection): each part has columns of its
  own, of which equal numbers go (`Split.cut`).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx.reference import ReferenceEvaluator

from graphprune.ir.coupling.atoms import Atoms, IdArray, outermost_first, support
from graphprune.ir.graph import Graph
from graphprune.ir.nodes import Node

PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
"""Of these are the extents that stand for unknown ones when a shuffle is tried out."""


@dataclass
class Split:
    """An axis whose positions a Reshape has laid out along several.

    Attributes
    ----------
    ids : ndarray
        One id for every position, consecutive in the order of the axis, in the shape that it is split into.
    source : str
        The tensor whose axis is split.
    axis : int
    cut : int or None
        The axis of ``ids`` along which it is taken apart.
    used : bool
        Whether what it was taken apart into is used, so that the tensors between have to stay rectangular.
    """

    ids: IdArray
    source: str
    axis: int
    cut: int | None = None
    used: bool = False


@dataclass(frozen=True)
class Shuffle:
    """A node whose output is another tensor with the positions of one axis in another order.

    Attributes
    ----------
    source : str
    axis : int
        The same of the source and of the output.
    positions : ndarray of int
        For every position of the output the one of the source.
    between : tuple of str
        The tensors on the way, which have to stay rectangular where the moves are to stay.
    """

    source: str
    axis: int
    positions: IdArray
    between: tuple[str, ...]


class Splits:
    """All axes of a graph that have been split so far.

    Parameters
    ----------
    graph : Graph
    atoms : Atoms
    """

    def __init__(self, graph: Graph, atoms: Atoms) -> None:
        self.shuffles: dict[int, Shuffle] = {}
        self._graph = graph
        self._atoms = atoms
        self._found: list[Split] = []
        self._starts: list[int] = []

    def split(self, ids: IdArray, source: str, axis: int | None) -> IdArray:
        """Give the positions of an axis that has been laid out along several ids of their own.

        Parameters
        ----------
        ids : ndarray
            Its ids, laid out.
        source : str
            The tensor that it is an axis of.
        axis : int or None
            None where more than this one axis went into it.
        """
        known, first, place = np.unique(ids, return_index=True, return_inverse=True)
        order = np.argsort(np.argsort(first))
        fresh = self._atoms.new(known.shape)[order]
        self._atoms.join(known, fresh)
        made = np.asarray(fresh[place.reshape(ids.shape)])
        if axis is not None and known.size == ids.size:
            self._found.append(Split(made.squeeze(), source, axis))
            self._starts.append(int(made.flat[0]))
        return made

    def of(self, ids: IdArray) -> Split | None:
        """Return the split that all of these ids come from, None when there is no such."""
        place = bisect_right(self._starts, int(ids.min())) - 1
        if place < 0:
            return None
        split = self._found[place]
        return split if int(ids.max()) < self._starts[place] + split.ids.size else None

    def use(self, ids: IdArray) -> None:
        """Note that what an axis has been split into is used, if these ids come from such."""
        split = self.of(ids) if ids.size else None
        if split is not None:
            split.used = True

    def take_apart(self, ids: IdArray, axis: int, *, whole: bool) -> list[IdArray]:
        """Prepare an array for being taken apart along an axis.

        Parameters
        ----------
        ids : ndarray
        axis : int
        whole : bool
            Whether every part is a single position of the axis, so that an axis which has been split may keep its ids.

        Returns
        -------
        list of ndarray
            The array itself, or its factors.
        """
        if axis not in support(ids) or len(support(ids)) == 1 or (whole and self._cut(ids, axis)):
            return [ids]
        return self._atoms.factor(ids)

    def shuffle(self, node: Node, moved: IdArray) -> IdArray | None:
        """Note that a node ends a shuffle, if it does, and return ids for its output, which are free of the split."""
        split = self.of(moved)
        found = None if split is None else find_shuffle(self._graph, node, split, moved)
        if found is None:
            return None
        self.shuffles[node.index] = found
        free = self._atoms.new(moved.shape)
        self._atoms.join(free, moved)
        return free

    def settle(self) -> list[IdArray]:
        """Return the balances that keep what was taken apart rectangular: equal numbers go from every part."""
        balances = []
        for split in self._found:
            if split.cut is None or not split.used:
                continue
            parts = list(np.moveaxis(split.ids, split.cut, 0))
            if split.ids.ndim > 2:
                factors = [self._atoms.factor(part) for part in parts]
                for outer in zip(*(found[:-1] for found in factors), strict=True):
                    for ids in outer[1:]:
                        self._atoms.join(outer[0], ids)
                parts = [found[-1].ravel() for found in factors]
            balances.append(np.stack(parts))
        return balances

    def _cut(self, ids: IdArray, axis: int) -> bool:
        """Note that an array is taken apart along an axis; return whether it may be.

        The positions that stay lie packed along the innermost of the axes, the same number in every row: so that one
        cannot be cut, and must come last.
        """
        split = self.of(ids)
        order = outermost_first(ids)
        if split is None or ids.size != split.ids.size or axis == order[-1] or order[-1] != support(ids)[-1]:
            return False
        place = order.index(axis)
        if split.cut not in (None, place):
            return False
        split.ids = split.ids.reshape([ids.shape[a] for a in order])
        split.cut = place
        return True


def find_shuffle(graph: Graph, node: Node, split: Split, moved: IdArray) -> Shuffle | None:
    """Return the shuffle that ends in a node, None where its output is anything else.

    Parameters
    ----------
    graph : Graph
    node : Node
    split : Split
    moved : ndarray
        Ids of the split, along one axis of the output.

    Returns
    -------
    Shuffle or None
        Found by running the nodes between on the numbers of the elements: so it holds, whatever they are.
    """
    (axis,) = support(moved)
    positions = moved.ravel() - int(split.ids.flat[0])
    path = _path(graph, node, split.source)
    shape = graph.shape(split.source)
    if path is None or shape is None or axis != split.axis or len(shape) != moved.ndim:
        return None
    ran = _run(graph, path, split.source)
    if ran is None or not np.array_equal(ran[1], ran[0].take(positions, axis)):
        return None
    return Shuffle(split.source, axis, positions, tuple(step.input(0) for step in path[1:]))


def _path(graph: Graph, node: Node, source: str) -> list[Node] | None:
    """The nodes from a tensor to a node, along their first inputs."""
    path = [node]
    while path[-1].input(0) != source:
        before = graph.producer.get(path[-1].input(0))
        if before is None or before.captured or before.bodies:
            return None
        path.append(before)
    told = {name for step in path if step.op != "Reshape" for name in step.inputs[1:] if name}
    return path[::-1] if told <= set(graph.initializers) else None


def _stand_ins(graph: Graph, path: list[Node], source: str) -> dict[str | int, int] | None:
    """Extents for the unknown ones of a tensor, by symbol or else by axis; None when there are not enough.

    They are primes that divide no known extent on the way, so that no two extents are the same by chance.
    """
    shapes = [graph.shape(name) or () for name in (source, *(node.outputs[0] for node in path))]
    known = {extent for shape in shapes for extent in shape if isinstance(extent, int)}
    unknown = dict.fromkeys(extent or axis for axis, extent in enumerate(shapes[0]) if not isinstance(extent, int))
    free = [prime for prime in PRIMES if all(extent % prime for extent in known)]
    return dict(zip(unknown, free, strict=False)) if len(free) >= len(unknown) else None


def _run(graph: Graph, path: list[Node], source: str) -> tuple[IdArray, npt.NDArray[np.int64]] | None:
    """Run the nodes on the numbers of the source's elements; a Reshape to what is inferred where that is computed."""
    made = path[-1].outputs[0]
    numbers = _stand_ins(graph, path, source)
    if numbers is None:
        return None
    extents = [
        extent if isinstance(extent, int) else numbers[extent or axis]
        for axis, extent in enumerate(graph.shape(source) or ())
    ]
    elements = np.arange(int(np.prod(extents)), dtype=np.int64).reshape(extents)
    nodes, constants = (
        [],
        {name: graph.initializers[name] for node in path for name in node.inputs[1:] if name in graph.initializers},
    )
    for node in path:
        if node.op == "Reshape" and node.input(1) not in constants and "shape" not in node.attributes:
            shape = graph.shape(node.outputs[0]) or ()
            target = [extent if isinstance(extent, int) else numbers.get(extent or -1, -1) for extent in shape]
            name = f"{node.outputs[0]} target"
            constants[name] = onnx.numpy_helper.from_array(np.array(target, dtype=np.int64), name)
            nodes.append(onnx.helper.make_node("Reshape", [node.input(0), name], [node.outputs[0]]))
        else:
            nodes.append(node.proto)
    small = onnx.helper.make_graph(
        nodes,
        "moves",
        [onnx.helper.make_tensor_value_info(source, onnx.TensorProto.INT64, list(elements.shape))],
        [onnx.helper.make_tensor_value_info(made, onnx.TensorProto.INT64, None)],
        list(constants.values()),
    )
    model = onnx.helper.make_model(small, opset_imports=graph.proto.opset_import)
    try:
        (result,) = ReferenceEvaluator(model).run([made], {source: elements})
    except (RuntimeError, TypeError, ValueError):  # an operator that is not known, or extents that do not fit
        return None
    return elements, np.asarray(result)
