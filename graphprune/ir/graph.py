"""A read-only view of a model: nodes, shapes, constants, producers and consumers, in the bodies of control flow too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import onnx

from graphprune.errors import ModelError
from graphprune.ir.bodies import DEFAULT_DOMAINS, nodes_below, open_graphs
from graphprune.ir.contrib import with_stand_ins
from graphprune.ir.entries import Entries, find_entries
from graphprune.ir.flow import infer_flat
from graphprune.ir.nodes import Body, Node, list_nodes
from graphprune.ir.quantized import Quantized, find_quantized
from graphprune.ir.readers import demanded_shapes
from graphprune.ir.targets import computed_shapes
from graphprune.ir.tensors import FLOAT_TYPES, array

__all__ = ["Body", "Dim", "Graph", "Node", "Shape", "infer_shapes", "skeleton"]

Dim = int | str | None
"""One extent of a shape: a number, a symbol, or nothing known."""
Shape = tuple[Dim, ...]

SMALL = 4096
"""Integer tensors of up to this many elements keep their values in a skeleton: shape inference needs them."""
RANDOM = frozenset("Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split())
"""Operators whose outputs differ from run to run."""
SCALES = 16
"""The same for float tensors, for the scales of Resize."""


class Graph:
    """A read-only view of a model.

    Attributes
    ----------
    nodes : list of Node
        All nodes in an order in which they can be computed; those of a body stand before the node that holds it.
    main : tuple of Node
        Those of the main graph.

    Parameters
    ----------
    proto : onnx.ModelProto
        The model; it must not be changed while the view is in use.
    input_shapes : mapping, optional
        Concrete shapes to assume for graph inputs, by name.

    Raises
    ------
    ModelError
        When shape inference finds the graph contradictory.
    """

    def __init__(self, proto: onnx.ModelProto, input_shapes: Mapping[str, Shape] | None = None) -> None:
        self.proto = proto
        self.initializers = {t.name: t for t in proto.graph.initializer}
        self.inputs = [v.name for v in proto.graph.input if v.name not in self.initializers]
        self.outputs = [v.name for v in proto.graph.output]
        self.nodes, self.main = list_nodes(proto)
        self.producer = {name: node for node in self.nodes for name in node.outputs if name}
        self.consumers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.reads:
                if name in node.inputs or name not in node.captured or not node.bodies:
                    self.consumers.setdefault(name, []).append(node)
        self._input_shapes = input_shapes or {}

    @cached_property
    def opset(self) -> int:
        """Version of ONNX's own operator set that the model imports (1 when it imports none)."""
        return next((o.version for o in self.proto.opset_import if o.domain in DEFAULT_DOMAINS), 1)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Shape of every tensor whose rank is known."""
        shapes = {v.name: _shape(v) for v in self._values if v.type.tensor_type.HasField("shape")}
        shapes.update({name: tuple(t.dims) for name, t in self.initializers.items()})
        return shapes

    @cached_property
    def element_types(self) -> dict[str, int]:
        """Element type of every tensor, as in ``onnx.TensorProto``, where it is known."""
        types = {v.name: v.type.tensor_type.elem_type for v in self._values if v.type.tensor_type.elem_type}
        types.update({name: t.data_type for name, t in self.initializers.items()})
        return types

    @cached_property
    def _inferred(self) -> onnx.GraphProto:
        return infer_shapes(self.proto, self._input_shapes).graph

    @property
    def _values(self) -> list[onnx.ValueInfoProto]:
        return _values(self._inferred)

    def shape(self, name: str) -> Shape | None:
        """Return a tensor's shape, None when not even its rank is known."""
        return self.shapes.get(name)

    @cached_property
    def entries(self) -> dict[str, Entries]:
        """What is known, entry by entry, of small tensors that hold shapes and the like."""
        return find_entries(self._inferred, self.shapes)

    def value(self, name: str) -> npt.NDArray[np.generic] | None:
        """Return the value of an initializer, None when the tensor is no initializer."""
        tensor = self.initializers.get(name)
        return None if tensor is None else array(tensor)

    def unused(self, name: str) -> str:
        """Return a tensor name that is not taken: this one, with underscores behind it if need be."""
        while name in self.initializers or name in self.producer or name in self.inputs or name in self.handed:
            name += "_"
        return name

    @cached_property
    def handed(self) -> set[str]:
        """Names of what control flow hands to its bodies: states, scanned positions, the number of the iteration."""
        return {name for node in self.nodes for body in node.bodies.values() for name in body.inputs}

    def is_inside(self, name: str) -> bool:
        """Return whether a tensor is only known in a body."""
        return name in self.handed or (name in self.producer and self.producer[name].inside)

    def is_float(self, name: str) -> bool:
        """Return whether the tensor is a float initializer."""
        return name in self.initializers and self.initializers[name].data_type in FLOAT_TYPES

    @cached_property
    def quantized(self) -> dict[str, Quantized]:
        """By name, integer initializers and Constant nodes that hold quantised numbers, and what these mean."""
        return find_quantized(self)

    def is_weight(self, name: str) -> bool:
        """Return whether the tensor is an initializer of weights: float numbers, or quantised ones."""
        return self.is_float(name) or (name in self.initializers and name in self.quantized)

    @cached_property
    def constants(self) -> set[str]:
        """Names of all tensors computed from initializers alone and without chance, initializers included."""
        functions = {(function.domain, function.name): function for function in self.proto.functions}
        found = set(self.initializers)
        for node in self.nodes:
            names = [name for name in node.inputs if name]
            fixed = names and not node.captured and not node.bodies and all(name in found for name in names)
            if fixed and not _is_random(node.proto, functions):
                found.update(name for name in node.outputs if name)
        return found

    def sources(self, name: str) -> list[str]:
        """Return the initializers of weights that a constant tensor is computed from."""
        found: dict[str, None] = {}
        pending = [name]
        while pending:
            current = pending.pop()
            if self.is_weight(current):
                found[current] = None
            elif current in self.producer and current in self.constants:
                pending.extend(n for n in self.producer[current].inputs if n)
        return list(found)


