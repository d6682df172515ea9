"""BatchNormalization and LRN.

BatchNormalization is y[n, c] = scale[c] * (x[n, c] - mean[c]) / sqrt(var[c] + epsilon) + b[c]: channel by channel.
LRN divides by a sum over neighbouring channels, so removing one would change the others: frozen.

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


RULES = {"BatchNormalization": Rule(couple_batch_normalization), "LRN": Rule(couple_lrn)}
