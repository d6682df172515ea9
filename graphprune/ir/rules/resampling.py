"""Resize, Upsample, DepthToSpace, SpaceToDepth, GridSample, RoiAlign, MaxRoiPool.

Resize and Upsample leave an axis whose extent does not change position by position; every other axis is frozen.
DepthToSpace lays b*b channels onto b x b neighbouring positions of one channel, so these go together: in mode DCR
channel c of the output comes from channels c, c + C', c + 2C', .. (C' output channels), in mode CRD from c*b*b to
c*b*b + b*b - 1. SpaceToDepth is its reverse in mode DCR: output channels c, c + C, c + 2C, .. come from channel c.
GridSample, RoiAlign and MaxRoiPool take samples of every channel by itself, at places that other inputs tell.

References: https://onnx.ai/onnx/operators/onnx__Resize.html, onnx__DepthToSpace.html, onnx__SpaceToDepth.html,
onnx__GridSample.html, onnx__RoiAlign.html, onnx__MaxRoiPool.html
"""

from __future__ import annotations

import numpy as np
import onnx

from graphprune.ir.coupling.atoms import Reason
from graphprune.ir.coupling.coupler import Coupler
from graphprune.ir.edit import Edit
from graphprune.ir.nodes import Node
from graphprune.ir.rules.rule import Rule
from graphprune.ir.rules.shape import freeze_targets
from graphprune.ir.shapes.entries import is_number

SIZES = 3


def couple_resize(node: Node, coupler: Coupler) -> None:
    """Pass the axes whose extent stays, freeze the others."""
    freeze_targets(node, coupler)
    source, target = coupler.shape(node.input(0)), coupler.shape(node.outputs[0])
    if (
        source is None
        or target is None
        or node.attributes.get("coordinate_transformation_mode") == b"tf_crop_and_resize"
    ):
        coupler.freeze_node(node, f"{node.op} may crop every axis")
        return
    same = [
        axis
        for axis, extent in enumerate(source)
        if isinstance(extent, int) and extent == target[axis] and _unscaled(node, coupler, axis, len(source))
    ]
    text = f"{node.op} resamples the axis"
    ids = coupler.pass_axes(node, node.input(0), same, text)
    coupler.set(node.outputs[0], ids, Reason(node.label, node.op, text))


def _unscaled(node: Node, coupler: Coupler, axis: int, rank: int) -> bool:
    """Whether positions map to themselves along an axis whose extent stays: by given sizes, or a scale of 1."""
    axes = _axes(node, rank)
    if axis not in axes:
        return True
    if "scales" in node.attributes:
        return bool(node.attributes["scales"][axes.index(axis)] == 1)
    given = coupler.graph.entries.get(node.input(SIZES) or next(name for name in reversed(node.inputs) if name))
    entry = None if given is None or len(given) != len(axes) else given[axes.index(axis)]
    return is_number(entry) and (bool(node.input(SIZES)) or entry == 1)


def _axes(node: Node, rank: int) -> list[int]:
    return [int(axis) % rank for axis in node.attributes.get("axes") or range(rank)]


def patch_resize(node: Node, proto: onnx.NodeProto, edit: Edit) -> None:
    """Write the new extents where the sizes are given; scales stay right as they are."""
    sizes = edit.graph.entries.get(node.input(SIZES)) if node.input(SIZES) else None
    if sizes is None:
        return
    new = [edit.new_shape(node.outputs[0])[axis] for axis in _axes(node, len(edit.shape(node.outputs[0])))]
    patched = [
        now if is_number(entry) and isinstance(now, int) else None for entry, now in zip(sizes, new, strict=True)
    ]
    edit.set_entries(proto, SIZES, patched)


def couple_depth_to_space(node: Node, coupler: Coupler) -> None:
    """Join the channels that become one."""
    block = int(node.attributes["blocksize"]) ** 2
    channels = coupler.vector(node.input(0), 1)
    others = coupler.pass_axes(node, node.input(0), (0, 1), f"{node.op} interleaves the axis with others")
    others = [ids for ids in others if ids.shape[0] > 1]
    if channels is None:
        coupler.set(node.outputs[0], others)
        return
    by_mode = node.attributes.get("mode", b"DCR") == b"CRD"
    parts = channels.reshape(-1, block).T if by_mode else channels.reshape(block, -1)
    coupler.atoms.join(parts[:1], parts)
    coupler.set_axis(node.outputs[0], 1, parts[0], others)


def couple_space_to_depth(node: Node, coupler: Coupler) -> None:
    """Repeat the channels, once for every position of a block."""
    block = int(node.attributes["blocksize"]) ** 2
    channels = coupler.vector(node.input(0), 1)
    others = coupler.pass_axes(node, node.input(0), (0, 1), f"{node.op} interleaves the axis with others")
    others = [ids for ids in others if ids.shape[0] > 1]
    coupler.set_axis(node.outputs[0], 1, None if channels is None else np.tile(channels, block), others)


def couple_sampling(node: Node, coupler: Coupler) -> None:
    """Pass the channels, freeze all other axes and what tells where samples are taken."""
    if not coupler.ranked(node):
        return
    text = f"{node.op} takes samples along the axis, or is told where by it"
    for name in node.inputs[1:]:
        coupler.freeze_tensor(name, Reason(node.label, node.op, text))
    coupler.set(node.outputs[0], coupler.pass_axes(node, node.input(0), (1,), text))


RULES = {
    **{op: Rule(couple_sampling) for op in ("GridSample", "RoiAlign", "MaxRoiPool")},
    "Resize": Rule(couple_resize, patch_resize),
    "Upsample": Rule(couple_resize),
    "DepthToSpace": Rule(couple_depth_to_space),
    "SpaceToDepth": Rule(couple_space_to_depth),
}
