"""Quantised operators: QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear, QLinearConv, MatMulInteger and others.

QuantizeLinear is y = saturate(round(x / scale) + zero), DequantizeLinear x = (y - zero) * scale, element by element.
One scale for a whole tensor lets every axis pass; a vector of scales lies along one axis and is cut with it; of a
blocked axis only whole blocks go, each with its scale.

DynamicQuantizeLinear takes its scale from the largest and the smallest value, 0 among them in any case: so leaving a
position out is the same as setting it to 0 before, and the operator consumes what it reads.

QLinearConv is y = saturate(round(s * sum over i of (w[o, i] - wz) * (x[i] - xz)) + yz), and the others are likewise
the quantised forms of plain operators. A position whose x is the zero point adds nothing to the sums, which are of
integers: so they can go exactly as in the plain operator, whose rule is asked (`PLAIN`), with what it reads in other
slots (`graphprune.ir.quantized.OPERANDS`).

References: https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html, onnx__DynamicQuantizeLinear.html,
onnx__QLinearConv.html, onnx__MatMulInteger.html, https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from graphprune.ir.coupling.atoms import Reason, support
from graphprune.ir.coupling.coupler import Coupler
from graphprune.ir.coupling.units import Contraction
from graphprune.ir.edit import Edit
from graphprune.ir.nodes import Node
from graphprune.ir.quantized import Operand, operands
from graphprune.ir.rules import convolution, elementwise, matmul, movement, pooling
from graphprune.ir.rules.rule import Rule

ALL_AT_ONCE = "what its scales belong to is not known"


def couple_linear(node: Node, coupler: Coupler) -> None:
    """Pass every axis of what is quantised or dequantised; cut scales and zero points with it."""
    if not coupler.ranked(node):
        return
    name = node.input(0)
    operand = Operand(0, 1, 2, int(node.attributes.get("axis", 1)))
    if not _join_parameters(node, coupler, operand, name):
        coupler.freeze_node(node, ALL_AT_ONCE)
        return
    coupler.same(node.outputs[0], name)


def couple_dynamic(node: Node, coupler: Coupler) -> None:
    """Pass every axis, and note that all are consumed."""
    name = node.input(0)
    for axis in sorted({axis for ids in coupler.ids(name) for axis in support(ids)}):
        coupler.contract(Contraction(node, 0, 0, data_axis=axis, weight_axis=axis, output_axis=axis))
    coupler.set(node.outputs[0], coupler.ids(name))


def couple_quantised(node: Node, coupler: Coupler) -> None:
    """Couple a quantised operator as the plain one, then its scales and zero points with what they belong to."""
    plain = _plain(node)
    known = {slot for operand in operands(node) for slot in operand[:3] if slot is not None}
    others = [name for slot, name in enumerate(node.inputs) if slot not in known]
    lone = all(_size(coupler, name) == 1 for name in others if name)
    if not lone or not coupler.ranked(node) or node.attributes.get("channels_last", 0):
        coupler.freeze_node(node, f"{node.op} with its channels last" if lone else ALL_AT_ONCE)
        return
    start = len(coupler.contractions)
    PLAIN[node.op].couple(plain, coupler)
    slots = [operand.value for operand in operands(node)]
    coupler.contractions[start:] = [
        replace(made, node=node, data=slots[made.data], weight=slots[made.weight])
        for made in coupler.contractions[start:]
    ]
    summed = {made.data for made in coupler.contractions[start:]}
    for operand in operands(node):
        name, zero = node.input(operand.value), "" if operand.zero is None else node.input(operand.zero)
        if operand.value in summed and zero and _size(coupler, zero) != 1:
            coupler.freeze_node(node, "rows of the activation have zero points of their own")
        elif name and not _join_parameters(node, coupler, operand, name):
            coupler.freeze_node(node, ALL_AT_ONCE)


def patch_quantised(node: Node, proto: onnx.NodeProto, edit: Edit) -> None:
    """Mend what the plain operator's rule mends: the groups of a depthwise convolution."""
    patch = PLAIN[node.op].patch
    if patch is not None:
        patch(_plain(node), proto, edit)


