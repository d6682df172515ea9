"""Packed products: each group of output columns is multiplied by the few inputs that it needs, and by no zeros.

The outputs of a product with a weight W of shape (inputs, outputs) fall into G groups of V columns, the last filled up
with zeros. A group g reads k of the inputs, those in which one of its columns is not zero:

- ``y = x @ W`` becomes ``Transpose -> Gather [G, k] -> MatMul with [G, V, k] -> Reshape -> Transpose``. The transposes
  make Gather copy whole rows: at batch 32 that takes half of the time that gathering columns does.
- A convolution with a kernel of 1 becomes ``Gather [G * k]`` along the channels and a convolution of G groups.

The outputs are the same but for the order of summation, as long as what is multiplied by a zero is finite.

References: https://onnx.ai/onnx/operators/onnx__Gather.html, onnx__MatMul.html, onnx__Gemm.html, onnx__Conv.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphprune.ir.bodies import replace_nodes
from graphprune.ir.graph import Graph
from graphprune.ir.layers.forms import FORMS
from graphprune.ir.nodes import Node
from graphprune.ir.rewriting.simplify import drop_dead, unlist_initializers

Array = npt.NDArray[np.generic]

FIRST = 7
"""Operator set before which Gemm and MatMul broadcast in another way."""
SLICE_INPUTS = 10
"""Operator set from which on Slice takes its bounds as inputs."""


@dataclass(frozen=True)
class Site:
    """A node whose weight can be packed.

    Attributes
    ----------
    node : Node
        MatMul, Gemm, or Conv with a kernel of 1.
    weight : str
        Initializer.
    inputs, outputs : int
        Shape of the weight as a matrix.
    """

    node: Node
    weight: str
    inputs: int
    outputs: int

    def matrix(self, values: Array) -> Array:
        """Return the weight, as it is stored, as a matrix, shape (inputs, outputs)."""
        return np.asarray(FORMS[self.node.op].matrix(self.node.attributes, values)[0])

    def stored(self, matrix: Array, shape: tuple[int, ...]) -> Array:
        """Return a matrix as the weight is stored."""
        return np.asarray(FORMS[self.node.op].weight(self.node.attributes, matrix[None], shape))

    def fits(self, groups: int) -> bool:
        """Whether outputs may fall into so many groups; a convolution's must be of one size."""
        return 0 < groups <= self.outputs and (self.node.op != "Conv" or self.outputs % groups == 0)


@dataclass(frozen=True)
class Packed:
    """A weight without the zeros that its groups share.

    Attributes
    ----------
    inputs : ndarray of int64, shape (G, k)
        Which inputs every group of columns reads, in order.
    blocks : ndarray, shape (G, k, V)
        What it multiplies them by.
    """

    inputs: npt.NDArray[np.int64]
    blocks: Array


def find_sites(graph: Graph) -> dict[str, Site]:
    """Return the nodes of the main graph whose weight can be packed, by weight.

    Left alone: weights that are no float32 matrices, or are read elsewhere, too; Gemm with a factor or a transposed
    first input; grouped convolutions, and kernels larger than 1; operator sets before 7.
    """
    if graph.opset < FIRST:
        return {}
    found = {}
    for node in graph.main:
        if node.op in SHAPES and _is_read_once(graph, node):
            shape = SHAPES[node.op](graph, node)
            if shape is not None:
                found[node.inputs[1]] = Site(node, node.inputs[1], *shape)
    return found


