"""Write a layer's matrix and bias back into a model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from graphprune.ir.edit import set_input
from graphprune.ir.graph import Graph
from graphprune.ir.layers.layer import Layer, find_layers
from graphprune.ir.tensors import array, list_initializers, replace_values

FloatArray = npt.NDArray[np.float64]

WITH_BIAS_INPUT = ("Conv", "ConvTranspose", "Gemm")


def write(layer: Layer, stored: Mapping[str, onnx.TensorProto], matrix: FloatArray, shift: FloatArray) -> None:
    """Give a layer another weight, and add to its bias, in place.

    Parameters
    ----------
    layer : Layer
    stored : mapping of str to onnx.TensorProto
        The model's initializers.
    matrix : ndarray, shape (groups, width, outputs)
    shift : ndarray, shape (groups, outputs)
        What every output channel gains; passed over where the layer has no bias.
    """
    weight = stored[layer.weight]
    values = layer.form.weight(layer.node.attributes, matrix, tuple(weight.dims))
    replace_values(weight, values.astype(array(weight).dtype))
    if layer.bias:
        bias = stored[layer.bias]
        replace_values(bias, _shifted(layer, array(bias), shift.ravel()))


def _shifted(layer: Layer, bias: npt.NDArray[np.generic], shift: FloatArray) -> npt.NDArray[np.generic]:
    values = bias.astype(np.float64)
    if layer.form.computed:
        scale = layer.node.attributes.get("beta", 1.0) if layer.node.op == "Gemm" else 1.0
        values = values + (shift / scale).reshape(values.shape)
    else:  # a recurrent operator has biases of its inputs and of its state, direction by direction
        halves = values.reshape(len(values), 2, -1)
        halves[:, 0] += shift.reshape(len(values), -1)
    return values.astype(bias.dtype)


def add_biases(proto: onnx.ModelProto, *, only_folded: bool = False) -> list[str]:
    """Give layers that have no bias and can have one a bias of zeros, in place.

    Parameters
    ----------
    proto : onnx.ModelProto
    only_folded : bool, default False
        Whether to pass over layers that would run slower with it: all but those before a BatchNormalization, which
        becomes a bias when it is folded.

    Returns
    -------
    list of str
        Names of the biases made.
    """
    graph, made = Graph(proto), []
    for layer in find_layers(graph):
        if layer.bias or layer.node.op not in WITH_BIAS_INPUT or layer.node.input(2):
            continue
        if only_folded and "BatchNormalization" not in {node.op for node in graph.consumers.get(layer.output, [])}:
            continue
        weight = array(graph.initializers[layer.weight])
        groups, _, outputs = layer.form.matrix(layer.node.attributes, weight).shape
        name = graph.unused(f"{layer.output}_bias")
        proto.graph.initializer.append(numpy_helper.from_array(np.zeros(groups * outputs, weight.dtype), name))
        set_input(layer.node.proto, 2, name)
        made.append(name)
    list_initializers(proto)
    return made


def drop_biases(proto: onnx.ModelProto, names: list[str]) -> None:
    """Take away those of the biases that are still zeros, in place."""
    zero = {t.name for t in proto.graph.initializer if t.name in names and not array(t).any()}
    for node in proto.graph.node:
        if len(node.input) > 2 and node.input[2] in zero:
            del node.input[2]
    for tensor in [t for t in proto.graph.initializer if t.name in zero]:
        proto.graph.initializer.remove(tensor)
    for value in [v for v in proto.graph.input if v.name in zero]:
        proto.graph.input.remove(value)
