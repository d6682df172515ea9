"""Graphs inside graphs: the branches of If, the bodies of Loop and Scan, and what other nodes hold.

A body sees the names around it. Where all names of a model are different, whatever body they are defined in, and all
initializers are those of the main graph (`graphprune.ir.rewriting.lifting` makes it so), its bodies are *open*: their
nodes can be looked at as if they were nodes of the main graph.

Reference: https://github.com/onnx/onnx/blob/main/docs/IR.md#graphs (names within a graph, and outer scope access)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import onnx

DEFAULT_DOMAINS = ("", "ai.onnx")
CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
"""Operators of ONNX whose bodies are looked into."""
FIRST_OPEN = 9
"""Before this operator set, Scan means something else."""


def is_control_flow(node: onnx.NodeProto) -> bool:
    """Return whether a node is an If, Loop or Scan."""
    return node.op_type in CONTROL_FLOW and node.domain in DEFAULT_DOMAINS


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Walk the graphs that a node holds, not those inside them."""
    for attribute in node.attribute:
        yield from attribute.graphs
        if attribute.HasField("g"):
            yield attribute.g


def nodes_below(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Walk nodes and all that are inside them."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from nodes_below(graph.node)


def all_nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Walk every node of a model, those of subgraphs and local functions too."""
    for nodes in (proto.graph.node, *(function.node for function in proto.functions)):
        yield from nodes_below(nodes)


def bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Walk the bodies of control flow inside a graph, the innermost first."""
    for node in graph.node:
        if is_control_flow(node):
            for body in subgraphs(node):
                yield from bodies(body)
                yield body


def open_graphs(proto: onnx.ModelProto) -> list[onnx.GraphProto]:
    """Return the graphs that make up a model: its open bodies, the innermost first, and the main graph."""
    return [*(bodies(proto.graph) if are_open(proto) else ()), proto.graph]


def are_open(proto: onnx.ModelProto) -> bool:
    """Return whether a model's bodies can be looked into."""
    inside = list(bodies(proto.graph))
    if not inside:
        return True
    names = list(defined(proto.graph))
    for body in inside:
        if body.initializer or body.sparse_initializer:
            return False
        names.extend(defined(body))
    version = next((o.version for o in proto.opset_import if o.domain in DEFAULT_DOMAINS), 1)
    return version >= FIRST_OPEN and len(set(names)) == len(names)


def defined(graph: onnx.GraphProto) -> Iterator[str]:
    """Walk the names that a graph defines itself; those of initializers that are listed as inputs once."""
    stored = [tensor.name for tensor in graph.initializer]
    stored += [tensor.values.name for tensor in graph.sparse_initializer]
    yield from stored
    known = set(stored)
    yield from (value.name for value in graph.input if value.name not in known)
    yield from (name for node in graph.node for name in node.output if name)


def captured(node: onnx.NodeProto) -> tuple[str, ...]:
    """Return the names that a node's subgraphs use and do not define themselves."""
    found: dict[str, None] = {}
    for graph in subgraphs(node):
        own = set(defined(graph))
        used = [name for inner in graph.node for name in (*inner.input, *captured(inner))]
        used += [value.name for value in graph.output]
        found.update(dict.fromkeys(name for name in used if name and name not in own))
    return tuple(found)


def rename_inputs(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Give what a node and its subgraphs read other names, in place; a subgraph's own names hide those around it."""
    for slot, name in enumerate(node.input):
        if name in names:
            node.input[slot] = names[name]
    for graph in subgraphs(node):
        own = set(defined(graph))
        around = {old: new for old, new in names.items() if old not in own}
        if around:
            for inner in graph.node:
                rename_inputs(inner, around)
            for value in graph.output:
                value.name = around.get(value.name, value.name)


def drop_nodes(proto: onnx.ModelProto, drop: Callable[[onnx.NodeProto], bool]) -> None:
    """Drop nodes of the main graph and of open bodies, in place."""
    for graph in open_graphs(proto):
        kept = [node for node in graph.node if not drop(node)]
        if len(kept) < len(graph.node):
            replace_nodes(graph, kept)


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Give a graph other nodes, some of which may be its own, in place."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
