"""What changed weights do to the outputs, measured by running the model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graphprune.calib.pairs import Batch, Track
from graphprune.ir.graph import Graph
from graphprune.ir.tensors import array, replace_values
from graphprune.recovery.effects import SAMPLES, Effects, compared_outputs, squared_error, values_of
from tests.measure import editable, replaced
from tests.nets import Net
from tests.oracles import feeds, run


def network(last: str = "") -> onnx.ModelProto:
    net = Net()
    data = net.gemm(net.relu(net.gemm(net.input(["N", 6], "x"), 10)), 4)
    return net.build(net.node(last, [data]) if last else data)


def batches(model: onnx.ModelProto, count: int = 64, size: int = 8) -> list[Batch]:
    inputs = feeds(model, 1, count)
    return [{name: value[start : start + size] for name, value in inputs.items()} for start in range(0, count, size)]


def halve(model: onnx.ModelProto, name: str) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    replace_values(tensor, array(tensor) / 2)


def test_an_effect_is_the_outputs_error_over_their_variance_and_leaves_no_trace() -> None:
    model = network()
    original = model.SerializeToString(deterministic=True)
    effects = Effects(Track(model, batches(model), ()))
    found = effects.of(["w_1"], lambda: halve(model, "w_1"))
    inputs = feeds(model, 1, 64)
    arrays = editable(model)
    (expected,) = run(model, inputs).values()
    (got,) = run(replaced(model, w_1=arrays["w_1"] / 2), inputs).values()
    assert found == pytest.approx(np.square(expected - got).sum() / np.square(expected - expected.mean()).sum())
    assert found > 0
    assert model.SerializeToString(deterministic=True) == original
    assert effects.of([], lambda: None) == 0
    assert effects.of(["w_1", ""], lambda: halve(model, "w_1")) == found


def test_weights_are_put_back_after_an_error_too() -> None:
    model = network()
    original = model.SerializeToString(deterministic=True)
    effects = Effects(Track(model, batches(model), ()))

    def broken() -> None:
        halve(model, "w_0")
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        effects.of(["w_0"], broken)
    assert model.SerializeToString(deterministic=True) == original


@pytest.mark.parametrize("count", [8, 64, 512])
def test_it_is_measured_on_some_samples_from_all_over(count: int) -> None:
    model = network()
    effects = Effects(Track(model, batches(model, count), ()))
    used = 8 * len(effects.chosen)
    assert used == min(count, SAMPLES)
    assert max(effects.chosen) >= (count // 8) * 3 // 4


@pytest.mark.parametrize("last", ["Softmax", "Sigmoid", "LogSoftmax"])
def test_errors_are_measured_in_front_of_what_squashes(last: str) -> None:
    model = network(last)
    assert compared_outputs(Graph(model)) == ["gemm_1"]
    plain = network()
    squashed, logits = (
        Effects(Track(proto, batches(proto), ())).of(["w_0"], lambda proto=proto: halve(proto, "w_0"))
        for proto in (model, plain)
    )
    assert squashed == pytest.approx(logits)


def test_other_outputs_are_compared_as_they_are() -> None:
    assert compared_outputs(Graph(network("Tanh"))) == ["tanh_0"]
    net = Net()
    data = net.input(["N", 4])
    model = net.build(data, net.relu(data))
    assert compared_outputs(Graph(model)) == ["x_0", "relu_0"]


def test_values_come_from_all_batches() -> None:
    model = network()
    own = batches(model)
    found, given = values_of(Track(model, own, ()), ["gemm_1", "x"], own)
    np.testing.assert_allclose(found, run(model, feeds(model, 1, 64))["gemm_1"].ravel(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(given, np.concatenate([batch["x"] for batch in own]).ravel())


def test_the_squared_error() -> None:
    one, other = np.array([1.0, 3.0]), np.array([2.0, 3.0])
    assert squared_error([one], [one]) == 0
    assert squared_error([one], [other]) == pytest.approx(0.5)
    assert squared_error([one, 10 * one], [other, 10 * one]) == pytest.approx(0.25)
    assert squared_error([np.ones(3)], [np.zeros(3)]) == 0  # constant: there is nothing to lose
    assert squared_error([np.array([np.nan, 1.0])], [other]) == 0  # the original is no measure
    assert squared_error([one], [np.array([np.inf, 3.0])]) == np.inf
    assert squared_error([], []) == 0
