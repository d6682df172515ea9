"""Gather and GatherND: positions picked by index, from an activation or from an embedding.

With constant indices the positions picked keep their ids, and the indices count what stays. With computed indices (the
words of a sentence) the axis that they pick from is frozen, and the others pass. GatherND picks from its first axes,
as many as the indices have, and they all are frozen; what it picks keeps the axes behind them.

References: https://onnx.ai/onnx/operators/onnx__Gather.html, onnx__GatherND.html
"""

from __future__ import annotations

import numpy as np
import onnx

from graphprune.ir.coupling.atoms import IdArray, Reason, support
from graphprune.ir.coupling.coupler import Coupler
from graphprune.ir.edit import Edit, set_input
from graphprune.ir.nodes import Node
from graphprune.ir.rules.rule import Rule


def couple_gather(node: Node, coupler: Coupler) -> None:
    """Pick the ids that the indices pick; freeze a position that a scalar index picks."""
    if not coupler.ranked(node):
        return
    data, indices = node.input(0), node.input(1)
    rank, index_rank = len(coupler.shape(data) or ()), len(coupler.shape(indices) or ())
    axis = int(node.attributes.get("axis", 0)) % rank
    picked = coupler.graph.value(indices)
    others = [other for other in range(rank) if other != axis]
    reason = Reason(node.label, node.op, "Gather picks positions of the axis by computed or many-axis indices")
    one_axis = picked is not None and index_rank <= 1
    coupler.unrepeat(data)
    result: list[IdArray] = []
    arrays: list[IdArray] = []
    for ids in coupler.ids(data):
        ended = _end_of_shuffle(node, coupler, ids, axis)
        if ended is not None:
            result.append(ended)
        else:
            arrays.extend(coupler.splits.take_apart(ids, axis, whole=picked is not None and picked.size == 1))
    for ids in coupler.pass_arrays(node, arrays, range(rank) if one_axis else others, reason.text):
        if axis not in support(ids):
            shape = [*ids.shape[:axis], *[1] * index_rank, *ids.shape[axis + 1 :]]
            result.append(ids.reshape(shape))
        elif picked is not None:
            taken = ids.take(picked.astype(np.int64), axis=axis)
            if index_rank == 0 and len(support(ids)) == 1:
                coupler.freeze([taken], Reason(node.label, node.op, "Gather picks this position alone"))
            else:
                result.append(taken)
    coupler.set(node.outputs[0], result, reason if picked is None and coupler.ids(data) else None)


def _end_of_shuffle(node: Node, coupler: Coupler, ids: IdArray, axis: int) -> IdArray | None:
    """Ids of the output where it is a part of an axis that has been split, each position by itself."""
    picked = coupler.graph.value(node.input(1))
    if picked is None or picked.ndim or len(support(ids)) != 2 or axis not in support(ids):
        return None
    return coupler.splits.shuffle(node, ids.take(picked.astype(np.int64), axis=axis))


def patch_gather(node: Node, proto: onnx.NodeProto, edit: Edit) -> None:
    """Count the indices anew, without those of removed positions."""
    axis = int(node.attributes.get("axis", 0)) % len(edit.shape(node.input(0)))
    keep = edit.kept(node.input(0), axis)
    picked = edit.value(node.input(1))
    if keep is None or picked is None:
        return
    places = picked.astype(np.int64) % len(keep)
    rank_of = np.cumsum(keep) - 1
    patched = rank_of[places[keep[places]]] if places.ndim else np.asarray(rank_of[places])
    set_input(proto, 1, edit.constant(patched.astype(np.int64)))


def couple_gather_nd(node: Node, coupler: Coupler) -> None:
    """Freeze the axes that are picked from, and pass those behind them."""
    if not coupler.ranked(node):
        return
    data, indices = coupler.shape(node.input(0)) or (), coupler.shape(node.input(1)) or ()
    text = f"{node.op} picks positions of the axis by indices"
    count = indices[-1]
    coupler.freeze_tensor(node.input(1), Reason(node.label, node.op, f"the indices of {node.op} keep their shape"))
    if not isinstance(count, int):
        coupler.freeze_node(node, f"{node.op} picks from axes that are not known")
        return
    first = int(node.attributes.get("batch_dims", 0)) + count
    passed = coupler.pass_axes(node, node.input(0), range(first, len(data)), text)
    ids = [own.reshape(*[1] * (len(indices) - 1), *own.shape[first:]) for own in passed]
    known = coupler.ids(node.input(0))
    coupler.set(node.outputs[0], ids, Reason(node.label, node.op, text) if known else None)


RULES = {
    "Gather": Rule(couple_gather, patch_gather, moves=True),
    "GatherND": Rule(couple_gather_nd),
}
