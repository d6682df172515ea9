"""Rewrites that open what is hidden in a model: local functions, the bodies of control flow, branches always taken.

Every rewrite changes the model given to it in place, leaves its function as it is, and returns how many places it
changed.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.inliner

from graphprune.ir.bodies import (
    are_open,
    bodies,
    defined,
    is_control_flow,
    nodes_below,
    open_graphs,
    rename_inputs,
    replace_nodes,
    subgraphs,
)
from graphprune.ir.shapes.inference import skeleton
from graphprune.ir.tensors import array

FIXED = 2
"""What Loop hands to its body first, the number of the iteration and the condition, is of known shape."""


def opened(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model without local functions and with open bodies; itself where nothing hides in it."""
    if not proto.functions and not any(True for _ in bodies(proto.graph)):
        return proto
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    inline_functions(result)
    open_bodies(result)
    return result


def inline_functions(proto: onnx.ModelProto) -> int:
    """Put the nodes of local functions where they are called.

    A function for another version of an operator set than the model's stays, and is an unknown operator.
    """
    before = len(proto.functions)
    if before:
        # Without weights, because the inliner copies the whole model.
        inlined = onnx.inliner.inline_local_functions(skeleton(proto))
        replace_nodes(proto.graph, inlined.graph.node)
        for field in ("functions", "opset_import"):
            proto.ClearField(field)
            getattr(proto, field).extend(getattr(inlined, field))
    return before - len(proto.functions)


def open_bodies(proto: onnx.ModelProto) -> int:
    """Give what bodies define names of its own, and make their initializers those of the main graph.

    What an exporter noted of shapes inside is dropped: they are inferred (`graphprune.ir.shapes.flow`).
    """
    inside = list(bodies(proto.graph))
    if inside:
        taken = set(defined(proto.graph))
        every = {name for graph in (proto.graph, *inside) for name in defined(graph)}
        every.update(name for node in nodes_below(proto.graph.node) for name in (*node.input, *node.output))
        for node in proto.graph.node:
            _rename_clashes(node, taken, every)
    for body in inside:
        _lift_initializers(body, proto)
    for node in nodes_below(proto.graph.node):
        for body in subgraphs(node) if is_control_flow(node) else ():
            del body.value_info[:]
            fixed = FIXED if node.op_type == "Loop" else 0
            for value in (*body.input[fixed:], *body.output):
                if value.type.HasField("tensor_type"):
                    value.type.tensor_type.ClearField("shape")
    return len(inside)


def _rename_clashes(node: onnx.NodeProto, taken: set[str], every: set[str]) -> None:
    """Rename what the bodies of a node define and a graph before them does, too."""
    for body in subgraphs(node) if is_control_flow(node) else ():
        names: dict[str, str] = {}
        for name in defined(body):
            if name in taken:
                names[name] = _unused(name, every)
            taken.add(names.get(name, name))
        if names:
            _rename(body, names)
        for inner in body.node:
            _rename_clashes(inner, taken, every)


def _unused(name: str, every: set[str]) -> str:
    count = 1
    while f"{name}_{count}" in every:
        count += 1
    every.add(f"{name}_{count}")
    return f"{name}_{count}"


def _rename(body: onnx.GraphProto, names: dict[str, str]) -> None:
    """Rename what a body defines, wherever it and what is inside it say so."""
    for tensor in body.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for sparse in body.sparse_initializer:
        sparse.values.name = names.get(sparse.values.name, sparse.values.name)
    for value in (*body.input, *body.output):
        value.name = names.get(value.name, value.name)
    for node in body.node:
        rename_inputs(node, names)
        for place, name in enumerate(node.output):
            node.output[place] = names.get(name, name)


def _lift_initializers(body: onnx.GraphProto, proto: onnx.ModelProto) -> None:
    """Move a body's initializers into the main graph; one that is an output of the body is handed to it."""
    stored = {tensor.name for tensor in body.initializer}
    for value in [value for value in body.input if value.name in stored]:
        body.input.remove(value)
    proto.graph.initializer.extend(body.initializer)
    del body.initializer[:]
    defined_here = set(defined(body))
    around = {value.name for value in body.output} - defined_here
    if around:
        every = {name for graph in (proto.graph, *bodies(proto.graph)) for name in defined(graph)}
        handed = {name: _unused(name, every) for name in around}
        nodes = [onnx.helper.make_node("Identity", [name], [new]) for name, new in handed.items()]
        for value in body.output:
            value.name = handed.get(value.name, value.name)
        replace_nodes(body, [*nodes, *body.node])


def inline_branches(proto: onnx.ModelProto) -> int:
    """Put the branch that is always taken in the place of an If whose condition is constant."""
    count = 0
    conditions = {t.name: bool(np.all(array(t))) for t in proto.graph.initializer if t.data_type == t.BOOL}
    for graph in open_graphs(proto) if are_open(proto) else ():
        nodes: list[onnx.NodeProto] = []
        settled = 0
        for node in graph.node:
            if node.op_type == "If" and is_control_flow(node) and node.input[0] in conditions:
                taken = "then_branch" if conditions[node.input[0]] else "else_branch"
                nodes.extend(_in_its_place(next(a.g for a in node.attribute if a.name == taken), node))
                settled += 1
            else:
                nodes.append(node)
        if settled:
            replace_nodes(graph, nodes)
        count += settled
    return count


def _in_its_place(branch: onnx.GraphProto, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A branch's nodes, whose results have the names that the If gave them."""
    names: dict[str, str] = {}
    again = []
    for value, result in zip(branch.output, node.output, strict=False):
        if result and value.name in names:
            again.append(onnx.helper.make_node("Identity", [names[value.name]], [result]))
        elif result:
            names[value.name] = result
    _rename(branch, names)
    return [*branch.node, *again]
