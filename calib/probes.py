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
from graphprune.errors import ModelError
from graphprune.ir.graph import Graph
from graphprune.ir.shapes.inference import Shape
from graphprune.ir.tensors import list_initializers

PREFIX = "graphprune_probe"
FIRST_BROADCASTING = 7
"""The operator set since which operators broadcast as numpy does; ONNX Runtime promises to run none before."""
HUGE = 1e30
"""Lifts every positive activation above 1 that is at least 1e-30."""

BLOCKED_RANK = 4
"""Rank of the tensors that can be in the blocked layout, and of the outputs of their probes."""
LARGE = 16 * 16
"""Maps with more positions than this are measured on every `STRIDE`-th row and column."""
STRIDE = 3
"""Odd, so that it does not fall in step with strided and transposed convolutions."""


@dataclass(frozen=True)
class Probe:
    """What is asked of one axis of one tensor.

    Attributes
    ----------
    tensor : str
    axis : int
    zeros, squares : bool
        Whether to count values <= 0, and to sum squares, beside the sum.
    scale, zero : str
        Of quantised numbers, the tensors of scale and zero point, of one element; empty where there is none.
    """

    tensor: str
    axis: int
    zeros: bool = False
    squares: bool = False
    scale: str = ""
    zero: str = ""


@dataclass(frozen=True)
class Placed:
    """A probe in the graph.

    Attributes
    ----------
    probe : Probe
    outputs : dict of str to str
        Names of its outputs, by what they hold: ``total``, and as needed ``size``, ``positive``, ``squares``.
    positions : int or None
        In the blocked form, the values per sample and channel, whose means the outputs hold; None in the general form,
        whose outputs hold sums.
    sampled : bool
        Whether the means are over a part of the positions.
    """

    probe: Probe
    outputs: dict[str, str]
    positions: int | None
    sampled: bool = False

    def read(self, totals: Mapping[str, FloatArray], rows: Mapping[str, int]) -> Moments:
        """Turn outputs, added up over runs and over axis 0 of the blocked form, into moments.

        Parameters
        ----------
        totals : mapping of str to ndarray
            By output name: sums of shape (channels,), or sums of means of shape (channels, 1, 1).
        rows : mapping of str to int
            By output name, how many means were added up.
        """
        found = {kind: totals[name] for kind, name in self.outputs.items()}
        if self.positions is None:
            count = int(found["size"]) // max(found["total"].size, 1)
        else:
            count = self.positions * rows[self.outputs["total"]]
            found = {kind: value.ravel() * self.positions for kind, value in found.items()}
        zeros = None
        if self.probe.zeros:
            # A count is whole but for rounding in the mean; one scaled up from a part need not be.
            zeros = count - (found["positive"] if self.sampled else np.rint(found["positive"]))
        return Moments(count, found["total"], zeros, found.get("squares"), self.sampled)


def probed(graph: Graph, probes: Sequence[Probe]) -> tuple[onnx.ModelProto, list[Placed]]:
    """Return the model with reductions of the probed tensors as its only outputs.

    Parameters
    ----------
    graph : Graph
        Of a canonical model.
    probes : sequence of Probe
        On tensors of known rank and axes of known extent.

    Returns
    -------
    model : onnx.ModelProto
    placed : list of Placed
        Where to read each probe.

    Raises
    ------
    ModelError
        When the model's operator set does not broadcast as numpy does.
    """
    if graph.opset < FIRST_BROADCASTING:
        raise ModelError(
            f"operator set {graph.opset} is not supported",
            why=f"operators broadcast, and ONNX Runtime is made, from operator set {FIRST_BROADCASTING} on",
            hint="onnx.version_converter.convert_version(model, 13) brings the model to a later one",
        )
    result = onnx.ModelProto()
    result.CopyFrom(graph.proto)
    del result.graph.output[:]
    builder = _Builder(result, graph.opset)
    placed = []
    for index, probe in enumerate(probes):
        shape = graph.shape(probe.tensor) or ()
        kind = graph.element_types.get(probe.tensor, onnx.TensorProto.FLOAT)
        place = _add_blocked if _is_blocked(probe, shape, kind) else _add_general
        placed.append(place(builder, f"{PREFIX}_{index}", probe, shape, kind))
    list_initializers(result)
    return result, placed


