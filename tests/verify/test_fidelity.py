from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphprune.errors import ModelError
from graphprune.verify.fidelity import compare_outputs, relative_error


def linear(*weights: np.ndarray, names: Sequence[str] = ("y", "z"), tail: Sequence[int] = ()) -> onnx.ModelProto:
    """One output x @ w (reshaped to [N, K, *tail]) for each weight."""
    nodes, tensors, outputs = [], [], []
    for name, weight in zip(names, weights, strict=False):
        shape = [-1, weight.shape[1], *tail]
        tensors.append(numpy_helper.from_array(weight.astype(np.float32), f"w_{name}"))
        tensors.append(numpy_helper.from_array(np.array(shape), f"s_{name}"))
        nodes.append(helper.make_node("MatMul", ["x", f"w_{name}"], [f"p_{name}"]))
        nodes.append(helper.make_node("Reshape", [f"p_{name}", f"s_{name}"], [name]))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    features = weights[0].shape[0]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", features])]
    return helper.make_model(
        helper.make_graph(nodes, "linear", inputs, outputs, tensors),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )


RNG = np.random.default_rng(0)
X = RNG.standard_normal((11, 6)).astype(np.float32)
W, V = RNG.standard_normal((6, 4)), RNG.standard_normal((6, 3))
DW = W + 0.8 * RNG.standard_normal((6, 4))
BATCHES = [{"x": X[:4]}, {"x": X[4:8]}, {"x": X[8:]}]


def test_figures_over_batches_equal_those_of_one_batch_in_numpy() -> None:
    found = compare_outputs(linear(W, V), linear(DW, V), BATCHES)
    a, b = X.astype(np.float64) @ W, X.astype(np.float64) @ DW
    y, z = found.outputs
    assert (found.batches, y.name, z.name, found.nonfinite) == (3, "y", "z", 0)
    assert y.relative_l2 == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), rel=1e-5)
    assert y.max_abs == pytest.approx(np.abs(a - b).max(), rel=1e-5)
    assert y.cosine == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-5)
    agreement = np.mean(a.argmax(1) == b.argmax(1))
    assert 0 < agreement < 1
    assert y.top1_agreement == pytest.approx(agreement)
    assert (z.relative_l2, z.max_abs, z.top1_agreement) == (0.0, 0.0, 1.0)
    assert z.cosine == pytest.approx(1.0)
    whole = np.linalg.norm(np.hstack([a, X @ V]))
    assert found.relative_l2 == pytest.approx(np.linalg.norm(a - b) / whole, rel=1e-5)
    assert found.top1_agreement == pytest.approx((agreement + 1) / 2)


@pytest.mark.parametrize(("weight", "tail", "classes"), [(W, [1, 1], True), (W[:, :1], [], False)])
def test_what_counts_as_classes(weight: np.ndarray, tail: list[int], classes: bool) -> None:
    found = compare_outputs(linear(weight, tail=tail), linear(weight, tail=tail), BATCHES)
    assert found.top1_agreement == (1.0 if classes else None)


def test_a_reconstruction_of_the_input_holds_no_classes() -> None:
    square = RNG.standard_normal((6, 6))
    assert compare_outputs(linear(square), linear(square), BATCHES).top1_agreement is None


def test_nan_in_the_pruned_outputs_is_counted() -> None:
    broken = W.copy()
    broken[0, 2] = np.nan
    found = compare_outputs(linear(W), linear(broken), BATCHES)
    assert found.nonfinite == 11
    assert found.top1_agreement == 0.0
    assert found.relative_l2 == 0.0
    assert compare_outputs(linear(broken), linear(broken), BATCHES).nonfinite == 0


def test_zero_outputs() -> None:
    zero = compare_outputs(linear(0 * W), linear(0 * W), BATCHES)
    assert (zero.relative_l2, zero.outputs[0].cosine) == (0.0, 1.0)
    lost = compare_outputs(linear(W), linear(0 * W), BATCHES)
    assert (lost.relative_l2, lost.outputs[0].cosine) == (1.0, 0.0)
    assert compare_outputs(linear(0 * W), linear(W), BATCHES).relative_l2 == math.inf


def test_other_names_types_or_shapes_are_refused() -> None:
    with pytest.raises(ModelError, match="names") as caught:
        compare_outputs(linear(W), linear(W, names=("other",)), BATCHES)
    assert "'y'" in str(caught.value)
    assert "'other'" in str(caught.value)
    with pytest.raises(ModelError, match="shape") as caught:
        compare_outputs(linear(W), linear(W[:, :2]), BATCHES)
    assert all(text in str(caught.value) for text in ("'y'", "[4, 4]", "[4, 2]"))


def test_text_outputs_cannot_be_compared() -> None:
    value = helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", ["t"], ["u"])],
            "text",
            [value("t", TensorProto.STRING, ["N"])],
            [value("u", TensorProto.STRING, ["N"])],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    with pytest.raises(ModelError, match="'u'"):
        compare_outputs(model, model, [{"t": np.array(["a"])}])


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_relative_error_is_free_of_scale(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, 5, 7))
    error, scaled = relative_error(a, b), relative_error(scale * a, scale * b)
    assert error.max_abs == np.abs(a - b).max()
    assert error.max_rel == pytest.approx(np.abs(a - b).max() / np.abs(a).max())
    assert error.relative_l2 == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a))
    assert scaled[1:] == pytest.approx(error[1:])


def test_relative_error_at_the_edges() -> None:
    nan, inf = math.nan, math.inf
    assert relative_error([0.0, 0.0], [0.0, 0.0]) == (0, 0, 0)
    assert relative_error([0.0], [1.0]) == (1, inf, inf)
    assert relative_error([], []) == (0, 0, 0)
    assert relative_error([nan, inf, 1.0], [nan, inf, 1.0]) == (0, 0, 0)
    assert relative_error([1.0, 1.0], [1.0, nan]) == (inf, inf, inf)
    assert relative_error([inf], [-inf]) == (inf, inf, inf)
    assert relative_error(np.array([7], np.int64), np.array([9], np.int64)).max_abs == 2
    with pytest.raises(ModelError, match=r"\[2\].*\[3\]"):
        relative_error(np.ones(2), np.ones(3))
