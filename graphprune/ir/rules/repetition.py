"""Expand, Tile, ConstantOfShape: positions that repeat others, or are all alike.

Positions made by repeating one position, or filled with one value, are all alike: any of them may go, so they get ids
of their own, and the constant that says how many is patched. Tile repeats ids as it repeats data.

References: https://onnx.ai/onnx/operators/onnx__Expand.html, onnx__Tile.html, onnx__ConstantOfShape.html
"""

from __future__ import annotations

import numpy as np
import onnx

from graphprune.ir.atoms import IdArray, along, lift, support
from graphprune.ir.coupler import Coupler
from graphprune.ir.edit import Edit, set_input
from graphprune.ir.graph import Node, Shape
from graphprune.ir.rules.rule import Rule


def couple_expand(node: Node, coupler: Coupler) -> None:
    """Pass the axes that are there, and give those that are made by repetition ids of their own."""
    source, target = coupler.shape(node.input(0)), coupler.shape(node.outputs[0])
    if source is None or target is None or node.input(1) not in coupler.graph.initializers:
        coupler.freeze_node(node, "the shape that Expand makes is computed")
        return
    rank = len(target)
    lifted = (1,) * (rank - len(source)) + tuple(source)
    own = [lift(ids, rank) for ids in coupler.ids(node.input(0))]
    made = [axis for axis in range(rank) if lifted[axis] == 1]
    coupler.set(node.outputs[0], [*own, *_fresh(coupler, target, made)])


def couple_constant_of_shape(node: Node, coupler: Coupler) -> None:
    """Give every axis ids of its own."""
    target = coupler.shape(node.outputs[0])
    if target is None or node.input(0) not in coupler.graph.initializers:
        coupler.freeze_node(node, "the shape that ConstantOfShape makes is computed")
        return
    coupler.set(node.outputs[0], _fresh(coupler, target, range(len(target))))


def _fresh(coupler: Coupler, shape: Shape, axes: range | list[int]) -> list[IdArray]:
    extents = [(axis, shape[axis]) for axis in axes]
    return [
        along(coupler.atoms.new((extent,)), len(shape), axis)
        for axis, extent in extents
        if isinstance(extent, int) and extent > 1
    ]


def couple_tile(node: Node, coupler: Coupler) -> None:
    """Repeat the ids."""
    repeats = coupler.graph.value(node.input(1))
    if repeats is None or node.input(2):
        coupler.freeze_node(node, "the repeats of Tile are computed")
        return
    counts = repeats.ravel().tolist()
    result = []
    for ids in coupler.ids(node.input(0)):
        carried = support(ids)
        result.append(np.tile(ids, [count if axis in carried else 1 for axis, count in enumerate(counts)]))
    coupler.set(node.outputs[0], result)


def patch_shape(node: Node, proto: onnx.NodeProto, edit: Edit) -> None:
    """Write the new extents into the shape constant; entries of 1 broadcast and stay."""
    slot = 1 if node.op == "Expand" else 0
    value = edit.value(node.input(slot))
    constant = [] if value is None else value.ravel().tolist()
    new = edit.new_shape(node.outputs[0])
    offset = len(new) - len(constant)
    patched = [extent if extent == 1 else new[offset + place] for place, extent in enumerate(constant)]
    if all(isinstance(extent, int) for extent in patched) and patched != constant:
        set_input(proto, slot, edit.constant(np.array(patched, dtype=np.int64)))


RULES = {
    "Expand": Rule(couple_expand, patch_shape),
    "ConstantOfShape": Rule(couple_constant_of_shape, patch_shape),
    "Tile": Rule(couple_tile),
}
