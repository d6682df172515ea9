"""FusedConv of ONNX Runtime: a convolution, the sum of its output with another tensor, and an activation.

Reference: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.FusedConv
"""

from __future__ import annotations

from graphprune.ir.coupling.coupler import Coupler
from graphprune.ir.nodes import Node
from graphprune.ir.rules.convolution import couple_conv, patch_conv
from graphprune.ir.rules.rule import Rule

ADDED = 3
"""Input slot of what is added to the output of the convolution."""


def couple_fused_conv(node: Node, coupler: Coupler) -> None:
    """Couple the convolution, and join its output with what is added to it."""
    couple_conv(node, coupler)
    if node.input(ADDED) and coupler.ranked(node):
        coupler.set(node.outputs[0], coupler.merge(node, [node.outputs[0], node.input(ADDED)]))


RULES = {"com.microsoft.FusedConv": Rule(couple_fused_conv, patch_conv)}
