"""Walk the graph once and let each operator's rule say which positions are the same."""

from __future__ import annotations

from graphprune.ir.atoms import Reason
from graphprune.ir.coupler import Coupler
from graphprune.ir.graph import Graph
from graphprune.ir.rules import RULES
from graphprune.ir.units import Coupling, number_units


def couple(graph: Graph) -> Coupling:
    """Find what can be removed from a graph, and what must go together.

    Parameters
    ----------
    graph : Graph

    Returns
    -------
    Coupling
        Units, groups and constraints; see DESIGN section 2 for the idea.

    Notes
    -----
    Linear in the number of nodes and in the sum of all axis lengths, not in the number of weights.
    """
    coupler = Coupler(graph)
    for node in graph.nodes:
        rule = RULES.get(node.op)
        if rule is None:
            coupler.freeze_node(node, f"no rule for operator {node.op}")
        elif node.captured:
            coupler.freeze_node(node, f"subgraphs of {node.op} capture it")
        else:
            rule.couple(node, coupler)
    for name in graph.outputs:
        coupler.freeze_tensor(name, Reason("", "", f"graph output {name!r} keeps its shape"))
    return number_units(coupler)
