"""Transpose, Concat, Split, Slice, Pad: positions move, whole, along axes; ids move by the same numpy operation.

References: https://onnx.ai/onnx/operators/onnx__Slice.html, onnx__Pad.html, onnx__Split.html, onnx__Concat.html
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from graphprune.ir.coupling.atoms import IdArray, Reason, support
from graphprune.ir.coupling.coupler import Coupler
from graphprune.ir.edit import Edit, drop_attribute, set_attribute, set_input
from graphprune.ir.nodes import Node
from graphprune.ir.rules.rule import Rule
from graphprune.ir.rules.shape import freeze_targets
from graphprune.ir.shapes.targets import FAR, pads_by_axis, slice_cuts

WHOLE = slice(0, FAR, 1)
UNPADDED = (0, 0)


def couple_transpose(node: Node, coupler: Coupler) -> None:
    """Transpose the ids."""
    ids = coupler.ids(node.input(0))
    order = node.attributes.get("perm")
    coupler.set(node.outputs[0], [array.transpose(order) for array in ids])
    repeating = coupler.repeating.get(node.input(0), [])
    if repeating:
        rank = len(coupler.shape(node.input(0)) or ())
        coupler.repeating[node.outputs[0]] = [list(order or range(rank)[::-1]).index(axis) for axis in repeating]


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
    coupler.unrepeat(node.input(0))
    whole = set(sizes) == {1}
    ids = [array for own in coupler.ids(node.input(0)) for array in coupler.splits.take_apart(own, axis, whole=whole)]
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
    """Slice the ids; an axis whose bounds are computed, or that is sliced in steps beside others, is frozen."""
    freeze_targets(node, coupler)
    if not coupler.ranked(node):
        return
    rank = len(coupler.shape(node.input(0)) or ())
    cuts = slice_cuts(node.inputs, node.attributes, rank, coupler.graph.entries)
    if cuts is None:
        coupler.freeze_node(node, "the axes that Slice cuts are computed")
        return
    coupler.unrepeat(node.input(0))
    arrays = list(coupler.ids(node.input(0)))
    for axis in cuts:
        one = _extent(coupler, node.outputs[0], axis) == 1
        arrays = [array for own in arrays for array in coupler.splits.take_apart(own, axis, whole=one)]
    known = [axis for axis in range(rank) if cuts.get(axis, WHOLE) is not None]
    arrays = coupler.pass_arrays(node, arrays, known, "the bounds that Slice cuts the axis at are computed")
    # What is left of every other position lies in no steps any more, but can be gathered.
    whole = [axis for axis in range(rank) if len(cuts) == 1 or (cuts.get(axis) or WHOLE).step == 1]
    result = []
    for array in coupler.pass_arrays(node, arrays, whole, "Slice takes positions of several axes, this one in steps"):
        cut = tuple(cuts.get(axis) or slice(None) if array.shape[axis] > 1 else slice(None) for axis in range(rank))
        result.append(array[cut])
    coupler.set(node.outputs[0], result)


def patch_slice(node: Node, proto: onnx.NodeProto, edit: Edit) -> None:
    """Count the bounds anew: as many positions before and inside as stay; what was cut in steps is gathered."""
    rank = len(edit.shape(node.input(0)))
    cuts = slice_cuts(node.inputs, node.attributes, rank, edit.graph.entries) or {}
    (axis, cut), *others = cuts.items()
    keep = edit.kept(node.input(0), axis)
    if not others and keep is not None and cut is not None and cut.step != 1:
        places = np.arange(len(keep))[cut]
        indices = (np.cumsum(keep) - 1)[places[keep[places]]]
        proto.CopyFrom(
            onnx.helper.make_node(
                "Gather", [node.input(0), edit.constant(indices)], node.outputs, name=proto.name, axis=axis
            )
        )
        return
    starts: list[int | None] = []
    ends: list[int | None] = []
    for axis, cut in cuts.items():
        keep = edit.kept(node.input(0), axis)
        if keep is None or cut is None:
            starts.append(None)
            ends.append(None)
        else:
            first, last, _ = cut.indices(len(keep))
            starts.append(int(keep[:first].sum()))
            ends.append(int(keep[:last].sum()))
    for slot, (name, new) in enumerate((("starts", starts), ("ends", ends)), start=1):
        if name in node.attributes:
            pairs = zip(node.attributes[name], new, strict=True)
            set_attribute(proto, name, [old if now is None else now for old, now in pairs])
        elif node.input(slot) in edit.graph.entries:
            edit.set_entries(proto, slot, new)


def couple_pad(node: Node, coupler: Coupler) -> None:
    """Give new positions ids of their own; freeze an axis that is cropped, or padded with its own values."""
    freeze_targets(node, coupler)
    if not coupler.ranked(node):
        return
    rank = len(coupler.shape(node.input(0)) or ())
    pads = pads_by_axis(node.inputs, node.attributes, rank, coupler.graph.entries)
    if pads is None:
        coupler.freeze_node(node, "the axes that Pad pads are computed")
        return
    known = [axis for axis in range(rank) if pads.get(axis, UNPADDED) is not None]
    passed = coupler.pass_axes(node, node.input(0), known, "the pads of the axis are computed")
    mode = node.attributes.get("mode", b"constant")
    if mode == b"constant":
        free = [axis for axis in range(rank) if min(pads.get(axis) or UNPADDED) >= 0]
    else:
        free = [axis for axis in range(rank) if (pads.get(axis) or UNPADDED) == UNPADDED]
    text = f"Pad in mode {mode.decode()} makes the axis from its own values, or crops it"
    ids = coupler.pass_arrays(node, passed, free, text)
    coupler.set(node.outputs[0], [_padded(array, pads, coupler) for array in ids])


def _padded(array: IdArray, pads: Mapping[int, tuple[int, int] | None], coupler: Coupler) -> IdArray:
    for axis in support(array):
        ends = []
        for count in pads.get(axis) or UNPADDED:
            shape = list(array.shape)
            shape[axis] = count
            ends.append(coupler.atoms.new(shape))
        array = np.concatenate([ends[0], array, ends[1]], axis=axis)
    return array


def patch_pad(node: Node, proto: onnx.NodeProto, edit: Edit) -> None:
    """Pad by as many new positions as stay."""
    rank = len(edit.shape(node.input(0)))
    pads = pads_by_axis(node.inputs, node.attributes, rank, edit.graph.entries) or {}
    after: list[tuple[int | None, int | None]] = []
    for axis, pad in pads.items():
        keep = edit.kept(node.outputs[0], axis)
        if keep is None or pad is None or pad == UNPADDED:
            after.append((None, None))
        else:
            after.append((int(keep[: pad[0]].sum()), int(keep[len(keep) - pad[1] :].sum())))
    flat = [front for front, _ in after] + [back for _, back in after]
    for name in ("pads", "paddings"):
        if name in node.attributes:
            pairs = zip(node.attributes[name], flat, strict=True)
            set_attribute(proto, name, [old if now is None else now for old, now in pairs])
            return
    if node.input(1) in edit.graph.entries:
        edit.set_entries(proto, 1, flat)


RULES = {
    "Transpose": Rule(couple_transpose, moves=True),
    "Concat": Rule(couple_concat),
    "Split": Rule(couple_split, patch_split, moves=True),
    "Slice": Rule(couple_slice, patch_slice, moves=True),
    "Pad": Rule(couple_pad, patch_pad),
}
