"""The operators that rebuild a weight from what is stored of it.

ONNX Runtime folds them into a constant when it opens a session, since all that they read is constant; from then on the
model is the dense one. Every tensor between them that is as large as the weight stays in memory until all folding is
done, so they are chosen for few of those: MaxUnpool puts values at given places of a new tensor of zeros, which takes
one, where ScatterElements takes the zeros, a copy of them, and a copy of the places. A kernel as long as what is
missing gives MaxUnpool's output the right length without an ``output_shape``, whose meaning runtimes do not share.

Operator sets: CumSum, which gaps need, is there from 11 on, MaxUnpool and NonZero, which a bitmap needs, from 9 on.
ONNX Runtime has MaxUnpool for float32 alone; other types go through ScatterElements, before 11 Scatter.

References: https://onnx.ai/onnx/operators/onnx__MaxUnpool.html, onnx__CumSum.html, onnx__NonZero.html
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphprune.ir.encoding.forms import TABLE

MARK = "graphprune.encoding"
"""Key of the model's metadata that says that it is encoded, by which version, and what its names begin with."""
VERSION = "1"
FORMS = ("dense", "gaps", "bitmap")
FIRST = {"dense": 1, "bitmap": 9, "gaps": 11}
"""The operator set from which on each form can be decoded."""
KINDS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
"""Element types that can be encoded; ONNX Runtime has too few operators of bfloat16."""
FIRST_SCATTER_ELEMENTS = 11


@dataclass(frozen=True)
class Stored:
    """An encoded weight, as far as its decoder depends on it.

    Attributes
    ----------
    name : str
        The tensor that the model reads.
    shape : tuple of int
    kind : int
        Its element type, as in ``onnx.TensorProto``.
    form : str
        ``"gaps"``, ``"bitmap"``, or ``"dense"``: every value.
    entries : int
        Number of stored values.
    half : bool
        Whether they are stored as float16 though the model reads another type.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    form: str
    entries: int
    half: bool = False

    @property
    def size(self) -> int:
        """Number of the tensor's places."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Decoder:
    """Nodes that rebuild a weight, the constants that they share with others, and shapes that nothing can infer."""

    nodes: list[onnx.NodeProto]
    shared: list[onnx.TensorProto]
    shapes: list[onnx.ValueInfoProto]


def decoder(stored: Stored, stem: str, prefix: str, opset: int) -> Decoder:
    """Return what rebuilds a weight from ``<stem>.values`` and ``<stem>.gaps`` or ``<stem>.bitmap``.

    Parameters
    ----------
    stored : Stored
    stem : str
        What names of its own begin with.
    prefix : str
        What names that it shares with others begin with.
    opset : int
        Version of the model's operator set, at least ``FIRST[stored.form]``.
    """
    building = _Building(prefix)
    values = f"{stem}.values"
    if stored.form == "dense":
        building.node("Cast", [values], stored.name, to=stored.kind)
        return building.done()
    if stored.half:
        values = building.node("Cast", [values], f"{stem}.wide", to=stored.kind)
    if stored.form == "gaps":
        steps = building.node("Cast", [f"{stem}.gaps"], f"{stem}.steps", to=TensorProto.INT64)
        places = building.node("CumSum", [steps, building.constant("axis")], f"{stem}.places")
    else:
        places = _from_bitmap(building, stored, stem)
    if stored.kind == TensorProto.FLOAT:
        kernel = [stored.size - stored.entries + 1]
        flat = building.node("MaxUnpool", [values, places], f"{stem}.flat", kernel_shape=kernel)
    else:
        zero = helper.make_tensor("", stored.kind, [1], [0.0])
        flat_shape = building.constant(_shape_name((1, 1, stored.size)))
        zeros = building.node("ConstantOfShape", [flat_shape], f"{stem}.zeros", value=zero)
        scatter = "ScatterElements" if opset >= FIRST_SCATTER_ELEMENTS else "Scatter"
        flat = building.node(scatter, [zeros, places, values], f"{stem}.flat", axis=2)
    building.node("Reshape", [flat, building.constant(_shape_name(stored.shape))], stored.name)
    return building.done()


def shared_value(name: str) -> npt.NDArray[Any]:
    """Return what a shared constant holds, by its name without the prefix.

    Raises
    ------
    ValueError
        When there is no such constant.
    """
    if name == "axis":
        return np.array(2, dtype=np.int32)
    if name == "table":
        return TABLE
    if name in ("flat", "row"):
        return np.array([-1] if name == "flat" else [1, 1, -1], dtype=np.int64)
    return np.array(shape_of(name), dtype=np.int64)


def shape_of(name: str) -> tuple[int, ...]:
    """Return the shape that a shared constant's name says: ``shape.4x3`` is (4, 3).

    Raises
    ------
    ValueError
        When it says none.
    """
    kind, _, extents = name.partition(".")
    if kind != "shape":
        raise ValueError(f"{name!r} is no shape")
    return tuple(int(extent) for extent in extents.split("x"))


def _from_bitmap(building: _Building, stored: Stored, stem: str) -> str:
    """Look every byte's bits up, and find those that are set."""
    codes = building.node("Cast", [f"{stem}.bitmap"], f"{stem}.codes", to=TensorProto.INT32)
    bits = building.node("Gather", [building.constant("table"), codes], f"{stem}.bits")
    row = building.node("Reshape", [bits, building.constant("flat")], f"{stem}.row")
    found = building.node("NonZero", [row], f"{stem}.found")
    # ONNX Runtime folds only what it knows the size of beforehand.
    building.shapes.append(helper.make_tensor_value_info(found, TensorProto.INT64, [1, stored.entries]))
    return building.node("Reshape", [found, building.constant("row")], f"{stem}.places")


def _shape_name(shape: tuple[int, ...]) -> str:
    return f"shape.{'x'.join(map(str, shape))}"


class _Building:
    """A decoder in the making."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.shared: dict[str, onnx.TensorProto] = {}
        self.shapes: list[onnx.ValueInfoProto] = []

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(self, name: str) -> str:
        full = f"{self.prefix}.{name}"
        self.shared[full] = numpy_helper.from_array(shared_value(name), full)
        return full

    def done(self) -> Decoder:
        return Decoder(self.nodes, list(self.shared.values()), self.shapes)
