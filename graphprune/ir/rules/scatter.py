"""ScatterND: updates written over positions of the data, as a slice assignment of an exporter (a cache's columns).

Where the indices are constant and name a rectangle (along each of the axes that they index a list of positions, all
combinations of them), update i of an axis is written over position p[i] of the data: both are one unit. The axes that
are not indexed are the same in data and updates. Losing position p shrinks the rectangle and counts the others anew.
Any other indices freeze the node.

Reference: https://onnx.ai/onnx/operators/onnx__ScatterND.html
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx

from graphprune.ir.coupling.atoms import Reason
from graphprune.ir.coupling.coupler import Coupler
from graphprune.ir.edit import Edit, set_input
from graphprune.ir.nodes import Node
from graphprune.ir.rules.rule import Rule
from graphprune.ir.shapes.inference import Shape

Places = npt.NDArray[np.int64]


def couple_scatter(node: Node, coupler: Coupler) -> None:
    """Tie every update to the position that it is written over."""
    if not coupler.ranked(node):
        return
    data, updates = node.input(0), node.input(2)
    shape = coupler.shape(data) or ()
    places = rectangle(coupler.graph.value(node.input(1)), shape)
    if places is None:
        coupler.freeze_node(node, f"the indices of {node.op} are computed, or no rectangle")
        return
    reason = Reason(node.label, node.op, f"{node.op} writes over the only position of the axis")
    for axis in range(len(shape)):
        vector = coupler.vector(data, axis)
        if vector is None or vector.size == 1:
            continue
        written = vector[places[axis]] if axis < len(places) else vector
        if written.size == 1:
            coupler.freeze([written], reason)
        else:
            coupler.join(written, coupler.vector(updates, axis), coupler.why_untracked(updates))
    coupler.set(node.outputs[0], coupler.ids(data))


def rectangle(indices: npt.NDArray[np.generic] | None, shape: Shape) -> list[Places] | None:
    """Return by axis the positions that indices name; None where they are computed, or no rectangle."""
    if indices is None or indices.ndim != indices.shape[-1] + 1:
        return None
    places = []
    for axis in range(indices.shape[-1]):
        extent = shape[axis]
        if not isinstance(extent, int):
            return None
        along = np.moveaxis(indices[..., axis].astype(np.int64), axis, 0) % extent
        first = along.reshape(len(along), -1)[:, :1]
        if (along.reshape(len(along), -1) != first).any() or len(np.unique(first)) != len(first):
            return None
        places.append(first.ravel())
    return places


def patch_scatter(node: Node, proto: onnx.NodeProto, edit: Edit) -> None:
    """Name what stays of the rectangle."""
    data = node.input(0)
    places = rectangle(edit.value(node.input(1)), edit.shape(data))
    if places is None:
        return
    left = []
    for axis, positions in enumerate(places):
        keep = edit.kept(data, axis)
        left.append(positions if keep is None else (np.cumsum(keep) - 1)[positions[keep[positions]]])
    patched = np.stack(np.meshgrid(*left, indexing="ij"), axis=-1)
    set_input(proto, 1, edit.constant(patched.astype(np.int64)))


RULES = {"ScatterND": Rule(couple_scatter, patch_scatter)}
