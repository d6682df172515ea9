"""Widths that ONNX Runtime's convolutions like, as ONNX Runtime itself shows them on this machine.

Its convolutions work on blocks of channels, as many as a vector register holds (16 with AVX-512, 8 with AVX2), and
widths between two multiples are filled up with zeros. That they do so at all takes a multiple of a smaller number, 4:
any other width falls back to slower kernels, and to reordering every activation on the way there and back.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphprune.ir.session import open_session


@dataclass(frozen=True)
class Widths:
    """What the number of channels of a convolution should be a multiple of.

    Attributes
    ----------
    step : int
        For the fast kernels to take it: no such width is slower than the next larger one.
    block : int
        For it to be faster than the next larger one.
    """

    step: int
    block: int


ANY = Widths(1, 1)


def widths(align: int | Literal["auto", "off"]) -> Widths:
    """Return what kept channels should be a multiple of.

    Parameters
    ----------
    align : int, "auto" or "off"
        A number of the user's own; what ONNX Runtime shows; or anything.
    """
    if align == "auto":
        return preferred_widths()
    return ANY if align == "off" else Widths(int(align), int(align))


@cache
def preferred_widths() -> Widths:
    """Ask ONNX Runtime: optimise depthwise convolutions of different widths, and see what it makes of them.

    Returns
    -------
    Widths
        Of 1 where its kernels on this machine do not work on blocks.
    """
    block = _filled(1)  # a single channel takes a whole block
    if block is None:
        return ANY
    return Widths(next(width for width in range(2, block + 1) if _filled(width) is not None), block)


def _filled(channels: int) -> int | None:
    """How many channels a depthwise convolution of so many is filled up to; None where it does not work on blocks."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        open_session(_convolution(channels), threads=1, optimised_to=path)
        graph = onnx.load(path).graph
    blocked = any(node.op_type == "Conv" and node.domain == "com.microsoft.nchwc" for node in graph.node)
    return int(graph.initializer[0].dims[0]) if blocked else None


def _convolution(channels: int) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((channels, 1, 3, 3), np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, 8, 8]) for name in "xy")
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], group=channels)
    graph = helper.make_graph([node], "probe", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
