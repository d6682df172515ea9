"""Rewrites that leave the function of a model as it is: what `graphprune.passes.canonicalize` is made of.

Every rewrite changes the model given to it in place and returns how many places it changed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from graphprune.ir.bodies import DEFAULT_DOMAINS, defined, drop_nodes, open_graphs, rename_inputs, replace_nodes
from graphprune.ir.edit import drop_attribute, set_input
from graphprune.ir.graph import Graph
from graphprune.ir.nodes import Node
from graphprune.ir.rewriting.folding import constant_values
from graphprune.ir.shapes.targets import constant_target
from graphprune.ir.tensors import FIRST_WITHOUT_INPUTS, array, list_initializers, replace_values

MOVES = ("Reshape", "Transpose")
"""Operators that only put numbers elsewhere."""
RECURRENT = ("LSTM", "GRU", "RNN", "com.microsoft.DynamicQuantizeLSTM")
RECURRENT_STATES = (5, 6)
"""Input slots of the initial hidden and cell state."""


def constants_to_initializers(proto: onnx.ModelProto) -> int:
    """Turn Constant nodes, those of open bodies too, into initializers of the same name."""
    graphs = open_graphs(proto)
    taken = {name for graph in graphs for name in defined(graph)}
    return sum(_lift_constants(graph, proto, taken) for graph in graphs)


def _lift_constants(graph: onnx.GraphProto, proto: onnx.ModelProto, taken: set[str]) -> int:
    outputs = {value.name for value in graph.output}
    nodes, lifted = [], 0
    for node in graph.node:
        constant = node.op_type == "Constant" and node.domain in DEFAULT_DOMAINS
        value = _constant(node) if constant else None
        if value is None:
            nodes.append(node)
            continue
        tensor = proto.graph.initializer.add()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
        lifted += 1
        if node.output[0] in outputs:  # an output that is a constant needs a node that makes it
            tensor.name = f"{node.output[0]}_value"
            while tensor.name in taken:
                tensor.name += "_"
            taken.add(tensor.name)
            nodes.insert(0, onnx.helper.make_node("Identity", [tensor.name], [node.output[0]]))
    if lifted:
        replace_nodes(graph, nodes)
    return lifted


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
    graphs = open_graphs(proto)
    outputs = {value.name for graph in graphs for value in graph.output}

    def known(node: onnx.NodeProto) -> bool:
        names = [name for name in node.output if name]
        return bool(names) and all(name in values and name not in outputs for name in names)

    folded = [name for graph in graphs for node in graph.node if known(node) for name in node.output if name]
    drop_nodes(proto, known)
    proto.graph.initializer.extend(numpy_helper.from_array(values[name], name) for name in folded)
    return len(folded)


def settle_reshapes(proto: onnx.ModelProto) -> int:
    """Give Reshape a constant target where it computes one that a constant says as well.

    An entry equal to the extent of the data at its place is 0, which copies that extent; one that is left is -1, as
    the number of elements tells it.
    """
    graph = Graph(proto)
    settled = 0
    for node in graph.nodes:
        target, shape = graph.entries.get(node.input(1)), graph.shape(node.input(0))
        if node.op == "Reshape" and node.input(1) not in graph.initializers and target is not None and shape:
            constant = constant_target(target, shape, zeros_copy=not node.attributes.get("allowzero"))
            if constant is not None:
                name = graph.unused(f"{node.outputs[0]}_shape")
                proto.graph.initializer.append(numpy_helper.from_array(np.array(constant, dtype=np.int64), name))
                node.proto.input[1] = name
                drop_attribute(node.proto, "allowzero")
                settled += 1
    return settled


def remove_identities(proto: onnx.ModelProto, *, dropout: bool = True) -> int:
    """Remove Identity, and Dropout at inference, unless its output is that of a graph, or captured unseen.

    Parameters
    ----------
    proto : onnx.ModelProto
    dropout : bool, default True
        False for a model that is trained further: its Dropout stays.
    """
    graph = Graph(proto)
    idle = ("Identity", "Dropout") if dropout else ("Identity",)
    fixed = {name for node in graph.nodes if not node.bodies for name in node.captured}
    fixed.update(value.name for part in open_graphs(proto) for value in part.output)
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        extra = [name for name in node.outputs[1:] if name]
        if node.op not in idle or extra or node.input(2):
            continue
        if node.outputs[0] not in fixed:
            renamed[node.outputs[0]] = renamed.get(node.inputs[0], node.inputs[0])
    drop_nodes(proto, lambda node: bool(node.output) and node.output[0] in renamed)
    _rename_inputs(proto, renamed)
    return len(renamed)


def remove_requantizations(proto: onnx.ModelProto) -> int:
    """Remove QuantizeLinear and DequantizeLinear between two moves of what was dequantised in the same way.

    round((q - zero) * scale / scale) + zero = q: so the moves stand behind each other again, as in the float model.
    """
    graph = Graph(proto)
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        quantize = graph.producer.get(node.input(0))
        if node.op != "DequantizeLinear" or quantize is None or quantize.op != "QuantizeLinear":
            continue
        move = graph.producer.get(quantize.input(0))
        before = graph.producer.get(move.input(0)) if move is not None and move.op in MOVES else None
        readers = graph.consumers.get(node.outputs[0], [])
        if before is not None and before.op == "DequantizeLinear" and node.outputs[0] not in graph.outputs:
            alike = _same_scale(graph, before, quantize) and _same_scale(graph, quantize, node)
            if alike and all(reader.op in MOVES and reader.inputs[0] == node.outputs[0] for reader in readers):
                renamed[node.outputs[0]] = quantize.inputs[0]
    _rename_inputs(proto, renamed)
    return len(renamed)


def _same_scale(graph: Graph, one: Node, other: Node) -> bool:
    """Whether two nodes quantise, or dequantise, by the same scale and zero point for the whole tensor."""
    pairs = [(graph.value(one.input(slot)), graph.value(other.input(slot))) for slot in (1, 2)]
    # Zero points of one type: so the quantised numbers are of one type, too.
    return all(
        a is not None and b is not None and a.size == 1 and a.dtype == b.dtype and a.item() == b.item()
        for a, b in pairs
    )


def _rename_inputs(proto: onnx.ModelProto, renamed: Mapping[str, str]) -> None:
    for node in proto.graph.node:
        rename_inputs(node, renamed)


def drop_dead(proto: onnx.ModelProto) -> int:
    """Remove nodes and initializers that no graph output depends on."""
    graph = Graph(proto)
    needed = set(graph.outputs)
    dead = 0
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            # What an open body captures is needed where a node in it that is alive reads it.
            results = [name for body in node.bodies.values() for name in body.outputs]
            needed.update((*node.inputs, *results) if node.bodies else node.reads)
        else:
            dead += 1
    if dead:
        drop_nodes(proto, lambda node: not needed.intersection(node.output))
    unused = [tensor for tensor in proto.graph.initializer if tensor.name not in needed]
    for tensor in unused:
        proto.graph.initializer.remove(tensor)
    listed = [value for value in proto.graph.input if value.name in {t.name for t in unused}]
    for value in listed:
        proto.graph.input.remove(value)
    return dead + len(unused)


def correct_ranks(proto: onnx.ModelProto) -> int:
    """Note the shapes that outputs have where they are noted with another rank.

    Some exporters note an output whose shape they do not know as a single number, which full checks take amiss.
    """
    noted = {v.name: v.type.tensor_type.shape for v in proto.graph.output if v.type.tensor_type.HasField("shape")}
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    for value in bare.graph.output:
        if value.name in noted:
            value.type.tensor_type.ClearField("shape")
    graph, corrected = Graph(bare), 0
    for name, shape in noted.items():
        found = graph.shape(name)
        if found is not None and len(found) != len(shape.dim):
            shape.CopyFrom(onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, found).tensor_type.shape)
            corrected += 1
    return corrected


def drop_zero_states(proto: onnx.ModelProto) -> int:
    """Leave out the initial states of recurrent nodes that are constants of zeros, as they are without any.

    Exporters give one and the same constant to all layers, which would tie their hidden units.
    """
    graph, dropped = Graph(proto), 0
    for node in graph.nodes:
        for slot in RECURRENT_STATES if node.op in RECURRENT else ():
            value = graph.value(node.input(slot))
            if value is not None and not value.any():
                node.proto.input[slot] = ""
                dropped += 1
    return dropped


def fold_batch_normalization(proto: onnx.ModelProto) -> int:
    """Fold BatchNormalization into the convolution before it.

    With s = scale / sqrt(var + epsilon): w'[o] = s[o] * w[o], b'[o] = s[o] * (b[o] - mean[o]) + beta[o].

    Left alone: a convolution whose output has other readers, parameters that are shared or not initializers, and
    normalisation by the batch's own statistics.
    """
    graph = Graph(proto)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    folded: dict[str, str] = {}
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
        folded[conv.outputs[0]] = node.outputs[0]
    gone = set(folded.values())
    drop_nodes(proto, lambda node: bool(gone.intersection(node.output)))
    for part in open_graphs(proto):
        for maker in part.node:
            maker.output[:] = [folded.get(name, name) for name in maker.output]
    return len(folded)


def _foldable(graph: Graph, conv: Node, node: Node) -> bool:
    parameters = [*conv.inputs[1:], *node.inputs[1:5]]
    between = node.inputs[0]
    return (
        conv.op == "Conv"
        and conv.home is node.home
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
