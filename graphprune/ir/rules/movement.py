"""Transpose, Concat, Split, Slice, Pad: positions move, whole, along axes; ids move by the same numpy operation.

References: https://onnx.ai/onnx/operators/onnx__Slice.html, onnx__Pad.html, onnx__Split.html, onnx__Concat.html
"""

from __future__ import annotations

import numpy as np
import onnx

from graphprune.ir.atoms import IdArray, Reason, support
from graphprune.ir.coupler import Coupler
from graphprune.ir.edit import Edit, drop_attribute, set_attribute, set_input
from graphprune.ir.graph import Graph, Node
from graphprune.ir.rules.rule import Rule

FAR = 2**31 - 1


def couple_transpose(node: Node, coupler: Coupler) -> None:
    """Transpose the ids."""
    ids = coupler.ids(node.input(0))
    order = node.attributes.get("perm")
    coupler.set(node.outputs[0], [array.transpose(order) for array in ids])


def couple_concat(node: Node, coupler: Coupler) -> None:
    """Lay the ids behind each other along the axis; join them along all others."""
    if not coupler.ranked(node):
        return
    names = [name for name in node.inputs if name]
    rank = len(coupler.shape(names[0]) or ())
    axis = int(node.attributes.get("axis", 1)) % rank
    others = [other - rank for other in range(rank) if other != axis]
    result = coupler.merge(node, names, only=[others] * len(names))
    vectors = [coupler.vector(name, axis) for name in names]
    known = [vector for vector in vectors if vector is not None]
    if len(known) == len(vectors):
        coupler.set_axis(node.outputs[0], axis, np.concatenate(known), result)
        return
    reason = Reason(node.label, node.op, "Concat along an axis of unknown length")
    coupler.freeze(known, reason)
    coupler.set(node.outputs[0], result, reason)


def couple_split(node: Node, coupler: Coupler) -> None:
    """Cut the ids where the data is cut."""
    shape = coupler.shape(node.input(0))
    axis = None if shape is None else int(node.attributes.get("axis", 0)) % len(shape)
    sizes = None if axis is None else [_extent(coupler, name, axis) for name in node.outputs]
    if axis is None or sizes is None or any(size is None for size in sizes):
        coupler.freeze_node(node, "the parts that Split makes are not known")
        return
    cuts = np.cumsum([size or 0 for size in sizes])[:-1].tolist()
    ids = coupler.ids(node.input(0))
    parts = [np.split(array, cuts, axis) if axis in support(array) else [array] * len(sizes) for array in ids]
    for place, name in enumerate(node.outputs):
        coupler.set(name, [part[place] for part in parts])


def _extent(coupler: Coupler, name: str, axis: int) -> int | None:
    shape = coupler.shape(name)
    extent = None if shape is None else shape[axis]
    return extent if isinstance(extent, int) else None


def patch_split(node: Node, proto: onnx.NodeProto, edit: Edit) -> None:
    """Write the sizes that the parts have now."""
    axis = int(node.attributes.get("axis", 0))
    before = [edit.shape(name)[axis] for name in node.outputs]
    sizes = [edit.new_shape(name)[axis] for name in node.outputs]
    if sizes == before:
        return
    drop_attribute(proto, "num_outputs")
    if edit.opset < 13:
        set_attribute(proto, "split", sizes)
    else:
        set_input(proto, 1, edit.constant(np.array(sizes, dtype=np.int64)))


def couple_slice(node: Node, coupler: Coupler) -> None:
    """Slice the ids; an axis whose bounds are computed, or that is sliced in steps, is frozen."""
    if not coupler.ranked(node):
        return
    rank = len(coupler.shape(node.input(0)) or ())
    bounds = _bounds(node, coupler.graph, rank)
    if bounds is None:
        coupler.freeze_node(node, "the bounds of Slice are computed")
        return
    whole = [axis for axis in range(rank) if bounds.get(axis, slice(0, FAR, 1)).step == 1]
    ids = coupler.pass_axes(node, node.input(0), whole, "Slice takes positions of the axis in steps")
    result = []
    for array in ids:
        cut = tuple(bounds.get(axis, slice(None)) if array.shape[axis] > 1 else slice(None) for axis in range(rank))
        result.append(array[cut])
    coupler.set(node.outputs[0], result)


