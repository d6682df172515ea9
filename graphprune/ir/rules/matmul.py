"""Gemm and MatMul, and ONNX Runtime's FusedGemm and FusedMatMul.

y[.., m, n] = sum over k of a[.., m, k] * b[.., k, n]: the contracted axes of both operands are the same positions;
rows, columns and batch axes pass through, the batch axes broadcast. FusedMatMul may read its operands transposed, and
FusedGemm applies an activation to every element of the result.

References: https://onnx.ai/onnx/operators/onnx__Gemm.html, https://onnx.ai/onnx/operators/onnx__MatMul.html,
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.FusedMatMul
"""

from __future__ import annotations

from collections.abc import Sequence

from graphprune.ir.coupling.atoms import IdArray, Reason, along, support
from graphprune.ir.coupling.coupler import Coupler
from graphprune.ir.coupling.units import Contraction
from graphprune.ir.nodes import Node
from graphprune.ir.rules.rule import Rule

Axes = tuple[int, int]
"""Of an operand, the axis that is summed over and the one that passes into the output."""


def couple_gemm(node: Node, coupler: Coupler) -> None:
    """Couple alpha * A' B' + beta * C, where A' and B' may be transposed and C is broadcast."""
    left, right, bias = node.input(0), node.input(1), node.input(2)
    left_axis = 0 if node.attributes.get("transA", 0) else 1
    right_axis = 1 if node.attributes.get("transB", 0) else 0
    _note(node, coupler, (left_axis, 1 - left_axis), (right_axis, 1 - right_axis))
    if not coupler.ranked(node):
        return
    _join(node, coupler, left_axis, right_axis)
    coupler.set(node.outputs[0], _passed(coupler, [(left, 1 - left_axis), (right, 1 - right_axis)], 2))
    if bias:
        coupler.set(node.outputs[0], coupler.merge(node, [node.outputs[0], bias]))


def couple_matmul(node: Node, coupler: Coupler) -> None:
    """Couple a (batched) matrix product, of operands whose last two axes may be swapped."""
    left, right = node.input(0), node.input(1)
    left_rank, right_rank = (len(coupler.shape(name) or ()) for name in (left, right))
    left_axis, row = (-2, -1) if node.attributes.get("transA", 0) else (-1, -2)
    right_axis, column = (-1, -2) if node.attributes.get("transB", 0) else (-2, -1)
    _note(
        node,
        coupler,
        (left_rank + left_axis, left_rank + row) if left_rank > 1 else None,
        (right_rank + right_axis, right_rank + column) if right_rank > 1 else None,
    )
    if not coupler.ranked(node):
        return
    if min(left_rank, right_rank) < 2:
        coupler.freeze_node(node, f"{node.op} with a vector")
        return
    if node.attributes.get("transBatchA", 0) or node.attributes.get("transBatchB", 0):
        coupler.freeze_node(node, f"{node.op} moves its batch axes")
        return
    _join(node, coupler, left_rank + left_axis, right_rank + right_axis)
    rank = max(left_rank, right_rank)
    batch = list(range(-rank, -2))
    result = coupler.merge(node, [left, right], only=[batch, batch])
    result += _passed(coupler, [(left, left_rank + row), (right, right_rank + column)], rank)
    coupler.set(node.outputs[0], result)


def _passed(coupler: Coupler, operands: Sequence[tuple[str, int]], rank: int) -> list[IdArray]:
    """Ids of the rows of the left operand and of the columns of the right one, on the last two axes; none of no ids."""
    result = []
    for place, (name, axis) in enumerate(operands, start=rank - 2):
        vector = coupler.vector(name, axis) if any(axis in support(ids) for ids in coupler.ids(name)) else None
        result += [] if vector is None else [along(vector, rank, place)]
    return result


def _note(node: Node, coupler: Coupler, left: Axes | None, right: Axes | None) -> None:
    """Note the product: the weight is what is constant, the right operand where both are or neither is."""
    constant = [name in coupler.graph.constants for name in node.inputs[:2]]
    data, weight = (1, 0) if constant == [True, False] else (0, 1)
    axes = (left, right)
    read, multiplied = axes[data], axes[weight]
    if multiplied is not None:
        ranked = coupler.shape(node.input(data)) is not None
        coupler.contract(Contraction(node, data, weight, read[0] if read and ranked else None, *multiplied))


def _join(node: Node, coupler: Coupler, left_axis: int, right_axis: int) -> None:
    reason = Reason(node.label, node.op, f"the positions that {node.op} sums over are not known")
    left, right = node.input(0), node.input(1)
    coupler.join(coupler.vector(left, left_axis), coupler.vector(right, right_axis), reason)


RULES = {
    "Gemm": Rule(couple_gemm),
    "MatMul": Rule(couple_matmul),
    "com.microsoft.FusedGemm": Rule(couple_gemm),
    "com.microsoft.FusedMatMul": Rule(couple_matmul),
}
