"""Exact rewrites of what is left into operators that ONNX Runtime runs faster.

``MaxPool`` with a kernel of 1 takes every k-th row and column as ``Slice`` does, but works in the blocked layout of the
convolutions around it: the shortcuts of residual networks without projections (He et al. 2016, option A) are not
brought out of that layout and back. Slices behind each other become one. Where a slice starts elsewhere than at 0, or
what it reads comes from no convolution, it is left alone. A Relu of a Relu is the first.

References: https://onnx.ai/onnx/operators/onnx__Slice.html, onnx__MaxPool.html
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from graphprune.ir.bodies import rename_inputs
from graphprune.ir.graph import Graph
from graphprune.ir.nodes import Node
from graphprune.ir.rewriting.simplify import drop_dead, unlist_initializers
from graphprune.ir.shapes.targets import FAR

BLOCKED = {"Add", "AveragePool", "Clip", "Conv", "LeakyRelu", "MaxPool", "Mul", "Relu", "Sigmoid", "Sum", "Tanh"}
"""Operators whose output may be in the blocked layout."""


def lower(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with faster operators where they are exact.

    Parameters
    ----------
    proto : onnx.ModelProto
        Not changed.

    Returns
    -------
    onnx.ModelProto
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph = Graph(proto)
    again: dict[str, str] = {}
    for node in graph.main:
        if _is_relu_again(graph, node):
            again[node.outputs[0]] = again.get(node.inputs[0], node.inputs[0])
    nodes = {node.output[0]: node for node in result.graph.node if node.output}
    for node in graph.nodes:
        source, strides = _subsampled(graph, node)
        if max(strides, default=1) > 1 and not _goes_on(graph, node):
            old, one = nodes[node.outputs[0]], [1] * len(strides)
            pool = helper.make_node("MaxPool", [source], old.output, old.name, kernel_shape=one, strides=strides)
            old.CopyFrom(pool)
    for reader in result.graph.node:
        rename_inputs(reader, again)
    drop_dead(result)
    unlist_initializers(result)
    return result


def _is_relu_again(graph: Graph, node: Node) -> bool:
    """Whether a node takes the positive part of what is one: where a residual branch was, for one."""
    before = graph.producer.get(node.input(0))
    return node.op == "Relu" and before is not None and before.op == "Relu" and node.outputs[0] not in graph.outputs


def _goes_on(graph: Graph, node: Node) -> bool:
    """Whether the only reader of a slice is a slice that takes its place."""
    readers = graph.consumers.get(node.outputs[0], [])
    return len(readers) == 1 and node.outputs[0] not in graph.outputs and bool(_subsampled(graph, readers[0])[1])


def _subsampled(graph: Graph, node: Node) -> tuple[str, list[int]]:
    """What a node takes every so many rows and columns of, and how many; none where it does anything else."""
    steps = _steps(graph, node)
    shape = graph.shape(node.input(0))
    if not steps or shape is None or node not in graph.nodes or not _is_plain(graph, node.inputs[0]):
        return "", []
    strides = [steps.get(axis, 1) for axis in range(2, len(shape))]
    before = graph.producer.get(node.inputs[0])
    if before is not None and before.op == "Slice":
        source, inner = _subsampled(graph, before)
        return source, [one * other for one, other in zip(inner, strides, strict=True)] if inner else []
    return (node.inputs[0], strides) if before is not None and before.op in BLOCKED else ("", [])


def _is_plain(graph: Graph, name: str) -> bool:
    """Whether a tensor is an image of float32."""
    return len(graph.shape(name) or ()) == 4 and graph.element_types.get(name) == onnx.TensorProto.FLOAT


def _steps(graph: Graph, node: Node) -> dict[int, int]:
    """By axis, the steps of a slice that starts at 0, ends with the axis, and leaves batch and channels alone."""
    shape = graph.shape(node.input(0)) or ()
    if node.op != "Slice" or len(node.inputs) < 5 or not shape:
        return {}
    given = [graph.value(node.input(slot)) if node.input(slot) else None for slot in range(1, 5)]
    if any(value is None for value in given):
        return {}
    starts, ends, axes, steps = (np.asarray(value).ravel().tolist() for value in given)
    axes = [axis % len(shape) for axis in axes]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        extent = shape[axis]
        whole = end >= FAR or (isinstance(extent, int) and end >= extent)
        if start != 0 or not whole or step < 1 or (axis < 2 and step > 1):
            return {}
    return dict(zip(axes, steps, strict=True))
