"""Where operators read quantised numbers, and what these mean: value = (stored - zero point) * scale.

References: https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html, onnx__QLinearConv.html,
onnx__MatMulInteger.html,
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx

from graphprune.ir.tensors import FLOAT_TYPES, array, stored_tensors

if TYPE_CHECKING:
    from graphprune.ir.graph import Graph
    from graphprune.ir.nodes import Node

FloatArray = npt.NDArray[np.float64]


class Operand(NamedTuple):
    """Input slots of one quantised operand.

    Attributes
    ----------
    value : int
    scale, zero : int or None
        Slots of scale and zero point; None where the operator reads none: then the scale comes later, and zero is 0.
    axis : int
        The operand's axis that a vector of scales or zero points lies along.
    """

    value: int
    scale: int | None = None
    zero: int | None = None
    axis: int = 0


BINARY = (Operand(0, 1, 2), Operand(3, 4, 5))
UNARY = (Operand(0, 1, 2),)
OPERANDS: dict[str, tuple[Operand, ...]] = {
    "ConvInteger": (Operand(0, None, 2), Operand(1, None, 3)),
    "DequantizeLinear": (Operand(0, 1, 2, 1),),
    "MatMulInteger": (Operand(0, None, 2, -2), Operand(1, None, 3, -1)),
    "QLinearConv": (Operand(0, 1, 2), Operand(3, 4, 5), Operand(8)),
    "QLinearMatMul": (Operand(0, 1, 2, -2), Operand(3, 4, 5, -1)),
    "com.microsoft.DynamicQuantizeLSTM": (Operand(1, 8, 9), Operand(2, 10, 11)),
    "com.microsoft.DynamicQuantizeMatMul": (Operand(0), Operand(1, 2, 3, -1), Operand(4)),
    "com.microsoft.MatMulIntegerToFloat": (Operand(0, 2, 4, -2), Operand(1, 3, 5, -1), Operand(6)),
    "com.microsoft.QGemm": (Operand(0, 1, 2), Operand(3, 4, 5, -1), Operand(6)),
    "com.microsoft.QLinearAdd": BINARY,
    "com.microsoft.QLinearMul": BINARY,
    "com.microsoft.QLinearAveragePool": UNARY,
    "com.microsoft.QLinearGlobalAveragePool": UNARY,
    "com.microsoft.QLinearLeakyRelu": UNARY,
    "com.microsoft.QLinearSigmoid": UNARY,
    "com.microsoft.QLinearSoftmax": UNARY,
}
"""By operator, its operands in the order in which the operator that it is the quantised form of reads them; of biases,
whose scale is the product of the others', the value alone."""
RESULT_ZEROS = {
    "QuantizeLinear": 2,
    "QLinearConv": 7,
    "QLinearMatMul": 7,
    "com.microsoft.QGemm": 8,
    "com.microsoft.QLinearAdd": 7,
    "com.microsoft.QLinearConcat": 1,
    "com.microsoft.QLinearMul": 7,
}
"""By operator, the input slot of the zero point of what it makes."""
NARROW = frozenset({onnx.TensorProto.INT8, onnx.TensorProto.INT4})
"""Element types of weights that are stored without an operator of quantisation: Cast makes floats of them."""
SCALED_BY = frozenset({"Mul", "MatMul", "Gemm", "Gather"})
"""Operators that such weights, whose zero point is 0, are read by: a zero point would be subtracted first."""
MOVERS = frozenset({"Flatten", "Gather", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that hand on what they read first, whole or in part."""


@dataclass(frozen=True)
class Quantized:
    """What the numbers of an initializer mean.

    Attributes
    ----------
    scale : ndarray or None
        Broadcastable to the initializer; None where it is not known.
    zero : ndarray
        Stored for 0; broadcastable to the initializer.
    """

    scale: npt.NDArray[Any] | None
    zero: npt.NDArray[Any]

    def numbers(self, stored: npt.NDArray[Any]) -> FloatArray:
        """Return what stored numbers mean; where the scale is not known, as shares of the largest."""
        shifted = stored.astype(np.float64) - self.zero_points(stored).astype(np.float64)
        if self.scale is None:
            return np.asarray(shifted / max(float(np.abs(shifted).max(initial=0.0)), 1.0))
        return np.asarray(shifted * _cut(self.scale, stored).astype(np.float64))

    def nonzero(self, stored: npt.NDArray[Any]) -> int:
        """Return how many stored numbers do not mean 0."""
        return int(np.count_nonzero(stored != self.zero_points(stored)))

    def zero_points(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return what is stored for 0, of the shape and type of the stored numbers."""
        return np.broadcast_to(_cut(self.zero, stored), stored.shape).astype(stored.dtype)


def operands(node: Node) -> tuple[Operand, ...]:
    """Return the quantised operands of a node, with the axes of their scales; none where it reads no such."""
    if node.op == "com.microsoft.QLinearConcat":
        return tuple(Operand(slot, slot + 1, slot + 2) for slot in range(2, len(node.inputs), 3))
    found = OPERANDS.get(node.op, ())
    if node.op == "DequantizeLinear":
        return (found[0]._replace(axis=int(node.attributes.get("axis", 1))),)
    if node.op == "com.microsoft.QGemm" and node.attributes.get("transB", 0):
        return (found[0], found[1]._replace(axis=0), *found[2:])
    return found


def operand_at(node: Node, slot: int) -> Operand | None:
    """Return the operand whose value a node reads at an input slot."""
    return next((operand for operand in operands(node) if operand.value == slot), None)


def spread(parameter: npt.NDArray[Any], rank: int, axis: int, block: int = 0) -> npt.NDArray[Any]:
    """Lay scales or zero points out as what they belong to.

    Parameters
    ----------
    parameter : ndarray
        One for all; a vector, one for every position of the axis; in the rank of what they belong to, one for every
        ``block`` positions of the axis; of a rank between, along the first axes and the last.
    rank, axis : int
        Of what they belong to.
    block : int, default 0

    Returns
    -------
    ndarray
        Broadcastable; along a blocked axis, of whole blocks, so that it may be too long.
    """
    if parameter.size == 1:
        return parameter.reshape(())
    if parameter.ndim == 1:
        return parameter.reshape([-1 if place == axis % rank else 1 for place in range(rank)])
    if parameter.ndim < rank:
        return parameter.reshape(*parameter.shape[:-1], *[1] * (rank - parameter.ndim), parameter.shape[-1])
    return np.repeat(parameter, block, axis) if block else parameter


def find_quantized(graph: Graph) -> dict[str, Quantized]:
    """Find the integer initializers and Constant nodes that hold quantised numbers.

    Parameters
    ----------
    graph : Graph

    Returns
    -------
    dict of str to Quantized
        By tensor name. One that is read with different zero points is not among them.
    """
    tensors = stored_tensors(graph.proto)
    found: dict[str, list[Quantized]] = {}
    for node in graph.nodes:
        for operand in _cast(graph, node) or operands(node):
            name, moved = _before_moves(graph, node.input(operand.value))
            if name in tensors and tensors[name].data_type not in FLOAT_TYPES:
                reading = _reading(node, operand, tensors, len(tensors[name].dims))
                if reading is not None:
                    found.setdefault(name, []).append(_of_any_order(reading) if moved else reading)
    return {name: readings[0] for name, readings in found.items() if _agree(readings)}


def _cast(graph: Graph, node: Node) -> tuple[Operand, ...]:
    """What a Cast reads where it makes floats of weights of few bits."""
    kind = graph.element_types.get(node.input(0)) if node.op == "Cast" else None
    if kind not in NARROW or node.attributes["to"] not in FLOAT_TYPES:
        return ()
    return (Operand(0),) if all(reader.op in SCALED_BY for reader in graph.consumers[node.outputs[0]]) else ()


def _reading(node: Node, operand: Operand, tensors: Mapping[str, onnx.TensorProto], rank: int) -> Quantized | None:
    """What an operand's numbers mean to a node; None where that is computed."""
    names = ["" if slot is None else node.input(slot) for slot in (operand.scale, operand.zero)]
    if any(name and name not in tensors for name in names):
        return None
    block = int(node.attributes.get("block_size", 0))
    scale, zero = (spread(array(tensors[name]), rank, operand.axis, block) if name else None for name in names)
    return Quantized(scale, np.zeros((), np.int32) if zero is None else zero)


def _of_any_order(reading: Quantized) -> Quantized:
    """What is known of numbers that are moved before they are read: what holds for all."""
    same = bool((reading.zero == reading.zero.flat[0]).all())
    scale = reading.scale if reading.scale is not None and reading.scale.size == 1 else None
    return Quantized(scale, reading.zero.flat[0] if same else reading.zero)


def _agree(readings: list[Quantized]) -> bool:
    return all(np.array_equal(readings[0].zero, other.zero) for other in readings[1:])


def _before_moves(graph: Graph, name: str) -> tuple[str, bool]:
    """What a tensor was before it was moved, and whether it was."""
    moved = False
    while name in graph.producer and graph.producer[name].op in MOVERS:
        name, moved = graph.producer[name].input(0), True
    return name, moved


def _cut(parameter: npt.NDArray[Any], stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Leave out what a last block has too much."""
    if parameter.ndim == 0:
        return parameter
    return parameter[tuple(slice(extent) for extent in stored.shape)]
