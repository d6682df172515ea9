"""Reshape, Flatten, Squeeze, Unsqueeze: the same elements in the same order under another shape.

Source and target shape are cut into the smallest blocks of equal size, and ids are reshaped block by block, as data
is. Merging C, H and W repeats each channel's id H*W times. Splitting C into (a, b) names positions on two axes; what
stays must be a rectangle again, so equal offsets b are joined.

Reference: https://onnx.ai/onnx/operators/onnx__Reshape.html
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx

from graphprune.ir.atoms import IdArray, Reason, along, collapse, support
from graphprune.ir.coupler import Coupler
from graphprune.ir.edit import Edit, set_attribute, set_input
from graphprune.ir.graph import Dim, Node, Shape
from graphprune.ir.rules.rule import Rule

Block = tuple[range, range]
"""Neighbouring axes of the source, and those of the target that hold the same elements."""


def couple_reshape(node: Node, coupler: Coupler) -> None:
    """Reshape the ids as the data."""
    source, target = coupler.shape(node.input(0)), coupler.shape(node.outputs[0])
    patchable = node.op != "Reshape" or "shape" in node.attributes or node.input(1) in coupler.graph.initializers
    if source is None or target is None or not patchable:
        coupler.freeze_node(node, f"the shape that {node.op} makes is computed")
        return
    result: list[IdArray] = []
    for axes, new_axes in blocks(source, target):
        own = [ids for ids in coupler.ids(node.input(0)) if set(support(ids)) & set(axes)]
        fitting = [ids for ids in own if set(support(ids)) <= set(axes)]
        extents = [source[axis] for axis in axes]
        if fitting and all(isinstance(extent, int) for extent in (*extents, *(target[axis] for axis in new_axes))):
            result.extend(_reshape_block(fitting[0], axes, new_axes, source, target, coupler))
            own = [ids for ids in own if ids is not fitting[0]]
        text = f"{node.op} merges or splits the axis with others"
        coupler.freeze(own, Reason(node.label, node.op, text))
    coupler.set(node.outputs[0], result)


def _reshape_block(
    ids: IdArray, axes: range, new_axes: range, source: Shape, target: Shape, coupler: Coupler
) -> list[IdArray]:
    extents = [int(source[axis] or 0) for axis in axes]
    new_extents = [int(target[axis] or 0) for axis in new_axes]
    full = np.broadcast_to(ids.reshape([ids.shape[axis] for axis in axes]), extents)
    reshaped = collapse(full.reshape(new_extents))
    carrying = support(reshaped)
    if not carrying:
        return []
    vector = reshaped.ravel() if len(carrying) == 1 else coupler.square(reshaped, carrying[-1])
    return [along(vector, len(target), new_axes[carrying[-1]])]


def blocks(source: Shape, target: Shape) -> list[Block]:
    """Cut two shapes of equal size into the smallest blocks of neighbouring axes that hold the same elements.

    Parameters
    ----------
    source, target : tuple
        Shapes; unknown extents are matched from both ends inwards, and what is left becomes one block.

    Returns
    -------
    list of (range, range)
        Axes of the source and of the target, block by block; together they cover all axes.
    """
    front = _match(source, target)
    start = front[-1] if front else (0, 0)
    rest_source, rest_target = source[start[0] :], target[start[1] :]
    back = _match(rest_source[::-1], rest_target[::-1]) if rest_source or rest_target else []
    cuts = [(0, 0), *front]
    if back:
        ends = [(len(source) - i, len(target) - j) for i, j in reversed(back)]
        cuts += [cut for cut in ends if cut != cuts[-1]]
    if cuts[-1] != (len(source), len(target)):
        cuts.append((len(source), len(target)))
    pairs = [(range(a[0], b[0]), range(a[1], b[1])) for a, b in pairwise(cuts)]
    return _absorb_ones(pairs)


def _match(source: Shape, target: Shape) -> list[tuple[int, int]]:
    """Cuts (axes of source, axes of target) up to which both shapes hold equal elements, from the front."""
    cuts = []
    i = j = 0
    while i < len(source) and j < len(target):
        if isinstance(source[i], str) and source[i] == target[j]:
            i, j = i + 1, j + 1
        else:
            step = _equal_products(source[i:], target[j:])
            if step is None:
                break
            i, j = i + step[0], j + step[1]
        cuts.append((i, j))
    return cuts


def _equal_products(source: Shape, target: Shape) -> tuple[int, int] | None:
    """How many leading axes of each have the same product; None when an unknown extent comes first."""
    i = j = 1
    left: Dim = source[0]
    right: Dim = target[0]
    while isinstance(left, int) and isinstance(right, int) and left != right:
        if left < right:
            following = source[i] if i < len(source) else None
            left, i = (left * following if isinstance(following, int) else None), i + 1
        else:
            following = target[j] if j < len(target) else None
            right, j = (right * following if isinstance(following, int) else None), j + 1
    return (i, j) if isinstance(left, int) and isinstance(right, int) else None


def _absorb_ones(pairs: list[Block]) -> list[Block]:
    """Blocks without an axis on one side (left-over extents of 1) belong to their neighbour."""
    whole: list[Block] = []
    for axes, new_axes in pairs:
        if whole and (not axes or not new_axes):
            before, new_before = whole.pop()
            whole.append((range(before.start, axes.stop), range(new_before.start, new_axes.stop)))
        else:
            whole.append((axes, new_axes))
    return whole


def patch_reshape(node: Node, proto: onnx.NodeProto, edit: Edit) -> None:
    """Write the new extents where the shape constant names an axis that changed."""
    constant = node.attributes.get("shape")
    if constant is None:
        value = edit.value(node.input(1))
        constant = [] if value is None else value.ravel().tolist()
    source, new = edit.new_shape(node.input(0)), edit.new_shape(node.outputs[0])
    patched = [
        _patched_extent(extent, source[axis] if axis < len(source) else None, new[axis])
        for axis, extent in enumerate(constant)
    ]
    if list(constant) == patched:
        return
    if "shape" in node.attributes:
        set_attribute(proto, "shape", patched)
    else:
        set_input(proto, 1, edit.constant(np.array(patched, dtype=np.int64)))


def _patched_extent(extent: int, source: Dim, new: Dim) -> int:
    """-1 stays, and so does 0 where the input's axis at that place is as long as the output's, now too."""
    if extent == -1 or not isinstance(new, int) or (extent == 0 and new == source):
        return extent
    return new


def patch_squeeze(node: Node, proto: onnx.NodeProto, edit: Edit) -> None:
    """Name the axes: one that shrinks to a single position is not among those that go."""
    if node.input(1) or "axes" in node.attributes:
        return
    axes = [axis for axis, extent in enumerate(edit.shape(node.input(0))) if extent == 1]
    if edit.opset < 13:
        set_attribute(proto, "axes", axes)
    else:
        set_input(proto, 1, edit.constant(np.array(axes, dtype=np.int64)))


RULES = {
    "Reshape": Rule(couple_reshape, patch_reshape),
    "Flatten": Rule(couple_reshape),
    "Squeeze": Rule(couple_reshape, patch_squeeze),
    "Unsqueeze": Rule(couple_reshape),
}
