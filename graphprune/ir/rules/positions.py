"""Operators for which the order or the number of positions along an axis counts: that axis is frozen, others pass.

CumSum and CumProd put into a position what stands before it, TopK ranks all of them, ReverseSequence turns their order
by lengths given for every sample, Trilu blanks by row and column number, OneHot puts a new axis in. Along all other
axes they treat every position alike. GatherElements and ScatterElements read and write places along one axis; the
positions of the others are the same in the data, the indices and the updates.

References: https://onnx.ai/onnx/operators/onnx__CumSum.html, onnx__TopK.html, onnx__ReverseSequence.html,
onnx__Trilu.html, onnx__OneHot.html, onnx__GatherElements.html, onnx__ScatterElements.html
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from graphprune.ir.coupling.atoms import Reason
from graphprune.ir.coupling.coupler import Coupler
from graphprune.ir.nodes import Node
from graphprune.ir.rules.rule import Rule

Axes = Callable[[Node, Coupler, int], set[int] | None]
"""The axes that an operator freezes, of an input of that rank; None where they are computed."""


def couple_by(axes_of: Axes) -> Callable[[Node, Coupler], None]:
    """Return what couples an operator that freezes these axes and passes the others to all of its outputs."""

    def couple(node: Node, coupler: Coupler) -> None:
        if not coupler.ranked(node):
            return
        rank = len(coupler.shape(node.input(0)) or ())
        axes = axes_of(node, coupler, rank)
        if axes is None:
            coupler.freeze_node(node, f"the axis of {node.op} is computed")
            return
        reason = Reason(node.label, node.op, f"{node.op} acts by the order of the axis's positions")
        for name in node.inputs[1:]:
            coupler.freeze_tensor(name, reason)
        coupler.pass_others(node, axes, reason.text)

    return couple


def _given(node: Node, coupler: Coupler, rank: int) -> set[int] | None:
    value = coupler.graph.value(node.input(1))
    return None if value is None else {int(np.asarray(value).item()) % rank}


def _named(node: Node, coupler: Coupler, rank: int) -> set[int]:
    return {int(node.attributes.get("axis", -1)) % rank}


def _time_and_batch(node: Node, coupler: Coupler, rank: int) -> set[int]:
    return {int(node.attributes.get("time_axis", 0)), int(node.attributes.get("batch_axis", 1))}


def _last_two(node: Node, coupler: Coupler, rank: int) -> set[int]:
    return {rank - 2, rank - 1}


def couple_one_hot(node: Node, coupler: Coupler) -> None:
    """Pass the axes of the indices; the classes, in their new axis, stay."""
    if not coupler.ranked(node):
        return
    rank = len(coupler.shape(node.input(0)) or ())
    axis = int(node.attributes.get("axis", -1)) % (rank + 1)
    made = [np.expand_dims(ids, axis) for ids in coupler.ids(node.input(0))]
    coupler.set(node.outputs[0], made, Reason(node.label, node.op, "OneHot counts the classes"))


def couple_elements(node: Node, coupler: Coupler) -> None:
    """Freeze the axis that places are counted along; join the others of all inputs."""
    if not coupler.ranked(node):
        return
    shapes = [coupler.shape(name) or () for name in node.inputs]
    rank = len(shapes[0])
    axis = int(node.attributes.get("axis", 0)) % rank
    others = [other for other in range(rank) if other != axis]
    if any(shape[other] != shapes[0][other] for shape in shapes for other in others):
        coupler.freeze_node(node, f"{node.op} reads or writes a part of the data alone")
        return
    text = f"{node.op} counts places along the axis"
    for name in node.inputs:
        coupler.pass_axes(node, name, others, text)
    merged = coupler.merge(node, node.inputs, only=[[other - rank for other in others]] * len(shapes))
    coupler.set(node.outputs[0], merged, Reason(node.label, node.op, text))


RULES = {
    "CumProd": Rule(couple_by(_given)),
    "CumSum": Rule(couple_by(_given)),
    "GatherElements": Rule(couple_elements),
    "OneHot": Rule(couple_one_hot),
    "ReverseSequence": Rule(couple_by(_time_and_batch)),
    "ScatterElements": Rule(couple_elements),
    "TopK": Rule(couple_by(_named)),
    "Trilu": Rule(couple_by(_last_two)),
}
