"""Which tensors come out of a ReLU-like operator, so that a zero in them means an inactive unit."""

from __future__ import annotations

import numpy as np

from graphprune.ir.graph import Graph, Node

RECTIFIERS = frozenset({"Relu", "ThresholdedRelu"})
CARRIERS = frozenset(
    "AveragePool Cast Concat Dropout Flatten GlobalAveragePool GlobalMaxPool Identity MaxPool Pad Reshape Slice Split "
    "Squeeze Transpose Unsqueeze".split()
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
        Outputs of Relu, ThresholdedRelu and Clip from 0, and what pooling and data movement make of them.
    """
    found: set[str] = set()
    for node in graph.nodes:
        carried = [name for name in (node.inputs if node.op == "Concat" else node.inputs[:1]) if name]
        carries = node.op in CARRIERS and carried and all(name in found for name in carried)
        if node.op in RECTIFIERS or carries or (node.op == "Clip" and _lower_bound(node, graph) == 0):
            found.update(name for name in node.outputs if name)
    return found


def _lower_bound(node: Node, graph: Graph) -> float | None:
    if node.input(1):
        value = graph.value(node.input(1))
        return None if value is None else float(np.asarray(value).item())
    return node.attributes.get("min")