def _is_blocked(probe: Probe, shape: Shape, kind: int) -> bool:
    """Whether a tensor can live in ONNX Runtime's blocked layout, and its extents are known."""
    known = len(shape) == BLOCKED_RANK and all(isinstance(extent, int) for extent in shape[1:])
    return known and probe.axis == 1 and kind == onnx.TensorProto.FLOAT


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

    def floats(self, source: str, output: str) -> str:
        return self.node("Cast", [source], output, to=onnx.TensorProto.FLOAT)

    def output(self, name: str, kind: int = onnx.TensorProto.FLOAT) -> None:
        self.graph.output.append(helper.make_tensor_value_info(name, kind, None))

    def clip(self, source: str, output: str) -> str:
        """Clip to [0, 1]; the bounds are inputs since operator set 11."""
        if self.opset < 11:
            return self.node("Clip", [source], output, min=0.0, max=1.0)
        low = self.constant(f"{output}_low", np.array(0, np.float32))
        high = self.constant(f"{output}_high", np.array(1, np.float32))
        return self.node("Clip", [source, low, high], output)

    def scale_channels(self, source: str, factor: float, channels: int, output: str, stride: int = 1) -> str:
        """Multiply by a constant, at every stride-th position, in a depthwise convolution."""
        weight = self.constant(f"{output}_scale", np.full((channels, 1, 1, 1), factor, np.float32))
        return self.node("Conv", [source, weight], output, group=channels, strides=[stride, stride])

    def reduce_sum(self, source: str, axes: Sequence[int], output: str) -> str:
        """Sum over axes; they are an input since operator set 13."""
        if self.opset < 13:
            return self.node("ReduceSum", [source], output, axes=list(axes), keepdims=0)
        names = self.constant(f"{output}_axes", np.array(axes, np.int64))
        return self.node("ReduceSum", [source, names], output, keepdims=0)


def _add_blocked(builder: _Builder, name: str, probe: Probe, shape: Shape, kind: int) -> Placed:
    _, channels, height, width = (extent if isinstance(extent, int) else 1 for extent in shape)
    source = probe.tensor
    sampled = height * width > LARGE
    if sampled:
        source = builder.scale_channels(source, 1.0, channels, f"{name}_sampled", STRIDE)
    outputs = {"total": builder.node("GlobalAveragePool", [source], f"{name}_total")}
    if probe.zeros:
        lifted = builder.scale_channels(source, HUGE, channels, f"{name}_lifted")
        clipped = builder.clip(lifted, f"{name}_clipped")
        outputs["positive"] = builder.node("GlobalAveragePool", [clipped], f"{name}_positive")
    if probe.squares:
        squared = builder.node("Mul", [source, source], f"{name}_squared")
        outputs["squares"] = builder.node("GlobalAveragePool", [squared], f"{name}_squares")
    for output in outputs.values():
        builder.output(output)
    return Placed(probe, outputs, height * width, sampled)


def _add_general(builder: _Builder, name: str, probe: Probe, shape: Shape, kind: int) -> Placed:
    others = [axis for axis in range(len(shape)) if axis != probe.axis]
    source = probe.tensor
    if kind != onnx.TensorProto.FLOAT:  # half precision cannot count past 2048
        source = builder.floats(source, f"{name}_float")
    if probe.zero:
        source = builder.node("Sub", [source, builder.floats(probe.zero, f"{name}_point")], f"{name}_shifted")
    if probe.scale:
        source = builder.node("Mul", [source, builder.floats(probe.scale, f"{name}_scale")], f"{name}_scaled")
    outputs = {"total": builder.reduce_sum(source, others, f"{name}_total")}
    if probe.zeros:
        zero = builder.constant(f"{name}_zero", np.array(0, np.float32))
        greater = builder.node("Greater", [source, zero], f"{name}_greater")
        number = builder.node("Cast", [greater], f"{name}_number", to=onnx.TensorProto.FLOAT)
        outputs["positive"] = builder.reduce_sum(number, others, f"{name}_positive")
    if probe.squares:
        squared = builder.node("Mul", [source, source], f"{name}_squared")
        outputs["squares"] = builder.reduce_sum(squared, others, f"{name}_squares")
    for output in outputs.values():
        builder.output(output)
    outputs["size"] = builder.node("Size", [source], f"{name}_size")
    builder.output(outputs["size"], onnx.TensorProto.INT64)
    return Placed(probe, outputs, None)
