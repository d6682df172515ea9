"""Rewrites that leave the function of a model as it is: what `graphprune.passes.canonicalize` is made of.

Every rewrite changes the model given to it in place and returns how many places it changed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import numpy_helper

from graphprune.ir.edit import set_input
from graphprune.ir.folding import constant_values
from graphprune.ir.graph import DEFAULT_DOMAINS, Graph, Node
from graphprune.ir.tensors import FIRST_WITHOUT_INPUTS, array, list_initializers, replace_values


def constants_to_initializers(proto: onnx.ModelProto) -> int:
    """Turn Constant nodes into initializers of the same name."""
    names = []
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.domain in DEFAULT_DOMAINS:
            value = _constant(node)
            if value is not None:
                tensor = proto.graph.initializer.add()
                tensor.CopyFrom(value)
                tensor.name = node.output[0]
                names.append(node.output[0])
    outputs = {value.name for value in proto.graph.output}
    taken = {tensor.name for tensor in proto.graph.initializer} | {value.name for value in proto.graph.input}
    taken.update(name for node in proto.graph.node for name in node.output)
    _drop_nodes(proto, lambda node: node.op_type == "Constant" and node.output[0] in names)
    for name in names:  # an output that is a constant needs a node that makes it
        if name in outputs:
            fresh = f"{name}_value"
            while fresh in taken:
                fresh += "_"
            taken.add(fresh)
            next(t for t in proto.graph.initializer if t.name == name).name = fresh
            proto.graph.node.insert(0, onnx.helper.make_node("Identity", [fresh], [name]))
    return len(names)


def unlist_initializers(proto: onnx.ModelProto) -> int:
    """Take initializers off the graph inputs, where they keep ONNX Runtime from folding them.

    Before IR version 4 all initializers have to be listed, and count as constants.
    """
    initializers = {tensor.name for tensor in proto.graph.initializer}
    listed = [value for value in proto.graph.input if value.name in initializers]
    if proto.ir_version < FIRST_WITHOUT_INPUTS:
        return list_initializers(proto)
    for value in listed:
        proto.graph.input.remove(value)
    return len(listed)


def fold_constants(proto: onnx.ModelProto) -> int:
    """Replace shape arithmetic by its values; weights are never computed anew."""
    values = constant_values(proto)
    outputs = {value.name for value in proto.graph.output}

    def known(node: onnx.NodeProto) -> bool:
        names = [name for name in node.output if name]
        return bool(names) and all(name in values and name not in outputs for name in names)

    folded = [name for node in proto.graph.node if known(node) for name in node.output if name]
    proto.graph.initializer.extend(numpy_helper.from_array(values[name], name) for name in folded)
    _drop_nodes(proto, known)
    return len(folded)


def remove_identities(proto: onnx.ModelProto) -> int:
    """Remove Identity, and Dropout at inference, where neither end is a graph output or captured."""
    graph = Graph(proto)
    captured = {name for node in graph.nodes for name in node.captured}
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        extra = [name for name in node.outputs[1:] if name]
        if node.op not in ("Identity", "Dropout") or extra or node.input(2):
            continue
        if node.outputs[0] not in graph.outputs and node.outputs[0] not in captured:
            renamed[node.outputs[0]] = renamed.get(node.inputs[0], node.inputs[0])
    _drop_nodes(proto, lambda node: bool(node.output) and node.output[0] in renamed)
    for proto_node in proto.graph.node:
        for slot, name in enumerate(proto_node.input):
            if name in renamed:
                proto_node.input[slot] = renamed[name]
    return len(renamed)


def drop_dead(proto: onnx.ModelProto) -> int:
    """Remove nodes and initializers that no graph output depends on."""
    graph = Graph(proto)
    needed = set(graph.outputs)
    alive: set[int] = set()
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            alive.add(node.index)
            needed.update((*node.inputs, *node.captured))
    nodes = [node.proto for node in graph.nodes if node.index in alive]
    dead = len(graph.nodes) - len(nodes)
    if dead:
        kept = [_copy(node) for node in nodes]
        del proto.graph.node[:]
        proto.graph.node.extend(kept)
    unused = [tensor for tensor in proto.graph.initializer if tensor.name not in needed]
    for tensor in unused:
        proto.graph.initializer.remove(tensor)
    listed = [value for value in proto.graph.input if value.name in {t.name for t in unused}]
    for value in listed:
        proto.graph.input.remove(value)
    return dead + len(unused)


def fold_batch_normalization(proto: onnx.ModelProto) -> int:
    """Fold BatchNormalization into the convolution before it.

    With s = scale / sqrt(var + epsilon): w'[o] = s[o] * w[o], b'[o] = s[o] * (b[o] - mean[o]) + beta[o].

    Left alone: a convolution whose output has other readers, parameters that are shared or not initializers, and
    normalisation by the batch's own statistics.
    """
    graph = Graph(proto)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    folded: set[str] = set()
    for node in graph.nodes:
        conv = graph.producer.get(node.input(0))
        if node.op != "BatchNormalization" or conv is None or not _foldable(graph, conv, node):
            continue
        scale, shift, mean, variance = (array(tensors[name]).astype(np.float64) for name in node.inputs[1:5])
        factor = scale / np.sqrt(variance + float(node.attributes.get("epsilon", 1e-5)))
        weight = array(tensors[conv.inputs[1]]).astype(np.float64)
        bias = array(tensors[conv.inputs[2]]).astype(np.float64) if conv.input(2) else np.zeros_like(shift)
        bias_name = conv.input(2) or node.inputs[2]
        scaled = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
        replace_values(tensors[conv.inputs[1]], scaled.astype(array(tensors[conv.inputs[1]]).dtype))
        shifted = factor * (bias - mean) + shift
        replace_values(tensors[bias_name], shifted.astype(array(tensors[bias_name]).dtype))
        set_input(conv.proto, 2, bias_name)
        conv.proto.output[0] = node.outputs[0]
        folded.add(node.outputs[0])
    _drop_nodes(proto, lambda node: node.op_type == "BatchNormalization" and node.output[0] in folded)
    return len(folded)


def _foldable(graph: Graph, conv: Node, node: Node) -> bool:
    parameters = [*conv.inputs[1:], *node.inputs[1:5]]
    between = node.inputs[0]
    return (
        conv.op == "Conv"
        and len([name for name in node.outputs if name]) == 1
        and not node.attributes.get("training_mode", 0)
        and len(graph.consumers[between]) == 1
        and between not in graph.outputs
        and all(graph.is_float(name) and len(graph.consumers[name]) == 1 for name in parameters if name)
        and not set(parameters) & set(graph.outputs)
    )


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    (attribute,) = node.attribute
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return attribute.t
    if attribute.name in ("value_int", "value_ints"):
        return numpy_helper.from_array(np.array(value, dtype=np.int64))
    if attribute.name in ("value_float", "value_floats"):
        return numpy_helper.from_array(np.array(value, dtype=np.float32))
    return None  # strings and sparse tensors stay nodes


def _drop_nodes(proto: onnx.ModelProto, drop: Callable[[onnx.NodeProto], bool]) -> None:
    kept = [_copy(node) for node in proto.graph.node if not drop(node)]
    if len(kept) < len(proto.graph.node):
        del proto.graph.node[:]
        proto.graph.node.extend(kept)


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy
