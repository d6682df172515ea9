"""What a rule's patch function works with: the model before, what stays, and how to write it into a node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from graphprune.ir.coupling.units import BoolArray, Coupling
from graphprune.ir.graph import Graph
from graphprune.ir.shapes.inference import Shape


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
    constants: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = field(default_factory=dict)
    inserted: list[onnx.NodeProto] = field(default_factory=list)

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
        pairs = zip(shape, extents, keep.shape, strict=True)
        return tuple(now if named > 1 and isinstance(before, int) else before for before, now, named in pairs)

    def changes(self, name: str) -> bool:
        """Return whether a tensor loses positions."""
        return self.coupling.loses(name, self.removed)

    def kept(self, name: str, axis: int) -> BoolArray | None:
        """Return which positions along one axis stay, None when all do."""
        keep = self.coupling.keeps(name, self.removed)
        if keep is None or keep.shape[axis] == 1:
            return None
        return np.asarray(keep.any(axis=tuple(a for a in range(keep.ndim) if a != axis)))

    def constant(self, value: npt.NDArray[np.integer]) -> str:
        """Return the name of a new initializer that holds a patched shape constant."""
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self.constants:
            name = self.graph.unused(f"graphprune_constant_{len(self.constants)}")
            self.constants[key] = numpy_helper.from_array(value, name)
        return self.constants[key].name

    def insert(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Put a node in front of the one that is patched, and return the name of its output."""
        name = self.graph.unused(f"graphprune_{op.lower()}_{len(self.inserted)}")
        self.inserted.append(onnx.helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def set_entries(self, proto: onnx.NodeProto, slot: int, new: Sequence[int | None]) -> None:
        """Write new numbers into a vector of integers that a node reads.

        Parameters
        ----------
        proto : onnx.NodeProto
            The node that is patched.
        slot : int
            Which of its inputs.
        new : sequence of int or None
            None for entries that stay. Where the vector is computed, the others must be known beforehand
            (`Graph.entries`): the difference is added to what is computed.
        """
        name = proto.input[slot]
        old = self.graph.entries[name]
        pairs = list(zip(old, new, strict=True))
        changes = [now - int(before) if now is not None else 0 for before, now in pairs]
        kind = helper.tensor_dtype_to_np_dtype(self.graph.element_types.get(name, onnx.TensorProto.INT64))
        if not any(changes):
            return
        if name in self.graph.initializers:
            written = np.array([before if now is None else now for before, now in pairs], dtype=kind)
            set_input(proto, slot, self.constant(written))
        else:
            set_input(proto, slot, self.insert("Add", [name, self.constant(np.array(changes, dtype=kind))]))

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
