"""Slices between convolutions become pooling that computes the same, bit for bit; others are left alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import parser

from graphprune.passes.lower import lower
from tests.oracles import run

END = 2**63 - 1
HEADER = '<ir_version: 8, opset_import: ["" : 17]> net (float[N, 3, 9, 11] x) => ('


def model(body: str, outputs: str = "float[N, C, H, W] y") -> onnx.ModelProto:
    found = parser.parse_model(f"{HEADER}{outputs}) {{ {body} }}")
    random = np.random.default_rng(0)
    weight = random.normal(size=(4, 3, 3, 3)).astype(np.float32)
    found.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    for name, values in {
        "zero": [0],
        "zeros": [0, 0],
        "one": [1],
        "end": [END],
        "ends": [END, END],
        "nine": [9],
        "two": [2],
        "twos": [2, 2],
        "three": [3],
        "minus": [-1],
        "first": [-END],
        "channels": [1],
        "rows": [2],
        "columns": [3],
        "both": [-2, -1],
    }.items():
        found.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, np.int64), name))
    onnx.checker.check_model(found)
    return found


def operators(proto: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in proto.graph.node)


def results(proto: onnx.ModelProto) -> list[npt.NDArray[np.generic]]:
    x = np.random.default_rng(1).normal(size=(2, 3, 9, 11)).astype(np.float32)
    return list(run(proto, {"x": x}).values())


LOWERED = {
    "rows": ("c = Conv <pads = [1,1,1,1]> (x, w) y = Slice (c, zero, end, rows, two)", [2, 1]),
    "rows, to their very end": ("c = Conv <pads = [1,1,1,1]> (x, w) y = Slice (c, zero, nine, rows, two)", [2, 1]),
    "both at once": (
        "c = Conv <pads = [1,1,1,1]> (x, w) r = Relu (c) s = Slice (r, zeros, ends, both, twos) y = Neg (s)",
        [2, 2],
    ),
    "one behind the other": (
        "c = Conv (x, w) s = Slice (c, zero, end, rows, two) y = Slice (s, zero, end, columns, three)",
        [2, 3],
    ),
    "the same axis twice": (
        "c = Conv (x, w) s = Slice (c, zero, end, rows, two) y = Slice (s, zero, end, rows, three)",
        [6, 1],
    ),
    "with one that does nothing": (
        "c = Conv (x, w) s = Slice (c, zero, end, channels, one) y = Slice (s, zero, end, columns, two)",
        [1, 2],
    ),
}


@pytest.mark.parametrize("case", list(LOWERED))
def test_steps_become_pooling_of_one_element(case: str) -> None:
    body, strides = LOWERED[case]
    before = model(body)
    after = lower(before)
    onnx.checker.check_model(after, full_check=True)
    assert operators(after)["Slice"] == 0
    (pool,) = [node for node in after.graph.node if node.op_type == "MaxPool"]
    assert onnx.helper.get_node_attr_value(pool, "strides") == strides
    for one, other in zip(results(before), results(after), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_else_reads_a_slice_still_can() -> None:
    before = model(
        "c = Conv (x, w) s = Slice (c, zero, end, rows, two) y = Slice (s, zero, end, columns, two) z = Neg (s)",
        "float[N, C, H, W] y, float[N, C, H, W] z",
    )
    after = lower(before)
    assert operators(after) == {"Conv": 1, "MaxPool": 2, "Neg": 1}
    for one, other in zip(results(before), results(after), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "body",
    [
        "y = Slice (x, zero, end, rows, two)",
        "c = Conv (x, w) y = Slice (c, one, end, rows, two)",
        "c = Conv (x, w) y = Slice (c, zero, three, rows, two)",
        "c = Conv (x, w) y = Slice (c, zero, end, channels, two)",
        "c = Conv (x, w) y = Slice (c, minus, first, rows, minus)",
        "c = Conv (x, w) y = Slice (c, zero, end, rows)",
        "c = Conv (x, w) d = Cast <to = 11> (c) e = Slice (d, zero, end, rows, two) y = Cast <to = 1> (e)",
        "c = Conv (x, w) n = Shape (c) k = Gather (n, one) s = Sub (k, two) y = Slice (c, zero, end, rows, s)",
    ],
)
def test_what_pooling_cannot_do_is_left_alone(body: str) -> None:
    before = model(body)
    wanted = operators(before)
    assert operators(lower(before)) == wanted


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("c = Conv (x, w) r = Relu (c) s = Relu (r) y = Neg (s)", 1),
        ("c = Conv (x, w) r = Relu (c) s = Relu (r) t = Relu (s) y = Add (s, t)", 1),
        ("c = Conv (x, w) r = Relu (c) y = Relu (r)", 2),
        ("c = Conv (x, w) r = Relu (c) s = Neg (r) y = Relu (s)", 2),
    ],
)
def test_a_relu_of_a_relu_is_the_first(body: str, left: int) -> None:
    before = model(body)
    after = lower(before)
    onnx.checker.check_model(after, full_check=True)
    assert operators(after)["Relu"] == left
    for one, other in zip(results(before), results(after), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_model_given_is_not_changed() -> None:
    before = model(LOWERED["rows"][0])
    text = before.SerializeToString(deterministic=True)
    lower(before)
    assert before.SerializeToString(deterministic=True) == text
