"""Zeros: the fewest, the smallest, never in biases, and an honest word when they are not enough."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphprune.errors import TargetError
from graphprune.ir.cost import count_nonzero, count_weights
from graphprune.passes import sparsify
from tests.measure import editable
from tests.nets import Net
from tests.oracles import coupled

Array = npt.NDArray[Any]


def chain(*weights: Array, bias: float = 0.5) -> onnx.ModelProto:
    """Matrix products in a row, each with a bias of the same small value throughout."""
    nodes, tensors, data = [], [], "x"
    for place, weight in enumerate(weights):
        tensors += [numpy_helper.from_array(weight, f"w{place}")]
        tensors += [numpy_helper.from_array(np.full(weight.shape[1], bias, weight.dtype), f"b{place}")]
        nodes += [helper.make_node("Gemm", [data, f"w{place}", f"b{place}"], [f"y{place}"])]
        data = f"y{place}"
    kind = helper.np_dtype_to_tensor_dtype(weights[0].dtype)
    value = helper.make_tensor_value_info
    inputs = [value("x", kind, ["N", weights[0].shape[0]])]
    graph = helper.make_graph(nodes, "chain", inputs, [value(data, kind, None)], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def names(model: onnx.ModelProto) -> list[str]:
    coupling = coupled(model)
    return sparsify.zeroable(coupling.graph, coupling.contractions)


def sparsified(
    model: onnx.ModelProto, target: float, before: int | None = None
) -> tuple[onnx.ModelProto, sparsify.Zeros]:
    """Plan and apply on a copy."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    total = count_weights(model) if before is None else before
    zeros = sparsify.plan(result, names(model), weights_before=total, target=target)
    assert result == model, "planning changed the model"
    sparsify.apply(result, zeros)
    return result, zeros


def flat(model: onnx.ModelProto, which: list[str]) -> Array:
    arrays = editable(model)
    return np.concatenate([arrays[name].astype(np.float64).ravel() for name in which])


@pytest.mark.parametrize("weights", [1, 2, 3, 7, 10, 64, 431_080, 2**31])
@pytest.mark.parametrize("target", [0.0, 1e-9, 0.1, 0.3, 1 / 3, 0.5, 0.7, 0.9, 0.99, 1 - 2**-53])
def test_allowed_is_the_most_that_satisfies_the_definition(weights: int, target: float) -> None:
    allowed = sparsify.allowed_nonzero(weights, target)
    assert 1 - allowed / weights >= target
    assert allowed == weights or not 1 - (allowed + 1) / weights >= target


@given(weights=st.integers(1, 10**7), target=st.floats(0, 1, exclude_max=True))
def test_allowed_for_any_target(weights: int, target: float) -> None:
    allowed = sparsify.allowed_nonzero(weights, target)
    assert 1 - allowed / weights >= target
    assert allowed == weights or not 1 - (allowed + 1) / weights >= target


@given(weights=st.integers(1, 10**6), share=st.floats(0, 1, exclude_max=True))
def test_a_target_that_is_itself_a_sparsity_needs_exactly_that(weights: int, share: float) -> None:
    nonzero = max(1, int(share * weights))
    assert sparsify.allowed_nonzero(weights, 1 - nonzero / weights) == nonzero


MAGNITUDES = st.lists(st.sampled_from([0.0, -0.0, 0.1, -0.1, 0.25, -0.5, 1.0, 3.0, 1e-30]), min_size=1, max_size=60)


@settings(max_examples=300)
@given(
    first=MAGNITUDES,
    second=MAGNITUDES,
    target=st.one_of(st.floats(0, 0.999), st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.9])),
    extra=st.integers(0, 40),
    kind=st.sampled_from([np.float32, np.float16, np.float64]),
)
@example(first=[1e-30] * 3, second=[1e-30] * 3, target=0.1, extra=0, kind=np.float16)  # 0 in half precision
@example(first=[1e-300] * 3, second=[1e-200] * 3, target=0.1, extra=0, kind=np.float64)  # 0 in single precision
def test_the_fewest_and_smallest_zeros_that_reach_the_target(
    first: list[float], second: list[float], target: float, extra: int, kind: type[np.floating[Any]]
) -> None:
    left = np.array(first, kind).reshape(-1, 1)
    right = np.array(second, kind).reshape(1, -1)
    if left.shape[0] == 1:
        left = np.vstack([left, left])
    model = chain(left, right)
    before = count_weights(model) + extra  # some weights may have been removed already
    which = ["w0", "w1"]
    weights = flat(model, which)
    nonzero, biases = int((weights != 0).sum()), 1 + right.shape[1]
    assert count_nonzero(model) == nonzero + biases
    needed = next((n for n in range(nonzero + 1) if 1 - (nonzero - n + biases) / before >= target), None)
    if needed is None:
        with pytest.raises(TargetError) as caught:
            sparsified(model, target, before)
        assert caught.value.reachable == 1 - biases / before
        assert caught.value.reachable < target
        all_zero, _ = sparsified(model, max(caught.value.reachable, 0.0), before)
        assert not flat(all_zero, which).any()
        return
    result, zeros = sparsified(model, target, before)
    after = flat(result, which)
    changed = after != weights
    assert int(changed.sum()) == needed == sum(len(indices) for indices in zeros.values())
    assert not after[changed].any()
    kept = np.abs(after[after != 0])
    if needed and len(kept):
        assert np.abs(weights[changed]).max() <= kept.min(), "a smaller weight stayed"
    for name in ("b0", "b1"):
        assert (editable(result)[name] == 0.5).all()
    assert count_nonzero(result) == nonzero - needed + biases


