"""Shapes that the graph computes: what operators make whose target, bounds, pads or repeats are no constants.

ONNX's shape inference gives up all extents of most of them as soon as one entry is not known; here every entry that is
known counts (see `graphprune.ir.shapes.entries`).

References: https://onnx.ai/onnx/operators/onnx__Reshape.html, onnx__Expand.html, onnx__Resize.html, onnx__Slice.html,
onnx__Pad.html, onnx__Tile.html, onnx__ConstantOfShape.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from graphprune.ir.shapes.entries import Entries, Shapes, find_entries

Dim = int | str | None
Found = Mapping[str, Entries]
FAR = 2**31 - 1
"""A bound of Slice from here on means the end of the axis."""
UNKNOWN = "unk__"
"""What ONNX's shape inference calls an extent of which it only knows that there is one."""


def computed_shapes(graph: onnx.GraphProto, shapes: Shapes) -> dict[str, list[Dim]]:
    """Return shapes of outputs that say more than is known.

    Parameters
    ----------
    graph : onnx.GraphProto
        Its nodes in topological order.
    shapes : mapping
        What is known of its tensors' shapes.

    Returns
    -------
    dict of str to list
        By tensor name, the extents as known now, a number wherever the entries of a target tell it.
    """
    nodes = [n for n in graph.node if n.op_type in TARGETS and n.domain in ("", "ai.onnx") and n.input]
    stored = {tensor.name for tensor in graph.initializer}
    if all(name in stored for node in nodes for name in _slots(node)):
        return {}  # inference has seen them all
    entries = find_entries(graph, shapes)
    outputs = {value.name for value in graph.output}  # these are declared
    result = {}
    for node in nodes:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if not a.ref_attr_name}
        source = shapes.get(node.input[0])
        made = None if source is None else TARGETS[node.op_type](node, attributes, source, entries)
        known = shapes.get(node.output[0])
        if made is not None and node.output[0] not in outputs:
            best = _best(made, [None] * len(made) if known is None else known)
            if best is not None:
                result[node.output[0]] = best
    return result


def _slots(node: onnx.NodeProto) -> Iterator[str]:
    yield from (name for name in (node.input if node.op_type == "ConstantOfShape" else node.input[1:]) if name)


def _best(made: list[Dim], known: Sequence[Dim]) -> list[Dim] | None:
    """Extents by both; None where ``made`` says nothing new, or contradicts what is known."""
    if len(made) != len(known):
        return None
    pairs = list(zip(made, known, strict=True))
    if any(isinstance(new, int) and isinstance(old, int) and new != old for new, old in pairs):
        return None
    best = [max(pair, key=_worth) for pair in pairs]
    told = any(_worth(now) > _worth(old) for now, old in zip(best, known, strict=True))
    return [extent if _worth(extent) else None for extent in best] if told else None


def _worth(extent: Dim) -> int:
    """How much an extent says: a number more than a symbol, a symbol of the model's own more than none."""
    if isinstance(extent, str):
        return 0 if extent.startswith(UNKNOWN) else 1
    return 0 if extent is None else 2


# -- operators: what their outputs' extents are, as far as can be told ---------------------------------------------


def _dims(entries: Entries | None) -> list[Dim] | None:
    """Extents that a vector's entries name."""
    if entries is None or entries.ndim != 1:
        return None
    return [int(entry) if isinstance(entry, np.generic) else entry for entry in entries]


def reshaped(target: list[Dim], source: tuple[Dim, ...], *, zeros_copy: bool) -> list[Dim]:
    """Return the shape that Reshape makes.

    Parameters
    ----------
    target, source : sequence
        Entries of the target, and the shape of the data.
    zeros_copy : bool
        Whether 0 means the extent of the source there (``allowzero`` is not set).
    """
    made = [
        source[axis] if entry == 0 and zeros_copy and axis < len(source) else None if entry == -1 else entry
        for axis, entry in enumerate(target)
    ]
    open_axes = [axis for axis, extent in enumerate(made) if extent is None]
    if len(open_axes) == 1:
        rest = list(source)
        for extent in made:
            if isinstance(extent, str) and extent in rest:
                rest.remove(extent)
            elif isinstance(extent, str):
                return made
        numerator = [extent for extent in rest if isinstance(extent, int)]
        product = int(np.prod([extent for extent in made if isinstance(extent, int)], dtype=np.int64))
        if len(numerator) == len(rest) and product > 0:
            made[open_axes[0]] = int(np.prod(numerator, dtype=np.int64)) // product
    return made


