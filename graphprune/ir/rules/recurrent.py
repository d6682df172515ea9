"""LSTM, GRU, RNN.

With G gates (4, 3, 1), H hidden units, D directions: W [D, G*H, I], R [D, G*H, H], B [D, 2*G*H], peepholes P [D, 3*H],
states [D, batch, H], Y [T, D, batch, H] (with layout 1 the states are [batch, D, H] and Y is [batch, T, D, H]).
Unit j of the hidden axis is row j of every gate in W, R, B and P, column j of R, and position j of the states and of
Y, in every direction. Its own state depends on no other unit but through R, whose column j is summed over: so removing
the unit is exact, and equals zeroing column j of R and whatever reads position j of the outputs. The inputs are summed
over against W.

Reference: https://onnx.ai/onnx/operators/onnx__LSTM.html, onnx__GRU.html, onnx__RNN.html
"""

from __future__ import annotations

import numpy as np
import onnx

from graphprune.ir.coupling.atoms import IdArray, Reason
from graphprune.ir.coupling.coupler import Coupler
from graphprune.ir.coupling.units import Contraction
from graphprune.ir.edit import Edit, set_attribute
from graphprune.ir.nodes import Node
from graphprune.ir.rules.rule import Rule

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
INPUT, WEIGHT, RECURRENCE, BIAS, LENGTHS, STATE, CELL, PEEPHOLE = range(8)


def couple_recurrent(node: Node, coupler: Coupler) -> None:
    """Tie every hidden unit's rows, column, state and output together."""
    weight, recurrence = node.input(WEIGHT), node.input(RECURRENCE)
    read = None if coupler.shape(node.input(INPUT)) is None else 2
    coupler.contract(Contraction(node, INPUT, WEIGHT, data_axis=read, weight_axis=2, output_axis=1))
    coupler.contract(Contraction(node, INPUT, RECURRENCE, data_axis=None, weight_axis=2, output_axis=1))
    hidden = _units(node, coupler)
    if hidden is None:
        coupler.freeze_node(node, f"the weights of {node.op} are computed")
        return
    reason = Reason(node.label, node.op, f"the hidden units of {node.op} are not known")
    for slot in (WEIGHT, RECURRENCE, BIAS, PEEPHOLE):
        coupler.freeze_tensor_axis(node.input(slot), 0, Reason(node.label, node.op, f"{node.op} keeps its directions"))
    gates = GATES[node.op]
    coupler.join(np.tile(hidden, gates), coupler.vector(weight, 1), reason)
    coupler.join(np.tile(hidden, gates), coupler.vector(recurrence, 1), reason)
    for slot, repeats in ((BIAS, 2 * gates), (PEEPHOLE, 3)):
        if node.input(slot):
            coupler.join(np.tile(hidden, repeats), coupler.vector(node.input(slot), 1), reason)
    for slot in (STATE, CELL):
        if node.input(slot):
            coupler.pass_axes(node, node.input(slot), (2,), f"{node.op} keeps its directions and its batch")
            coupler.join(hidden, coupler.vector(node.input(slot), 2), reason)
    coupler.pass_axes(node, node.input(INPUT), (2,), f"{node.op} runs along the axis")
    coupler.join(coupler.vector(node.input(INPUT), 2), coupler.vector(weight, 2), reason)
    for name, rank in zip(node.outputs, (4, 3, 3), strict=False):
        if name:
            coupler.set_axis(name, rank - 1, hidden)


def _units(node: Node, coupler: Coupler) -> IdArray | None:
    """Ids of the hidden units: those of the columns of R."""
    names = [node.input(slot) for slot in (WEIGHT, RECURRENCE, BIAS, PEEPHOLE) if node.input(slot)]
    if any(name not in coupler.graph.constants for name in names):
        return None
    return coupler.vector(node.input(RECURRENCE), 2)


def patch_recurrent(node: Node, proto: onnx.NodeProto, edit: Edit) -> None:
    """Write the number of hidden units that stay."""
    kept = edit.new_shape(node.input(RECURRENCE))[2]
    if "hidden_size" in node.attributes and kept != node.attributes["hidden_size"]:
        set_attribute(proto, "hidden_size", kept)


RULES = {op: Rule(couple_recurrent, patch_recurrent) for op in GATES}
