"""Graph inputs and outputs that may lose positions: which they are, what stays of each, and data cut to what stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from graphprune.errors import RecipeError
from graphprune.ir.coupling.units import BoolArray, Coupling
from graphprune.ir.graph import Graph
from graphprune.ir.surgery import take

OPTION = "--allow-resize"


@dataclass(frozen=True)
class Freed:
    """Graph inputs and outputs that need not keep their shapes.

    Attributes
    ----------
    names : frozenset of str
    states : tuple of (str, str)
        Inputs that the caller feeds back from an output, each with that output: both lose the same positions.
    """

    names: frozenset[str] = frozenset()
    states: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Resized:
    """What stays of the graph inputs and outputs that lose positions.

    Attributes
    ----------
    inputs, outputs : dict of str to ndarray of bool
        By name which positions stay, broadcastable to the tensor's shape before.
    """

    inputs: Mapping[str, BoolArray] = field(default_factory=dict)
    outputs: Mapping[str, BoolArray] = field(default_factory=dict)

    def cut_feeds(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return inputs for the model after, given those for the model before."""
        return {name: _cut(value, self.inputs.get(name)) for name, value in feeds.items()}

    def cut_shapes(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of inputs for the model after, given those for the model before."""
        feeds = {name: np.broadcast_to(np.False_, shape) for name, shape in shapes.items()}
        return {name: value.shape for name, value in self.cut_feeds(feeds).items()}

    def cut_outputs(self, names: Sequence[str], values: Sequence[Any]) -> list[Any]:
        """Return what stays of the outputs of the model before, to compare with those of the model after."""
        return [_cut(value, self.outputs.get(name)) for name, value in zip(names, values, strict=True)]


SAME = Resized()
"""All inputs and outputs keep their shapes."""


def freed(graph: Graph, asked: Sequence[str]) -> Freed:
    """Find what ``--allow-resize`` names.

    Parameters
    ----------
    graph : Graph
    asked : sequence of str
        Names of graph inputs and outputs, or ``IN=OUT`` for a state.

    Returns
    -------
    Freed

    Raises
    ------
    RecipeError
        When there is no such input or output, or the two ends of a state differ in shape.
    """
    there = {*graph.inputs, *graph.outputs}
    states = [_state(graph, text) for text in asked if text not in there]
    names = frozenset(text for text in asked if text in there)
    return Freed(names.union(*states), tuple(states))


def resized(coupling: Coupling, removed: BoolArray) -> Resized:
    """Return what a removal leaves of the graph inputs and outputs.

    Parameters
    ----------
    coupling : Coupling
    removed : ndarray of bool, shape (units,)
    """
    sides = []
    for names in (coupling.graph.inputs, coupling.graph.outputs):
        found = {name: coupling.keeps(name, removed) for name in names}
        sides.append({name: keep for name, keep in found.items() if keep is not None})
    return Resized(*sides)


def _state(graph: Graph, text: str) -> tuple[str, str]:
    """Split ``IN=OUT``; names may hold the sign themselves."""
    pieces = text.split("=")
    for place in range(1, len(pieces)):
        entry, result = "=".join(pieces[:place]), "=".join(pieces[place:])
        if entry in graph.inputs and result in graph.outputs:
            _demand_same_shape(graph, entry, result)
            return entry, result
    raise RecipeError(
        f"there is no graph input or output {text!r}",
        where=f"{OPTION} {text}",
        why=f"the inputs are {', '.join(graph.inputs) or 'none'}; the outputs are {', '.join(graph.outputs)}",
        hint=f"name one of them, or a state as {OPTION} INPUT=OUTPUT",
    )


def _demand_same_shape(graph: Graph, entry: str, result: str) -> None:
    shapes = graph.shape(entry), graph.shape(result)
    one, other = (shape or () for shape in shapes)
    same = len(one) == len(other) and all(
        a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in zip(one, other, strict=True)
    )
    if None not in shapes and not same:
        raise RecipeError(
            f"input {entry!r} cannot be fed back from output {result!r}",
            where=f"{OPTION} {entry}={result}",
            why=f"their shapes are {list(one)} and {list(other)}",
            hint="name the output whose next input it is, or both by themselves",
        )


def _cut(value: Any, keep: BoolArray | None) -> Any:
    return value if keep is None else take(np.asarray(value), keep)