def infer_shapes(proto: onnx.ModelProto, input_shapes: Mapping[str, Shape] | None = None) -> onnx.ModelProto:
    """Run ONNX shape inference on the model without its weights.

    Parameters
    ----------
    proto : onnx.ModelProto
    input_shapes : mapping, optional
        Concrete shapes to assume for graph inputs, by name.

    Returns
    -------
    onnx.ModelProto
        A skeleton (see `skeleton`) with inferred ``value_info``, its control flow laid flat (`graphprune.ir.flow`).
        What the exporter noted there counts where it does not contradict what is inferred without it: ONNX Runtime
        takes stale notes, too. Where nothing is inferred nor noted, what a tensor's readers demand counts
        (`graphprune.ir.readers`).

    Raises
    ------
    ModelError
        When the graph contradicts itself.
    """
    bare = skeleton(proto)
    if input_shapes:
        del bare.graph.value_info[:]  # what the exporter noted holds for other input shapes
        for value in bare.graph.output:
            value.type.tensor_type.ClearField("shape")
    for value in bare.graph.input:
        for dim, extent in zip(
            value.type.tensor_type.shape.dim, (input_shapes or {}).get(value.name, ()), strict=False
        ):
            if isinstance(extent, int):
                dim.dim_value = extent
    notes = list(bare.graph.value_info)
    del bare.graph.value_info[:]
    inferred = _infer(bare)
    alone = _known_shapes(inferred)
    news = [v for v in notes if v.name not in alone or _adds(_shape(v), alone[v.name])]
    known = {*alone, *(v.name for v in news)}
    nodes = (node for graph in open_graphs(proto) for node in graph.node)
    news += [v for name, v in demanded_shapes(proto.graph, nodes).items() if name not in known]
    if news:
        bare.graph.value_info.extend(news)
        inferred = _infer(bare)
    return _infer_computed(bare, inferred)


