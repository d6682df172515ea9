"""A read-only view of a model's main graph: nodes, shapes, constants, producers and consumers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from graphprune.errors import ModelError
from graphprune.ir.tensors import FLOAT_TYPES, array

Dim = int | str | None
"""One extent of a shape: a number, a symbol, or nothing known."""
Shape = tuple[Dim, ...]

DEFAULT_DOMAINS = ("", "ai.onnx")
SMALL = 4096
"""Integer tensors of up to this many elements keep their values in a skeleton: shape inference needs them."""
RANDOM = frozenset("Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split())
"""Operators whose outputs differ from run to run."""
SCALES = 16
"""The same for float tensors, for the scales of Resize."""


@dataclass(frozen=True)
class Node:
    """One node of the main graph.

    Attributes
    ----------
    index : int
        Position in the graph's node list.
    proto : onnx.NodeProto
    op : str
        Operator type, with its domain in front when that is not ONNX's own: ``Conv``, ``com.microsoft.Gelu``.
    inputs, outputs : tuple of str
        Tensor names; an empty name is an optional one left out.
    captured : tuple of str
        Names that the node's subgraphs read from the graph around them.
    """

    index: int
    proto: onnx.NodeProto
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    captured: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The node's name, or where it has none the name of its first output."""
        return self.proto.name or (self.outputs[0] if self.outputs else f"node {self.index}")

    def input(self, slot: int) -> str:
        """Return the name at an input slot, empty when it is left out."""
        return self.inputs[slot] if slot < len(self.inputs) else ""


class Graph:
    """A read-only view of a model's main graph.

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
        self.nodes = [_node(index, node) for index, node in enumerate(proto.graph.node)]
        self.producer = {name: node for node in self.nodes for name in node.outputs if name}
        self.consumers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys((*node.inputs, *node.captured)):
                if name:
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
    def _values(self) -> list[onnx.ValueInfoProto]:
        return _values(infer_shapes(self.proto, self._input_shapes).graph)

    def shape(self, name: str) -> Shape | None:
        """Return a tensor's shape, None when not even its rank is known."""
        return self.shapes.get(name)

    def value(self, name: str) -> npt.NDArray[np.generic] | None:
        """Return the value of an initializer, None when the tensor is no initializer."""
        tensor = self.initializers.get(name)
        return None if tensor is None else array(tensor)

    def is_float(self, name: str) -> bool:
        """Return whether the tensor is a float initializer, that is, holds weights."""
        return name in self.initializers and self.initializers[name].data_type in FLOAT_TYPES

    @cached_property
    def constants(self) -> set[str]:
        """Names of all tensors computed from initializers alone and without chance, initializers included."""
        functions = {(function.domain, function.name): function for function in self.proto.functions}
        found = set(self.initializers)
        for node in self.nodes:
            names = [name for name in (*node.inputs, *node.captured) if name]
            fixed = names and not node.captured and all(name in found for name in names)
            if fixed and not _is_random(node.proto, functions):
                found.update(name for name in node.outputs if name)
        return found

    def sources(self, name: str) -> list[str]:
        """Return the float initializers that a constant tensor is computed from."""
        found: dict[str, None] = {}
        pending = [name]
        while pending:
            current = pending.pop()
            if self.is_float(current):
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
        A skeleton (see `skeleton`) with inferred ``value_info``. What the exporter noted there counts where it does
        not contradict what is inferred without it: ONNX Runtime takes stale notes, too.

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
    alone = {v.name: _shape(v) for v in _values(inferred.graph) if v.type.tensor_type.HasField("shape")}
    alone.update({t.name: tuple(t.dims) for t in bare.graph.initializer})
    news = [v for v in notes if v.name not in alone or _adds(_shape(v), alone[v.name])]
    if not news:
        return inferred
    bare.graph.value_info.extend(news)
    return _infer(bare)


def _infer(bare: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError) as error:
        raise ModelError(
            "shape inference finds the graph contradictory",
            why=str(error).strip().splitlines()[0],
            hint="run onnx.checker.check_model(path, full_check=True) on it and mend the export",
        ) from error


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


def _node(index: int, proto: onnx.NodeProto) -> Node:
    op = proto.op_type if proto.domain in DEFAULT_DOMAINS else f"{proto.domain}.{proto.op_type}"
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute if not a.ref_attr_name}
    return Node(index, proto, op, tuple(proto.input), tuple(proto.output), _captured(proto), attributes)


def _is_random(proto: onnx.NodeProto, functions: Mapping[tuple[str, str], onnx.FunctionProto]) -> bool:
    """Whether the node, its subgraphs or the local function that it calls draw random numbers."""
    if proto.domain in DEFAULT_DOMAINS and proto.op_type in RANDOM:
        return True
    function = functions.get((proto.domain, proto.op_type))
    inner = list(function.node) if function is not None else []
    inner += [node for graph in _subgraphs(proto) for node in graph.node]
    return any(_is_random(node, functions) for node in inner)


def _subgraphs(proto: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in proto.attribute:
        yield from attribute.graphs
        if attribute.HasField("g"):
            yield attribute.g


def _captured(proto: onnx.NodeProto) -> tuple[str, ...]:
    """Names that the node's subgraphs use and do not define themselves."""
    found: dict[str, None] = {}
    for graph in _subgraphs(proto):
        own = {v.name for v in graph.input} | {t.name for t in graph.initializer}
        own |= {name for node in graph.node for name in node.output}
        used = [name for node in graph.node for name in (*node.input, *_captured(node))]
        used += [v.name for v in graph.output]
        found.update(dict.fromkeys(name for name in used if name and name not in own))
    return tuple(found)
