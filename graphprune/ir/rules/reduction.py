"""ReduceMean and friends, ArgMax, ArgMin: the reduced axes are frozen, the others pass.

Removing a position from a mean, maximum or product is not zeroing it; nor does ArgMax survive it. A sum would, but
its consumers read the reduced tensor, where the position can no longer be masked.

Reference: https://onnx.ai/onnx/operators/onnx__ReduceMean.html and its neighbours
"""

from __future__ import annotations

from graphprune.ir.coupling.atoms import Reason
from graphprune.ir.coupling.coupler import Coupler
from graphprune.ir.nodes import Node
from graphprune.ir.rules.rule import Rule

REDUCE = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")


def couple_reduce(node: Node, coupler: Coupler) -> None:
    """Freeze the reduced axes, pass the others, without the reduced ones where ``keepdims`` is 0."""
    if not coupler.ranked(node):
        return
    rank = len(coupler.shape(node.input(0)) or ())
    axes = _axes(node, coupler, rank)
    if axes is None:
        coupler.freeze_node(node, f"the axes of {node.op} are computed")
        return
    text = f"{node.op} reduces over the axis: removing a position is not zeroing it"
    others = [axis for axis in range(rank) if axis not in axes]
    ids = coupler.pass_axes(node, node.input(0), others, text)
    if not node.attributes.get("keepdims", 1):
        ids = [array.reshape([array.shape[axis] for axis in others]) for array in ids]
    coupler.set(node.outputs[0], ids, Reason(node.label, node.op, text))


def _axes(node: Node, coupler: Coupler, rank: int) -> set[int] | None:
    if node.op.startswith("Arg"):
        return {int(node.attributes.get("axis", 0)) % rank}
    axes = node.attributes.get("axes")
    if axes is None and node.input(1):
        value = coupler.graph.value(node.input(1))
        if value is None:
            return None
        axes = value.ravel().tolist()
    if not axes:
        return set() if node.attributes.get("noop_with_empty_axes", 0) else set(range(rank))
    return {int(axis) % rank for axis in axes}


RULES = {
    **{f"Reduce{kind}": Rule(couple_reduce) for kind in REDUCE},
    "ArgMax": Rule(couple_reduce),
    "ArgMin": Rule(couple_reduce),
}
