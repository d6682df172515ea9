from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphprune.errors import ModelError
from graphprune.ir import tensors
from graphprune.ir.model import fingerprint, save
from graphprune.ir.session import open_session, run_session
from graphprune.verify.latency import MIN_BLOCKS, compare_latency, measure
from graphprune.verify.sequential import STAGES


def matmul(width: int) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((64, width), np.float32), "w")
    return helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "matmul",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", width])],
            [weight],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )


FEEDS = {"x": np.ones((2, 64), np.float32)}


def test_a_model_given_as_file_bytes_or_message_is_timed(tmp_path: Path) -> None:
    model = matmul(4)
    save(model, tmp_path / "model.onnx")
    for before, after in ((tmp_path / "model.onnx", str(tmp_path / "model.onnx")), (model, model.SerializeToString())):
        found = compare_latency(before, after, FEEDS, threads=1, runs=12)
        assert found.threads == 1
        assert 12 <= found.runs <= 12 * sum(STAGES)
        assert found.before_ms > 0 < found.after_ms
        assert found.ratio_ci[0] <= found.ratio <= found.ratio_ci[1]
        assert found.verdict in ("faster", "slower", "same")
    assert gc.isenabled()


def test_runs_are_what_was_made() -> None:
    assert measure(matmul(4), matmul(4), FEEDS, runs=25).runs == 26
    assert 10 <= compare_latency(matmul(4), matmul(4), FEEDS, runs=2).runs <= 16
    spent = measure(matmul(4), matmul(4), FEEDS, runs=1000, budget_seconds=0.0)
    assert spent.runs == 2 * MIN_BLOCKS
    assert len(set(spent.pair)) == 1


def test_sessions_are_opened_anew_where_that_is_cheap() -> None:
    timings = measure(matmul(4), matmul(4), FEEDS, runs=50, budget_seconds=60.0)
    assert timings.milliseconds.shape == (25, 4)
    assert np.bincount(timings.pair).tolist() == [3] * 5 + [2] * 5


def test_a_model_that_cannot_be_loaded_or_run_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"broken\.onnx"):
        compare_latency(broken, broken, FEEDS)
    with pytest.raises(ModelError, match=r"missing\.onnx"):
        open_session(tmp_path / "missing.onnx")
    with pytest.raises(ModelError, match=r"matmul, inputs x \[2, 63\]"):
        compare_latency(matmul(4), matmul(4), {"x": np.ones((2, 63), np.float32)})
    with pytest.raises(ModelError, match="x"):
        run_session(open_session(matmul(4)), {}, where="the model")
    unknown = matmul(4)
    unknown.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ModelError, match="NoSuchOperator"):
        open_session(unknown)


def test_a_model_over_the_limit_of_protobuf_goes_through_a_data_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert tensors.stored_bytes(matmul(4)) == 1024
    assert not tensors.is_large(matmul(4))
    monkeypatch.setattr(tensors, "PROTOBUF_LIMIT", tensors.REST + 1000)
    assert tensors.is_large(matmul(4))
    (result,) = run_session(open_session(matmul(4)), FEEDS, ["y"])
    np.testing.assert_array_equal(result, np.full((2, 4), 64, np.float32))
    save(matmul(4), tmp_path / "large.onnx")
    assert (tmp_path / "large.onnx.data").stat().st_size == 1024
    assert fingerprint(matmul(4)) == (None, 1024)