def constant_target(target: Entries, source: Sequence[Dim], *, zeros_copy: bool) -> list[int] | None:
    """Return a constant target that makes Reshape do as a computed one does; None where there is none.

    Parameters
    ----------
    target : ndarray of object
        Entries of the computed target.
    source : sequence
        Shape of the data.
    zeros_copy : bool
        Whether 0 means the extent of the source there (``allowzero`` is not set).
    """
    entries = _dims(target)
    if entries is None or (0 in entries and not zeros_copy):
        return None
    copied = [isinstance(e, str) and axis < len(source) and e == source[axis] for axis, e in enumerate(entries)]
    result = [
        0 if copy else entry if isinstance(entry, int) else -1 for entry, copy in zip(entries, copied, strict=True)
    ]
    return result if result.count(-1) < 2 else None


def _reshape(node: onnx.NodeProto, attributes: Any, source: Any, found: Found) -> list[Dim] | None:
    target = _dims(found.get(node.input[1])) if len(node.input) > 1 else None
    return None if target is None else reshaped(target, source, zeros_copy=not attributes.get("allowzero"))


def _expand(node: onnx.NodeProto, attributes: Any, source: Any, found: Found) -> list[Dim] | None:
    target = _dims(found.get(node.input[1]))
    if target is None:
        return None
    rank = max(len(source), len(target))
    pairs = zip([1] * (rank - len(source)) + list(source), [1] * (rank - len(target)) + target, strict=True)
    return [_broadcast(extent, entry) for extent, entry in pairs]


def _broadcast(left: Dim, right: Dim) -> Dim:
    for one, other in ((left, right), (right, left)):
        if one == 1:
            return other
        if isinstance(one, int):
            return one
    return left if left == right else None


def _filled(node: onnx.NodeProto, attributes: Any, source: Any, found: Found) -> list[Dim] | None:
    return _dims(found.get(node.input[0]))


def _resize(node: onnx.NodeProto, attributes: Any, source: Any, found: Found) -> list[Dim] | None:
    axes = [axis % len(source) for axis in attributes.get("axes", range(len(source)))]
    made: list[Dim] = [extent if axis not in axes else None for axis, extent in enumerate(source)]
    sizes = _dims(found.get(node.input[3])) if len(node.input) > 3 and node.input[3] else None
    if sizes is not None and attributes.get("keep_aspect_ratio_policy", b"stretch") == b"stretch":
        for axis, entry in zip(axes, sizes, strict=True):
            made[axis] = entry
    # X, scales before operator set 11, then X, roi, scales
    scales = found.get(node.input[1 if len(node.input) == 2 else 2]) if len(node.input) in (2, 3) else None
    for axis, scale in zip(axes, [] if scales is None else scales, strict=False):
        if isinstance(scale, np.generic) and scale == 1:
            made[axis] = source[axis]
    return made


def _slice(node: onnx.NodeProto, attributes: Any, source: Any, found: Found) -> list[Dim] | None:
    cuts = slice_cuts(node.input, attributes, len(source), found)
    if cuts is None:
        return None
    return [_cut(extent, cuts[axis]) if axis in cuts else extent for axis, extent in enumerate(source)]


def _cut(extent: Dim, cut: slice | None) -> Dim:
    if cut is not None and cut.start == 0 and cut.stop >= FAR and cut.step == 1:
        return extent
    return len(range(extent)[cut]) if isinstance(extent, int) and cut is not None else None


