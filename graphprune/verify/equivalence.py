"""The proof of a removal: the pruned model equals the original with the removed positions masked where consumed."""

from __future__ import annotations

import numpy as np
import onnx

from graphprune.ir.edit import set_input
from graphprune.ir.units import FROZEN, BoolArray, Coupling


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
        Every contraction reads its activation through a Mul with a 0/1 mask along the contracted axis.
    """
    graph = coupling.graph
    gone = np.append(removed, False)
    result = onnx.ModelProto()
    result.CopyFrom(graph.proto)
    nodes = list(result.graph.node)
    inserted: list[tuple[int, onnx.NodeProto]] = []
    for contraction in coupling.contractions:
        if contraction.data_axis is None:
            continue
        name = contraction.node.input(contraction.data)
        units = coupling.vector(name, contraction.data_axis)
        if units is None or not gone[units].any():
            continue
        shape = [1] * len(graph.shape(name) or ())
        shape[contraction.data_axis] = len(units)
        mask = np.where(gone[units] & (units != FROZEN), 0.0, 1.0).reshape(shape)
        index = contraction.node.index
        mask_name, output = f"graphprune_mask_{index}_{contraction.data}", f"graphprune_masked_{index}"
        kind = graph.element_types.get(name, onnx.TensorProto.FLOAT)
        values = mask.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
        result.graph.initializer.append(onnx.numpy_helper.from_array(values, mask_name))
        inserted.append((index, onnx.helper.make_node("Mul", [name, mask_name], [output])))
        set_input(nodes[index], contraction.data, output)
    for index, node in sorted(inserted, key=lambda item: -item[0]):
        nodes.insert(index, node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del result.graph.node[:]
    result.graph.node.extend(copies)
    return result
