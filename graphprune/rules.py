"""What the author of an operator's rule needs; docs/rules.md tells how to write one and how to declare it."""

from graphprune.ir.coupling.atoms import IdArray, Reason, along
from graphprune.ir.coupling.coupler import Coupler
from graphprune.ir.coupling.units import Contraction
from graphprune.ir.edit import Edit, drop_attribute, set_attribute, set_input
from graphprune.ir.graph import Graph
from graphprune.ir.nodes import Node
from graphprune.ir.rules import Rule
from graphprune.ir.rules.elementwise import couple_broadcast, couple_unary

__all__ = [
    "Contraction",
    "Coupler",
    "Edit",
    "Graph",
    "IdArray",
    "Node",
    "Reason",
    "Rule",
    "along",
    "couple_broadcast",
    "couple_unary",
    "drop_attribute",
    "set_attribute",
    "set_input",
]
