"""Operators that act on every position by itself, with one input or with several that are broadcast.

What happens to a removed position inside is without effect: it is masked where it is consumed.

References: https://onnx.ai/onnx/operators/, https://onnx.ai/onnx/repo-docs/Broadcasting.html,
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from graphprune.ir.coupling.coupler import Coupler
from graphprune.ir.nodes import Node
from graphprune.ir.rules.rule import Rule

UNARY = [
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitwiseNot",
    "Cast",
    "CastLike",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Cosh",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "com.microsoft.Gelu",
    "com.microsoft.QuickGelu",
]
"""The first input is the data; any others are scalars (Clip's bounds, Dropout's ratio), or lend their type alone."""

BROADCAST = [
    "Add",
    "And",
    "BitShift",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "Pow",
    "PRelu",
    "Sub",
    "Sum",
    "Where",
    "Xor",
    "com.microsoft.BiasGelu",
    "com.microsoft.FastGelu",
]
"""Inputs are broadcast; FastGelu's second, its bias, may be left out."""


def couple_unary(node: Node, coupler: Coupler) -> None:
    """Hand the ids of the first input on to every output (Dropout's mask included)."""
    for name in node.outputs:
        coupler.set(name, coupler.ids(node.input(0)))


def couple_broadcast(node: Node, coupler: Coupler) -> None:
    """Join the inputs position by position."""
    if "axis" in node.attributes or (node.op == "PRelu" and coupler.graph.opset < 7):
        coupler.freeze_node(node, f"{node.op} does not broadcast from the last axis on in operator sets before 7")
    elif coupler.ranked(node):
        coupler.set(node.outputs[0], coupler.merge(node, [name for name in node.inputs if name]))


RULES = {
    **{op: Rule(couple_unary) for op in UNARY},
    **{op: Rule(couple_broadcast) for op in BROADCAST},
}
