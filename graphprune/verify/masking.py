"""The masked original: what a pruned model has to equal."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from graphprune.ir.coupling.units import BoolArray, Coupling
from graphprune.ir.edit import set_input
from graphprune.ir.graph import Graph
from graphprune.ir.nodes import Node, rebuilt
from graphprune.ir.quantized import operand_at
from graphprune.ir.tensors import FLOAT_TYPES

ROUNDED_INSIDE = {"com.microsoft.DynamicQuantizeLSTM": ((1, 2), (2, 2), (3, 1), (5, 2), (6, 2))}
"""By operator that rounds its state together inside, the input slots and axes of what makes a unit's state: with these
at 0, it is 0 from the first step on, and has no part in the size of the steps."""


def masked(coupling: Coupling, removed: BoolArray) -> onnx.ModelProto:
    """Return the original model with removed positions multiplied by zero where they are consumed.

    Parameters
    ----------
    coupling : Coupling
        Of the original.
    removed : ndarray of bool, shape (units,)

    Returns
    -------
    onnx.ModelProto
        Every contraction reads its activation through a Mul with a 0/1 mask along the contracted axis, and quantised
        numbers set to their zero point, which means 0.
    """
    graph = coupling.graph
    result = onnx.ModelProto()
    result.CopyFrom(graph.proto)
    before: dict[int, list[onnx.NodeProto]] = {}
    changed: dict[int, onnx.NodeProto] = {}
    for node, slot, axis in _places(coupling):
        name, index = node.input(slot), node.index
        lost = coupling.lost(name, axis, removed)
        if lost is None:
            continue
        shape = [1] * len(graph.shape(name) or ())
        shape[axis] = len(lost)
        place = f"{index}_{slot}_{axis}"  # an Einsum may sum over several axes of one operand
        output = f"graphprune_masked_{place}"
        if index not in changed:
            changed[index] = onnx.NodeProto.FromString(node.proto.SerializeToString())
        made, stored = _mask(node, slot, changed[index].input[slot], ~lost.reshape(shape), graph, output)
        result.graph.initializer.extend(stored)
        before.setdefault(index, []).extend(made)
        set_input(changed[index], slot, output)
    nodes = rebuilt(graph.main, lambda node: [*before.get(node.index, []), changed.get(node.index, node.proto)])
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


def _places(coupling: Coupling) -> Iterator[tuple[Node, int, int]]:
    """Yield where units are consumed: nodes, their input slots, and axes."""
    for contraction in coupling.contractions:
        if contraction.data_axis is None:  # summed over inside the node: masked on the weight that it meets there
            yield contraction.node, contraction.weight, contraction.weight_axis
        else:
            yield contraction.node, contraction.data, contraction.data_axis
    for node in coupling.graph.nodes:
        for slot, axis in ROUNDED_INSIDE.get(node.op, ()):
            if node.input(slot):
                yield node, slot, axis


def _mask(
    node: Node, slot: int, source: str, keep: BoolArray, graph: Graph, output: str
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes that give a tensor with what is not kept as 0, and what they store."""
    name = node.input(slot)
    kind = graph.element_types.get(name, onnx.TensorProto.FLOAT)
    if kind in FLOAT_TYPES:
        values = keep.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
        mask = onnx.numpy_helper.from_array(values, f"{output}_mask")
        return [onnx.helper.make_node("Mul", [source, mask.name], [output])], [mask]
    operand = operand_at(node, slot)
    zero = "" if operand is None or operand.zero is None else node.input(operand.zero)
    # By 32 bits, because Where does not know all narrower integers.
    wide, kept, point = f"{output}_wide", f"{output}_kept", f"{output}_point"
    made = [onnx.helper.make_node("Cast", [source], [wide], to=onnx.TensorProto.INT32)]
    stored = [onnx.numpy_helper.from_array(keep, f"{output}_mask")]
    if name in graph.quantized:
        stored.append(onnx.numpy_helper.from_array(graph.quantized[name].zero.astype(np.int32), point))
    elif zero:
        made.append(onnx.helper.make_node("Cast", [zero], [point], to=onnx.TensorProto.INT32))
    else:
        made.append(onnx.helper.make_node("Sub", [wide, wide], [point]))
    made.append(onnx.helper.make_node("Where", [stored[0].name, wide, point], [kept]))
    made.append(onnx.helper.make_node("Cast", [kept], [output], to=kind))
    return made, stored
