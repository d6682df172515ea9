"""Entries of small tensors: every number found is what ONNX Runtime computes, and every symbol is that extent."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphprune.ir.graph import Graph
from tests.oracles import run

EXTENTS = {"N": 3, "H": 7}
INT64, FLOAT = TensorProto.INT64, TensorProto.FLOAT
Nodes = list[onnx.NodeProto]


def constant(name: str, *values: float, kind: type = np.int64) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(values, kind)))


def scalar(name: str, value: float, kind: type = np.int64) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(value, kind)))


def node(op: str, inputs: str, output: str = "y", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], **attributes)  # type: ignore[arg-type]


SHAPE = node("Shape", "x", "s")  # N, 8, H, 5
CASES: dict[str, tuple[Nodes, list[object]]] = {
    "shape": ([node("Shape", "x")], ["N", 8, "H", 5]),
    "part of a shape": ([node("Shape", "x", start=1, end=-1)], [8, "H"]),
    "size": ([node("Size", "x")], [None]),
    "size that is known": ([node("Size", "k")], [6]),
    "gather": ([SHAPE, scalar("i", -1), node("Gather", "s i")], [5]),
    "gather many": ([SHAPE, constant("i", 3, 0), node("Gather", "s i")], [5, "N"]),
    "slice": ([SHAPE, constant("a", 1), constant("b", 2**63 - 1), node("Slice", "s a b")], [8, "H", 5]),
    "slice back": (
        [
            SHAPE,
            constant("a", -1),
            constant("b", -(2**62)),
            constant("i", 0),
            constant("d", -2),
            node("Slice", "s a b i d"),
        ],
        [5, 8],
    ),
    "concat": ([SHAPE, constant("c", -1), node("Concat", "s c", axis=0)], ["N", 8, "H", 5, -1]),
    "scalar and back": (
        [
            SHAPE,
            scalar("i", 0),
            node("Gather", "s i", "n"),
            constant("z", 0),
            node("Unsqueeze", "n z", "v"),
            node("Squeeze", "v", "w"),
            constant("r", -1),
            node("Reshape", "w r"),
        ],
        ["N"],
    ),
    "cast": ([SHAPE, node("Cast", "s", "t", to=TensorProto.INT32), node("Cast", "t", to=INT64)], ["N", 8, "H", 5]),
    "cast through floats": (
        [
            SHAPE,
            node("Cast", "s", "f", to=FLOAT),
            scalar("h", 0.3, np.float32),
            node("Mul", "f h", "g"),
            node("Floor", "g", "d"),
            node("Cast", "d", to=INT64),
        ],
        [None, 2, None, 1],
    ),
    "add": ([SHAPE, constant("c", 0, 1, 2, 3), node("Add", "s c")], ["N", 9, None, 8]),
    "sub": ([SHAPE, constant("c", 0, 1, 2, 3), node("Sub", "c s")], [None, -7, None, -2]),
    "sub nothing": ([SHAPE, scalar("c", 0), node("Sub", "s c")], ["N", 8, "H", 5]),
    "mul": ([SHAPE, constant("c", 1, 2, 2, 1), node("Mul", "c s")], ["N", 16, None, 5]),
    "div towards zero": ([SHAPE, constant("c", 1, -3, 2, -2), node("Div", "s c")], ["N", -2, None, -2]),
    "div by an extent": ([SHAPE, scalar("c", 1), node("Div", "c s")], [None, 0, None, 0]),
    "mod": ([SHAPE, scalar("c", 3), node("Mod", "s c")], [None, 2, None, 2]),
    "min": ([SHAPE, scalar("c", 6), node("Min", "s c")], [None, 6, None, 5]),
    "abs": ([SHAPE, node("Abs", "s")], ["N", 8, "H", 5]),
    "neg": ([SHAPE, node("Neg", "s")], [None, -8, None, -5]),
    "product": ([SHAPE, constant("c", 8, 5), node("ReduceProd", "c", keepdims=0)], [40]),
    "product of unknown": ([SHAPE, node("ReduceProd", "s")], [None]),
    "expand with -1": (
        [
            SHAPE,
            constant("c", -1),
            constant("n", -1, 1, 1, 1),
            node("Mul", "n c", "m"),
            node("Equal", "s c", "e"),
            node("Where", "e n s"),
        ],
        ["N", 8, "H", 5],
    ),
    "where of unknown": ([SHAPE, scalar("c", 4), node("Less", "s c", "e"), node("Where", "e c s")], [None, 8, None, 5]),
    "filled": (
        [constant("c", 3), node("ConstantOfShape", "c", value=helper.make_tensor("v", INT64, [1], [7]))],
        [7, 7, 7],
    ),
    "pads as torch writes them": (
        [
            SHAPE,
            constant("r", -1, 2),
            node("Reshape", "s r", "p"),
            constant("a", -1),
            constant("b", -(2**62)),
            constant("z", 0),
            node("Slice", "p a b z a", "q"),
            node("Transpose", "q", "t", perm=[1, 0]),
            constant("u", -1),
            node("Reshape", "t u"),
        ],
        ["H", "N", 5, 8],
    ),
    "unknown values of known number": (
        [node("Cast", "k", "i", to=INT64), constant("c", 4), node("Concat", "i c", axis=0)],
        [None] * 6 + [4],
    ),
}


def model_of(nodes: Nodes) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "shapes",
        [
            helper.make_tensor_value_info("x", FLOAT, ["N", 8, "H", 5]),
            helper.make_tensor_value_info("k", FLOAT, [6]),
        ],
        [helper.make_tensor_value_info("y", INT64, None)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("name", CASES)
def test_what_is_known_is_what_is_computed(name: str) -> None:
    nodes, expected = CASES[name]
    model = model_of(nodes)
    found = Graph(model).entries["y"]
    inputs = {"x": np.ones((EXTENTS["N"], 8, EXTENTS["H"], 5), np.float32), "k": np.arange(6, dtype=np.float32)}
    computed = run(model, inputs)["y"]
    assert found.shape == computed.shape
    assert [entry.item() if isinstance(entry, np.generic) else entry for entry in found.ravel()] == expected
    for entry, value in zip(found.ravel(), computed.ravel(), strict=True):
        if isinstance(entry, np.generic):
            assert entry.dtype == value.dtype
            assert entry == value
        elif entry is not None:
            assert EXTENTS[entry] == value


@pytest.mark.parametrize(
    "nodes",
    [
        [SHAPE, scalar("c", 0), node("Div", "s c")],
        [SHAPE, scalar("c", 0), node("Mod", "s c")],
    ],
)
def test_division_by_zero_is_not_known(nodes: Nodes) -> None:
    assert list(Graph(model_of(nodes)).entries["y"]) == [None] * 4
