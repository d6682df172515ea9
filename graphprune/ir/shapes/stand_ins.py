"""Shapes that ONNX's shape inference does not find: those of ONNX Runtime's own operators, and of GroupNormalization.

Each operator is given a stand-in made of ONNX's operators that has the same output shapes; its values are never used.

Reference: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

RUNTIME = "com.microsoft"

Extents = Mapping[str, Sequence[int]]
"""Extents of the weights, by name."""
StandIn = Callable[[onnx.NodeProto, Extents], list[onnx.NodeProto]]


def with_stand_ins(bare: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with stand-ins, for shape inference alone.

    Parameters
    ----------
    bare : onnx.ModelProto
        A model without its weights; see `graphprune.ir.graph.skeleton`.

    Returns
    -------
    onnx.ModelProto
        The model itself where there is nothing to stand in for.
    """
    unknown = STAND_INS.keys() - {(function.domain, function.name) for function in bare.functions}
    replaced = [(node.domain, node.op_type) in unknown for node in bare.graph.node]
    if not any(replaced):
        return bare
    extents = {tensor.name: list(tensor.dims) for tensor in bare.graph.initializer}
    extents.update({v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in bare.graph.input})
    result = onnx.ModelProto()
    result.CopyFrom(bare)
    del result.graph.node[:]
    for node, stood_in in zip(bare.graph.node, replaced, strict=True):
        stand_in = STAND_INS[node.domain, node.op_type](node, extents) if stood_in else [node]
        result.graph.node.extend(stand_in)
    return result


def _same(node: onnx.NodeProto, extents: Extents) -> list[onnx.NodeProto]:
    """The first output has the shape of the first input, and so has the sum that skip normalisation also gives out."""
    outputs = [name for place, name in enumerate(node.output) if name and place in (0, 3)]
    return [helper.make_node("Identity", node.input[:1], [name]) for name in outputs]


def _without_activation(node: onnx.NodeProto, extents: Extents) -> list[onnx.NodeProto]:
    """The operator that the activation, or the sum behind it, is fused with."""
    attributes = [a for a in node.attribute if not a.name.startswith("activation")]
    return [onnx.NodeProto(op_type=node.op_type[5:], input=node.input[:3], output=node.output, attribute=attributes)]


def _matrix_product(node: onnx.NodeProto, extents: Extents) -> list[onnx.NodeProto]:
    attributes = _attributes(node)
    if attributes.get("transBatchA", 0) or attributes.get("transBatchB", 0):
        return [node]
    left = "km" if attributes.get("transA", 0) else "mk"
    right = "nk" if attributes.get("transB", 0) else "kn"
    # Shape inference wants ellipses of one rank: a stored matrix goes without.
    dots = ["" if len(extents.get(name, ())) == 2 else "..." for name in node.input]
    equation = f"{dots[0]}{left},{dots[1]}{right}->{max(dots)}mn"
    return [helper.make_node("Einsum", node.input, node.output, equation=equation)]


def _attention(node: onnx.NodeProto, extents: Extents) -> list[onnx.NodeProto]:
    """[N, S, I] times [I, Q + K + V] makes [N, S, V]."""
    columns = extents.get(node.input[1], (0, 0))[-1]
    width = int(_attributes(node).get("qkv_hidden_sizes", [columns // 3])[-1])
    if not width:
        return [node]
    output = node.output[0]
    product, places = f"{output}/stand_in/product", f"{output}/stand_in/places"
    return [
        helper.make_node("MatMul", node.input[:2], [product]),
        helper.make_node("Constant", [], [places], value=numpy_helper.from_array(np.arange(width))),
        helper.make_node("Gather", [product, places], [output], axis=2),
    ]


def _heads(node: onnx.NodeProto, extents: Extents) -> list[onnx.NodeProto]:
    """Queries [N, S, Q] and values [N, T, V] make [N, S, V]."""
    if len(node.input) < 3 or not node.input[2]:
        return [node]
    return [helper.make_node("Einsum", [node.input[0], node.input[2]], node.output[:1], equation="nsq,ntv->nsv")]


def _grouped_heads(node: onnx.NodeProto, extents: Extents) -> list[onnx.NodeProto]:
    """The output has the shape of the queries, where these are not packed with keys and values."""
    return _same(node, extents)[:1] if len(node.input) > 1 and node.input[1] else [node]


def _embedding(node: onnx.NodeProto, extents: Extents) -> list[onnx.NodeProto]:
    outputs = [name for place, name in enumerate(node.output) if name and place in (0, 2)]
    return [helper.make_node("Gather", [node.input[2], node.input[0]], [name]) for name in outputs]


def _quantised(op: str, *slots: int) -> StandIn:
    """Return what stands in for the quantised form of an operator: that, reading the given slots."""

    def stand_in(node: onnx.NodeProto, extents: Extents) -> list[onnx.NodeProto]:
        if _attributes(node).get("channels_last", 0):
            return [node]
        names = [node.input[slot] for slot in slots] if slots else list(node.input[2::3])
        attributes = [a for a in node.attribute if a.name not in ("channels_last", "alpha")]
        return [onnx.NodeProto(op_type=op, input=names, output=node.output, attribute=attributes)]

    return stand_in


def _integer_product(node: onnx.NodeProto, extents: Extents) -> list[onnx.NodeProto]:
    """The product of integers is scaled to floats."""
    product = f"{node.output[0]}/stand_in/product"
    return [
        helper.make_node("MatMulInteger", node.input[:2], [product]),
        helper.make_node("Cast", [product], node.output, to=onnx.TensorProto.FLOAT),
    ]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


STAND_INS: dict[tuple[str, str], StandIn] = {
    ("", "GroupNormalization"): _same,
    (RUNTIME, "Attention"): _attention,
    (RUNTIME, "BiasGelu"): _same,
    (RUNTIME, "EmbedLayerNormalization"): _embedding,
    (RUNTIME, "FastGelu"): _same,
    (RUNTIME, "FusedConv"): _without_activation,
    (RUNTIME, "FusedGemm"): _without_activation,
    (RUNTIME, "FusedMatMul"): _matrix_product,
    (RUNTIME, "Gelu"): _same,
    (RUNTIME, "GroupQueryAttention"): _grouped_heads,
    (RUNTIME, "MultiHeadAttention"): _heads,
    (RUNTIME, "DynamicQuantizeLSTM"): _quantised("LSTM", 0, 1, 2),
    (RUNTIME, "DynamicQuantizeMatMul"): _quantised("MatMul", 0, 1),
    (RUNTIME, "MatMulIntegerToFloat"): _integer_product,
    (RUNTIME, "QGemm"): _quantised("Gemm", 0, 3),
    (RUNTIME, "QLinearAdd"): _quantised("Add", 0, 3),
    (RUNTIME, "QLinearAveragePool"): _quantised("AveragePool", 0),
    (RUNTIME, "QLinearConcat"): _quantised("Concat"),
    (RUNTIME, "QLinearGlobalAveragePool"): _quantised("GlobalAveragePool", 0),
    (RUNTIME, "QLinearLeakyRelu"): _same,
    (RUNTIME, "QLinearMul"): _quantised("Mul", 0, 3),
    (RUNTIME, "QLinearSigmoid"): _same,
    (RUNTIME, "QLinearSoftmax"): _same,
    (RUNTIME, "QuickGelu"): _same,
    (RUNTIME, "RotaryEmbedding"): _same,
    (RUNTIME, "SkipLayerNormalization"): _same,
    (RUNTIME, "SkipSimplifiedLayerNormalization"): _same,
}
"""By domain and operator type, nodes whose outputs have the shapes of its own."""