def _infer_computed(bare: onnx.ModelProto, inferred: onnx.ModelProto) -> onnx.ModelProto:
    """Infer again as long as numbers are found in the shapes that the graph computes.

    Symbols alone come one node further with every round, so they get no second one.
    """
    numbers_found, noted = True, dict[str, list[Dim]]()
    while True:
        known = _known_shapes(inferred)
        kinds = {v.name: v.type.tensor_type.elem_type for v in _values(inferred.graph)}
        found = computed_shapes(inferred.graph, known)
        news = {name: shape for name, shape in found.items() if kinds.get(name) and noted.get(name) != shape}
        more_numbers = any(_count_numbers(shape) > _count_numbers(known.get(name, ())) for name, shape in news.items())
        if not news or not (more_numbers or numbers_found):
            return inferred
        numbers_found = more_numbers
        noted.update(news)
        for value in [v for v in bare.graph.value_info if v.name in news]:
            bare.graph.value_info.remove(value)
        bare.graph.value_info.extend(
            onnx.helper.make_tensor_value_info(name, kinds[name], shape) for name, shape in news.items()
        )
        inferred = _infer(bare)


def _count_numbers(shape: Sequence[Dim]) -> int:
    return sum(isinstance(extent, int) for extent in shape)


def _known_shapes(inferred: onnx.ModelProto) -> dict[str, Shape]:
    shapes = {v.name: _shape(v) for v in _values(inferred.graph) if v.type.tensor_type.HasField("shape")}
    return shapes | {t.name: tuple(t.dims) for t in inferred.graph.initializer}


def _infer(bare: onnx.ModelProto) -> onnx.ModelProto:
    return infer_flat(bare, _infer_nodes)


def _infer_nodes(bare: onnx.ModelProto) -> onnx.ModelProto:
    stood_in = with_stand_ins(bare)
    try:
        inferred = onnx.shape_inference.infer_shapes(stood_in, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError) as error:
        raise ModelError(
            "shape inference finds the graph contradictory",
            why=str(error).strip().splitlines()[0],
            hint="run onnx.checker.check_model(path, full_check=True) on it and mend the export",
        ) from error
    if stood_in is not bare:
        del inferred.graph.node[:]
        inferred.graph.node.extend(bare.graph.node)
    return inferred


def _adds(noted: Shape, known: Shape) -> bool:
    """Whether a note of the exporter says more than what is known, and does not contradict it."""
    if len(noted) != len(known):
        return False
    pairs = [(new, old) for new, old in zip(noted, known, strict=True) if isinstance(new, int)]
    return all(new == old or not isinstance(old, int) for new, old in pairs) and any(n != o for n, o in pairs)


def skeleton(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of the model in which large float initializers are inputs: the graph without its weights."""
    bare = onnx.ModelProto(ir_version=max(proto.ir_version, 4), producer_name=proto.producer_name)
    bare.opset_import.extend(proto.opset_import)
    bare.functions.extend(proto.functions)
    graph = bare.graph
    graph.name = proto.graph.name
    graph.node.extend(proto.graph.node)
    graph.output.extend(proto.graph.output)
    graph.value_info.extend(proto.graph.value_info)
    graph.sparse_initializer.extend(proto.graph.sparse_initializer)
    names = {t.name for t in proto.graph.initializer}
    graph.input.extend(v for v in proto.graph.input if v.name not in names)
    for tensor in proto.graph.initializer:
        size = int(np.prod(tensor.dims, dtype=np.int64))
        if size > (SCALES if tensor.data_type in FLOAT_TYPES else SMALL):
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        else:
            graph.initializer.append(tensor)
    return bare


def _values(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    return [*graph.value_info, *graph.output, *graph.input]


def _shape(value: onnx.ValueInfoProto) -> Shape:
    return tuple(
        d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else (d.dim_param or None)
        for d in value.type.tensor_type.shape.dim
    )


def _is_random(proto: onnx.NodeProto, functions: Mapping[tuple[str, str], onnx.FunctionProto]) -> bool:
    """Whether the node, its subgraphs or the local function that it calls draw random numbers."""
    if proto.domain in DEFAULT_DOMAINS and proto.op_type in RANDOM:
        return True
    function = functions.get((proto.domain, proto.op_type))
    inner = list(function.node) if function is not None else []
    inner += list(nodes_below([proto]))[1:]
    return any(_is_random(node, functions) for node in inner)
