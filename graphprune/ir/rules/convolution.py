"""Conv and ConvTranspose.

y[n, o] = b[o] + sum over i of w[o, i] * x[n, i]: output channels are the weight's axis 0, input channels its axis 1
and the activation's axis 1, summed over. A grouped convolution of G groups has w of shape [O, I/G, ...]: output
channel o of group g = o // (O/G) reads input channels g*I/G .. (g+1)*I/G - 1, so column i of row o is input channel
g*I/G + i, and every group must keep equal counts of both. Where a group has one input channel (depthwise), output
channel o is a function of input channel o // (O/G) alone: they go together, and nothing is summed over.

ConvTranspose has w of shape [I, O/G, ...], the axes swapped: row i of group g = i // (I/G) holds output channels
g*O/G .. (g+1)*O/G - 1.

References: https://onnx.ai/onnx/operators/onnx__Conv.html, onnx__ConvTranspose.html
"""

from __future__ import annotations

import numpy as np
import onnx

from graphprune.ir.coupling.atoms import IdArray, Reason, support
from graphprune.ir.coupling.coupler import Coupler
from graphprune.ir.coupling.units import Contraction
from graphprune.ir.edit import Edit, set_attribute
from graphprune.ir.nodes import Node
from graphprune.ir.rules.rule import Rule

UNKNOWN = "the channels that the convolution reads are not known"


def couple_conv(node: Node, coupler: Coupler) -> None:
    """Couple the channels of a convolution of any rank and any number of groups."""
    data, weight, bias = node.input(0), node.input(1), node.input(2)
    groups = int(node.attributes.get("group", 1))
    reason = Reason(node.label, node.op, f"the channels that {node.op} reads are not known")
    shape = coupler.shape(weight)
    summed = _summed(coupler, data, depthwise=groups > 1 and shape is not None and shape[1] == 1)
    coupler.contract(Contraction(node, 0, 1, data_axis=summed, weight_axis=1, output_axis=0, groups=groups))
    if shape is None or coupler.shape(data) is None or any(not isinstance(d, int) for d in shape):
        coupler.freeze_node(node, "a weight or activation of unknown shape meets Conv")
        return
    if groups > 1 and weight not in coupler.stored:
        coupler.freeze_node(node, "the weight of a grouped convolution is computed")
        return
    coupler.pass_axes(node, data, (0, 1), f"{node.op} slides along the axis")
    channels = coupler.vector(data, 1)
    outputs = coupler.vector(weight, 0)
    if groups == 1:
        coupler.join(channels, coupler.vector(weight, 1), reason)
    elif shape[1] == 1:
        repeats = len(outputs) // groups if outputs is not None else 1
        coupler.join(None if channels is None else np.repeat(channels, repeats), outputs, reason)
    elif channels is None or outputs is None:
        coupler.freeze_node(node, reason.text)
        return
    else:
        _couple_groups(coupler, weight, groups, channels, outputs)
    if bias:
        coupler.join(outputs, coupler.vector(bias, 0), reason)
    coupler.set_axis(node.outputs[0], 1, outputs, coupler.on_axes(data, (0,)))


def _summed(coupler: Coupler, data: str, *, depthwise: bool) -> int | None:
    """The activation's axis that is summed over; none where a group has one channel, or the rank is not known."""
    return None if depthwise or coupler.shape(data) is None else 1


def couple_conv_transpose(node: Node, coupler: Coupler) -> None:
    """Couple the channels of a transposed convolution of any rank and any number of groups."""
    data, weight, bias = node.input(0), node.input(1), node.input(2)
    groups = int(node.attributes.get("group", 1))
    shape = coupler.shape(weight)
    summed = _summed(coupler, data, depthwise=groups > 1 and shape is not None and shape[0] == groups)
    # The weight's axis 0 runs over the channels of all groups, so that none has to be told apart.
    coupler.contract(Contraction(node, 0, 1, data_axis=summed, weight_axis=0, output_axis=1))
    if shape is None or coupler.shape(data) is None or (groups > 1 and weight not in coupler.stored):
        coupler.freeze_node(node, "a weight or activation of unknown shape meets ConvTranspose")
        return
    coupler.pass_axes(node, data, (0, 1), f"{node.op} slides along the axis")
    channels = coupler.vector(data, 1)
    coupler.join(channels, coupler.vector(weight, 0), Reason(node.label, node.op, UNKNOWN))
    if groups == 1:
        outputs = coupler.vector(weight, 1)
    elif channels is None:
        coupler.freeze_node(node, UNKNOWN)
        return
    elif shape[0] == groups:
        # One input channel a group: its output channels go with it, so the columns, shared by all groups, stay.
        coupler.freeze_tensor_axis(weight, 1, Reason(node.label, node.op, "all groups share the column"))
        outputs = np.repeat(channels, int(shape[1] or 1))
    else:
        outputs = _output_groups(coupler, weight, groups, channels)
    if bias:
        coupler.join(outputs, coupler.vector(bias, 0), Reason(node.label, node.op, UNKNOWN))
    coupler.set_axis(node.outputs[0], 1, outputs, coupler.on_axes(data, (0,)))


def _output_groups(coupler: Coupler, weight: str, groups: int, channels: IdArray) -> IdArray:
    """Give the columns of a grouped ConvTranspose, whose meaning differs from group to group, ids of their own."""
    dims = coupler.stored[weight].dims
    outputs = coupler.atoms.new((groups, dims[1]))
    columns = np.repeat(outputs, dims[0] // groups, axis=0).reshape(dims[0], dims[1], *[1] * (len(dims) - 2))
    known = [ids for ids in coupler.ids_of[weight] if 1 in support(ids)]
    if known:  # a weight that other nodes read, too, or with a scale for each column
        coupler.atoms.join(known[0], columns)
    else:
        coupler.ids_of[weight].append(columns)
    coupler.balance(channels.reshape(groups, -1))
    coupler.balance(outputs)
    return outputs.ravel()


def _couple_groups(coupler: Coupler, weight: str, groups: int, channels: IdArray, outputs: IdArray) -> None:
    by_group = channels.reshape(groups, -1)
    rows = np.repeat(by_group, len(outputs) // groups, axis=0)
    rank = len(coupler.stored[weight].dims)
    columns = rows.reshape(rows.shape + (1,) * (rank - 2))
    known = [ids for ids in coupler.ids_of[weight] if 1 in support(ids)]
    if known:  # a weight that other nodes read, too, or with a scale for each column
        coupler.atoms.join(known[0], columns)
    else:
        coupler.ids_of[weight].append(columns)
    coupler.balance(by_group)
    coupler.balance(outputs.reshape(groups, -1))


def patch_conv(node: Node, proto: onnx.NodeProto, edit: Edit) -> None:
    """A depthwise convolution has as many groups as it keeps channels."""
    groups = int(node.attributes.get("group", 1))
    if groups > 1 and edit.shape(node.input(1))[1] == 1:
        set_attribute(proto, "group", edit.new_shape(node.input(0))[1])


def patch_conv_transpose(node: Node, proto: onnx.NodeProto, edit: Edit) -> None:
    """A transposed convolution of one input channel a group has as many groups as it keeps channels."""
    groups = int(node.attributes.get("group", 1))
    if groups > 1 and edit.shape(node.input(1))[0] == groups:
        set_attribute(proto, "group", edit.new_shape(node.input(0))[1])


RULES = {"Conv": Rule(couple_conv, patch_conv), "ConvTranspose": Rule(couple_conv_transpose, patch_conv_transpose)}
