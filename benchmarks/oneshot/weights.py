"""Layers and weights of an ONNX file, as the peers that work on ONNX files need them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


@dataclass(frozen=True)
class Layer:
    """A Conv, Gemm or MatMul with a constant weight."""

    node: onnx.NodeProto
    weight: str

    @property
    def op(self) -> str:
        """The operator type."""
        return self.node.op_type

    def attribute(self, name: str, default: Any) -> Any:
        """The value of an attribute, or `default`."""
        found = [a for a in self.node.attribute if a.name == name]
        return onnx.helper.get_attribute_value(found[0]) if found else default


def layers_of(proto: onnx.ModelProto) -> list[Layer]:
    """Every Conv, Gemm and MatMul with a constant weight, in graph order."""
    constant = {t.name for t in proto.graph.initializer}
    return [
        Layer(node, node.input[1])
        for node in proto.graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in constant and node.input[0] not in constant
    ]


def read(proto: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(_tensor(proto, name))


def write(proto: onnx.ModelProto, name: str, values: np.ndarray) -> None:
    tensor = _tensor(proto, name)
    tensor.CopyFrom(numpy_helper.from_array(values.astype(numpy_helper.to_array(tensor).dtype), name))


def prunable(proto: onnx.ModelProto) -> int:
    """Elements of the weights of all layers."""
    return sum(read(proto, layer.weight).size for layer in layers_of(proto))


def gone(before: onnx.ModelProto, after: onnx.ModelProto) -> float:
    """Share of the float weights of `before` which `after` no longer has, or has as zeros."""
    return 1 - _count(after, nonzero=True) / _count(before, nonzero=False)


def total(proto: onnx.ModelProto) -> int:
    """Elements of all float initializers and constants that a node reads."""
    return _count(proto, nonzero=False)


def _count(proto: onnx.ModelProto, nonzero: bool) -> int:
    nodes = proto.graph.node
    used = {name for node in nodes for name in node.input}
    tensors = [t for t in proto.graph.initializer if t.name in used]
    tensors += [a.t for n in nodes if n.op_type == "Constant" for a in n.attribute if a.name == "value"]
    arrays = [numpy_helper.to_array(t) for t in tensors if t.data_type in FLOATS]
    return sum(int(np.count_nonzero(a)) if nonzero else a.size for a in arrays)


def _tensor(proto: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in proto.graph.initializer if t.name == name)
