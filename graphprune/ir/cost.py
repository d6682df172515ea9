"""Weights, MACs: one definition each (DESIGN section 6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx

from graphprune.ir.coupling.units import BoolArray, Coupling
from graphprune.ir.graph import Graph
from graphprune.ir.nodes import Node
from graphprune.ir.quantized import Quantized, operands
from graphprune.ir.rewriting.lifting import opened
from graphprune.ir.rules.attention import LAYOUTS
from graphprune.ir.rules.equation import parse_equation
from graphprune.ir.shapes.flow import scan_axes
from graphprune.ir.shapes.inference import Dim, Shape
from graphprune.ir.tensors import FLOAT_TYPES, array


def weight_tensors(proto: onnx.ModelProto) -> list[tuple[onnx.TensorProto, Quantized | None]]:
    """Return the tensors of weights stored in the model that its outputs depend on.

    Float initializers and Constant nodes, and those of quantised numbers, in bodies of control flow too; those of a
    local function for every call. Biases, norm parameters and scales are weights too, zero points are not.

    Returns
    -------
    list of (onnx.TensorProto, Quantized or None)
        Each with what its numbers mean where they are quantised.
    """
    graph = Graph(opened(proto))
    needed = set(graph.outputs)
    found: list[tuple[str, onnx.TensorProto]] = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            needed.update(node.reads)
            name = node.outputs[0] if node.op == "Constant" else ""
            found.extend((name, tensor) for tensor in (() if node.bodies else _inside(node.proto)))
    found.extend((name, tensor) for name, tensor in graph.initializers.items() if name in needed)
    return [
        (tensor, graph.quantized.get(name))
        for name, tensor in found
        if tensor.data_type in FLOAT_TYPES or name in graph.quantized
    ]


def count_weights(proto: onnx.ModelProto) -> int:
    """Return the number of weights."""
    return sum(int(np.prod(tensor.dims, dtype=np.int64)) for tensor, _ in weight_tensors(proto))


def count_nonzero(proto: onnx.ModelProto) -> int:
    """Return the number of weights that are not 0; a quantised one that equals its zero point is."""
    return sum(nonzero_entries(proto).values())


def count_changed(before: onnx.ModelProto, after: onnx.ModelProto) -> int:
    """Return how many entries of the weights differ between two models of the same graph."""
    pairs = zip(weight_tensors(before), weight_tensors(after), strict=True)
    return sum(int(np.count_nonzero(array(one) != array(other))) for (one, _), (other, _) in pairs)


def nonzero_entries(proto: onnx.ModelProto) -> dict[str, int]:
    """Return how many entries of every weight are not 0, by tensor name; a second of the same name gets a number."""
    found: dict[str, int] = {}
    for number, (tensor, meaning) in enumerate(weight_tensors(proto)):
        count = int(np.count_nonzero(array(tensor))) if meaning is None else meaning.nonzero(array(tensor))
        name = tensor.name if tensor.name and tensor.name not in found else f"{tensor.name} ({number})"
        found[name] = count
    return found


def weights_left(coupling: Coupling, removed: BoolArray) -> int:
    """Return how many weights the main graph's initializers would keep, without cutting.

    Parameters
    ----------
    coupling : Coupling
    removed : ndarray of bool, shape (units,)
    """
    left = 0
    for name, tensor in coupling.graph.initializers.items():
        if coupling.graph.is_weight(name):
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
        Over the operators of `MACS`; one whose shapes stay unknown counts nothing. Of an If the more expensive branch
        counts; the body of a Loop or Scan counts as often as it is known to run, at least once.
    """
    graph = Graph(proto, input_shapes)
    return sum(_macs(node, graph) for node in graph.main)


def macs_by_weight(proto: onnx.ModelProto, input_shapes: Mapping[str, Shape]) -> dict[str, float]:
    """Return the multiply-accumulates that every stored weight of the main graph takes part in.

    Parameters
    ----------
    proto : onnx.ModelProto
    input_shapes : mapping of str to tuple of int
        Concrete input shapes.

    Returns
    -------
    dict of str to float
        By initializer; a node that reads several, as recurrent ones do, is shared out by their sizes.
    """
    graph = Graph(proto, input_shapes)
    found: dict[str, float] = {}
    for node in graph.main:
        read = [name for name in node.inputs if name in graph.initializers]
        sizes = {name: float(np.prod(graph.initializers[name].dims, dtype=np.float64)) for name in read}
        weights = {name: size for name, size in sizes.items() if len(graph.initializers[name].dims) > 1}
        for name, size in weights.items():
            found[name] = found.get(name, 0.0) + _macs(node, graph) * size / max(sum(weights.values()), 1.0)
    return found


def _macs(node: Node, graph: Graph) -> int:
    if not node.bodies:
        return MACS[node.op](node, graph) if node.op in MACS else 0
    inside = max(sum(_macs(inner, graph) for inner in body.nodes) for body in node.bodies.values())
    return inside * _repeats(node, graph)


