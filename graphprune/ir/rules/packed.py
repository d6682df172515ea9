"""ONNX Runtime's Attention, which makes queries, keys and values itself: by one weight [inputs, Q + K + V].

The inputs are summed over against the weight. Whole heads go, from queries, keys and values at once, and dimensions
of the values, which are those of the output. The head dimensions of queries and keys stay: they are summed over inside,
where nothing can be masked. See `graphprune.ir.rules.attention` for the algebra.

Reference: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.Attention
"""

from __future__ import annotations

import numpy as np
import onnx

from graphprune.ir.coupling.atoms import Reason, along
from graphprune.ir.coupling.coupler import Coupler
from graphprune.ir.coupling.units import Contraction
from graphprune.ir.edit import Edit, set_attribute
from graphprune.ir.nodes import Node
from graphprune.ir.rules.attention import Heads, join_heads, join_mask, lay_out, split_merged
from graphprune.ir.rules.rule import Rule
from graphprune.ir.shapes.inference import Shape

PAST, MASK = 4, 5
"""Input slots of what has been cached, [2, batch, heads, steps, dimensions], and of its mask."""


def couple_packed_attention(node: Node, coupler: Coupler) -> None:
    """Couple the inputs with the rows of the weight, and the heads and the values' dimensions with its columns."""
    data, weight, bias, past = node.input(0), node.input(1), node.input(2), node.input(PAST)
    read = None if coupler.shape(data) is None else 2
    coupler.contract(Contraction(node, 0, 1, data_axis=read, weight_axis=0, output_axis=1))
    columns, sizes = coupler.vector(weight, 1), _packed_sizes(node, coupler.shape(weight))
    if not coupler.ranked(node):
        return
    if columns is None or sizes is None:
        coupler.freeze_node(node, f"the columns of {node.op}'s weight are not known")
        return
    tracked = {0: (2,), 1: (0, 1), 2: (0,), PAST: (2,)}
    tracked[MASK] = (len(coupler.shape(node.input(MASK)) or ()) - 3,)
    for slot, name in enumerate(node.inputs):
        if name:
            coupler.pass_axes(node, name, tracked.get(slot, ()), f"{node.op} keeps its batch and its steps")
    reason = Reason(node.label, node.op, f"the positions that {node.op} sums over are not known")
    coupler.join(coupler.vector(data, 2), coupler.vector(weight, 0), reason)
    if bias:
        coupler.join(columns, coupler.vector(bias, 0), reason)
    parts = np.split(columns, np.cumsum(sizes)[:2])
    query, key, value = (split_merged(node, coupler, part, int(node.attributes["num_heads"])) for part in parts)
    text = f"{node.op} sums over the dimension between queries and keys, where it cannot be masked"
    coupler.freeze([query.sizes, key.sizes], Reason(node.label, node.op, text))
    if past:
        coupler.freeze([value.sizes], Reason(node.label, node.op, f"{node.op} caches keys and values of one size"))
        coupler.join(query.heads, coupler.vector(past, 2), reason)
    join_heads(node, coupler, query, key, value)
    join_mask(node, coupler, MASK, query.heads)
    coupler.set(node.outputs[0], lay_out(coupler, Heads(query.heads, value.sizes), 3))
    if len(node.outputs) > 1:
        coupler.set(node.outputs[1], [along(query.heads, 5, 2)])


def _packed_sizes(node: Node, shape: Shape | None) -> list[int] | None:
    """Columns of queries, keys and values; None where they are not known."""
    given = node.attributes.get("qkv_hidden_sizes")
    if given is not None:
        return [int(size) for size in given]
    columns = None if shape is None else shape[-1]
    return [columns // 3] * 3 if isinstance(columns, int) else None


def patch_packed_attention(node: Node, proto: onnx.NodeProto, edit: Edit) -> None:
    """Write the numbers of heads and of columns that stay."""
    sizes = _packed_sizes(node, edit.shape(node.input(1)))
    keep = edit.kept(node.input(1), 1)
    if keep is None or sizes is None:
        return
    query, *_ = parts = np.split(keep, np.cumsum(sizes)[:2])
    heads = query.reshape(int(node.attributes["num_heads"]), -1)
    set_attribute(proto, "num_heads", int(heads.any(axis=1).sum()))
    set_attribute(proto, "qkv_hidden_sizes", [int(part.sum()) for part in parts])


RULES = {"com.microsoft.Attention": Rule(couple_packed_attention, patch_packed_attention)}
