"""The nodes of a model, those in the open bodies of control flow among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx

from graphprune.ir.bodies import DEFAULT_DOMAINS, are_open, captured, is_control_flow


@dataclass(frozen=True)
class Body:
    """A branch of an If, or the body of a Loop or Scan.

    Attributes
    ----------
    inputs, outputs : tuple of str
        Tensor names.
    nodes : tuple of Node
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Node:
    """One node of the model.

    Attributes
    ----------
    index : int
        Position in the list of all nodes.
    proto : onnx.NodeProto
    op : str
        Operator type, with its domain in front when that is not ONNX's own: ``Conv``, ``com.microsoft.Gelu``.
    inputs, outputs : tuple of str
        Tensor names; an empty name is an optional one left out.
    captured : tuple of str
        Names that the node's subgraphs read from the graph around them.
    bodies : mapping of str to Body
        By attribute, the open bodies of a control-flow node; see `graphprune.ir.bodies`.
    home : onnx.GraphProto
        The graph that it is a node of: the main one, or a body.
    inside : bool
        Whether that is a body.
    """

    index: int
    proto: onnx.NodeProto
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    home: onnx.GraphProto
    inside: bool = False
    captured: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    bodies: Mapping[str, Body] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The node's name, or where it has none the name of its first output."""
        return self.proto.name or (self.outputs[0] if self.outputs else f"node {self.index}")

    def input(self, slot: int) -> str:
        """Return the name at an input slot, empty when it is left out."""
        return self.inputs[slot] if slot < len(self.inputs) else ""

    @property
    def reads(self) -> tuple[str, ...]:
        """All names that the node needs: its inputs, what its subgraphs capture, the outputs of its bodies."""
        results = (name for body in self.bodies.values() for name in body.outputs)
        return tuple(dict.fromkeys(name for name in (*self.inputs, *self.captured, *results) if name))


def list_nodes(proto: onnx.ModelProto) -> tuple[list[Node], tuple[Node, ...]]:
    """Return all nodes of a model, those of a body before the node that holds it, and those of the main graph."""
    found: list[Node] = []
    return found, _list(proto.graph, found, inside=False, look_inside=are_open(proto))


def _list(graph: onnx.GraphProto, found: list[Node], *, inside: bool, look_inside: bool) -> tuple[Node, ...]:
    own = []
    for proto in graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute if not a.ref_attr_name}
        bodies = {}
        for name, body in attributes.items() if look_inside and is_control_flow(proto) else ():
            if isinstance(body, onnx.GraphProto):
                nodes = _list(body, found, inside=True, look_inside=True)
                bodies[name] = Body(_names(body.input), _names(body.output), nodes)
        op = proto.op_type if proto.domain in DEFAULT_DOMAINS else f"{proto.domain}.{proto.op_type}"
        names = tuple(proto.input), tuple(proto.output)
        own.append(Node(len(found), proto, op, *names, graph, inside, captured(proto), attributes, bodies))
        found.append(own[-1])
    return tuple(own)


def _names(values: Iterable[onnx.ValueInfoProto]) -> tuple[str, ...]:
    return tuple(value.name for value in values)


def rebuilt(nodes: Sequence[Node], change: Callable[[Node], Sequence[onnx.NodeProto]]) -> list[onnx.NodeProto]:
    """Return what is put in the place of nodes and of those in their bodies.

    Parameters
    ----------
    nodes : sequence of Node
        Of one graph.
    change : callable
        Gives what stands in the place of a node; the last is to hold its bodies.

    Returns
    -------
    list of onnx.NodeProto
        New ones only where something inside has changed.
    """
    result: list[onnx.NodeProto] = []
    for node in nodes:
        *before, proto = change(node)
        for name, body in node.bodies.items():
            inner = rebuilt(body.nodes, change)
            if [id(new) for new in inner] != [id(old.proto) for old in body.nodes]:
                proto = onnx.NodeProto.FromString(proto.SerializeToString()) if proto is node.proto else proto
                graph = next(a.g for a in proto.attribute if a.name == name)
                del graph.node[:]
                graph.node.extend(inner)
        result.extend([*before, proto])
    return result
