"""Which tensors come out of a ReLU-like operator, so that a zero in them means an inactive unit."""

from __future__ import annotations

import numpy as np

from graphprune.ir.graph import Graph
from graphprune.ir.nodes import Node
from graphprune.ir.quantized import RESULT_ZEROS

CARRIERS = frozenset(
    "AveragePool Cast Concat DequantizeLinear Dropout DynamicQuantizeLinear Flatten GlobalAveragePool GlobalMaxPool "
    "Identity MaxPool Pad QuantizeLinear Reshape Slice Split Squeeze Transpose Unsqueeze "
    "com.microsoft.QLinearAveragePool com.microsoft.QLinearGlobalAveragePool".split()
)
"""Operators that keep a tensor without negative values so, and zero where all they read is zero."""


def rectified(graph: Graph) -> set[str]:
    """Return the names of tensors without negative values in which zeros mark inactive units.

    Parameters
    ----------
    graph : Graph

    Returns
    -------
    set of str
        Outputs of Relu, ThresholdedRelu and Clip from 0, quantised numbers that start from 0, and what pooling and
        data movement make of them.
    """
    found: set[str] = set()
    for node in graph.nodes:
        carried = [name for name in (node.inputs if node.op == "Concat" else node.inputs[:1]) if name]
        carries = node.op in CARRIERS and carried and all(name in found for name in carried)
        if _rectifies(node, graph) or (carries and not _fills(node, graph)):
            found.update(name for name in node.outputs if name)
    return found


def _rectifies(node: Node, graph: Graph) -> bool:
    if node.op == "ThresholdedRelu":
        return float(node.attributes.get("alpha", 1.0)) >= 0
    if node.op in RESULT_ZEROS:
        return _is_least(node.input(RESULT_ZEROS[node.op]), graph)
    return node.op == "Relu" or (node.op == "Clip" and _number(node, graph, 1, "min", None) == 0)


def _is_least(zero: str, graph: Graph) -> bool:
    """Whether a zero point is the least number of its type, so that nothing below zero is kept."""
    value = graph.value(zero) if zero else None
    return value is not None and value.dtype.kind in "iu" and bool((value == np.iinfo(value.dtype.name).min).all())


def _fills(node: Node, graph: Graph) -> bool:
    """Whether the node may put in values other than zero that are not its input's."""
    constant = node.op == "Pad" and node.attributes.get("mode", b"constant") == b"constant"
    return constant and _number(node, graph, 2, "value", 0.0) != 0


def _number(node: Node, graph: Graph, slot: int, name: str, default: float | None) -> float | None:
    """A number given as an input or, in older operator sets, as an attribute; None when it is computed."""
    if node.input(slot):
        value = graph.value(node.input(slot))
        return None if value is None else float(np.asarray(value).item())
    number = node.attributes.get(name, default)
    return None if number is None else float(number)
