"""BatchNormalization, InstanceNormalization, LRN, LayerNormalization, GroupNormalization.

BatchNormalization is y[n, c] = scale[c] * (x[n, c] - mean[c]) / sqrt(var[c] + epsilon) + b[c]: channel by channel.
InstanceNormalization does the same with the mean and variance of each sample's own channel, over its spatial axes.
LRN divides by a sum over neighbouring channels, LayerNormalization and GroupNormalization normalise over all channels
or groups of them, so removing one would change the others: frozen.

References: https://onnx.ai/onnx/operators/onnx__BatchNormalization.html, https://onnx.ai/onnx/operators/onnx__LRN.html
"""

from __future__ import annotations

from graphprune.ir.atoms import Reason
from graphprune.ir.coupler import Coupler
from graphprune.ir.graph import Node
from graphprune.ir.rules.rule import Rule


def couple_batch_normalization(node: Node, coupler: Coupler) -> None:
    """Join the four parameter vectors with the channels."""
    if len([name for name in node.outputs if name]) > 1:
        coupler.freeze_node(node, "BatchNormalization in training mode")
        return
    if not coupler.ranked(node):
        return
    channels = coupler.vector(node.input(0), 1)
    reason = Reason(node.label, node.op, "the channels that BatchNormalization scales are not known")
    for name in node.inputs[1:5]:
        coupler.join(channels, coupler.vector(name, 0), reason)
    coupler.set(node.outputs[0], coupler.ids(node.input(0)))


def couple_lrn(node: Node, coupler: Coupler) -> None:
    """Freeze the channels, pass the rest."""
    rank = len(coupler.shape(node.input(0)) or ())
    others = [axis for axis in range(rank) if axis != 1]
    text = "LRN divides by a sum over neighbouring channels: removing one is not zeroing it"
    coupler.set(node.outputs[0], coupler.pass_axes(node, node.input(0), others, text), Reason(node.label, "LRN", text))


def couple_instance_normalization(node: Node, coupler: Coupler) -> None:
    """Join the two parameter vectors with the channels, freeze the spatial axes."""
    if not coupler.ranked(node):
        return
    channels = coupler.vector(node.input(0), 1)
    reason = Reason(node.label, node.op, "the channels that InstanceNormalization scales are not known")
    for name in node.inputs[1:3]:
        coupler.join(channels, coupler.vector(name, 0), reason)
    text = "InstanceNormalization normalises over the axis: removing a position is not zeroing it"
    coupler.set(node.outputs[0], coupler.pass_axes(node, node.input(0), (0, 1), text))


def couple_layer_normalization(node: Node, coupler: Coupler) -> None:
    """Freeze the axes normalised over and the parameters, pass the axes in front."""
    if not coupler.ranked(node):
        return
    rank = len(coupler.shape(node.input(0)) or ())
    first = int(node.attributes.get("axis", -1)) % rank if node.op == "LayerNormalization" else 1
    text = f"{node.op} normalises over the axis: removing a position is not zeroing it"
    reason = Reason(node.label, node.op, text)
    for name in node.inputs[1:]:
        coupler.freeze_tensor(name, reason)
    ids = coupler.pass_axes(node, node.input(0), range(first), text)
    for name in node.outputs:
        coupler.set(name, ids if name == node.outputs[0] else [], reason)


RULES = {
    "BatchNormalization": Rule(couple_batch_normalization),
    "InstanceNormalization": Rule(couple_instance_normalization),
    "LRN": Rule(couple_lrn),
    "LayerNormalization": Rule(couple_layer_normalization),
    "GroupNormalization": Rule(couple_layer_normalization),
}
