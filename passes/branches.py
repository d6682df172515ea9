"""Cut residual branches off: where nothing of a branch is worth its time, the sum at its end takes what it is added to.

Every width that a block of channels cannot halve is a floor under latency; depth is not. A branch may go whole where
what it is added to has the shape of the sum (He et al. 2016: blocks of residual networks are hardly missed one by one;
Veit et al. 2016, "Residual networks behave like ensembles of relatively shallow networks").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx

from graphprune.ir.bodies import drop_nodes, rename_inputs
from graphprune.ir.coupling.units import Contraction, Coupling
from graphprune.ir.graph import Graph
from graphprune.ir.nodes import Node
from graphprune.ir.rewriting.simplify import drop_dead, unlist_initializers

PASSING = ("BatchNormalization", "Dropout", "Identity")
"""Operators that may stand between a branch's last layer and the sum."""


@dataclass(frozen=True)
class Branch:
    """A residual branch.

    Attributes
    ----------
    total : str
        The sum at its end.
    rest : str
        What it is added to.
    weight : str
        Initializer of its last layer.
    group : int
        Index of the group of units that this layer consumes.
    """

    total: str
    rest: str
    weight: str
    group: int


def find_branches(coupling: Coupling) -> list[Branch]:
    """Return the branches whose last layer consumes units that nothing else does.

    Parameters
    ----------
    coupling : Coupling

    Returns
    -------
    list of Branch
    """
    graph = coupling.graph
    group_of = {int(unit): index for index, group in enumerate(coupling.groups) for unit in group.units}
    found = []
    for contraction in coupling.contractions:
        group = _consumed(coupling, contraction, group_of)
        weight = contraction.node.input(contraction.weight)
        add, branch = _sum(graph, contraction.node)
        if group is None or add is None or weight not in graph.initializers:
            continue
        total, rest = add.outputs[0], next(name for name in add.inputs if name != branch)
        needed = _needed(graph, add, rest)
        if not any(name in needed for name, _ in coupling.groups[group].axes):
            found.append(Branch(total, rest, weight, group))
    return found


def cut(proto: onnx.ModelProto, branches: Iterable[Branch]) -> None:
    """Cut branches off, in place, and drop all that only they needed."""
    instead = {branch.total: branch.rest for branch in branches}
    while any(rest in instead for rest in instead.values()):
        instead = {total: instead.get(rest, rest) for total, rest in instead.items()}
    drop_nodes(proto, lambda node: bool(node.output) and node.output[0] in instead)
    for node in proto.graph.node:
        rename_inputs(node, instead)
    drop_dead(proto)
    unlist_initializers(proto)


def _consumed(coupling: Coupling, contraction: Contraction, group_of: dict[int, int]) -> int | None:
    """The group that a node consumes whole; None where it consumes others too, or frozen positions."""
    if contraction.data_axis is None or contraction.node.inside:
        return None
    along = coupling.along(contraction.node.inputs[contraction.data], contraction.data_axis)
    groups = {group_of.get(int(unit)) for units in along for unit in np.unique(units)}
    return groups.pop() if len(groups) == 1 else None


def _sum(graph: Graph, node: Node) -> tuple[Node | None, str]:
    """The addition that a node's output ends in, and what it reads of this; None where it ends elsewhere."""
    name = node.outputs[0]
    while len(readers := graph.consumers.get(name, [])) == 1 and name not in graph.outputs:
        (reader,) = readers
        if reader.inside:
            break
        if reader.op == "Add" and reader.outputs[0] not in graph.outputs and len(set(reader.inputs)) == 2:
            other = next(one for one in reader.inputs if one != name)
            shape = graph.shape(reader.outputs[0])
            whole = shape is not None and None not in shape and graph.shape(other) == shape
            return (reader, name) if whole and other not in graph.initializers else (None, "")
        if reader.op not in PASSING or reader.inputs[0] != name:
            break
        name = reader.outputs[0]
    return None, ""


def _needed(graph: Graph, add: Node, rest: str) -> set[str]:
    """All tensors that the outputs depend on where an addition gives one of its operands."""
    needed = set(graph.outputs)
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            needed.update([rest] if node is add else node.reads)
    return needed
