"""What a rule is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import onnx

if TYPE_CHECKING:
    from graphprune.ir.coupling.coupler import Coupler
    from graphprune.ir.edit import Edit
    from graphprune.ir.nodes import Body, Node


class Rule(NamedTuple):
    """What graphprune knows of one operator.

    Attributes
    ----------
    couple : callable
        Reads the ids of the node's inputs, says which are the same or must stay, sets those of its outputs.
        It must deal with every input: one that it does not mention would be sliced without its knowledge.
        That of a control-flow operator yields each body of the node when it is to be walked.
    patch : callable, optional
        Mends attributes and shape constants of a copy of the node once the positions that stay are known.
        Called only where an input or output of the node changes.
    moves : bool, default False
        Whether the operator only moves positions, so that ids which name several axes at once move with them. For all
        others, activations come with at most one id array for each axis.
    """

    couple: Callable[[Node, Coupler], Iterable[Body] | None]
    patch: Callable[[Node, onnx.NodeProto, Edit], None] | None = None
    moves: bool = False
