"""Products of uint8 and int8 at the ends of their ranges, where processors without VNNI cut sums off."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphprune.verify.saturation import WEIGHTS, unsaturated
from tests.oracles import run

ROWS, INNER, COLUMNS = 4, 24, 5
SCALE = 0.25
STEP = 2.0**12
"""Scale of quantised results: sums go up to 2 ** 20."""
Array = npt.NDArray[Any]


def numbers() -> tuple[Array, Array]:
    random = np.random.default_rng(0)
    x = random.choice(np.array([0, 250, 255], np.uint8), (ROWS, INNER))
    x[0, :2] = 0, 255  # dynamic quantisation then leaves all as they are
    return x, random.choice(np.array([-128, 120, 127], np.int8), (INNER, COLUMNS))


def model(op: str, zero: int | None) -> tuple[onnx.ModelProto, Array]:
    """Return a model of one product, and what it is fed."""
    x, weight = numbers()
    fed: Array = x.astype(np.float32) if "Dynamic" in op else x
    if "Conv" in op:
        fed, weight = fed[:, :, None, None], weight.T[:, :, None, None]
    stored = {"w": weight, "scale": np.float32(SCALE), "x_zero": np.uint8(0), "step": np.float32(STEP)}
    zeros = [] if zero is None else ["zero"]
    stored |= {"zero": np.int8(zero or 0), "middle": np.uint8(128)}
    one = ["x", "scale", "x_zero", "w", "scale", "zero"]
    inputs = {
        "QLinearConv": [*one, "step", "middle"],
        "QLinearMatMul": [*one, "step", "middle"],
        "com.microsoft.QGemm": one,
        "com.microsoft.DynamicQuantizeMatMul": ["x", "w", "scale", *zeros],
        "com.microsoft.MatMulIntegerToFloat": ["x", "w", "scale", "scale", "x_zero", *zeros],
    }.get(op, ["x", "w", "x_zero", *zeros])
    domain, _, kind = op.rpartition(".")
    node = helper.make_node(kind, inputs, ["y"], domain=domain)
    types = {"QLinearConv": TensorProto.UINT8, "QLinearMatMul": TensorProto.UINT8}
    integers = {"ConvInteger", "MatMulInteger"}
    result = types.get(op, TensorProto.INT32 if op in integers else TensorProto.FLOAT)
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(fed.dtype), fed.shape)],
        [helper.make_tensor_value_info("y", result, [ROWS, COLUMNS, *fed.shape[2:]])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items() if name in inputs],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8), fed


@pytest.mark.parametrize("optimised", [False, True])
@pytest.mark.parametrize("zero", [None, 0, 3])
@pytest.mark.parametrize("op", sorted(set(WEIGHTS) - {"com.microsoft.DynamicQuantizeLSTM"}))
def test_sums_are_exact(op: str, zero: int | None, optimised: bool) -> None:
    proto, fed = model(op, zero)
    x, weight = numbers()
    exact = x.astype(np.int64) @ (weight.astype(np.int64) - (zero or 0))
    assert np.abs(exact).max() > 2 * np.iinfo(np.int16).max, "nothing could saturate"
    changed = unsaturated(proto)
    onnx.checker.check_model(changed, full_check="microsoft" not in op)  # it knows nothing of those's shapes
    found = run(changed, {"x": fed}, optimised=optimised)["y"].reshape(ROWS, COLUMNS)
    if found.dtype == np.uint8:
        assert np.abs(found - np.clip(exact * SCALE * SCALE / STEP + 128, 0, 255)).max() <= 0.5
    else:
        scale = {"ConvInteger": 1, "MatMulInteger": 1, "com.microsoft.DynamicQuantizeMatMul": SCALE}.get(op, SCALE**2)
        np.testing.assert_array_equal(found, exact * scale)


def test_what_cannot_saturate_is_left_as_it_is() -> None:
    proto, _ = model("MatMulInteger", 0)
    assert unsaturated(proto) is not proto
    changed = unsaturated(proto)
    assert unsaturated(changed) is changed
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT8
    assert unsaturated(proto) is proto
