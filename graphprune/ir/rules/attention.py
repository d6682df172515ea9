"""Attention in one node: ONNX's Attention, ONNX Runtime's MultiHeadAttention and GroupQueryAttention.

y[h, s] = sum over t of softmax over t (scale * sum over d of q[h, s, d] * k[g, t, d] + mask[h, s, t]) * v[g, t]: every
head of keys and values g serves H/G of the H heads of queries.

- Heads run side by side: head g goes with the query heads that it serves, and these with it. One that serves all
  cannot go, and then the query heads go one by one.
- The head dimensions of queries and keys are summed over, as in MatMul. The scale, 1 over the root of their number
  where it is not given, is written out when some go.
- The head dimensions of the values are those of the output.

Where heads and head dimensions are merged on one axis, a position goes with its head or with its dimension. Batch and
steps stay, and so do the head dimensions of GroupQueryAttention: its rotation and its cache want heads of one size.

References: https://onnx.ai/onnx/operators/onnx__Attention.html,
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MultiHeadAttention
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from graphprune.ir.coupling.atoms import IdArray, Reason, along
from graphprune.ir.coupling.coupler import Coupler
from graphprune.ir.coupling.units import Contraction
from graphprune.ir.edit import Edit, set_attribute
from graphprune.ir.nodes import Node
from graphprune.ir.rules.rule import Rule
from graphprune.ir.shapes.inference import Shape

QUERY, KEY, VALUE = range(3)


@dataclass(frozen=True)
class Layout:
    """Where an operator has what; slots are -1 for what it has not.

    Attributes
    ----------
    heads, served : str
        Attributes that hold the number of heads of the queries, and of the keys and values.
    mask, past, bias, sink : int
        Input slots of what is added to the scores, of the cached keys (those of the values follow), of the bias of
        queries, keys and values, and of a number for every head.
    one_size : bool
        Whether the head dimensions have to stay.
    """

    heads: str
    served: str
    mask: int
    past: int
    bias: int = -1
    sink: int = -1
    one_size: bool = False


LAYOUTS = {
    "Attention": Layout("q_num_heads", "kv_num_heads", mask=3, past=4),
    "com.microsoft.MultiHeadAttention": Layout("num_heads", "num_heads", mask=5, past=6, bias=3),
    "com.microsoft.GroupQueryAttention": Layout("num_heads", "kv_num_heads", mask=10, past=3, sink=11, one_size=True),
}
QUANTISED = range(12, 14)
"""Input slots of the scales of GroupQueryAttention's quantised cache."""


@dataclass(frozen=True)
class Heads:
    """Ids of one operand, or of what is made in its layout.

    Attributes
    ----------
    heads : ndarray, shape (heads,)
    sizes : ndarray, shape (head dimensions,)
    """

    heads: IdArray
    sizes: IdArray


def couple_attention(node: Node, coupler: Coupler) -> None:
    """Couple heads and head dimensions of queries, keys, values, caches and the output."""
    if not coupler.ranked(node):
        return
    layout = LAYOUTS[node.op]
    ranks = [len(coupler.shape(node.input(slot)) or ()) for slot in (QUERY, KEY, VALUE)]
    if not all(node.inputs[:3]) or ranks not in ([3] * 3, [4] * 3) or (ranks[0] == 4 and node.op != "Attention"):
        coupler.freeze_node(node, f"{node.op} reads packed or cached queries, keys and values")
        return
    if layout.one_size and any(node.input(slot) for slot in QUANTISED):
        coupler.freeze_node(node, f"{node.op} quantises its cache")
        return
    _freeze_others(node, coupler, layout, ranks[0])
    last = ranks[0] - 1
    coupler.contract(Contraction(node, QUERY, KEY, data_axis=last, weight_axis=last, output_axis=last - 1))
    names = (layout.heads, layout.served, layout.served)
    operands = [
        split_heads(node, coupler, node.input(slot), int(node.attributes.get(name, 0)))
        for slot, name in enumerate(names)
    ]
    query, key, value = operands
    if query is None or key is None or value is None:
        coupler.freeze_node(node, f"the heads of {node.op} are not known")
        return
    join_heads(node, coupler, query, key, value)
    if layout.one_size:
        reason = Reason(node.label, node.op, f"{node.op} wants head dimensions of one number")
        coupler.freeze([query.sizes, value.sizes], reason)
    _couple_more(node, coupler, layout, query, key, value)
    coupler.set(node.outputs[0], lay_out(coupler, Heads(query.heads, value.sizes), ranks[0]))


def _freeze_others(node: Node, coupler: Coupler, layout: Layout, rank: int) -> None:
    """Freeze batch and steps, and inputs that have neither heads nor head dimensions."""
    text = f"{node.op} keeps its batch and its steps"
    tracked: dict[int, tuple[int, ...]] = dict.fromkeys((QUERY, KEY, VALUE), (1, 3) if rank == 4 else (2,))
    tracked.update({layout.past: (1, 3), layout.past + 1: (1, 3), layout.bias: (0,), layout.sink: (0,)})
    tracked[layout.mask] = (len(coupler.shape(node.input(layout.mask)) or ()) - 3,)
    for slot, name in enumerate(node.inputs):
        if name:
            coupler.pass_axes(node, name, tracked.get(slot, ()), text)


def split_heads(node: Node, coupler: Coupler, name: str, heads: int) -> Heads | None:
    """Return the ids of a tensor's heads and head dimensions.

    Parameters
    ----------
    node : Node
    coupler : Coupler
    name : str
        A tensor [batch, heads, steps, dimensions] or [batch, steps, heads * dimensions].
    heads : int
        Number of heads, for the second form.

    Returns
    -------
    Heads or None
        None when they are not known.
    """
    if len(coupler.shape(name) or ()) == 4:
        rows, columns = coupler.vector(name, 1), coupler.vector(name, 3)
        return None if rows is None or columns is None else Heads(rows, columns)
    merged = coupler.vector(name, 2)
    return None if merged is None or not heads else split_merged(node, coupler, merged, heads)


