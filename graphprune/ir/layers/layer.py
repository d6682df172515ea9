"""The layers of a graph: which nodes are matrix products with a stored weight, and what their outputs add up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from graphprune.ir.graph import Graph
from graphprune.ir.layers.forms import FORMS, Form
from graphprune.ir.nodes import Node
from graphprune.ir.shapes.inference import Shape
from graphprune.ir.tensors import array

FloatArray = npt.NDArray[np.float64]

WIDEST = 4608
"""Rows of the widest layer, 512 channels under a kernel of 3 x 3: second moments take the square of the width in
memory, and its cube in time."""
BROADCASTING = ("Gemm", "MatMul")
"""Operators to whose product a constant of any fitting shape is added."""


@dataclass(frozen=True)
class Layer:
    """A node that multiplies an activation by a weight which nothing else reads.

    Attributes
    ----------
    node : Node
    form : Form
        What the operator is as a matrix product.
    data, weight, output : str
        Tensor names.
    bias : str
        Initializer with one value per output channel which only this layer reads; empty where there is none.
    total : str
        The tensor that the output is only added to others for, unchanged: the sum at the end of a residual branch.
        The output itself where there is no such sum.
    """

    node: Node
    form: Form
    data: str
    weight: str
    output: str
    bias: str
    total: str

    def matrix(self, proto: onnx.ModelProto) -> FloatArray:
        """Return the weight stored in a model as a stack of matrices, shape (groups, width of a row, outputs)."""
        (tensor,) = (t for t in proto.graph.initializer if t.name == self.weight)
        return np.asarray(self.form.matrix(self.node.attributes, array(tensor).astype(np.float64)))


def kernel_of(dims: Sequence[int]) -> int:
    """Return how many places a kernel has, given the weight's shape; 1 for a matrix."""
    return int(np.prod(dims[2:], dtype=np.int64))


def find_layers(graph: Graph) -> list[Layer]:
    """Return the layers of the main graph, in the order in which they are computed; without those above `WIDEST`."""
    found = []
    for node in graph.main:
        form = FORMS.get(node.op)
        if form is not None and _is_layer(graph, node) and _width(graph, node) <= WIDEST:
            output = next(name for name in node.outputs if name)
            bias = _bias(graph, node, form)
            total = _total(graph, output) if form.computed else output
            found.append(Layer(node, form, node.inputs[0], node.inputs[1], output, bias, total))
    return found


def _width(graph: Graph, node: Node) -> int:
    """How many numbers a row holds."""
    dims = graph.initializers[node.inputs[1]].dims
    if node.op == "Conv":
        return int(np.prod(dims[1:]))
    if node.op == "ConvTranspose":
        return dims[0] // int(node.attributes.get("group", 1)) * kernel_of(dims)
    contracted = 0 if node.op == "MatMul" or (node.op == "Gemm" and not node.attributes.get("transB", 0)) else -1
    return dims[contracted]


def _is_layer(graph: Graph, node: Node) -> bool:
    """Whether the second input is a float matrix or kernel stored for this node alone, and the first is computed.

    A matrix without entries is none: there is nothing to solve for.
    """
    weight, data = node.input(1), node.input(0)
    if not graph.is_float(weight) or data in graph.constants or not any(node.outputs):
        return False
    if not all(graph.initializers[weight].dims):
        return False
    if len(graph.consumers[weight]) > 1 or weight in graph.outputs or node.inputs.count(weight) > 1:
        return False
    rank = len(graph.initializers[weight].dims)
    if node.op == "MatMul":
        return rank == 2 and len(graph.shape(data) or ()) >= 2
    if node.op == "Gemm":
        return bool(node.attributes.get("alpha", 1.0)) and not node.attributes.get("transA", 0)
    return node.op != "ConvTranspose" or _has_known_padding(node)


def _has_known_padding(node: Node) -> bool:
    """Whether the padding of a transposed convolution is written down."""
    return node.attributes.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID") and "output_shape" not in node.attributes


def _bias(graph: Graph, node: Node, form: Form) -> str:
    """The constant that is added to the product, one value per channel, if nothing else reads it."""
    if node.op == "MatMul":
        name = (_addition(graph, node.outputs[0]) or ("", ""))[1]
    else:
        name = node.input(2 if form.computed else 3)
    if not graph.is_float(name) or len(graph.consumers[name]) > 1 or name in graph.outputs:
        return ""
    if node.op == "Gemm" and node.attributes.get("beta", 1.0) == 0:
        return ""
    return name if node.op not in BROADCASTING or _is_vector(graph, node, name) else ""


def _is_vector(graph: Graph, node: Node, name: str) -> bool:
    """Whether a tensor that is broadcast to a product of matrices has a value for every column of it."""
    dims, columns = graph.initializers[name].dims, graph.initializers[node.inputs[1]].dims
    channels = columns[0] if node.attributes.get("transB", 0) else columns[1]
    return list(dims[-1:]) == [channels] and int(np.prod(dims)) == channels


def _total(graph: Graph, name: str) -> str:
    """Follow additions of tensors of the same shape."""
    while found := _addition(graph, name):
        name = found[0]
    return name


def _addition(graph: Graph, name: str) -> tuple[str, ...]:
    """The result, of the same shape, of the addition that alone reads a tensor, and what is added; empty if none is."""
    readers = graph.consumers.get(name, [])
    if len(readers) != 1 or name in graph.outputs or readers[0].op != "Add" or readers[0].inside:
        return ()
    others = [other for other in readers[0].inputs if other != name]
    if len(others) != 1 or not _fits(graph.shape(others[0]), graph.shape(name)):
        return ()
    return readers[0].outputs[0], others[0]


def _fits(shape: Shape | None, around: Shape | None) -> bool:
    """Whether a tensor of one shape can be added to one of another without broadcasting the latter."""
    if shape is None or around is None or len(shape) > len(around):
        return False
    pairs = zip(reversed(shape), reversed(around), strict=False)
    return all(extent == 1 or (extent is not None and extent == other) for extent, other in pairs)
