"""Normalisation: Batch-, Instance-, Group-, Layer-, RMS-, MeanVariance- and LpNormalization, and LRN.

BatchNormalization is y[n, c] = scale[c] * (x[n, c] - mean[c]) / sqrt(var[c] + epsilon) + b[c]: channel by channel.
InstanceNormalization does the same with the mean and variance of each sample's own channel, over its spatial axes.
GroupNormalization takes mean and variance over all channels of a group: removing one would change the others, so that
only whole groups go.

LRN divides by a sum over neighbouring channels, LayerNormalization and RMSNormalization by a mean over all positions of
the axes normalised over: frozen, as with MeanVarianceNormalization and LpNormalization. So is the hidden axis where a
sum in front is fused with it (SkipLayerNormalization of ONNX Runtime), or the embeddings are (EmbedLayerNormalization).

References: https://onnx.ai/onnx/operators/onnx__BatchNormalization.html, onnx__InstanceNormalization.html,
onnx__GroupNormalization.html, onnx__LayerNormalization.html, onnx__RMSNormalization.html, onnx__LRN.html;
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.SkipLayerNormalization
"""

from __future__ import annotations

import onnx

from graphprune.ir.coupling.atoms import Reason
from graphprune.ir.coupling.coupler import Coupler
from graphprune.ir.edit import Edit, set_attribute
from graphprune.ir.nodes import Node
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
    coupler.pass_others(node, (1,), "LRN divides by a sum over neighbouring channels: removing one is not zeroing it")


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


def couple_group_normalization(node: Node, coupler: Coupler) -> None:
    """Tie the channels of every group and what scales them, freeze the spatial axes."""
    if not coupler.ranked(node):
        return
    channels = coupler.vector(node.input(0), 1)
    if channels is None:
        coupler.freeze_node(node, "the channels that GroupNormalization scales are not known")
        return
    text = f"{node.op} normalises over the axis: removing a position is not zeroing it"
    groups = channels.reshape(int(node.attributes["num_groups"]), -1)
    coupler.atoms.join(groups[:, :1], groups)
    if len(groups) == 1:
        coupler.freeze([channels], Reason(node.label, node.op, text))
    reason = Reason(node.label, node.op, "the parameters of GroupNormalization are not known")
    for name in node.inputs[1:3]:
        coupler.join(channels, coupler.vector(name, 0), reason)
    coupler.set(node.outputs[0], coupler.pass_axes(node, node.input(0), (0, 1), text))


def patch_group_normalization(node: Node, proto: onnx.NodeProto, edit: Edit) -> None:
    """Write the number of groups that stay."""
    keep = edit.kept(node.input(0), 1)
    if keep is not None:
        groups = keep.reshape(int(node.attributes["num_groups"]), -1)
        set_attribute(proto, "num_groups", int(groups.any(axis=1).sum()))


def couple_layer_normalization(node: Node, coupler: Coupler) -> None:
    """Freeze the axes normalised over and the parameters, pass the axes in front."""
    if not coupler.ranked(node):
        return
    rank = len(coupler.shape(node.input(0)) or ())
    first = int(node.attributes.get("axis", -1)) % rank
    text = f"{node.op} normalises over the axis: removing a position is not zeroing it"
    reason = Reason(node.label, node.op, text)
    for name in node.inputs[1:]:
        coupler.freeze_tensor(name, reason)
    ids = coupler.pass_axes(node, node.input(0), range(first), text)
    for name in node.outputs:
        coupler.set(name, ids if name == node.outputs[0] else [], reason)


def couple_skip_layer_normalization(node: Node, coupler: Coupler) -> None:
    """Freeze the hidden axis and the parameters, join the axes in front of the input and of what is added to it."""
    if not coupler.ranked(node):
        return
    text = f"{node.op} normalises over the axis: removing a position is not zeroing it"
    reason = Reason(node.label, node.op, text)
    added = list(node.inputs[:2])
    for name in added:
        coupler.pass_axes(node, name, range(len(coupler.shape(name) or ()) - 1), text)
    for name in node.inputs[2:]:
        coupler.freeze_tensor(name, reason)
    rank = len(coupler.shape(added[0]) or ())
    ids = coupler.merge(node, added, only=[range(-rank, -1)] * 2)
    for place, name in enumerate(node.outputs):
        coupler.set(name, ids if place in (0, 3) else [], reason)


def couple_embed_layer_normalization(node: Node, coupler: Coupler) -> None:
    """Freeze everything."""
    text = "EmbedLayerNormalization normalises over the hidden axis, and looks positions up by number"
    coupler.freeze_node(node, text)


def couple_normalized_axes(node: Node, coupler: Coupler) -> None:
    """Freeze the axes normalised over, by mean and variance or by a norm, and pass all others."""
    if not coupler.ranked(node):
        return
    rank = len(coupler.shape(node.input(0)) or ())
    by_moments = node.op == "MeanVarianceNormalization"
    axes = node.attributes.get("axes", (0, 2, 3)) if by_moments else (node.attributes.get("axis", -1),)
    text = f"{node.op} normalises over the axis: removing a position is not zeroing it"
    coupler.pass_others(node, {int(axis) % rank for axis in axes}, text)


RULES = {
    "MeanVarianceNormalization": Rule(couple_normalized_axes),
    "LpNormalization": Rule(couple_normalized_axes),
    "BatchNormalization": Rule(couple_batch_normalization),
    "InstanceNormalization": Rule(couple_instance_normalization),
    "LRN": Rule(couple_lrn),
    "GroupNormalization": Rule(couple_group_normalization, patch_group_normalization),
    "LayerNormalization": Rule(couple_layer_normalization),
    "RMSNormalization": Rule(couple_layer_normalization),
    "com.microsoft.SkipLayerNormalization": Rule(couple_skip_layer_normalization),
    "com.microsoft.SkipSimplifiedLayerNormalization": Rule(couple_skip_layer_normalization),
    "com.microsoft.EmbedLayerNormalization": Rule(couple_embed_layer_normalization),
}