def _pad(node: onnx.NodeProto, attributes: Any, source: Any, found: Found) -> list[Dim] | None:
    pads = pads_by_axis(node.input, attributes, len(source), found)
    if pads is None:
        return None
    return [_padded(extent, pads[axis]) if axis in pads else extent for axis, extent in enumerate(source)]


def _padded(extent: Dim, pad: tuple[int, int] | None) -> Dim:
    if pad == (0, 0):
        return extent
    return extent + sum(pad) if isinstance(extent, int) and pad is not None else None


def _tile(node: onnx.NodeProto, attributes: Any, source: Any, found: Found) -> list[Dim] | None:
    repeats = _dims(found.get(node.input[1]))
    return None if repeats is None else [_times(*pair) for pair in zip(source, repeats, strict=True)]


def _times(extent: Dim, count: Dim) -> Dim:
    if 1 in (extent, count):
        return count if extent == 1 else extent
    return extent * count if isinstance(extent, int) and isinstance(count, int) else None


def slice_cuts(
    inputs: Sequence[str], attributes: Mapping[str, Any], rank: int, found: Found
) -> dict[int, slice | None] | None:
    """Return what Slice takes, by axis.

    Parameters
    ----------
    inputs : sequence of str
        Input names of the node.
    attributes : mapping
        Its attributes.
    rank : int
        Rank of the data.
    found : mapping
        Entries of small tensors (`find_entries`).

    Returns
    -------
    dict of int to (slice or None), or None
        In the order of the node's inputs; None for an axis whose bounds are computed, and None in all when it is not
        even known which axes are cut.
    """
    if "starts" in attributes:
        starts, ends, axes, steps = (attributes.get(name) for name in ("starts", "ends", "axes", "steps"))
    else:
        starts, ends, axes, steps = (_items(found.get(name)) for name in [*inputs[1:], "", ""][:4])
        if len(inputs) > 3 and inputs[3] and axes is None:
            return None
        if len(inputs) > 4 and inputs[4] and steps is None:
            steps = [None] * rank
    named = list(range(len(starts or ends or range(rank)))) if axes is None else axes
    if None in named:
        return None
    cuts: dict[int, slice | None] = {}
    unknown = [None] * len(named)
    for axis, *bounds in zip(named, starts or unknown, ends or unknown, steps or [1] * len(named), strict=False):
        cuts[axis % rank] = None if None in bounds else slice(*bounds)
    return cuts


def pads_by_axis(
    inputs: Sequence[str], attributes: Mapping[str, Any], rank: int, found: Found
) -> dict[int, tuple[int, int] | None] | None:
    """Return the pads (before, after) by axis.

    Parameters
    ----------
    inputs, attributes, rank, found
        As in `slice_cuts`.

    Returns
    -------
    dict of int to ((int, int) or None), or None
        In the order of the node's inputs; None for an axis whose pads are computed, and None in all when it is not
        even known which axes are padded.
    """
    axes: list[Any] | None = None
    pads = attributes.get("pads", attributes.get("paddings"))
    if pads is None:
        pads = _items(found.get(inputs[1]))
        axes = _items(found.get(inputs[3])) if len(inputs) > 3 else None
        if len(inputs) > 3 and inputs[3] and axes is None:
            return None
    named = list(range(rank)) if axes is None else axes
    if None in named:
        return None
    pads = pads or [None] * (2 * len(named))
    result: dict[int, tuple[int, int] | None] = {}
    for axis, front, back in zip(named, pads[: len(named)], pads[len(named) :], strict=True):
        result[axis % rank] = None if None in (front, back) else (front, back)
    return result


def _items(entries: Entries | None) -> list[int | None] | None:
    """Entries as numbers, None for each that is not known."""
    if entries is None:
        return None
    return [entry.item() if isinstance(entry, np.generic) else None for entry in entries.ravel()]


TARGETS: dict[str, Callable[[onnx.NodeProto, Any, Any, Found], list[Dim] | None]] = {
    "ConstantOfShape": _filled,
    "Expand": _expand,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Tile": _tile,
    "Upsample": _resize,
}
