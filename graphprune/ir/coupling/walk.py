"""Walk the graph once and let each operator's rule say which positions are the same."""

from __future__ import annotations

from collections.abc import Sequence

from graphprune.ir.coupling.atoms import Reason, along
from graphprune.ir.coupling.coupler import Coupler
from graphprune.ir.coupling.units import Coupling, number_units
from graphprune.ir.graph import Graph
from graphprune.ir.nodes import Node
from graphprune.ir.rules import rule_for


def couple(graph: Graph, resizable: frozenset[str] = frozenset(), states: Sequence[tuple[str, str]] = ()) -> Coupling:
    """Find what can be removed from a graph, and what must go together.

    Parameters
    ----------
    graph : Graph
    resizable : frozenset of str
        Graph inputs and outputs that may lose positions; all others keep their shapes.
    states : sequence of (str, str)
        Inputs of those that are fed back from an output, each with that output: both lose the same positions.

    Returns
    -------
    Coupling
        Units, groups and constraints; see DESIGN section 2 for the idea.

    Notes
    -----
    Linear in the number of nodes and in the sum of all axis lengths, not in the number of weights.
    """
    coupler = Coupler(graph)
    for name in graph.inputs:
        if name in resizable:
            _free(name, coupler)
    _walk(graph.main, coupler)
    for name in graph.outputs:
        coupler.apart(name)
        if name not in resizable:
            coupler.freeze_tensor(name, Reason("", "", f"graph output {name!r} keeps its shape"))
    for entry, result in states:
        _tie(entry, result, coupler)
    coupler.balances.extend(coupler.splits.settle())
    return number_units(coupler)


def _walk(nodes: Sequence[Node], coupler: Coupler) -> None:
    for node in nodes:
        rule = rule_for(node.op)
        if rule is None:
            coupler.freeze_node(node, f"no rule for operator {node.op}")
        elif node.captured and not node.bodies:
            coupler.freeze_node(node, f"subgraphs of {node.op} capture it")
        else:
            for name in () if rule.moves else node.inputs:
                coupler.apart(name)
            for body in rule.couple(node, coupler) or ():
                _walk(body.nodes, coupler)


def _free(name: str, coupler: Coupler) -> None:
    """Give a graph input ids on every axis of known extent, as if a node had made it."""
    shape = coupler.shape(name) or ()
    known = [(axis, extent) for axis, extent in enumerate(shape) if isinstance(extent, int) and extent > 1]
    coupler.set(name, [along(coupler.atoms.new((extent,)), len(shape), axis) for axis, extent in known])


def _tie(entry: str, result: str, coupler: Coupler) -> None:
    """Let an input lose the positions that the output loses which is fed back to it."""
    for axis, extent in enumerate(coupler.shape(entry) or ()):
        if extent != 1:
            reason = Reason("", "", f"input {entry!r} and output {result!r}, fed back, are not known to be alike")
            coupler.join(coupler.vector(entry, axis), coupler.vector(result, axis), reason)
