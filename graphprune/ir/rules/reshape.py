"""Reshape, Flatten, Squeeze, Unsqueeze: the same elements in the same order under another shape.

Source and target shape are cut into the smallest blocks of equal size, and ids are reshaped block by block, as data
is. Merging C, H and W repeats each channel's id H*W times. Splitting C into (a, b) lays its ids out over two axes, and
what is done with them next decides (see `graphprune.ir.coupling.splits`): moved back onto one axis they are a shuffle,
merged with others or used apart they are rows and columns.

Reference: https://onnx.ai/onnx/operators/onnx__Reshape.html
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, takewhile

import numpy as np
import onnx

from graphprune.ir.coupling.atoms import IdArray, Reason, collapse, support
from graphprune.ir.coupling.coupler import Coupler
from graphprune.ir.edit import Edit, set_attribute, set_input
from graphprune.ir.nodes import Node
from graphprune.ir.rules.rule import Rule
from graphprune.ir.rules.shape import freeze_targets
from graphprune.ir.shapes.entries import is_number
from graphprune.ir.shapes.inference import Dim, Shape

Block = tuple[range, range]
"""Neighbouring axes of the source, and those of the target that hold the same elements."""
Piece = tuple[range, range, tuple[list[int], list[int]] | None]
"""A block with the extents that ids are reshaped by, None where they are not known."""


def couple_reshape(node: Node, coupler: Coupler) -> None:
    """Reshape the ids as the data."""
    freeze_targets(node, coupler)
    source, target = coupler.shape(node.input(0)), coupler.shape(node.outputs[0])
    if source is None or target is None or not _is_patchable(node, coupler, target):
        coupler.freeze_node(node, f"the shape that {node.op} makes is computed")
        return
    moved = _move(node, coupler, source, target)
    if moved is None:  # positions of several axes are merged in an order that is no shuffle
        coupler.apart(node.input(0))
        moved = _move(node, coupler, source, target) or []
    made = _overlaid(moved, coupler)
    coupler.set(node.outputs[0], made)
    repeating = [axis for axis, extent in enumerate(target) if not isinstance(extent, int)]
    if any(axis in support(ids) for axis in repeating for ids in made):
        coupler.repeating[node.outputs[0]] = repeating


def _is_patchable(node: Node, coupler: Coupler, target: Shape) -> bool:
    """Whether the target tells every extent that may change as a number."""
    if node.op != "Reshape" or "shape" in node.attributes:
        return True
    entries = coupler.graph.entries.get(node.input(1))
    return entries is not None and all(
        is_number(entry) or not isinstance(extent, int) for entry, extent in zip(entries, target, strict=True)
    )


def _move(node: Node, coupler: Coupler, source: Shape, target: Shape) -> list[IdArray] | None:
    """Reshape every array; None where one that names several axes has to be factored first."""
    pieces = [
        (axes, new_axes, known_extents(source, target, axes, new_axes)) for axes, new_axes in blocks(source, target)
    ]
    free = _left_to_infer(node, coupler, target)
    result: list[IdArray] = []
    for ids in coupler.ids(node.input(0)):
        named = support(ids)
        mixed = any(len(axes) > 1 and len(set(named) & set(axes)) > 1 for axes, _, _ in pieces)
        lost = [axis for piece in pieces for axis in piece[0] if axis in named and not _fits(ids, piece)]
        tied = coupler.atoms.tie(ids, lost) if lost else ids
        if tied is None:
            text = f"{node.op} merges or splits the axis with others"
            coupler.freeze([ids], Reason(node.label, node.op, text))
            continue
        moved = collapse(_laid_out(tied, pieces, len(target)))
        # Along an axis of unknown extent ids repeat; what is left of them has to follow from the other axes.
        dynamic = [axis for axis in support(moved) if not isinstance(target[axis], int) and axis not in free]
        known = coupler.atoms.tie(moved, dynamic) if dynamic else moved
        if known is None:
            coupler.freeze([ids], Reason(node.label, node.op, f"{node.op} merges the axis with one of unknown extent"))
        elif len(support(known)) == 0:
            coupler.freeze([ids], Reason(node.label, node.op, f"{node.op} leaves the axis one position"))
        elif len(named) == 1 < len(support(known)) and coupler.splits.of(ids) is None:
            clean = all(
                source[axis] == 1 for axes, _, _ in pieces if named[0] in axes for axis in axes if axis != named[0]
            )
            result.append(coupler.splits.split(known, node.input(0), named[0] if clean else None))
        elif mixed or coupler.splits.of(ids) is not None:
            shuffled = coupler.splits.shuffle(node, known) if len(support(known)) == 1 else None
            if shuffled is None and mixed:
                return None
            result.append(known if shuffled is None else shuffled)
        else:
            result.append(known)
    return result


def _left_to_infer(node: Node, coupler: Coupler, target: Shape) -> list[int]:
    """Axes whose extent the target leaves to be inferred, by -1."""
    entries = coupler.graph.entries.get(node.input(1)) if node.op == "Reshape" else None
    told = node.attributes.get("shape", entries)
    return [axis for axis in range(len(target)) if told is not None and is_number(told[axis]) and told[axis] == -1]


def _fits(ids: IdArray, piece: Piece) -> bool:
    """Whether the extents that a block is looked at with are those of the ids."""
    axes, new_axes, known = piece
    if len(axes) == len(new_axes) == 1:
        return True
    return known is not None and all(
        ids.shape[axis] in (1, extent) for axis, extent in zip(axes, known[0], strict=True)
    )


def _laid_out(ids: IdArray, pieces: list[Piece], rank: int) -> IdArray:
    """Repeat ids along the other axes of their blocks, and reshape them block by block."""
    full, made = list(ids.shape), [1] * rank
    for axes, new_axes, known in pieces:
        if len(axes) == len(new_axes) == 1:
            made[new_axes.start] = ids.shape[axes.start]
        elif known is not None and any(ids.shape[axis] > 1 for axis in axes):
            full[axes.start : axes.stop], made[new_axes.start : new_axes.stop] = known
    return np.broadcast_to(ids, full).reshape(made)


def _overlaid(arrays: list[IdArray], coupler: Coupler) -> list[IdArray]:
    """Fuse the arrays that lie over the same axes."""
    result: list[IdArray] = []
    for ids in arrays:
        over = [other for other in result if set(support(other)) & set(support(ids))]
        result = [other for other in result if not any(other is found for found in over)]
        result.append(coupler.atoms.fuse([*over, ids]))
    return result


def known_extents(source: Shape, target: Shape, axes: range, new_axes: range) -> tuple[list[int], list[int]] | None:
    """Return extents for a block such that ids can be reshaped by them.

    Where all unknown extents come first on both sides, or all last, ids do not change along them, and any extents do
    that fit: [B, h * d] to [B * h, d] is looked at with B = 1.

    Returns
    -------
    tuple of list of int, or None
        Extents of the source's axes and of the target's; None where unknown ones lie between known ones.
    """
    old, new = [source[axis] for axis in axes], [target[axis] for axis in new_axes]
    for turn in (slice(None), slice(None, None, -1)):
        known, new_known = _known_prefix(old[turn]), _known_prefix(new[turn])
        fits = all(not isinstance(extent, int) for extent in [*old[turn][len(known) :], *new[turn][len(new_known) :]])
        size, new_size = int(np.prod(known)), int(np.prod(new_known))
        if not fits or min(size, new_size) == 0 or (size % new_size and new_size % size):
            continue
        larger = max(size, new_size)
        full = _filled(known, len(old), larger // size), _filled(new_known, len(new), larger // new_size)
        if full[0] is not None and full[1] is not None:
            return full[0][turn], full[1][turn]
    return None


def _known_prefix(extents: Sequence[Dim]) -> list[int]:
    return [extent for extent in takewhile(lambda extent: isinstance(extent, int), extents) if isinstance(extent, int)]


def _filled(known: list[int], rank: int, rest: int) -> list[int] | None:
    """Extents whose unknown ones are 1, but for the first, which takes what is left; None where there is none."""
    unknown = rank - len(known)
    if unknown == 0:
        return known if rest == 1 else None
    return [*known, rest, *[1] * (unknown - 1)]


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
    """Write the new extents where the target names an axis that changed."""
    told = node.attributes.get("shape")
    entries = edit.graph.entries.get(node.input(1)) if told is None else told
    if entries is None:
        return
    source, new = edit.new_shape(node.input(0)), edit.new_shape(node.outputs[0])
    patched = [
        _patched_extent(entry, source[axis] if axis < len(source) else None, new[axis])
        for axis, entry in enumerate(entries)
    ]
    if told is None:
        edit.set_entries(proto, 1, patched)
    elif list(told) != patched:
        set_attribute(proto, "shape", patched)


def _patched_extent(entry: object, source: Dim, new: Dim) -> int | None:
    """-1 stays, and so does 0 where the input's axis at that place is as long as the output's, now too."""
    if not isinstance(entry, int | np.integer):
        return None
    if entry == -1 or not isinstance(new, int) or (entry == 0 and new == source):
        return int(entry)
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
    "Reshape": Rule(couple_reshape, patch_reshape, moves=True),
    "Flatten": Rule(couple_reshape, moves=True),
    "Squeeze": Rule(couple_reshape, patch_squeeze, moves=True),
    "Unsqueeze": Rule(couple_reshape, moves=True),
}