def test_the_order_is_global_over_all_tensors() -> None:
    small, large = np.full((4, 4), 0.01, np.float32), np.full((4, 4), 1.0, np.float32)
    result, zeros = sparsified(chain(large, small), 16 / 40)
    assert list(zeros) == ["w1"]
    assert (editable(result)["w0"] == 1).all()
    assert (editable(result)["w1"] == 0).all()


def test_zero_magnitudes_first_then_the_smallest_on_random_weights() -> None:
    random = np.random.default_rng(0)
    model = chain(random.normal(size=(30, 40)).astype(np.float32), random.normal(size=(40, 7)).astype(np.float32))
    result, _ = sparsified(model, 0.7)
    before, after = flat(model, ["w0", "w1"]), flat(result, ["w0", "w1"])
    total, biases = 30 * 40 + 40 * 7 + 47, 47
    left = int(0.3 * total) - biases
    assert 1 - (left + biases) / total >= 0.7 > 1 - (left + 1 + biases) / total
    order = np.argsort(np.abs(before))
    expected = before.copy()
    expected[order[: len(before) - left]] = 0
    assert after.tolist() == expected.tolist()


def test_biases_and_norm_parameters_are_never_zeroed() -> None:
    net = Net()
    data = net.block(net.input(["N", 3, 6, 6]), 5)
    slope = net.initializer(np.full((5, 1, 1), 1e-6), "slope")
    data = net.node("PRelu", [net.depthwise(data), slope])
    scale = net.initializer(np.full((1, 5, 1, 1), 1e-6), "scale_all")
    data = net.flatten(net.global_pool(net.add(data, scale, op="Mul")))
    model = net.build(net.linear(net.gemm(data, 4), 3))
    assert sorted(names(model)) == ["w_0", "w_1", "w_2", "w_3"]
    with pytest.raises(TargetError) as caught:
        sparsified(model, 0.99)
    result, zeros = sparsified(model, caught.value.reachable)
    arrays = editable(result)
    weights = {"w_0", "w_1", "w_2", "w_3"}
    assert set(zeros) == weights
    for name, value in editable(model).items():
        if name in weights:
            assert not arrays[name].any()
        else:
            assert arrays[name].tobytes() == value.tobytes(), name
    assert caught.value.reachable == 1 - count_nonzero(result) / count_weights(model)


def test_a_weight_behind_a_transpose_is_found_and_a_vector_is_not() -> None:
    net = Net()
    data = net.input(["N", 6])
    turned = net.transpose(net.weight([4, 6]), [1, 0])
    hidden = net.node("MatMul", [data, turned], ["N", 4])
    lone = net.node("MatMul", [hidden, net.vector(4, "lone")], ["N"])
    assert names(net.build(lone)) == ["w_0"]


def test_of_a_computed_weight_the_matrix_is_zeroed_and_not_its_scales() -> None:
    net = Net()
    scaled = net.add(net.weight([6, 4]), net.vector(4, "scales"), op="Mul")
    assert names(net.build(net.node("MatMul", [net.input(["N", 6]), scaled], ["N", 4]))) == ["w_0"]


def test_a_weight_that_two_nodes_share_is_zeroed_once() -> None:
    net = Net()
    shared = net.weight([4, 4])
    hidden = net.relu(net.node("MatMul", [net.input(["N", 4]), shared], ["N", 4]))
    model = net.build(net.node("MatMul", [hidden, shared], ["N", 4]))
    assert names(model) == ["w_0"]
    result, zeros = sparsified(model, 0.5)
    assert len(zeros["w_0"]) == 8
    assert int((editable(result)["w_0"] == 0).sum()) == 8


