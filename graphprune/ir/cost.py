"""Weights, MACs: one definition each (DESIGN section 6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx

from graphprune.ir.graph import Graph, Node, Shape
from graphprune.ir.tensors import FLOAT_TYPES, array
from graphprune.ir.units import BoolArray, Coupling


def weight_tensors(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Return the float tensors stored in the model that its outputs depend on.

    Initializers and Constant nodes, those of subgraphs included; biases and norm parameters are weights too.
    """
    graph = Graph(proto)
    needed = set(graph.outputs)
    found: list[onnx.TensorProto] = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            needed.update((*node.inputs, *node.captured))
            found.extend(_inside(node.proto))
    found.extend(tensor for tensor in proto.graph.initializer if tensor.name in needed)
    return [tensor for tensor in found if tensor.data_type in FLOAT_TYPES]


def count_weights(proto: onnx.ModelProto) -> int:
    """Return the number of weights."""
    return sum(int(np.prod(tensor.dims, dtype=np.int64)) for tensor in weight_tensors(proto))


def count_nonzero(proto: onnx.ModelProto) -> int:
    """Return the number of weights that are not 0."""
    return sum(int(np.count_nonzero(array(tensor))) for tensor in weight_tensors(proto))


def weights_left(coupling: Coupling, removed: BoolArray) -> int:
    """Return how many weights the main graph's initializers would keep, without cutting.

    Parameters
    ----------
    coupling : Coupling
    removed : ndarray of bool, shape (units,)
    """
    left = 0
    for name, tensor in coupling.graph.initializers.items():
        if coupling.graph.is_float(name):
            size = int(np.prod(tensor.dims, dtype=np.int64))
            keep = coupling.keeps(name, removed)
            left += size if keep is None else size // keep.size * int(keep.sum())
    return left


def count_macs(proto: onnx.ModelProto, input_shapes: Mapping[str, Shape]) -> int:
    """Return the multiply-accumulates of one inference.

    Parameters
    ----------
    proto : onnx.ModelProto
    input_shapes : mapping of str to tuple of int
        Concrete input shapes.

    Returns
    -------
    int
        Over Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN; an operator whose shapes stay unknown counts nothing.
    """
    graph = Graph(proto, input_shapes)
    return sum(MACS[node.op](node, graph) for node in graph.nodes if node.op in MACS)


def _conv_macs(node: Node, graph: Graph) -> int:
    """Every output element sums over the weight's input channels and kernel."""
    return _size(graph.shape(node.outputs[0])) * _size((graph.shape(node.input(1)) or ())[1:])


def _conv_transpose_macs(node: Node, graph: Graph) -> int:
    """Every input element is spread over the weight's output channels and kernel."""
    return _size(graph.shape(node.input(0))) * _size((graph.shape(node.input(1)) or ())[1:])


def _matmul_macs(node: Node, graph: Graph) -> int:
    """Every output element sums over the contracted axis."""
    left = graph.shape(node.input(0)) or (0,)
    contracted = left[0] if node.attributes.get("transA", 0) else left[-1]
    return _size(graph.shape(node.outputs[0])) * (contracted if isinstance(contracted, int) else 0)


def _recurrent_macs(node: Node, graph: Graph) -> int:
    """At every step of every sample, all gates read the inputs and the hidden units."""
    weights = _size(graph.shape(node.input(1))) + _size(graph.shape(node.input(2)))
    return _size((graph.shape(node.input(0)) or ())[:2]) * weights


MACS: dict[str, Callable[[Node, Graph], int]] = {
    "Conv": _conv_macs,
    "ConvTranspose": _conv_transpose_macs,
    "Gemm": _matmul_macs,
    "MatMul": _matmul_macs,
    "LSTM": _recurrent_macs,
    "GRU": _recurrent_macs,
    "RNN": _recurrent_macs,
}


def _size(shape: Shape | None) -> int:
    if shape is None or not all(isinstance(extent, int) for extent in shape):
        return 0
    return int(np.prod([int(extent or 0) for extent in shape], dtype=np.int64))


def _inside(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    """Tensors stored in a node's attributes, subgraphs included."""
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            yield from graph.initializer
            for inner in graph.node:
                yield from _inside(inner)
