"""RotaryEmbedding, ONNX's and ONNX Runtime's: the positions of every step turn its head dimensions, pair by pair.

Every head is turned alike, by angles that head dimensions and steps give: whole heads go, the head dimensions stay.

References: https://onnx.ai/onnx/operators/onnx__RotaryEmbedding.html,
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.RotaryEmbedding
"""

from __future__ import annotations

import onnx

from graphprune.ir.coupling.atoms import Reason
from graphprune.ir.coupling.coupler import Coupler
from graphprune.ir.edit import Edit, set_attribute
from graphprune.ir.nodes import Node
from graphprune.ir.rules.attention import kept_heads, split_heads
from graphprune.ir.rules.rule import Rule
from graphprune.ir.shapes.inference import Shape

CACHE = {"RotaryEmbedding": 1, "com.microsoft.RotaryEmbedding": 2}
"""Input slot of the cosines [steps, half of the dimensions that are turned]."""


def couple_rotary(node: Node, coupler: Coupler) -> None:
    """Freeze the head dimensions, pass the heads."""
    if not coupler.ranked(node):
        return
    data = node.input(0)
    heads = _heads(node, coupler.shape(data) or (), coupler.shape(node.input(CACHE[node.op])) or ())
    split = split_heads(node, coupler, data, heads)
    if split is None:
        coupler.freeze_node(node, f"the heads of {node.op} are not known")
        return
    text = f"{node.op} turns head dimensions in pairs, by angles that all heads share"
    coupler.freeze([split.sizes], Reason(node.label, node.op, text))
    for name in node.inputs[1:]:
        coupler.freeze_tensor(name, Reason(node.label, node.op, text))
    axes = (1, 3) if len(coupler.shape(data) or ()) == 4 else (2,)
    coupler.set(node.outputs[0], coupler.pass_axes(node, data, axes, f"{node.op} counts the steps"))


def _heads(node: Node, shape: Shape, cache: Shape) -> int:
    """The number of heads of [batch, steps, heads * dimensions]; 0 where it is not known."""
    given = int(node.attributes.get("num_heads", 0))
    merged, half = shape[-1], cache[-1]
    if given or len(shape) == 4 or not isinstance(merged, int) or not isinstance(half, int):
        return given
    return merged // (2 * half)


def patch_rotary(node: Node, proto: onnx.NodeProto, edit: Edit) -> None:
    """Write the number of heads that stay, where it is given."""
    heads = int(node.attributes.get("num_heads", 0))
    if heads:
        set_attribute(proto, "num_heads", kept_heads(edit, node.input(0), heads)[0])


RULES = {op: Rule(couple_rotary, patch_rotary) for op in CACHE}
