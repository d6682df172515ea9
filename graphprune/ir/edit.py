"""What a rule's patch function works with: the model before, what stays, and how to write it into a node."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from graphprune.ir.graph import Graph, Shape
from graphprune.ir.units import BoolArray, Coupling


@dataclass
class Edit:
    """What a rule's patch function sees: the model before, and what stays.

    Attributes
    ----------
    coupling : Coupling
    removed : ndarray of bool, shape (units,)
    """

    coupling: Coupling
    removed: BoolArray
    constants: dict[tuple[tuple[int, ...], bytes], onnx.TensorProto] = field(default_factory=dict)

    @property
    def graph(self) -> Graph:
        """The graph before."""
        return self.coupling.graph

    def shape(self, name: str) -> Shape:
        """Return a tensor's shape before."""
        return self.graph.shape(name) or ()

    def new_shape(self, name: str) -> Shape:
        """Return a tensor's shape after."""
        keep = self.coupling.keeps(name, self.removed)
        shape = self.shape(name)
        if keep is None:
            return shape
        extents = kept_extents(keep)
        return tuple(now if keep.shape[axis] > 1 else shape[axis] for axis, now in enumerate(extents))

    def changes(self, name: str) -> bool:
        """Return whether a tensor loses positions."""
        return self.coupling.keeps(name, self.removed) is not None

    def kept(self, name: str, axis: int) -> BoolArray | None:
        """Return which positions along one axis stay, None when all do."""
        keep = self.coupling.keeps(name, self.removed)
        if keep is None or keep.shape[axis] == 1:
            return None
        return np.asarray(keep.any(axis=tuple(a for a in range(keep.ndim) if a != axis)))

    def constant(self, value: npt.NDArray[np.int64]) -> str:
        """Return the name of a new initializer that holds a patched shape constant."""
        key = (value.shape, value.tobytes())
        if key not in self.constants:
            name = f"graphprune_constant_{len(self.constants)}"
            while name in self.graph.shapes or name in self.graph.producer:
                name += "_"
            self.constants[key] = numpy_helper.from_array(value, name)
        return self.constants[key].name

    def value(self, name: str) -> npt.NDArray[np.generic] | None:
        """Return the value of a constant before, None when the tensor is none."""
        return self.graph.value(name)

    @property
    def opset(self) -> int:
        """Version of ONNX's own operator set."""
        return self.graph.opset


def kept_extents(keep: BoolArray) -> tuple[int, ...]:
    """Return the extents of what stays once it is pushed together.

    Parameters
    ----------
    keep : ndarray of bool
        Which positions stay, in the rank of the tensor.

    Returns
    -------
    tuple of int
        Along an axis whose kept positions differ from row to row, their common number.
    """
    extents = []
    for axis in range(keep.ndim):
        rows = keep.any(axis=tuple(range(axis + 1, keep.ndim)))
        extents.append(int(rows.sum(axis=axis).max()))
    return tuple(extents)


def set_attribute(proto: onnx.NodeProto, name: str, value: object) -> None:
    """Replace an attribute, or add it."""
    drop_attribute(proto, name)
    proto.attribute.append(onnx.helper.make_attribute(name, value))


def drop_attribute(proto: onnx.NodeProto, name: str) -> None:
    """Remove an attribute where there is one."""
    for attribute in [a for a in proto.attribute if a.name == name]:
        proto.attribute.remove(attribute)


def set_input(proto: onnx.NodeProto, slot: int, name: str) -> None:
    """Replace an input, or add it behind as many omitted ones as needed."""
    proto.input.extend([""] * (slot + 1 - len(proto.input)))
    proto.input[slot] = name
