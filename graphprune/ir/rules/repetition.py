"""Expand, Tile, ConstantOfShape: positions that repeat others, or are all alike.

Positions made by repeating one position, or filled with one value, are all alike: any of them may go, so they get ids
of their own, and the constant that says how many is patched. Tile repeats ids as it repeats data.

References: https://onnx.ai/onnx/operators/onnx__Expand.html, onnx__Tile.html, onnx__ConstantOfShape.html
"""

from __future__ import annotations

import numpy as np
import onnx

from graphprune.ir.coupling.atoms import IdArray, Reason, along, lift, support
from graphprune.ir.coupling.coupler import Coupler
from graphprune.ir.edit import Edit
from graphprune.ir.nodes import Node
from graphprune.ir.rules.rule import Rule
from graphprune.ir.rules.shape import freeze_targets
from graphprune.ir.shapes.entries import is_number
from graphprune.ir.shapes.inference import Shape


def couple_expand(node: Node, coupler: Coupler) -> None:
    """Pass the axes that are there, and give those that are made by repetition ids of their own."""
    freeze_targets(node, coupler)
    source, target = coupler.shape(node.input(0)), coupler.shape(node.outputs[0])
    entries = coupler.graph.entries.get(node.input(1))
    if source is None or target is None or entries is None:
        coupler.freeze_node(node, "the shape that Expand makes is computed")
        return
    rank = len(target)
    lifted = (1,) * (rank - len(source)) + tuple(source)
    told = [axis for axis in range(rank) if axis < rank - len(entries) or is_number(entries[axis - rank])]
    passed = coupler.pass_axes(
        node,
        node.input(0),
        [axis - rank + len(source) for axis in told],
        "the extent that Expand makes of the axis is computed",
    )
    made = [axis for axis in told if lifted[axis] == 1]
    coupler.set(node.outputs[0], [*(lift(ids, rank) for ids in passed), *_fresh(coupler, target, made)])


def couple_constant_of_shape(node: Node, coupler: Coupler) -> None:
    """Give every axis whose extent is known ids of its own."""
    freeze_targets(node, coupler, first=0)
    target, entries = coupler.shape(node.outputs[0]), coupler.graph.entries.get(node.input(0))
    if target is None or entries is None:
        coupler.freeze_node(node, "the shape that ConstantOfShape makes is computed")
        return
    told = [axis for axis, entry in enumerate(entries) if is_number(entry)]
    reason = Reason(node.label, node.op, "the extent that ConstantOfShape makes of the axis is computed")
    coupler.set(node.outputs[0], _fresh(coupler, target, told), reason)


def _fresh(coupler: Coupler, shape: Shape, axes: range | list[int]) -> list[IdArray]:
    extents = [(axis, shape[axis]) for axis in axes]
    return [
        along(coupler.atoms.new((extent,)), len(shape), axis)
        for axis, extent in extents
        if isinstance(extent, int) and extent > 1
    ]


def couple_tile(node: Node, coupler: Coupler) -> None:
    """Repeat the ids."""
    freeze_targets(node, coupler)
    entries = coupler.graph.entries.get(node.input(1))
    if entries is None or node.input(2):
        coupler.freeze_node(node, "the repeats of Tile are computed")
        return
    told = [axis for axis, entry in enumerate(entries) if is_number(entry)]
    result = []
    for ids in coupler.pass_axes(node, node.input(0), told, "the repeats of Tile along the axis are computed"):
        carried = support(ids)
        result.append(np.tile(ids, [int(count) if axis in carried else 1 for axis, count in enumerate(entries)]))
    coupler.set(node.outputs[0], result)


def patch_shape(node: Node, proto: onnx.NodeProto, edit: Edit) -> None:
    """Write the new extents into the shape; entries of 1 broadcast and stay."""
    slot = 1 if node.op == "Expand" else 0
    entries = edit.graph.entries[node.input(slot)]
    new = edit.new_shape(node.outputs[0])[len(edit.shape(node.outputs[0])) - len(entries) :]
    patched = [
        now if is_number(entry) and entry != 1 and isinstance(now, int) else None
        for entry, now in zip(entries, new, strict=True)
    ]
    edit.set_entries(proto, slot, patched)


RULES = {
    "Expand": Rule(couple_expand, patch_shape),
    "ConstantOfShape": Rule(couple_constant_of_shape, patch_shape),
    "Tile": Rule(couple_tile),
}
