"""Softmax, LogSoftmax, Hardmax: normalised over an axis, so that removing a position there is not zeroing it.

Before operator set 13 the input is flattened to two axes at ``axis`` (default 1) and everything behind it is
normalised; since then only ``axis`` (default -1) is.

Reference: https://onnx.ai/onnx/operators/onnx__Softmax.html
"""

from __future__ import annotations

from graphprune.ir.coupling.coupler import Coupler
from graphprune.ir.nodes import Node
from graphprune.ir.rules.rule import Rule


def couple_softmax(node: Node, coupler: Coupler) -> None:
    """Freeze what is normalised over, pass the rest."""
    if not coupler.ranked(node):
        return
    rank = len(coupler.shape(node.input(0)) or ())
    if coupler.graph.opset < 13:
        first = int(node.attributes.get("axis", 1)) % rank
        normalised = set(range(first, rank))
    else:
        normalised = {int(node.attributes.get("axis", -1)) % rank}
    text = f"{node.op} normalises over the axis: removing a position is not zeroing it"
    coupler.pass_others(node, normalised, text)


RULES = {op: Rule(couple_softmax) for op in ("Softmax", "LogSoftmax", "Hardmax")}
