"""ONNX graphs with random weights, put together node by node, and what is counted of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphprune.finetune import to_torch

OPSET = 17
IR_VERSION = 8


class Builder:
    """A graph in the making.

    Parameters
    ----------
    seed : int
        Of the weights.
    """

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node of one output, and return the output."""
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{output}.{op}", **attributes))
        return output

    def store(self, name: str, values: npt.ArrayLike) -> str:
        """Add an initializer; floats are of 32 bits."""
        array = np.asarray(values)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        self.stored.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, name: str, shape: Sequence[int], fan_in: float, fan_out: int = 0) -> str:
        """Add random weights: He's for ReLU, or with a ``fan_out`` Glorot's uniform ones."""
        if fan_out:
            bound = math.sqrt(6 / (fan_in + fan_out))
            return self.store(name, self.random.uniform(-bound, bound, shape))
        return self.store(name, self.random.normal(0, math.sqrt(2 / fan_in), shape))

    def dense(self, name: str, data: str, inputs: int, outputs: int, *, bias: bool = True) -> str:
        """Multiply the last axis by a matrix of Glorot's, and add a bias."""
        made = self.node("MatMul", [data, self.weight(f"{name}.weight", (inputs, outputs), inputs, outputs)], name)
        return self.node("Add", [made, self.store(f"{name}.bias", np.zeros(outputs))], f"{name}.out") if bias else made

    def lstm(
        self,
        name: str,
        data: str,
        inputs: int,
        hidden: int,
        states: Sequence[str] = (),
        *,
        both: bool = False,
        **given: str,
    ) -> tuple[str, str, str]:
        """Add an LSTM whose forget gates start open; with ``both``, one in either direction.

        Parameters
        ----------
        data : str
            [T, N, inputs].
        states : sequence of str
            Initial state and cell, [D, N, hidden].
        lengths : str, optional
            [N], int32.

        Returns
        -------
        tuple of str
            Y [T, D, N, hidden], the last state and the last cell.
        """
        count = 2 if both else 1
        bias = np.zeros((count, 8 * hidden))
        bias[:, 2 * hidden : 3 * hidden] = 1  # Jozefowicz et al. 2015; ONNX's order is input, output, forget, cell
        fan = inputs + hidden
        read = [
            data,
            self.weight(f"{name}.W", (count, 4 * hidden, inputs), fan, hidden),
            self.weight(f"{name}.R", (count, 4 * hidden, hidden), fan, hidden),
            self.store(f"{name}.B", bias),
            given.get("lengths", ""),
            *states,
        ]
        outputs = (f"{name}.y", f"{name}.state", f"{name}.cell")
        direction = "bidirectional" if both else "forward"
        self.nodes.append(helper.make_node("LSTM", read, outputs, name=name, hidden_size=hidden, direction=direction))
        return outputs

    def model(
        self,
        inputs: Mapping[str, tuple[int, Sequence[int | str]]],
        outputs: Mapping[str, Sequence[int | str]],
    ) -> onnx.ModelProto:
        """Return the model, inputs given by element type and shape, outputs of floats by shape."""
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            self.stored,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def parameters(model: onnx.ModelProto) -> int:
    """Count what is trained of a network: weights, biases, and scales and shifts of normalisation."""
    return sum(parameter.numel() for parameter in to_torch(model).parameters())


def equal_width(build: Callable[[int], onnx.ModelProto], nonzeros: int, widths: Sequence[int]) -> int:
    """Return the smallest of ascending widths whose network has at least so many parameters, or the last."""
    low, high = 0, len(widths) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if parameters(build(widths[middle])) >= nonzeros else (middle + 1, high)
    return widths[low]
