"""Einsum: sums of products, by letters.

y[result letters] = the product of all operands, summed over every letter that the result lacks. Axes of one letter are
the same positions. A letter of the result passes. A letter that is summed over between two operands or more is
contracted as in MatMul: where it is masked in one factor, the whole product is zero. Frozen are a letter that one
operand alone is summed over, as in ReduceSum, and one that an operand has twice: its diagonal.

An ellipsis stands for leading axes that are broadcast; axes of extent 1 broadcast, too.

Reference: https://onnx.ai/onnx/operators/onnx__Einsum.html
"""

from __future__ import annotations

from collections.abc import Sequence

from graphprune.ir.coupling.atoms import IdArray, Reason, along, support
from graphprune.ir.coupling.coupler import Coupler
from graphprune.ir.coupling.units import Contraction
from graphprune.ir.nodes import Node
from graphprune.ir.rules.equation import Equation, parse_equation
from graphprune.ir.rules.rule import Rule

Place = tuple[int, int]
"""An operand's slot and axis."""


def couple_einsum(node: Node, coupler: Coupler) -> None:
    """Couple letter by letter."""
    if not coupler.ranked(node):
        return
    ranks = [len(coupler.shape(name) or ()) for name in node.inputs]
    equation = parse_equation(node.attributes["equation"].decode(), ranks)
    if equation is None:
        coupler.freeze_node(node, "the equation of Einsum does not fit its operands")
        return
    result = []
    for letter in dict.fromkeys(label for labels in equation.operands for label in labels):
        places = [
            (slot, axis)
            for slot, labels in enumerate(equation.operands)
            for axis, label in enumerate(labels)
            if label == letter and (coupler.shape(node.inputs[slot]) or ())[axis] != 1
        ]
        reason = _obstacle(node, coupler, equation, letter, places)
        if reason is not None:
            for slot, axis in places:
                coupler.freeze_tensor_axis(node.inputs[slot], axis, reason)
            continue
        vector = _join(node, coupler, places)
        if letter in equation.result and vector is not None:
            result.append(along(vector, len(equation.result), equation.result.index(letter)))
    text = "Einsum sums over the axis or takes its diagonal"
    coupler.set(node.outputs[0], result, Reason(node.label, node.op, text))


def _join(node: Node, coupler: Coupler, places: Sequence[Place]) -> IdArray | None:
    """Join the axes of one letter; None where none of them has ids."""
    if not any(axis in support(ids) for slot, axis in places for ids in coupler.ids(node.inputs[slot])):
        return None
    vectors = [coupler.vector(node.inputs[slot], axis) for slot, axis in places]
    reason = Reason(node.label, node.op, "the positions that Einsum multiplies are not known")
    for vector in vectors[1:]:
        coupler.join(vectors[0], vector, reason)
    return vectors[0]


def _obstacle(node: Node, coupler: Coupler, equation: Equation, letter: str, places: Sequence[Place]) -> Reason | None:
    """Why a letter's positions must stay; None where they may go, and then the contraction is noted."""
    slots = [slot for slot, _ in places]
    if len(set(slots)) < len(slots):
        return Reason(node.label, node.op, f"Einsum takes a diagonal along {letter!r}")
    if letter in equation.result or not places:
        return None
    if len(slots) == 1:
        text = f"Einsum sums one operand alone over {letter!r}: its consumers cannot mask the position"
        return Reason(node.label, node.op, text)
    contraction = _contraction(node, coupler, equation, places)
    if contraction is None:
        return Reason(node.label, node.op, f"Einsum sums over {letter!r} against operands without an axis that passes")
    coupler.contract(contraction)
    return None


def _contraction(node: Node, coupler: Coupler, equation: Equation, places: Sequence[Place]) -> Contraction | None:
    """The weight is what is constant, the last operand where several or none are; the data any other one."""
    constant = [node.inputs[slot] in coupler.graph.constants for slot, _ in places]
    order = sorted(range(len(places)), key=lambda place: constant[place])
    for chosen in reversed(order):
        slot, axis = places[chosen]
        passing = [other for other, label in enumerate(equation.operands[slot]) if label in equation.result]
        if passing:
            data, data_axis = places[next(place for place in order if place != chosen)]
            return Contraction(node, data, slot, data_axis, axis, _channel_axis(equation, slot, data, passing))
    return None


def _channel_axis(equation: Equation, slot: int, data: int, passing: Sequence[int]) -> int:
    """The last axis of the weight that passes into the result, and that the data lacks where there is one."""
    own = [axis for axis in passing if equation.operands[slot][axis] not in equation.operands[data]]
    return (own or passing)[-1]


RULES = {"Einsum": Rule(couple_einsum)}
