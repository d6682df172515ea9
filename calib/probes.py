"""Reductions put into the graph itself, so that a run returns a few numbers per channel instead of activations.

Two forms. The general one (Greater, Cast, ReduceSum over all other axes) takes tensors of any rank. For float32
activations [N, C, H, W] ONNX Runtime keeps a blocked layout between convolutions, which only some operators
understand; there the sums are means by GlobalAveragePool, and the positive values are counted by scaling them far
above 1 in a depthwise convolution, clipping to [0, 1] and pooling. On mobilenet_v2 that costs a third of the general
form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from graphprune.calib.stats import FloatArray, Moments
from graphprune.ir.graph import Graph, Shape
from graphprune.ir.model import list_initializers

PREFIX = "graphprune_probe"
HUGE = 1e30
"""Lifts every positive activation above 1 that is at least 1e-30."""


@dataclass(frozen=True)
class Probe:
    """What is asked of one axis of one tensor.

    Attributes
    ----------
    tensor : str
    axis : int
    zeros, squares : bool
        Whether to count values <= 0, and to sum squares, beside the sum.
    """

    tensor: str
    axis: int
    zeros: bool = False
    squares: bool = False


def probed(graph: Graph, probes: Sequence[Probe]) -> onnx.ModelProto:
    """Return the model with reductions of the probed tensors as its only outputs.

    Parameters
    ----------
    graph : Graph
        Of a canonical model.
    probes : sequence of Probe
        On tensors of known rank and axes of known extent.

    Returns
    -------
    onnx.ModelProto
        Outputs named by `outputs_of`.
    """
    result = onnx.ModelProto()
    result.CopyFrom(graph.proto)
    del result.graph.output[:]
    builder = _Builder(result, graph.opset)
    for index, probe in enumerate(probes):
        shape = graph.shape(probe.tensor) or ()
        kind = graph.element_types.get(probe.tensor, onnx.TensorProto.FLOAT)
        if is_blocked(probe, shape) and kind == onnx.TensorProto.FLOAT:
            _add_blocked(builder, index, probe, shape)
        else:
            _add_general(builder, index, probe, len(shape), kind)
    list_initializers(result)
    return result


def is_blocked(probe: Probe, shape: Shape) -> bool:
    """Return whether a tensor can live in ONNX Runtime's blocked layout."""
    return len(shape) == 4 and probe.axis == 1


def outputs_of(index: int, probe: Probe) -> dict[str, str]:
    """Return the names of a probe's outputs, by what they hold."""
    kinds = ["size", "total", *(["positive"] if probe.zeros else []), *(["squares"] if probe.squares else [])]
    return {kind: f"{PREFIX}_{index}_{kind}" for kind in kinds}


def read(probe: Probe, values: Mapping[str, npt.NDArray[np.generic]]) -> Moments:
    """Turn one run's outputs of a probe into moments.

    Parameters
    ----------
    probe : Probe
    values : mapping of str to ndarray
        By what they hold: sums of shape (channels,), or means of shape (N, channels, 1, 1).
    """
    size = int(values["size"])
    channels = values["total"].size if values["total"].ndim == 1 else values["total"].shape[1]
    count = size // channels

    def summed(kind: str) -> FloatArray:
        value = values[kind].astype(np.float64)
        if value.ndim == 1:
            return value
        return np.asarray(value.reshape(len(value), channels).sum(axis=0) * (count // len(value)))

    return Moments(
        count,
        summed("total"),
        count - np.rint(summed("positive")) if probe.zeros else None,
        summed("squares") if probe.squares else None,
    )


class _Builder:
    """Appends nodes, initializers and outputs to a model."""

    def __init__(self, model: onnx.ModelProto, opset: int) -> None:
        self.graph = model.graph
        self.opset = opset

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.graph.node.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def constant(self, name: str, value: npt.NDArray[np.generic]) -> str:
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def output(self, name: str, kind: int = onnx.TensorProto.FLOAT) -> None:
        self.graph.output.append(helper.make_tensor_value_info(name, kind, None))

    def clip(self, source: str, output: str) -> str:
        """Clip to [0, 1]; the bounds are inputs since operator set 11."""
        if self.opset < 11:
            return self.node("Clip", [source], output, min=0.0, max=1.0)
        low = self.constant(f"{output}_low", np.array(0, np.float32))
        high = self.constant(f"{output}_high", np.array(1, np.float32))
        return self.node("Clip", [source, low, high], output)

    def reduce_sum(self, source: str, axes: Sequence[int], output: str) -> str:
        """Sum over axes; they are an input since operator set 13."""
        if self.opset < 13:
            return self.node("ReduceSum", [source], output, axes=list(axes), keepdims=0)
        names = self.constant(f"{output}_axes", np.array(axes, np.int64))
        return self.node("ReduceSum", [source, names], output, keepdims=0)


def _add_blocked(builder: _Builder, index: int, probe: Probe, shape: Shape) -> None:
    names = outputs_of(index, probe)
    builder.output(builder.node("Size", [probe.tensor], names["size"]), onnx.TensorProto.INT64)
    builder.output(builder.node("GlobalAveragePool", [probe.tensor], names["total"]))
    if probe.zeros:
        channels = int(shape[1] or 0)
        weight = builder.constant(f"{names['positive']}_scale", np.full((channels, 1, 1, 1), HUGE, np.float32))
        lifted = builder.node("Conv", [probe.tensor, weight], f"{names['positive']}_lifted", group=channels)
        clipped = builder.clip(lifted, f"{names['positive']}_clipped")
        builder.output(builder.node("GlobalAveragePool", [clipped], names["positive"]))
    if probe.squares:
        squared = builder.node("Mul", [probe.tensor, probe.tensor], f"{names['squares']}_squared")
        builder.output(builder.node("GlobalAveragePool", [squared], names["squares"]))


def _add_general(builder: _Builder, index: int, probe: Probe, rank: int, kind: int) -> None:
    names = outputs_of(index, probe)
    others = [axis for axis in range(rank) if axis != probe.axis]
    source = probe.tensor
    if kind != onnx.TensorProto.FLOAT:  # half precision cannot count past 2048
        source = builder.node("Cast", [source], f"{names['size']}_float", to=onnx.TensorProto.FLOAT)
    builder.output(builder.node("Size", [source], names["size"]), onnx.TensorProto.INT64)
    builder.output(builder.reduce_sum(source, others, names["total"]))
    if probe.zeros:
        zero = builder.constant(f"{names['positive']}_zero", np.array(0, np.float32))
        greater = builder.node("Greater", [source, zero], f"{names['positive']}_greater")
        number = builder.node("Cast", [greater], f"{names['positive']}_number", to=onnx.TensorProto.FLOAT)
        builder.output(builder.reduce_sum(number, others, names["positive"]))
    if probe.squares:
        squared = builder.node("Mul", [source, source], f"{names['squares']}_squared")
        builder.output(builder.reduce_sum(squared, others, names["squares"]))
