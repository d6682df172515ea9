"""LSTM, GRU, RNN, and the quantised form of LSTM.

With G gates (4, 3, 1), H hidden units, D directions: W [D, G*H, I], R [D, G*H, H], B [D, 2*G*H], peepholes P [D, 3*H],
states [D, batch, H], Y [T, D, batch, H] (with layout 1 the states are [batch, D, H] and Y is [batch, T, D, H]).
Unit j of the hidden axis is row j of every gate in W, R, B and P, column j of R, and position j of the states and of
Y, in every direction. Its own state depends on no other unit but through R, whose column j is summed over: so removing
the unit is exact, and equals zeroing column j of R and whatever reads position j of the outputs. The inputs are summed
over against W.

DynamicQuantizeLSTM of ONNX Runtime stores W [D, I, 4*H] and R [D, H, 4*H] as integers, with scales and zero points by
direction, [D], or by direction and row of a gate, [D, 4*H]. It rounds the inputs and the hidden units to steps whose
size it takes from the largest and the smallest value, 0 among them in any case: so leaving out a position that is 0
changes nothing, as with DynamicQuantizeLinear.

References: https://onnx.ai/onnx/operators/onnx__LSTM.html, onnx__GRU.html, onnx__RNN.html,
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.DynamicQuantizeLSTM
"""

from __future__ import annotations

import numpy as np
import onnx

from graphprune.ir.coupling.atoms import IdArray, Reason
from graphprune.ir.coupling.coupler import Coupler
from graphprune.ir.coupling.units import Contraction
from graphprune.ir.edit import Edit, set_attribute
from graphprune.ir.nodes import Node
from graphprune.ir.quantized import operands
from graphprune.ir.rules.rule import Rule

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "com.microsoft.DynamicQuantizeLSTM": 4}
AXES = {"com.microsoft.DynamicQuantizeLSTM": (2, 1)}
"""Axes of W and R: that of the gates, and that which is summed over; (1, 2) for all others."""
INPUT, WEIGHT, RECURRENCE, BIAS, LENGTHS, STATE, CELL, PEEPHOLE = range(8)


def couple_recurrent(node: Node, coupler: Coupler) -> None:
    """Tie every hidden unit's rows, column, state and output together."""
    weight = node.input(WEIGHT)
    rows, summed = AXES.get(node.op, (1, 2))
    read = None if coupler.shape(node.input(INPUT)) is None else 2
    coupler.contract(Contraction(node, INPUT, WEIGHT, data_axis=read, weight_axis=summed, output_axis=rows))
    coupler.contract(Contraction(node, INPUT, RECURRENCE, data_axis=None, weight_axis=summed, output_axis=rows))
    hidden = _units(node, coupler)
    if hidden is None:
        coupler.freeze_node(node, f"the weights of {node.op} are computed")
        return
    reason = Reason(node.label, node.op, f"the hidden units of {node.op} are not known")
    gates = GATES[node.op]
    parts = [(WEIGHT, rows, gates), (RECURRENCE, rows, gates), (BIAS, 1, 2 * gates), (PEEPHOLE, 1, 3)]
    scaled = [slot for operand in operands(node) for slot in operand[1:3] if slot is not None]
    parts += [(slot, 1, gates) for slot in scaled]
    for slot, axis, repeats in parts:
        name = node.input(slot)
        coupler.freeze_tensor_axis(name, 0, Reason(node.label, node.op, f"{node.op} keeps its directions"))
        if axis < len(coupler.shape(name) or ()):
            coupler.join(np.tile(hidden, repeats), coupler.vector(name, axis), reason)
    for slot in (STATE, CELL):
        if node.input(slot):
            coupler.pass_axes(node, node.input(slot), (2,), f"{node.op} keeps its directions and its batch")
            coupler.join(hidden, coupler.vector(node.input(slot), 2), reason)
    coupler.pass_axes(node, node.input(INPUT), (2,), f"{node.op} runs along the axis")
    coupler.join(coupler.vector(node.input(INPUT), 2), coupler.vector(weight, summed), reason)
    for name, rank in zip(node.outputs, (4, 3, 3), strict=False):
        if name:
            coupler.set_axis(name, rank - 1, hidden)


def _units(node: Node, coupler: Coupler) -> IdArray | None:
    """Ids of the hidden units: those of the columns of R."""
    computed = (INPUT, LENGTHS, STATE, CELL)
    names = [name for slot, name in enumerate(node.inputs) if name and slot not in computed]
    if any(name not in coupler.graph.constants for name in names):
        return None
    return coupler.vector(node.input(RECURRENCE), AXES.get(node.op, (1, 2))[1])


def patch_recurrent(node: Node, proto: onnx.NodeProto, edit: Edit) -> None:
    """Write the number of hidden units that stay."""
    kept = edit.new_shape(node.input(RECURRENCE))[AXES.get(node.op, (1, 2))[1]]
    if "hidden_size" in node.attributes and kept != node.attributes["hidden_size"]:
        set_attribute(proto, "hidden_size", kept)


RULES = {op: Rule(couple_recurrent, patch_recurrent) for op in GATES}
