"""Operators that pick by rank: rounding, where two candidates are all but equal, makes them pick another.

Two models that are the same up to rounding may then differ in whole rows of their outputs (the boxes of a detector
that sorts its candidates). So they are compared in two parts, which together prove as much: all that is picked from is
compared, and what is made of the picks is compared with the same picks in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import onnx

from graphprune.ir.bodies import drop_nodes
from graphprune.ir.coupling.units import BoolArray, Coupling
from graphprune.ir.graph import Graph
from graphprune.ir.nodes import Node
from graphprune.ir.session import Feeds, open_session, run_session

PICKERS = frozenset({"ArgMax", "ArgMin", "NonMaxSuppression", "TopK"})


class SamePicks(NamedTuple):
    """Two models that are given their picks, and these.

    Attributes
    ----------
    before, after : onnx.ModelProto
        The masked original and the pruned model; what is picked from is an output, and what is picked an input.
    picks : mapping of str to array
        Those of the masked original.
    """

    before: onnx.ModelProto
    after: onnx.ModelProto
    picks: dict[str, Any]


def with_same_picks(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    coupling: Coupling,
    removed: BoolArray,
    feeds: Feeds,
    *,
    threads: int = 0,
    custom_ops: Sequence[str] = (),
) -> SamePicks:
    """Let two models pick the same.

    Parameters
    ----------
    before, after : onnx.ModelProto
        The masked original and the pruned model.
    coupling : Coupling
        Of the original.
    removed : ndarray of bool, shape (units,)
    feeds : mapping of str to array
        One call's inputs, in the original's shapes.
    threads : int, default 0
    custom_ops : sequence of str, default ()

    Returns
    -------
    SamePicks
        The models themselves where nothing is picked, or only where positions go: such picks are left to each.
    """
    graph, found = Graph(before), Graph(after)
    nodes = [node for node in graph.main if node.op in PICKERS and _is_kept(node, coupling, removed)]
    nodes = [node for node in nodes if all(name in found.producer for name in _outputs(node))]
    picked = {name: graph.element_types[name] for node in nodes for name in _outputs(node)}
    if not nodes:
        return SamePicks(before, after, {})
    session = open_session(_asked(before, picked), threads=threads, custom_ops=custom_ops, optimise=False)
    picks = dict(zip(picked, run_session(session, feeds, list(picked)), strict=True))
    sources = {n: graph.element_types[n] for node in nodes for n in node.inputs if n in graph.producer}
    sources = {name: kind for name, kind in sources.items() if name not in picked and name in found.producer}
    given = [_given(model, picks, picked, sources) for model in (before, after)]
    return SamePicks(given[0], given[1], picks)


def _outputs(node: Node) -> list[str]:
    return [name for name in node.outputs if name]


def _is_kept(node: Node, coupling: Coupling, removed: BoolArray) -> bool:
    """Whether nothing goes from what a node reads or makes."""
    names = [name for name in (*node.inputs, *node.outputs) if name]
    shapes = {name: coupling.graph.shape(name) for name in names}
    return all(shape is not None for shape in shapes.values()) and not any(
        coupling.lost(name, axis, removed) is not None
        for name, shape in shapes.items()
        for axis in range(len(shape or ()))
    )


def _asked(model: onnx.ModelProto, kinds: dict[str, int]) -> onnx.ModelProto:
    """Return a model that also gives out what is named."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    known = {value.name for value in result.graph.output}
    new = [onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items() if name not in known]
    result.graph.output.extend(new)
    return result


def _given(
    model: onnx.ModelProto, picks: dict[str, Any], picked: dict[str, int], sources: dict[str, int]
) -> onnx.ModelProto:
    """Return a model that gives out what is picked from, and takes what is picked."""
    result = _asked(model, sources)
    drop_nodes(result, lambda node: any(name in picks for name in node.output))
    for value in [value for value in result.graph.output if value.name in picks]:
        result.graph.output.remove(value)
    for value in [value for value in result.graph.value_info if value.name in picks]:
        result.graph.value_info.remove(value)
    result.graph.input.extend(
        onnx.helper.make_tensor_value_info(name, kind, picks[name].shape) for name, kind in picked.items()
    )
    return result
