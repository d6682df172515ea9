"""Products of integers that are exact on every processor.

On x86 processors without VNNI, ONNX Runtime multiplies uint8 by int8 with an instruction (VPMADDUBSW) that adds two
products in 16 bits and cuts off what is larger. Which two depends on where they stand, so that what is left of a layer
computes another sum than the whole layer with the rest at 0. uint8 by uint8 is exact everywhere.
"""

from __future__ import annotations

import numpy as np
import onnx

from graphprune.ir.edit import set_input
from graphprune.ir.graph import Graph
from graphprune.ir.nodes import Node, rebuilt
from graphprune.ir.quantized import Operand, operands

WEIGHTS: dict[str, tuple[int, ...]] = {
    "ConvInteger": (1,),
    "MatMulInteger": (1,),
    "QLinearConv": (1,),
    "QLinearMatMul": (1,),
    "com.microsoft.DynamicQuantizeLSTM": (0, 1),
    "com.microsoft.DynamicQuantizeMatMul": (1,),
    "com.microsoft.MatMulIntegerToFloat": (1,),
    "com.microsoft.QGemm": (1,),
}
"""By operator that multiplies integers, which of its operands are multiplied by activations."""
HALF = 128
"""What is added to int8 to make it uint8, and to its zero point, so that it means the same."""


def unsaturated(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model of the same function that multiplies uint8 by uint8 where it multiplied uint8 by int8.

    Parameters
    ----------
    proto : onnx.ModelProto
        Not changed.

    Returns
    -------
    onnx.ModelProto
        The very model where nothing is multiplied so.
    """
    graph = Graph(proto)
    signed = {
        node.index: found
        for node in graph.nodes
        if node.op in WEIGHTS and (found := [operand for operand in _weights(node) if _saturates(graph, node, operand)])
    }
    if not signed:
        return proto
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    half, zero = graph.unused("graphprune_half"), graph.unused("graphprune_unsigned_zero")
    result.graph.initializer.append(onnx.numpy_helper.from_array(np.array(HALF, np.int32), half))
    result.graph.initializer.append(onnx.numpy_helper.from_array(np.array(HALF, np.uint8), zero))

    def changed(node: Node) -> list[onnx.NodeProto]:
        made: list[onnx.NodeProto] = []
        last = onnx.NodeProto.FromString(node.proto.SerializeToString()) if node.index in signed else node.proto
        for operand in signed.get(node.index, ()):
            assert operand.zero is not None
            for slot in (operand.value, operand.zero):
                if name := node.input(slot):
                    made += _unsigned(name, output := graph.unused(f"graphprune_unsigned_{node.index}_{slot}"), half)
                else:
                    output = zero
                set_input(last, slot, output)
        return [*made, last]

    nodes = rebuilt(graph.main, changed)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


def _weights(node: Node) -> list[Operand]:
    found = operands(node)
    return [found[number] for number in WEIGHTS[node.op]]


def _saturates(graph: Graph, node: Node, operand: Operand) -> bool:
    """Whether a weight is signed, and what it is multiplied by is not: where both are, the kernel is exact."""
    signed = onnx.TensorProto.INT8
    return graph.element_types.get(node.input(operand.value)) == signed != graph.element_types.get(node.input(0))


def _unsigned(name: str, output: str, half: str) -> list[onnx.NodeProto]:
    """Nodes that make int8 uint8."""
    wide, moved = f"{output}_wide", f"{output}_moved"
    return [
        onnx.helper.make_node("Cast", [name], [wide], to=onnx.TensorProto.INT32),
        onnx.helper.make_node("Add", [wide, half], [moved]),
        onnx.helper.make_node("Cast", [moved], [output], to=onnx.TensorProto.UINT8),
    ]
