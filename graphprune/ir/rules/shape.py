"""Shape, Size: extents as numbers.

Numbers computed from extents stay as they are in the original, whatever goes: what shrinks is added again where a
tensor's extents are read. A shape that the graph computes from them so names the original's extents, and operators that
make a tensor of that shape have their own entries mended (Reshape, Expand, ..); a scale as 1/sqrt(extent) stays right.

References: https://onnx.ai/onnx/operators/onnx__Shape.html, https://onnx.ai/onnx/operators/onnx__Size.html
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from graphprune.ir.coupling.atoms import Reason
from graphprune.ir.coupling.coupler import Coupler
from graphprune.ir.edit import Edit
from graphprune.ir.nodes import Node
from graphprune.ir.rules.rule import Rule


def couple_extents(node: Node, coupler: Coupler) -> None:
    """Let the data go as it will; the numbers have no positions that do."""
    coupler.set(node.outputs[0], [], Reason(node.label, node.op, f"{node.op} reads all extents"))


def freeze_targets(node: Node, coupler: Coupler, first: int = 1) -> None:
    """Keep the length of what tells a node a shape, bounds or the like: of its inputs from ``first`` on."""
    for name in node.inputs[first:]:
        coupler.freeze_tensor(name, Reason(node.label, node.op, f"{node.op} reads a shape from it"))


def patch_shape(node: Node, proto: onnx.NodeProto, edit: Edit) -> None:
    """Add what the extents have lost."""
    lost = _lost(node, edit)[node.attributes.get("start", 0) : node.attributes.get("end")]
    if lost.any():
        extents = edit.insert("Shape", [node.input(0)], **node.attributes)
        _become(proto, "Add", [extents, edit.constant(lost)])


def patch_size(node: Node, proto: onnx.NodeProto, edit: Edit) -> None:
    """Multiply the extents of before."""
    lost = _lost(node, edit)
    if lost.any():
        extents = edit.insert("Add", [edit.insert("Shape", [node.input(0)]), edit.constant(lost)])
        _become(proto, "ReduceProd", [extents])
        proto.attribute.append(onnx.helper.make_attribute("keepdims", 0))


def _lost(node: Node, edit: Edit) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    before, now = edit.shape(node.input(0)), edit.new_shape(node.input(0))
    pairs = zip(before, now, strict=True)
    lost = [old - new if isinstance(old, int) and isinstance(new, int) else 0 for old, new in pairs]
    return np.array(lost, dtype=np.int64)


def _become(proto: onnx.NodeProto, op: str, inputs: Sequence[str]) -> None:
    proto.op_type = op
    del proto.attribute[:], proto.input[:]
    proto.input.extend(inputs)


RULES = {
    "Shape": Rule(couple_extents, patch_shape),
    "Size": Rule(couple_extents, patch_size),
}
