"""The weights of a model that may be encoded, and what stands against it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import external_data_helper

from graphprune.ir.bodies import nodes_below, subgraphs
from graphprune.ir.encoding.decoders import FIRST, FORMS, KINDS
from graphprune.ir.tensors import FLOAT_TYPES


@dataclass(frozen=True)
class Site:
    """A weight that may be encoded.

    Attributes
    ----------
    name : str
        The tensor that the model reads.
    tensor : onnx.TensorProto
        Its values, in an initializer or a Constant node.
    stem : str
        What names of its encoding begin with.
    obstacle : str
        Why it cannot be encoded; empty where it can.
    """

    name: str
    tensor: onnx.TensorProto
    stem: str
    obstacle: str

    @property
    def size(self) -> int:
        """Number of its values."""
        return int(np.prod(self.tensor.dims, dtype=np.int64))


def find_sites(proto: onnx.ModelProto, prefix: str) -> list[Site]:
    """Return the model's float weights, with what stands against encoding each."""
    inside = "it is stored inside a body of control flow"
    found = [(name, tensor, _obstacle(proto, name, tensor)) for name, tensor in _stored(proto.graph)]
    found += [(name, tensor, inside) for name, tensor in _below(proto.graph)]
    return [
        Site(name, tensor, f"{prefix}.{number}", obstacle)
        for number, (name, tensor, obstacle) in enumerate(found)
        if tensor.data_type in FLOAT_TYPES
    ]


def _obstacle(proto: onnx.ModelProto, name: str, tensor: onnx.TensorProto) -> str:
    """Say why a weight of the main graph cannot be encoded; nothing where it can."""
    opset, first = opset_of(proto), min(FIRST[form] for form in FORMS[1:])
    if opset < first:
        return f"operator set {opset} has no operators that rebuild it; from {first} on there are"
    if any(value.name == name for value in proto.graph.output):
        return "it is an output of the graph"
    if any(value.name == name for value in proto.graph.input):
        return "it is listed as an input of the graph: a caller may give another value"
    return "" if tensor.data_type in KINDS else "ONNX Runtime has too few operators of its element type"


def _stored(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Walk a graph's initializers, and the tensors that its Constant nodes hold."""
    yield from ((tensor.name, tensor) for tensor in graph.initializer)
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            yield from ((node.output[0], a.t) for a in node.attribute if a.name == "value" and a.HasField("t"))


def _below(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Walk the tensors stored in graphs inside a graph."""
    for node in graph.node:
        for body in subgraphs(node):
            yield from _stored(body)
            yield from _below(body)


def in_memory(tensor: onnx.TensorProto) -> bool:
    """Return whether a tensor's values are in the model, not in a file beside it that was not read."""
    return not external_data_helper.uses_external_data(tensor)


def opset_of(proto: onnx.ModelProto) -> int:
    """Return the version of the model's operator set."""
    return next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)


def free_prefix(proto: onnx.ModelProto) -> str:
    """Return what no name of the model begins with, up to a dot."""
    names = {value.name for value in (*proto.graph.input, *proto.graph.value_info)}
    names.update(tensor.name for tensor in proto.graph.initializer)
    names.update(tensor.values.name for tensor in proto.graph.sparse_initializer)
    names.update(name for node in nodes_below(proto.graph.node) for name in (*node.input, *node.output))
    names.update(name for name, _ in _below(proto.graph))
    taken = {name.partition(".")[0] for name in names}
    return next(prefix for number in range(len(taken) + 1) if (prefix := f"sparse{number or ''}") not in taken)