def split_merged(node: Node, coupler: Coupler, merged: IdArray, heads: int) -> Heads:
    """Return the ids of heads and head dimensions that are merged on one axis."""
    laid_out = merged.reshape(heads, -1)
    if min(laid_out.shape) > 1:
        rows, columns = coupler.atoms.factor(laid_out)
        return Heads(rows.ravel(), columns.ravel())
    only = coupler.atoms.new((1,))
    coupler.freeze([only], Reason(node.label, node.op, f"{node.op} has one such position alone"))
    return Heads(only, merged) if heads == 1 else Heads(merged, only)


def lay_out(coupler: Coupler, made: Heads, rank: int) -> list[IdArray]:
    """Return the ids of a tensor of these heads and head dimensions, on two axes or merged on one."""
    if rank == 4:
        return [along(made.heads, 4, 1), along(made.sizes, 4, 3)]
    if min(made.heads.size, made.sizes.size) == 1:
        return [along(made.heads if made.sizes.size == 1 else made.sizes, 3, 2)]
    merged = coupler.atoms.new((made.heads.size, made.sizes.size))
    coupler.atoms.product(merged, [made.heads[:, np.newaxis], made.sizes])
    return [along(merged, 3, 2)]


def join_heads(node: Node, coupler: Coupler, query: Heads, key: Heads, value: Heads) -> None:
    """Join the heads of keys and values with those that they serve, and the head dimensions of queries and keys."""
    reason = Reason(node.label, node.op, f"heads or head dimensions of {node.op} differ in number")
    coupler.join(key.heads, value.heads, reason)
    coupler.join(query.sizes, key.sizes, reason)
    served = np.repeat(key.heads, len(query.heads) // len(key.heads))
    if len(key.heads) > 1 or len(query.heads) == 1:
        coupler.join(query.heads, served, reason)


def _couple_more(node: Node, coupler: Coupler, layout: Layout, query: Heads, key: Heads, value: Heads) -> None:
    """Join what else has heads or head dimensions: mask, bias, caches, and the outputs behind the first."""
    reason = Reason(node.label, node.op, f"heads or head dimensions of {node.op} differ in number")
    join_mask(node, coupler, layout.mask, query.heads)
    if node.input(layout.sink) and layout.sink > 0:
        coupler.join(query.heads, coupler.vector(node.input(layout.sink), 0), reason)
    if node.input(layout.bias) and layout.bias > 0:
        merged = [coupler.vector(node.input(slot), 2) for slot in (QUERY, KEY, VALUE)]
        known = [ids for ids in merged if ids is not None]
        coupler.join(np.concatenate(known), coupler.vector(node.input(layout.bias), 0), reason)
        # It is added to queries inside, behind their mask.
        coupler.contract(Contraction(node, layout.bias, KEY, data_axis=0, weight_axis=2, output_axis=1))
    for place, operand in enumerate((key, value)):
        past = node.input(layout.past + place)
        if past:
            coupler.join(operand.heads, coupler.vector(past, 1), reason)
            coupler.join(operand.sizes, coupler.vector(past, 3), reason)
        if len(node.outputs) > 1 + place:
            coupler.set(node.outputs[1 + place], lay_out(coupler, operand, 4))
    if len(node.outputs) > 3:
        coupler.set(node.outputs[3], [along(query.heads, 4, 1)])


def join_mask(node: Node, coupler: Coupler, slot: int, heads: IdArray) -> None:
    """Join the heads of a mask [.., heads or 1, queries, keys]."""
    shape = coupler.shape(node.input(slot)) or ()
    if len(shape) > 2 and shape[-3] != 1:
        reason = Reason(node.label, node.op, f"the heads of {node.op}'s mask are not known")
        coupler.join(heads, coupler.vector(node.input(slot), len(shape) - 3), reason)


def patch_attention(node: Node, proto: onnx.NodeProto, edit: Edit) -> None:
    """Write the numbers of heads that stay, and the scale that the number of head dimensions made."""
    layout = LAYOUTS[node.op]
    for slot, name in ((QUERY, layout.heads), (KEY, layout.served)):
        if name in node.attributes:
            set_attribute(proto, name, kept_heads(edit, node.input(slot), int(node.attributes[name]))[0])
    heads = int(node.attributes.get(layout.heads, 0))
    before, after = _sizes(edit.shape(node.input(QUERY)), heads), kept_heads(edit, node.input(QUERY), heads)[1]
    if after != before and not node.attributes.get("scale", 0.0):
        set_attribute(proto, "scale", 1 / before**0.5)


def kept_heads(edit: Edit, name: str, heads: int) -> tuple[int, int]:
    """Return how many heads and head dimensions of a tensor stay; see `split_heads`."""
    shape = edit.new_shape(name)
    if len(shape) == 4:
        return int(shape[1] or 0), int(shape[3] or 0)
    keep = edit.kept(name, 2)
    if keep is None:
        return heads, _sizes(shape, heads)
    laid_out = keep.reshape(heads, -1)
    return int(laid_out.any(axis=1).sum()), int(laid_out.any(axis=0).sum())


def _sizes(shape: Shape, heads: int) -> int:
    return int(shape[3] or 0) if len(shape) == 4 else int(shape[2] or 0) // heads


RULES = {op: Rule(couple_attention, patch_attention) for op in LAYOUTS}