def couple_matmul_and_bias(node: Node, coupler: Coupler) -> None:
    """Couple a matrix product to which a vector is added."""
    matmul.couple_matmul(node, coupler)
    if node.input(2) and coupler.ranked(node):
        coupler.set(node.outputs[0], coupler.merge(node, [node.outputs[0], node.input(2)]))


def couple_softmax(node: Node, coupler: Coupler) -> None:
    """Freeze the axis that is normalised over and all behind it, as operator sets before 13 have it; pass the rest."""
    rank = len(coupler.shape(node.input(0)) or ())
    text = f"{node.op} normalises over the axis: removing a position is not zeroing it"
    ids = coupler.pass_axes(node, node.input(0), range(int(node.attributes.get("axis", -1)) % rank), text)
    coupler.set(node.outputs[0], ids, Reason(node.label, node.op, text))


def _plain(node: Node) -> Node:
    """The node, reading what the plain operator reads."""
    return replace(node, inputs=tuple(node.input(operand.value) for operand in operands(node)))


def _join_parameters(node: Node, coupler: Coupler, operand: Operand, name: str) -> bool:
    """Join scales and zero points with the positions that they belong to; return whether these are known."""
    shape = coupler.shape(name)
    block = int(node.attributes.get("block_size", 0))
    for slot in (operand.scale, operand.zero):
        parameter = "" if slot is None else node.input(slot)
        own = coupler.shape(parameter) if parameter else ()
        if not parameter or (own is not None and all(extent == 1 for extent in own)):
            continue
        if shape is None or own is None or not (len(own) == 1 or (block and len(own) == len(shape))):
            return False
        axis = operand.axis % len(shape)
        reason = Reason(node.label, node.op, f"the positions that {node.op} scales are not known")
        for place, extent in enumerate(own):
            along = axis if len(own) == 1 else place
            if extent == 1 and along != axis:
                continue
            scales, positions = coupler.vector(parameter, place), coupler.vector(name, along)
            if block and along == axis and scales is not None and positions is not None:
                scales = np.repeat(scales, block)[: positions.size]
            coupler.join(scales, positions, reason)
    return True


def _size(coupler: Coupler, name: str) -> int:
    """How many elements a tensor has; 0 where that is not known."""
    shape = coupler.shape(name)
    return int(np.prod([extent if isinstance(extent, int) else 0 for extent in shape])) if shape is not None else 0


PLAIN = {
    "ConvInteger": convolution.RULES["Conv"],
    "MatMulInteger": Rule(matmul.couple_matmul),
    "QLinearConv": convolution.RULES["Conv"],
    "QLinearMatMul": Rule(matmul.couple_matmul),
    "com.microsoft.DynamicQuantizeMatMul": Rule(couple_matmul_and_bias),
    "com.microsoft.MatMulIntegerToFloat": Rule(couple_matmul_and_bias),
    "com.microsoft.QGemm": Rule(matmul.couple_gemm),
    "com.microsoft.QLinearAdd": Rule(elementwise.couple_broadcast),
    "com.microsoft.QLinearAveragePool": Rule(pooling.couple_pool),
    "com.microsoft.QLinearConcat": Rule(movement.couple_concat),
    "com.microsoft.QLinearGlobalAveragePool": Rule(pooling.couple_pool),
    "com.microsoft.QLinearLeakyRelu": Rule(elementwise.couple_unary),
    "com.microsoft.QLinearMul": Rule(elementwise.couple_broadcast),
    "com.microsoft.QLinearSigmoid": Rule(elementwise.couple_unary),
    "com.microsoft.QLinearSoftmax": Rule(couple_softmax),
}
"""By quantised operator, the rule of the plain one."""

RULES = {
    "QuantizeLinear": Rule(couple_linear),
    "DequantizeLinear": Rule(couple_linear),
    "DynamicQuantizeLinear": Rule(couple_dynamic),
    **dict.fromkeys(PLAIN, Rule(couple_quantised, patch_quantised)),
}