@pytest.mark.parametrize("target", [0.0, 0.25])
def test_a_target_that_holds_already_needs_no_zeros(target: float) -> None:
    weight = np.ones((4, 6), np.float32)
    weight[:, :2] = 0
    model = chain(weight)
    assert count_nonzero(model) / count_weights(model) <= 0.75
    result, zeros = sparsified(model, target)
    assert zeros == {}
    assert result == model


def test_zeros_that_are_there_already_count() -> None:
    weight = np.arange(1, 21, dtype=np.float32).reshape(4, 5)
    weight[0, :3] = 0
    _, zeros = sparsified(chain(weight), 0.4)  # 25 weights: 10 have to be zero, 3 are
    assert zeros["w0"].tolist() == [3, 4, 5, 6, 7, 8, 9]


def test_the_message_names_a_target_that_really_is_reachable() -> None:
    random = np.random.default_rng(1)
    model = chain(random.normal(size=(5, 3)).astype(np.float32))
    with pytest.raises(TargetError, match=r"--target 0\.8333") as caught:
        sparsified(model, 0.9)
    assert caught.value.exit_code == 1
    assert "biases" in str(caught.value)
    result, _ = sparsified(model, 0.8333)
    assert 1 - count_nonzero(result) / 18 >= 0.8333


def test_bfloat16_is_zeroed_by_its_own_values() -> None:
    values = np.linspace(1, 2, 12, dtype=np.float32).reshape(4, 3)
    model = chain(values)
    for tensor in model.graph.initializer:
        rounded = helper.make_tensor(tensor.name, TensorProto.BFLOAT16, tensor.dims, numpy_helper.to_array(tensor))
        tensor.CopyFrom(rounded)
    zeros = sparsify.plan(model, ["w0"], weights_before=15, target=0.4)
    assert zeros["w0"].tolist() == [0, 1, 2, 3, 4, 5]
    sparsify.apply(model, zeros)
    assert count_nonzero(model) == 9
    (tensor,) = (t for t in model.graph.initializer if t.name == "w0")
    assert tensor.data_type == TensorProto.BFLOAT16


@given(seed=st.integers(0, 2**16), target=st.floats(0.05, 0.95))
def test_the_same_plan_twice(seed: int, target: float) -> None:
    weight = np.random.default_rng(seed).integers(-3, 4, (8, 9)).astype(np.float32)
    model = chain(weight)
    assume((weight != 0).any())
    try:
        first, _ = sparsified(model, target)
    except TargetError:
        return
    second, _ = sparsified(model, target)
    assert first.SerializeToString() == second.SerializeToString()
    # Sparsifying the result to the same target finds nothing to do.
    assert sparsify.plan(first, ["w0"], weights_before=count_weights(model), target=target) == {}


def test_a_model_without_weights_reaches_only_zero() -> None:
    net = Net()
    model = net.build(net.relu(net.input(["N", 3])))
    assert sparsified(model, 0.0) == (model, {})
    with pytest.raises(TargetError) as caught:
        sparsified(model, 0.5)
    assert caught.value.reachable == 0.0


def weight_normalised(length: str) -> onnx.ModelProto:
    """A convolution whose weight is g * v / |v|, as torch's weight_norm exports it."""
    net = Net(13)
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 6))
    direction = net.weight([5, 6, 1, 1], "v")
    norm = net.reduce(direction, [1, 2, 3], "ReduceL2")
    scaled = net.add(net.initializer(np.full((5, 1, 1, 1), 0.01), length), direction, op="Mul")
    weight = net.add(scaled, norm, op="Div")
    return net.build(net.conv(net.relu(net.conv(data, 5, 1, weight=weight)), 2))


def test_neither_length_nor_direction_of_weight_normalisation_is_zeroed() -> None:
    assert names(weight_normalised("g")) == ["w_0", "w_1"]


def test_a_divisor_is_never_zeroed() -> None:
    net = Net(13)
    weight = net.add(net.weight([6, 4]), net.initializer(np.full((6, 4), 0.5), "divisor"), op="Div")
    assert names(net.build(net.node("MatMul", [net.input(["N", 6]), weight], ["N", 4]))) == ["w_0"]


def test_a_weight_that_is_an_output_too_is_not_zeroed() -> None:
    net = Net(13)
    made = net.gemm(net.relu(net.gemm(net.input(["N", 6]), 4)), 3)
    model = net.build(made)
    model.graph.output.append(onnx.helper.make_tensor_value_info("w_0", onnx.TensorProto.FLOAT, [4, 6]))
    assert names(model) == ["w_1"]
