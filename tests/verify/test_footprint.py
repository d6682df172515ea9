from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphprune.verify import footprint
from graphprune.verify.footprint import compare_footprints
from graphprune.verify.timing import Setting

FEEDS = {"x": np.ones((1, 512), np.float32)}


def dense(width: int) -> onnx.ModelProto:
    """One product with a weight of [512, width]."""
    weight = np.random.default_rng(0).normal(size=(512, width)).astype(np.float32)
    return helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "dense",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 512])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, width])],
            [numpy_helper.from_array(weight, "w")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )


def test_memory_grows_with_the_weights_and_is_found_each_time_anew() -> None:
    small, large = dense(8).SerializeToString(), dense(8192).SerializeToString()
    for order in ((small, large), (large, small)):
        found = compare_footprints(order, (FEEDS, FEEDS), Setting())
        assert all(each.load_ms > 0 for each in found)
        memory = [each.memory_bytes for each in found]
        if sys.platform != "linux" or None in memory:
            return
        less, more = sorted(each or 0 for each in memory)
        assert memory[order.index(large)] == more
        assert 16e6 < more < 100e6, "a weight of 16.8 MB, and what is packed of it"
        assert less < 8e6


def test_where_the_system_does_not_tell_there_is_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "_malloc_trim", lambda: None)
    found, _ = compare_footprints((dense(8), dense(8)), (FEEDS, FEEDS), Setting(), budget_seconds=0.0)
    assert found.memory_bytes is None
    assert found.load_ms > 0
