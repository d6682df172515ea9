"""Pooling: every channel by itself, along the spatial axes.

Reference: https://onnx.ai/onnx/operators/onnx__MaxPool.html and its neighbours
"""

from __future__ import annotations

from graphprune.ir.coupling.coupler import Coupler
from graphprune.ir.nodes import Node
from graphprune.ir.rules.rule import Rule


def couple_pool(node: Node, coupler: Coupler) -> None:
    """Pass batch and channels."""
    if len([name for name in node.outputs if name]) > 1:
        coupler.freeze_node(node, f"the indices of {node.op} count over all channels")
        return
    ids = coupler.pass_axes(node, node.input(0), (0, 1), f"{node.op} slides along the axis")
    coupler.set(node.outputs[0], ids)


RULES = {
    op: Rule(couple_pool)
    for op in ("AveragePool", "MaxPool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
}
