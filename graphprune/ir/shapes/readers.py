"""Shapes that tensors must have for those that read them, where inference from those that make them ends.

Conv demands an input of its weight's rank with groups * weight.shape[1] channels, ConvTranspose one with
weight.shape[0] channels, Gemm a matrix. So behind an operator that ONNX does not know, shapes are known again from the
first such reader on.

References: https://onnx.ai/onnx/operators/onnx__Conv.html, https://onnx.ai/onnx/operators/onnx__ConvTranspose.html,
https://onnx.ai/onnx/operators/onnx__Gemm.html
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx

Extents = list[int | None]


def demanded_shapes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> dict[str, onnx.ValueInfoProto]:
    """Return what convolutions and matrix products demand of the tensors that they read.

    Parameters
    ----------
    graph : onnx.GraphProto
        Holds their weights.
    nodes : iterable of onnx.NodeProto
        Of the graph and its open bodies.

    Returns
    -------
    dict of str to onnx.ValueInfoProto
        By tensor name; extents that may be any are left open.
    """
    weights = {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in graph.initializer}
    found: dict[str, onnx.ValueInfoProto] = {}
    for node in nodes:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or node.domain not in ("", "ai.onnx"):
            continue
        data, weight = node.input[:2]
        if weight in weights and data not in found:
            kind, dims = weights[weight]
            attributes = {a.name: a.i for a in node.attribute if a.name in ("group", "transA", "transB")}
            shape = _demanded(node.op_type, dims, attributes)
            found[data] = onnx.helper.make_tensor_value_info(data, kind, shape)
    return found


def _demanded(op: str, weight: Sequence[int], attributes: Mapping[str, int]) -> Extents:
    if op == "Gemm":
        summed = weight[1] if attributes.get("transB", 0) else weight[0]
        return [summed, None] if attributes.get("transA", 0) else [None, summed]
    channels = weight[0] if op == "ConvTranspose" else weight[1] * attributes.get("group", 1)
    return [None, channels, *[None] * (len(weight) - 2)]
