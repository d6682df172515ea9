"""Bodies of control flow, node by node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.nets import Extent, Net

COUNTER = {"iteration": TensorProto.INT64, "going": TensorProto.BOOL, "goes_on": TensorProto.BOOL}
"""What counts and stops a loop, and its element types; all are scalars."""


class Body:
    """A body in the making.

    Parameters
    ----------
    seed : int
        Of the weights.
    inputs : sequence of str
        What the node hands in.
    kinds : mapping, optional
        Element types of inputs and outputs that are not float.
    """

    def __init__(self, seed: int, inputs: Sequence[str] = (), kinds: Mapping[str, int] | None = None) -> None:
        self.random = np.random.default_rng(seed)
        self.inputs = list(inputs)
        self.kinds = dict(kinds or {})
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []

    def node(self, op: str, inputs: Iterable[str], output: str, **attributes: Any) -> str:
        """Add a node of one output."""
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=f"{output}_node", **attributes))
        return output

    def store(self, values: npt.ArrayLike, name: str) -> str:
        """Add an initializer; floats are of 32 bits."""
        array = np.asarray(values)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        self.stored.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, shape: Sequence[int], name: str) -> str:
        """Add random weights."""
        return self.store(self.random.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape), name)

    def gemm(self, data: str, weight: str, shape: Sequence[int], output: str) -> str:
        """Add a Gemm without bias, its weight [outputs, inputs]."""
        return self.node("Gemm", [data, self.weight(shape, weight)], output, transB=1)

    def build(self, *outputs: str) -> onnx.GraphProto:
        """Return the graph."""

        def value(name: str) -> onnx.ValueInfoProto:
            shape = [] if name in COUNTER else None
            return helper.make_tensor_value_info(name, self.kinds.get(name, TensorProto.FLOAT), shape)

        inputs, results = [value(name) for name in self.inputs], [value(name) for name in outputs]
        return helper.make_graph(self.nodes, "body", inputs, results, self.stored)


def flagged(net: Net, name: str = "flag") -> str:
    """Add a graph input that is true or false."""
    made = net.input([], name)
    net.kinds[made] = TensorProto.BOOL
    return made


def choose(net: Net, flag: str, first: onnx.GraphProto, second: onnx.GraphProto, shape: Sequence[Extent]) -> str:
    """Add an If of one output."""
    kind = TensorProto.FLOAT
    return net.node("If", [flag], shape, kind=kind, name="the if", then_branch=first, else_branch=second)


def loop_body(seed: int, states: Sequence[str]) -> Body:
    """Begin the body of a Loop that runs as often as it is told."""
    body = Body(seed, ["iteration", "going", *states], COUNTER)
    body.node("Identity", ["going"], "goes_on")
    return body


def take_in(body: Body, inner: Net, around: Sequence[str]) -> None:
    """Put what a net has made into a body; names but those of ``around`` get a prefix."""

    def own(name: str) -> str:
        return name if name in around or not name else f"inner_{name}"

    for node in inner.nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:], copy.output[:] = map(own, node.input), map(own, node.output)
        body.nodes.append(copy)
    body.stored += [numpy_helper.from_array(numpy_helper.to_array(t), own(t.name)) for t in inner.initializers]


def _inside(model: onnx.ModelProto, prefix: str) -> onnx.GraphProto:
    """The main graph as a body that owns its weights and reads the inputs around it."""
    inputs = {value.name for value in model.graph.input} - {tensor.name for tensor in model.graph.initializer}
    body = onnx.GraphProto(name=prefix)
    for tensor in model.graph.initializer:
        body.initializer.add().CopyFrom(tensor)
        body.initializer[-1].name = f"{prefix}{tensor.name}"
    for node in model.graph.node:
        copy = body.node.add()
        copy.CopyFrom(node)
        copy.input[:] = [name if name in inputs or not name else f"{prefix}{name}" for name in node.input]
        copy.output[:] = [name and f"{prefix}{name}" for name in node.output]
    for value in model.graph.output:
        body.output.add().CopyFrom(value)
        body.output[-1].name = f"{prefix}{value.name}"
    return body


def _around(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    """The model with these nodes alone."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    stored = {tensor.name for tensor in model.graph.initializer}
    for value in [value for value in result.graph.input if value.name in stored]:
        result.graph.input.remove(value)
    for field in ("node", "initializer", "value_info"):
        result.graph.ClearField(field)
    result.graph.node.extend(nodes)
    return result


def in_branches(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put a whole model into both branches of an If, each with weights of its own; an input "flag" chooses."""
    outputs = [value.name for value in model.graph.output]
    branches = {"then_branch": _inside(model, "then_"), "else_branch": _inside(model, "else_")}
    result = _around(model, [helper.make_node("If", ["flag"], outputs, name="the if", **branches)])
    result.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    return result


def in_loop(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put a whole model into a Loop that runs once; its outputs are stacked, and taken apart again."""
    body = _inside(model, "in_")
    for name, kind in (("iteration", TensorProto.INT64), ("going", TensorProto.BOOL)):
        body.input.append(helper.make_tensor_value_info(name, kind, []))
    body.node.append(helper.make_node("Identity", ["going"], ["goes_on"]))
    body.output.insert(0, helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []))
    stacked = [f"stacked_{value.name}" for value in model.graph.output]
    nodes = [helper.make_node("Loop", ["once", ""], stacked, name="the loop", body=body)]
    for name, value in zip(stacked, model.graph.output, strict=True):
        nodes.append(helper.make_node("Gather", [name, "first"], [value.name], axis=0))
    result = _around(model, nodes)
    for name, number in (("once", 1), ("first", 0)):
        result.graph.initializer.append(numpy_helper.from_array(np.array(number), name))
    return result