def packed(matrix: Array, groups: int) -> Packed:
    """Leave out of a matrix what is zero in all columns of a group, as far as all groups can.

    Parameters
    ----------
    matrix : ndarray, shape (inputs, outputs)
    groups : int
        From 1 to the number of outputs.
    """
    columns = -(-matrix.shape[1] // groups)
    parts = np.pad(matrix, ((0, 0), (0, groups * columns - matrix.shape[1]))).reshape(-1, groups, columns)
    used = (parts != 0).any(axis=2).T
    count = max(int(used.sum(axis=1).max()), 1)
    inputs = np.sort(np.argsort(~used, axis=1, kind="stable")[:, :count], axis=1)
    return Packed(inputs.astype(np.int64), parts.transpose(1, 0, 2)[np.arange(groups)[:, None], inputs])


def with_packed(graph: Graph, weights: Mapping[str, Packed]) -> onnx.ModelProto:
    """Return a model that multiplies by packed weights instead of dense ones.

    Parameters
    ----------
    graph : Graph
        Of the model, which is not changed.
    weights : mapping of str to Packed
        By weight of a site.

    Returns
    -------
    onnx.ModelProto
        The blocks of a weight are the initializer `blocks_name`, the inputs that they read `inputs_name`.
    """
    by_output = {site.node.outputs[0]: site for name, site in find_sites(graph).items() if name in weights}
    result = onnx.ModelProto()
    result.CopyFrom(graph.proto)
    nodes: list[onnx.NodeProto] = []
    for node in result.graph.node:
        site = by_output.get(node.output[0]) if node.output else None
        if site is None:
            nodes.append(node)
            continue
        made, constants = LOWERINGS[site.node.op](graph, site, weights[site.weight])
        nodes.extend(made)
        result.graph.initializer.extend(constants)
    replace_nodes(result.graph, nodes)
    drop_dead(result)
    unlist_initializers(result)
    return result


def blocks_name(graph: Graph, weight: str) -> str:
    """Return what the blocks of a weight are called, shape (G, V, k), of a convolution (G * V, k, 1, ...)."""
    return graph.unused(f"{weight}.blocks")


def inputs_name(graph: Graph, weight: str) -> str:
    """Return what the indices are called of the inputs that the blocks of a weight read."""
    return graph.unused(f"{weight}.inputs")


# -- which nodes ----------------------------------------------------------------------------------------------------


def _is_read_once(graph: Graph, node: Node) -> bool:
    """Whether a node multiplies what is computed by a float32 initializer that nothing else reads."""
    weight, data = node.input(1), node.input(0)
    if weight not in graph.initializers or data in graph.constants or weight in graph.outputs:
        return False
    if graph.initializers[weight].data_type != TensorProto.FLOAT or node.inputs.count(weight) > 1:
        return False
    return len(graph.consumers[weight]) == 1


def _matmul_shape(graph: Graph, node: Node) -> tuple[int, int] | None:
    dims = graph.initializers[node.inputs[1]].dims
    return (dims[0], dims[1]) if len(dims) == 2 and len(graph.shape(node.inputs[0]) or ()) >= 2 else None


def _gemm_shape(graph: Graph, node: Node) -> tuple[int, int] | None:
    attributes, dims = node.attributes, graph.initializers[node.inputs[1]].dims
    if attributes.get("transA", 0) or any(attributes.get(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        return None
    return (dims[1], dims[0]) if attributes.get("transB", 0) else (dims[0], dims[1])


def _conv_shape(graph: Graph, node: Node) -> tuple[int, int] | None:
    dims = graph.initializers[node.inputs[1]].dims
    one = all(extent == 1 for extent in dims[2:])
    return (dims[1], dims[0]) if one and node.attributes.get("group", 1) == 1 else None


SHAPES = {"Conv": _conv_shape, "Gemm": _gemm_shape, "MatMul": _matmul_shape}
"""By operator, from graph and node to inputs and outputs of the weight; None where it cannot be packed."""


# -- what becomes of them -------------------------------------------------------------------------------------------

_Made = tuple[list[onnx.NodeProto], list[onnx.TensorProto]]


def _product(graph: Graph, site: Site, weight: Packed) -> _Made:
    """MatMul or Gemm: with rows behind each other, x [..., S, inputs] becomes y [..., S, outputs]."""
    node, (groups, _, columns) = site.node, weight.blocks.shape
    output, rank = node.outputs[0], len(graph.shape(node.inputs[0]) or (0, 0))
    swapped = [*range(rank - 2), rank - 1, rank - 2]
    constants = [
        numpy_helper.from_array(weight.inputs, inputs_name(graph, site.weight)),
        numpy_helper.from_array(np.ascontiguousarray(weight.blocks.swapaxes(1, 2)), blocks_name(graph, site.weight)),
        _integers(graph, f"{output}.shape", [0] * (rank - 2) + [groups * columns, -1]),
    ]
    inputs, blocks, shape = (constant.name for constant in constants)
    before, gathered, products, joined = (graph.unused(f"{output}.{step}") for step in ("T", "rows", "products", "all"))
    nodes = [
        helper.make_node("Transpose", [node.inputs[0]], [before], perm=swapped),
        helper.make_node("Gather", [before, inputs], [gathered], axis=rank - 2),
        helper.make_node("MatMul", [blocks, gathered], [products]),
        helper.make_node("Reshape", [products, shape], [joined]),
    ]
    if groups * columns > site.outputs:
        cut = graph.unused(f"{output}.cut")
        slices, bounds = _first(graph, joined, cut, axis=rank - 2, count=site.outputs)
        nodes.extend(slices)
        constants.extend(bounds)
        joined = cut
    biased = node.op == "Gemm" and bool(node.input(2))
    product = graph.unused(f"{output}.unbiased") if biased else output
    nodes.append(helper.make_node("Transpose", [joined], [product], perm=swapped))
    if biased:
        nodes.append(helper.make_node("Add", [product, node.inputs[2]], [output]))
    nodes[-1].name = node.proto.name
    return nodes, constants


def _convolution(graph: Graph, site: Site, weight: Packed) -> _Made:
    node, (groups, count, columns) = site.node, weight.blocks.shape
    dims = graph.initializers[site.weight].dims
    kernel = weight.blocks.swapaxes(1, 2).reshape(groups * columns, count, *dims[2:])
    constants = [
        numpy_helper.from_array(weight.inputs.ravel(), inputs_name(graph, site.weight)),
        numpy_helper.from_array(np.ascontiguousarray(kernel), blocks_name(graph, site.weight)),
    ]
    inputs, blocks = (constant.name for constant in constants)
    gathered = graph.unused(f"{node.outputs[0]}.channels")
    conv = onnx.NodeProto()
    conv.CopyFrom(node.proto)
    conv.input[0], conv.input[1] = gathered, blocks
    others = [attribute for attribute in node.proto.attribute if attribute.name != "group"]
    del conv.attribute[:]
    conv.attribute.extend([*others, helper.make_attribute("group", groups)])
    return [helper.make_node("Gather", [node.inputs[0], inputs], [gathered], axis=1), conv], constants


LOWERINGS = {"Conv": _convolution, "Gemm": _product, "MatMul": _product}
"""By operator, from graph, site and packed weight to new nodes and constants."""


def _first(graph: Graph, name: str, result: str, *, axis: int, count: int) -> _Made:
    """Take the first positions of an axis."""
    if graph.opset < SLICE_INPUTS:
        return [helper.make_node("Slice", [name], [result], starts=[0], ends=[count], axes=[axis])], []
    bounds = {"starts": 0, "ends": count, "axes": axis}
    constants = [_integers(graph, f"{result}.{bound}", [value]) for bound, value in bounds.items()]
    return [helper.make_node("Slice", [name, *(constant.name for constant in constants)], [result])], constants


def _integers(graph: Graph, name: str, values: list[int]) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype=np.int64), graph.unused(name))