def _bounds(node: Node, graph: Graph, rank: int) -> dict[int, slice] | None:
    """Slices by axis; None when they are computed."""
    if "starts" in node.attributes:
        given = [node.attributes.get(name) for name in ("starts", "ends", "axes")]
    else:
        values = [graph.value(name) if name else None for name in node.inputs[1:]]
        if any(name and value is None for name, value in zip(node.inputs[1:], values, strict=True)):
            return None
        given = [None if value is None else value.ravel().tolist() for value in values]
    starts, ends, axes, steps = [*given, None, None][:4]
    if starts is None or ends is None:
        return None
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    cuts = zip(axes, starts, ends, steps, strict=True)
    return {int(axis) % rank: slice(int(start), int(end), int(step)) for axis, start, end, step in cuts}


def patch_slice(node: Node, proto: onnx.NodeProto, edit: Edit) -> None:
    """Count the bounds anew: as many positions before and inside as stay."""
    rank = len(edit.shape(node.input(0)))
    bounds = _bounds(node, edit.graph, rank) or {}
    starts, ends = [], []
    for axis, cut in bounds.items():
        keep = edit.kept(node.input(0), axis)
        if keep is None:
            starts.append(cut.start)
            ends.append(cut.stop)
        else:
            first, last, _ = cut.indices(len(keep))
            starts.append(int(keep[:first].sum()))
            ends.append(int(keep[:last].sum()))
    if starts == [c.start for c in bounds.values()] and ends == [c.stop for c in bounds.values()]:
        return
    if "starts" in node.attributes:
        set_attribute(proto, "starts", starts)
        set_attribute(proto, "ends", ends)
    else:
        values = (starts, ends, list(bounds), [c.step for c in bounds.values()])
        for slot, value in enumerate(values, start=1):
            set_input(proto, slot, edit.constant(np.array(value, dtype=np.int64)))


def couple_pad(node: Node, coupler: Coupler) -> None:
    """Give new positions ids of their own; freeze an axis that is cropped, or padded with its own values."""
    if not coupler.ranked(node):
        return
    rank = len(coupler.shape(node.input(0)) or ())
    pads = _pads(node, coupler.graph, rank)
    if pads is None:
        coupler.freeze_node(node, "the pads are computed")
        return
    mode = node.attributes.get("mode", b"constant")
    if mode == b"constant":
        free = [axis for axis in range(rank) if min(pads[axis]) >= 0]
    else:
        free = [axis for axis in range(rank) if pads[axis] == (0, 0)]
    text = f"Pad in mode {mode.decode()} makes the axis from its own values, or crops it"
    ids = coupler.pass_axes(node, node.input(0), free, text)
    coupler.set(node.outputs[0], [_padded(array, pads, coupler) for array in ids])


def _padded(array: IdArray, pads: list[tuple[int, int]], coupler: Coupler) -> IdArray:
    for axis in support(array):
        ends = []
        for count in pads[axis]:
            shape = list(array.shape)
            shape[axis] = count
            ends.append(coupler.atoms.new(shape))
        array = np.concatenate([ends[0], array, ends[1]], axis=axis)
    return array


def _pads(node: Node, graph: Graph, rank: int) -> list[tuple[int, int]] | None:
    """Pads (before, after) by axis; None when they are computed."""
    pads = node.attributes.get("pads", node.attributes.get("paddings"))
    axes = None
    if pads is None:
        value = graph.value(node.input(1))
        axes = graph.value(node.input(3)) if node.input(3) else None
        if value is None or (node.input(3) and axes is None):
            return None
        pads = value.ravel().tolist()
    named = range(rank) if axes is None else [int(axis) % rank for axis in axes.ravel()]
    result = [(0, 0)] * rank
    for place, axis in enumerate(named):
        result[axis] = (int(pads[place]), int(pads[place + len(named)]))
    return result


def patch_pad(node: Node, proto: onnx.NodeProto, edit: Edit) -> None:
    """Pad by as many new positions as stay."""
    rank = len(edit.shape(node.input(0)))
    before = _pads(node, edit.graph, rank) or []
    after = list(before)
    for axis, (front, back) in enumerate(before):
        keep = edit.kept(node.outputs[0], axis)
        if keep is not None and front + back:
            after[axis] = (int(keep[:front].sum()), int(keep[len(keep) - back :].sum()))
    if after == before:
        return
    flat = [front for front, _ in after] + [back for _, back in after]
    for name in ("pads", "paddings"):
        if name in node.attributes:
            set_attribute(proto, name, flat)
            return
    set_input(proto, 1, edit.constant(np.array(flat, dtype=np.int64)))
    if node.input(3):
        set_input(proto, 3, edit.constant(np.arange(rank, dtype=np.int64)))


RULES = {
    "Transpose": Rule(couple_transpose),
    "Concat": Rule(couple_concat),
    "Split": Rule(couple_split, patch_split),
    "Slice": Rule(couple_slice, patch_slice),
    "Pad": Rule(couple_pad, patch_pad),
}
