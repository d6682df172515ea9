"""Add a constant to every output channel of a Conv, Gemm or MatMul, where its bias is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from graphprune.ir.edit import set_input
from graphprune.ir.graph import Graph
from graphprune.ir.nodes import Node
from graphprune.ir.tensors import array, list_initializers, replace_values

FloatArray = npt.NDArray[np.float64]


def add_to_outputs(proto: onnx.ModelProto, deltas: dict[str, FloatArray]) -> None:
    """Add constants to the outputs of nodes, in place.

    Parameters
    ----------
    proto : onnx.ModelProto
    deltas : dict of str to ndarray of float64, shape (output channels,)
        By the name of the node's output tensor, what to add to every channel of it. Where there is a bias that
        only this node reads it is changed; else a bias or an Add is made.
    """
    graph = Graph(proto)
    for output, delta in deltas.items():
        node = graph.producer[output]
        if not _add_to_bias(proto, graph, node, delta):
            _add_node(proto, graph, node, delta)
    list_initializers(proto)


def _add_to_bias(proto: onnx.ModelProto, graph: Graph, node: Node, delta: FloatArray) -> bool:
    """Use the bias input of Conv and Gemm, or the bias that an Add behind MatMul holds."""
    scale = 1.0
    reader, slot = node, 2
    if node.op == "Gemm":
        beta = float(node.attributes.get("beta", 1.0))
        if beta == 0:
            return False
        scale = 1 / beta
    elif node.op != "Conv":
        readers = graph.consumers.get(node.outputs[0], [])
        if len(readers) != 1 or readers[0].op != "Add" or node.outputs[0] in graph.outputs:
            return False
        reader = readers[0]
        slot = 1 - reader.inputs.index(node.outputs[0])
    name = reader.input(slot)
    if name in graph.producer:
        return _add_to_quantised(graph, name, delta * scale)
    if name and not (graph.is_float(name) and _is_bias(graph, name, len(delta))):
        return False
    if not name:
        if node.op not in ("Conv", "Gemm"):
            return False
        bias = _new(proto, graph, f"{node.outputs[0]}_bias", delta * scale, _element_type(graph, node))
        set_input(reader.proto, slot, bias)
        return True
    tensor = graph.initializers[name]
    values = array(tensor)
    summed = (values.astype(np.float64) + (delta * scale).reshape(values.shape)).astype(values.dtype)
    if len(graph.consumers[name]) == 1 and name not in graph.outputs:
        replace_values(tensor, summed)
    else:
        set_input(reader.proto, slot, _new(proto, graph, f"{node.outputs[0]}_bias", summed, tensor.data_type))
    return True


def _add_to_quantised(graph: Graph, name: str, delta: FloatArray) -> bool:
    """Add to a bias of 32 bits behind DequantizeLinear, whose steps are as fine as the sums'; no other may read it."""
    node = graph.producer[name]
    stored = node.input(0)
    if node.op != "DequantizeLinear" or any(len(graph.consumers[n]) > 1 or n in graph.outputs for n in (name, stored)):
        return False
    meaning, tensor = graph.quantized.get(stored), graph.initializers.get(stored)
    if meaning is None or meaning.scale is None or tensor is None or tensor.data_type != onnx.TensorProto.INT32:
        return False
    values = array(tensor)
    wide = values.astype(np.float64) + np.rint(delta / meaning.scale)
    limits = np.iinfo(np.int32)
    if wide.shape != delta.shape or wide.min() < limits.min or wide.max() > limits.max:
        return False
    replace_values(tensor, wide.astype(np.int32))
    return True


def _is_bias(graph: Graph, name: str, channels: int) -> bool:
    """Whether the tensor holds one value per channel, along the last axis."""
    dims = list(graph.initializers[name].dims)
    return bool(dims) and dims[-1] == channels and all(extent == 1 for extent in dims[:-1])


def _add_node(proto: onnx.ModelProto, graph: Graph, node: Node, delta: FloatArray) -> None:
    """Insert an Add behind the node."""
    output = node.outputs[0]
    rank = len(graph.shape(output) or ())
    shaped = delta.reshape(-1, *[1] * (rank - 2)) if node.op == "Conv" else delta
    bias = _new(proto, graph, f"{output}_bias", shaped, _element_type(graph, node))
    inner = graph.unused(f"{output}_without_bias")
    node.proto.output[0] = inner
    place = next(index for index, other in enumerate(proto.graph.node) if inner in other.output)
    proto.graph.node.insert(place + 1, onnx.helper.make_node("Add", [inner, bias], [output]))


def _element_type(graph: Graph, node: Node) -> int:
    """Element type of the output, which is that of all inputs."""
    known = (graph.element_types.get(name) for name in (node.outputs[0], *node.inputs))
    return next((kind for kind in known if kind), onnx.TensorProto.FLOAT)


def _new(proto: onnx.ModelProto, graph: Graph, name: str, values: npt.NDArray[np.floating], kind: int) -> str:
    name = graph.unused(name)
    typed = values.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    proto.graph.initializer.append(numpy_helper.from_array(typed, name))
    return name
