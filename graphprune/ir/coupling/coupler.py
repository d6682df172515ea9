"""What a rule talks to while the graph is walked: ids are read, joined, balanced, frozen and handed on."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from graphprune.ir.coupling.atoms import Atoms, IdArray, Ids, Reason, along, lift, support
from graphprune.ir.coupling.splits import Splits
from graphprune.ir.coupling.units import Contraction
from graphprune.ir.graph import Graph
from graphprune.ir.nodes import Node
from graphprune.ir.shapes.inference import Shape


class Coupler:
    """What a rule talks to while the graph is walked.

    A rule reads the ids of its node's inputs, joins, balances or freezes them, and sets the ids of the outputs.
    An axis that no id array of a tensor names is *untracked*: it keeps its extent, and whatever must match it
    is frozen.

    Attributes
    ----------
    stored : dict of str to onnx.TensorProto
        Initializers, and by other names again those whose ids tensors share: a quantised weight, dequantised.
    repeating : dict of str to list of int
        Axes of unknown extent along which the ids of a tensor repeat: every copy of a position goes with it.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.stored = dict(graph.initializers)
        self.atoms = Atoms()
        self.ids_of: dict[str, list[IdArray]] = {}
        self.contractions: list[Contraction] = []
        self.balances: list[IdArray] = []
        self.splits = Splits(graph, self.atoms)
        self.repeating: dict[str, list[int]] = {}
        self._untracked: dict[str, Reason] = {}

    # -- reading -------------------------------------------------------------------------------------------

    def shape(self, name: str) -> Shape | None:
        """Return the shape of a tensor, None when its rank is unknown."""
        return self.graph.shape(name)

    def ids(self, name: str) -> Ids:
        """Return all ids of a tensor; an initializer gets its own for every axis that has none yet."""
        if name in self.stored:
            for axis in range(len(self.stored[name].dims)):
                self._own(name, axis)
        return tuple(self.ids_of.get(name, ()))

    def vector(self, name: str, axis: int) -> IdArray | None:
        """Return the ids along one axis as a vector.

        Parameters
        ----------
        name : str
            Tensor name.
        axis : int
            Axis, counted from 0.

        Returns
        -------
        ndarray, shape (extent,), or None
            An untracked axis gives fresh ids, frozen for the reason that it is untracked; None when not even
            its extent is known.
        """
        shape = self.shape(name)
        if shape is None or axis >= len(shape):
            return None
        extent = shape[axis]
        if name in self.stored:
            self._own(name, axis)
        for ids in self.ids_of.get(name, ()):
            if support(ids) == (axis,):
                return ids.ravel()
        for ids in self.ids_of.get(name, ()):  # of a grouped convolution's weight, whose rows are read one by one here
            if axis in support(ids):
                tied = self.atoms.tie(ids, [other for other in support(ids) if other != axis])
                return None if tied is None else tied.ravel()
        if not isinstance(extent, int):
            return None
        fresh = self.atoms.new((extent,))
        self.atoms.freeze(fresh, self.why_untracked(name))
        return fresh

    def why_untracked(self, name: str) -> Reason:
        """Return the reason why a tensor has axes without ids."""
        while name not in self._untracked:
            node = self.graph.producer.get(name)
            if node is None:
                kind = "graph input" if name in self.graph.inputs else "tensor"
                return Reason("", "", f"{kind} {name!r} keeps its shape")
            carriers = [n for n in node.inputs if n and n not in self.graph.constants]
            if not carriers:
                return Reason(node.label, node.op, f"{node.op} computes {name!r} from constants")
            name = carriers[0]
        return self._untracked[name]

    # -- saying --------------------------------------------------------------------------------------------

    def set(self, name: str, ids: Sequence[IdArray], why_untracked: Reason | None = None) -> None:
        """Give a node's output its ids; ``why_untracked`` explains the axes that get none."""
        if not name:
            return
        self.ids_of[name] = [array for array in ids if array.size > 1]
        lone = [array for array in ids if array.size == 1]
        if lone:
            node = self.graph.producer[name]
            self.freeze(lone, Reason(node.label, node.op, f"{node.op} leaves the axis one position"))
        if why_untracked is not None:
            self._untracked[name] = why_untracked

    def same(self, name: str, source: str) -> None:
        """Give a node's output the ids of an input of its shape; a constant's are found later, by what it meets."""
        if source in self.stored:
            self.stored[name] = self.stored[source]
            self.ids_of[name] = self.ids_of.setdefault(source, [])
        else:
            self.set(name, self.ids(source))

    def set_axis(self, name: str, axis: int, vector: IdArray | None, others: Sequence[IdArray] = ()) -> None:
        """Give an output the ids of one axis, beside arrays that hold for other axes."""
        shape = self.shape(name)
        if shape is None:
            self.freeze([*others, *([] if vector is None else [vector])], self.why_untracked(name))
            return
        own = [] if vector is None else [along(vector, len(shape), axis)]
        self.set(name, [*own, *others])

    def join(self, left: IdArray | None, right: IdArray | None, reason: Reason) -> None:
        """Join two vectors position by position; where one is unknown or of another length, freeze the other."""
        if left is not None and right is not None and left.size == right.size:
            self.atoms.join(left, right)
            return
        self.freeze([ids for ids in (left, right) if ids is not None], reason)

    def balance(self, parts: IdArray) -> None:
        """Demand that every row of ``parts`` (shape [parts, positions]) keeps the same number of positions."""
        self.balances.append(parts)

    def freeze(self, ids: Sequence[IdArray], reason: Reason) -> None:
        """Demand that none of these ids goes."""
        for array in ids:
            self.splits.use(array)  # a position picked out of a split axis may be all that is used of it
            self.atoms.freeze(array, reason)

    def freeze_tensor(self, name: str, reason: Reason) -> None:
        """Demand that a tensor keeps its shape."""
        if name in self.stored or name in self.ids_of:
            self.freeze(self.ids(name), reason)

    def freeze_tensor_axis(self, name: str, axis: int, reason: Reason) -> None:
        """Demand that a tensor keeps its extent along one axis."""
        vector = self.vector(name, axis)
        if vector is not None:
            self.freeze([vector], reason)

    def contract(self, contraction: Contraction) -> None:
        """Note a place where units are consumed."""
        self.contractions.append(contraction)

    # -- shared by rules -----------------------------------------------------------------------------------

    def pass_axes(self, node: Node, name: str, axes: Sequence[int], text: str) -> list[IdArray]:
        """Return the ids of ``name`` on the given axes, and freeze those of all others for the reason given.

        What lies on both is tied: a position of the given axes goes with all that it holds.
        """
        return self.pass_arrays(node, self.ids(name), axes, text)

    def pass_arrays(self, node: Node, arrays: Sequence[IdArray], axes: Sequence[int], text: str) -> list[IdArray]:
        """Do the same with some id arrays of a tensor."""
        passed = []
        for ids in arrays:
            tied = self.atoms.tie(ids, [axis for axis in support(ids) if axis not in axes])
            if tied is None:
                self.freeze([ids], Reason(node.label, node.op, text))
            else:
                passed.append(tied)
        return passed

    def pass_others(self, node: Node, axes: Collection[int], text: str) -> None:
        """Freeze these axes of a node's first input for the reason given; every output gets the ids of the others."""
        rank = len(self.shape(node.input(0)) or ())
        passed = self.pass_axes(node, node.input(0), [axis for axis in range(rank) if axis not in axes], text)
        for name in node.outputs:
            self.set(name, passed, Reason(node.label, node.op, text))

    def on_axes(self, name: str, axes: Sequence[int]) -> list[IdArray]:
        """Return the ids of a tensor that lie within the given axes."""
        return [ids for ids in self.ids(name) if set(support(ids)) <= set(axes)]

    def merge(self, node: Node, names: Sequence[str], only: Sequence[Sequence[int]] | None = None) -> list[IdArray]:
        """Join tensors that are broadcast against each other, as elementwise operators do.

        Parameters
        ----------
        node : Node
        names : sequence of str
            The operands, all of known rank; see `ranked`.
        only : sequence of sequence of int, optional
            For each operand the axes, counted from the back (-1 is the last), that take part; all by default.

        Returns
        -------
        list of ndarray
            The ids of the broadcast result.
        """
        shapes = [self.shape(name) or () for name in names]
        rank = max(len(shape) for shape in shapes)
        operands = []
        for place, (name, shape) in enumerate(zip(names, shapes, strict=True)):
            axes = range(-rank, 0) if only is None else only[place]
            lifted = (1,) * (rank - len(shape)) + tuple(shape)
            extents = tuple(extent if axis - rank in axes else 1 for axis, extent in enumerate(lifted))
            operands.append((name, extents))
        # Constants come last: one that has no ids yet takes on the structure of what it meets.
        operands.sort(key=lambda operand: operand[0] in self.stored)
        return self._merge(node, rank, operands)

    def ranked(self, node: Node) -> bool:
        """Return whether all operands have a known rank; where not, freeze the node."""
        if all(self.shape(name) is not None for name in node.inputs if name):
            return True
        self.freeze_node(node, f"a tensor of unknown rank meets {node.op}")
        return False

    def freeze_node(self, node: Node, text: str) -> None:
        """Freeze whatever a node touches, and leave its outputs untracked for the same reason."""
        reason = Reason(node.label, node.op, text)
        for name in (*node.inputs, *node.captured):
            self.freeze_tensor(name, reason)
        for name in node.outputs:
            self.set(name, [], reason)

    # -- ids that name several axes ------------------------------------------------------------------------

    def apart(self, name: str) -> None:
        """Factor what names several axes of an activation, which from here on are used one by one."""
        if name in self.stored or name not in self.ids_of:
            return
        self.unrepeat(name)
        arrays: list[IdArray] = []
        for ids in self.ids_of[name]:
            self.splits.use(ids)
            arrays.extend(self.atoms.factor(ids) if len(support(ids)) > 1 else [ids])
        self.ids_of[name] = arrays

    def unrepeat(self, name: str) -> None:
        """Keep all that ids repeat along an axis of unknown extent: heads that are merged with the batch, say."""
        if name not in self.repeating:
            return
        arrays: list[IdArray] = []
        for ids in self.ids(name):
            tied = self.atoms.tie(ids, self.repeating[name])
            if tied is None:
                node = self.graph.producer[name]
                text = f"{node.op} merges the axis with one of unknown extent"
                self.freeze([ids], Reason(node.label, node.op, text))
            else:
                arrays.append(tied)
        self.ids_of[name] = arrays

    # -- inside --------------------------------------------------------------------------------------------

    def _own(self, name: str, axis: int) -> None:
        """Give an initializer ids of its own along one axis, unless it has some there."""
        dims = list(self.stored[name].dims)
        arrays = self.ids_of.setdefault(name, [])
        if dims[axis] > 1 and not any(axis in support(ids) for ids in arrays):
            arrays.append(along(self.atoms.new((dims[axis],)), len(dims), axis))

    def _merge(self, node: Node, rank: int, operands: Sequence[tuple[str, Shape]]) -> list[IdArray]:
        merged: list[IdArray] = []
        carried: dict[str, list[IdArray]] = {}
        for name, extents in operands:
            if name in self.stored and not self.ids_of.get(name):
                self._adopt(name, extents, merged)
            lifted = [lift(own, rank) for own in self.ids(name)]
            carried[name] = [ids for ids in lifted if all(extents[axis] != 1 for axis in support(ids))]
            for ids in carried[name]:
                self._merge_array(node, ids, merged)
        for ids in merged:
            for name, extents in operands:
                covered = any(support(own) == support(ids) for own in carried[name])
                if not covered and any(extents[axis] != 1 for axis in support(ids)):
                    self.freeze([ids], self.why_untracked(name))
        return merged

    def _merge_array(self, node: Node, ids: IdArray, merged: list[IdArray]) -> None:
        for other in merged:
            if other.shape == ids.shape:
                self.atoms.join(other, ids)
                return
            if set(support(other)) & set(support(ids)):
                self.freeze([other, ids], Reason(node.label, node.op, f"{node.op} joins axes split differently"))
        merged.append(ids)

    def _adopt(self, name: str, shape: Shape, merged: Sequence[IdArray]) -> None:
        """Give an initializer fresh ids of the structure of the tensors that it is broadcast against."""
        own = len(self.stored[name].dims)
        arrays = self.ids_of.setdefault(name, [])
        for ids in merged:
            if all(shape[axis] == ids.shape[axis] for axis in support(ids)):
                arrays.append(self.atoms.new(ids.shape[ids.ndim - own :]))