def _repeats(node: Node, graph: Graph) -> int:
    """How often a body runs, as far as it is known."""
    times: Dim = None
    if node.op == "Loop":
        most = graph.value(node.input(0))
        times = None if most is None else int(most.item())
    elif node.op == "Scan":
        axes = scan_axes(node.proto).inputs
        shape = graph.shape(node.inputs[-len(axes)])
        times = None if shape is None else shape[axes[0]]
    return max(times, 1) if isinstance(times, int) else 1


def _conv_macs(node: Node, graph: Graph) -> int:
    """Every output element sums over the weight's input channels and kernel."""
    return _size(graph.shape(node.outputs[0])) * _size((graph.shape(node.input(_slots(node)[1])) or ())[1:])


def _slots(node: Node) -> list[int]:
    """Input slots of what an operator multiplies."""
    return [operand.value for operand in operands(node)] or [0, 1]


def _conv_transpose_macs(node: Node, graph: Graph) -> int:
    """Every input element is spread over the weight's output channels and kernel."""
    return _size(graph.shape(node.input(0))) * _size((graph.shape(node.input(1)) or ())[1:])


def _matmul_macs(node: Node, graph: Graph) -> int:
    """Every output element sums over the contracted axis."""
    left = graph.shape(node.input(0)) or (0,)
    contracted = left[-2] if node.attributes.get("transA", 0) and len(left) > 1 else left[-1]
    return _size(graph.shape(node.outputs[0])) * (contracted if isinstance(contracted, int) else 0)


def _recurrent_macs(node: Node, graph: Graph) -> int:
    """At every step of every sample, all gates read the inputs and the hidden units."""
    weights = _size(graph.shape(node.input(1))) + _size(graph.shape(node.input(2)))
    return _size((graph.shape(node.input(0)) or ())[:2]) * weights


def _einsum_macs(node: Node, graph: Graph) -> int:
    """From left to right, each further operand meets all labels that it or what is left of the others carries."""
    shapes = [graph.shape(name) or () for name in node.inputs]
    equation = parse_equation(node.attributes["equation"].decode(), [len(shape) for shape in shapes])
    if equation is None:
        return 0
    extents: dict[str, Dim] = {}
    for labels, shape in zip(equation.operands, shapes, strict=True):
        extents.update({label: extent for label, extent in zip(labels, shape, strict=True) if extent != 1})
    macs, left = 0, set(equation.operands[0])
    for place, labels in enumerate(equation.operands[1:], start=1):
        left.update(labels)
        macs += _size(tuple(extents.get(label, 1) for label in left))
        left &= {*equation.result, *(label for later in equation.operands[place + 1 :] for label in later)}
    return macs


def _attention_macs(node: Node, graph: Graph) -> int:
    """Every query meets every key, and every weight of the softmax a value."""
    keys, past = graph.shape(node.input(1)) or (), graph.shape(node.input(LAYOUTS[node.op].past)) or ()
    steps = [*keys[-2:-1], *past[-2:-1]]
    if not all(isinstance(extent, int) for extent in steps):
        return 0
    both = _size(graph.shape(node.input(0))) + _size(graph.shape(node.outputs[0]))
    return both * sum(int(extent or 0) for extent in steps)


def _packed_attention_macs(node: Node, graph: Graph) -> int:
    """Queries, keys and values are products of one input and one weight."""
    data, weight = graph.shape(node.input(0)) or (), graph.shape(node.input(1)) or ()
    past = (graph.shape(node.input(4)) or ())[3:4] or (0,)
    if not data or not all(isinstance(extent, int) for extent in (*data, *weight, *past)):
        return 0
    batch, steps, _, columns, cached = (int(extent or 0) for extent in (*data, weight[-1], *past))
    sizes: list[int] = node.attributes.get("qkv_hidden_sizes", [columns // 3] * 3)
    return _size(data) * columns + batch * steps * (steps + cached) * (sizes[0] + sizes[2])


MACS: dict[str, Callable[[Node, Graph], int]] = {
    "Attention": _attention_macs,
    "Conv": _conv_macs,
    "ConvTranspose": _conv_transpose_macs,
    "Einsum": _einsum_macs,
    "Gemm": _matmul_macs,
    "MatMul": _matmul_macs,
    "LSTM": _recurrent_macs,
    "GRU": _recurrent_macs,
    "RNN": _recurrent_macs,
    **dict.fromkeys(["ConvInteger", "QLinearConv"], _conv_macs),
    **dict.fromkeys(["MatMulInteger", "QLinearMatMul"], _matmul_macs),
    **dict.fromkeys(["com.microsoft.DynamicQuantizeMatMul", "com.microsoft.MatMulIntegerToFloat"], _matmul_macs),
    "com.microsoft.QGemm": _matmul_macs,
    "com.microsoft.DynamicQuantizeLSTM": _recurrent_macs,
    "com.microsoft.Attention": _packed_attention_macs,
    "com.microsoft.FusedConv": _conv_macs,
    "com.microsoft.FusedGemm": _matmul_macs,
    "com.microsoft.FusedMatMul": _matmul_macs,
    "com.microsoft.GroupQueryAttention": _attention_macs,
    "com.microsoft.MultiHeadAttention": _attention_macs,
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
