"""Second moments of what a layer reads, column by column of its weight matrix (im2col for Conv)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime as ort
from numpy.lib.stride_tricks import sliding_window_view
from task import Task
from weights import Layer, read

POSITIONS = 256  # of each feature map, drawn at random


def hessian(task: Task, prefix: onnx.ModelProto, layer: Layer) -> np.ndarray:
    """Mean of x x^T over samples and positions, shape [groups, K, K], with the weights that `prefix` has now."""
    shape = read(prefix, layer.weight).shape
    total, rows = np.zeros(0), 0
    for values in _inputs(task, prefix, layer.node.input[0]):
        columns = _columns(layer, values, shape)
        moment = columns.transpose(0, 2, 1) @ columns
        total = total + moment if total.size else moment.astype(np.float64)
        rows += columns.shape[1]
    return total / rows


def matrix(layer: Layer, weight: np.ndarray) -> np.ndarray:
    """The weight as [groups, rows, K]: one row for each output."""
    groups = int(layer.attribute("group", 1)) if layer.op == "Conv" else 1
    rows = weight.T if _transposed(layer) else weight
    return rows.reshape(groups, rows.shape[0] // groups, -1)


def weight_of(layer: Layer, rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Turn [groups, rows, K] back into the layer's own weight of this shape."""
    flat = rows.reshape(-1, rows.shape[-1])
    return flat.T if _transposed(layer) else flat.reshape(shape)


def _transposed(layer: Layer) -> bool:
    return layer.op == "MatMul" or (layer.op == "Gemm" and not layer.attribute("transB", 0))


def _inputs(task: Task, proto: onnx.ModelProto, name: str) -> Iterator[np.ndarray]:
    """The values of one tensor, batch by batch."""
    if name in task.feeds:
        yield from (feeds[name] for feeds in task.batches())
        return
    session = _session(proto, name)
    for feeds in task.batches():
        yield session.run([name], feeds)[0]


def _session(proto: onnx.ModelProto, name: str) -> ort.InferenceSession:
    """A session of the nodes that `name` needs, with `name` as its only output."""
    needed, nodes = {name}, []
    for node in reversed(proto.graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
    graph = onnx.GraphProto(name="prefix", node=reversed(nodes))
    graph.initializer.extend(t for t in proto.graph.initializer if t.name in needed)
    graph.input.extend(v for v in proto.graph.input if v.name in needed)
    graph.output.append(onnx.ValueInfoProto(name=name))
    model = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, graph=graph)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _columns(layer: Layer, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What each row of the weight matrix is multiplied with, [groups, positions, K]."""
    if layer.op != "Conv":
        return values.reshape(1, -1, values.shape[-1])
    groups = int(layer.attribute("group", 1))
    strides = layer.attribute("strides", [1, 1])
    top, left, bottom, right = layer.attribute("pads", [0, 0, 0, 0])
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = sliding_window_view(padded, shape[2:], axis=(2, 3))[:, :, :: strides[0], :: strides[1]]
    samples, channels, height, width = windows.shape[:4]
    chosen = np.random.default_rng(0).permutation(height * width)[:POSITIONS]
    picked = windows[:, :, chosen // width, chosen % width]  # [samples, channels, positions, kh, kw]
    grouped = picked.reshape(samples, groups, channels // groups, len(chosen), *shape[2:])
    return grouped.transpose(1, 0, 3, 2, 4, 5).reshape(groups, samples * len(chosen), -1)
