"""The Taylor criterion, against finite differences of the loss in float64, computed without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

torch = pytest.importorskip("torch")

from graphprune.errors import CalibrationError, ModelError, UnsupportedOperatorError  # noqa: E402
from graphprune.finetune.taylor import taylor  # noqa: E402
from tests.bodies import in_branches  # noqa: E402
from tests.measure import editable, replaced  # noqa: E402
from tests.nets import Net  # noqa: E402
from tests.oracles import coupled, feeds, run, units_on  # noqa: E402

Array = npt.NDArray[Any]
Loss = Callable[[list[Array]], float]
Reads = Mapping[str, Callable[[int], Any]]
"""By weight the entries that read a unit, as an index."""

STEP = 1e-4


def cross_entropy(outputs: list[Array]) -> float:
    """Of logits, towards their largest."""
    (logits,) = outputs
    rows = logits.reshape(len(logits), -1)
    return float(np.mean(np.log(np.exp(rows).sum(axis=1)) - rows.max(axis=1)))


def energy(outputs: list[Array]) -> float:
    return 0.5 * float(np.mean(outputs[0] ** 2))


def importance(model: onnx.ModelProto, batches: list[dict[str, Array]], reads: Reads, loss: Loss, count: int) -> Array:
    """Square of the slope of the loss by a factor on all weights that read a unit, a mean over the batches."""

    def losses(unit: int, factor: float) -> Array:
        arrays = editable(model)
        for name, entries in reads.items():
            arrays[name][entries(unit)] *= factor
        session = ReferenceEvaluator(replaced(model, **{name: arrays[name] for name in reads}))
        return np.array([loss(session.run(None, batch)) for batch in batches])

    slopes = [(losses(unit, 1 + STEP) - losses(unit, 1 - STEP)) / (2 * STEP) for unit in range(count)]
    return np.mean(np.square(slopes), axis=1)


def batches_for(model: onnx.ModelProto) -> list[dict[str, Array]]:
    return [feeds(model, seed, batch=4) for seed in (1, 2, 3)]


def assert_slopes(
    model: onnx.ModelProto, made_by: str, reads: Reads, loss: Loss = cross_entropy, axis: int = 0
) -> None:
    """Demand that the units along an axis of a weight are scored by finite differences."""
    coupling, batches = coupled(model), batches_for(model)
    units = units_on(coupling, made_by, axis)
    expected = importance(model, batches, reads, loss, len(units))
    assert expected.min() > 0
    np.testing.assert_allclose(taylor(coupling, batches)[units], -expected, rtol=1e-5)


def double() -> Net:
    return Net(kind=TensorProto.DOUBLE)


def column(unit: int) -> tuple[slice, int]:
    return slice(None), unit


def test_hidden_units_of_a_perceptron() -> None:
    net = double()
    model = net.build(net.gemm(net.relu(net.gemm(net.input(["N", 4]), 5)), 3, alpha=0.5))
    assert_slopes(model, "w_0", {"w_1": column})


def test_channels_of_a_residual_stage_are_read_in_several_places() -> None:
    net = double()
    stem = net.relu(net.conv(net.input(["N", 2, 5, 5]), 4, 3))
    inner = net.relu(net.conv(stem, 3, 3))
    joined = net.relu(net.add(stem, net.conv(inner, 4, 3)))
    model = net.build(net.global_pool(net.conv(joined, 3, 3)))  # classes [N, 3, 1, 1]
    assert_slopes(model, "w_0", {"w_1": column, "w_3": column})
    assert_slopes(model, "w_1", {"w_2": column})


def test_a_grouped_convolution_reads_a_channel_by_the_filters_of_its_group() -> None:
    net = double()
    maps = net.node("Sigmoid", [net.conv(net.input(["N", 2, 4, 4]), 6, 1)])
    grouped = net.relu(net.conv(maps, 4, 3, group=2))
    model = net.build(net.gemm(net.flatten(net.global_pool(grouped)), 3))
    rows = {"w_1": lambda c: (slice(2 * (c // 3), 2 * (c // 3) + 2), c % 3)}
    assert_slopes(model, "w_0", rows)


def test_a_depthwise_convolution_is_on_the_way_and_does_not_consume() -> None:
    net = double()
    wide = net.relu(net.conv(net.input(["N", 2, 4, 4]), 5, 1))
    model = net.build(net.global_pool(net.conv(net.relu(net.depthwise(wide)), 3)))
    assert_slopes(model, "w_0", {"w_2": column})


def test_channels_that_are_flattened_are_read_by_a_block_of_columns() -> None:
    net = double()
    maps = net.relu(net.conv(net.input(["N", 2, 3, 3]), 4, 3))
    model = net.build(net.gemm(net.flatten(maps), 3))
    assert_slopes(model, "w_0", {"w_1": lambda c: (slice(None), slice(9 * c, 9 * c + 9))})


def test_a_transposed_convolution_reads_a_channel_by_a_row() -> None:
    net = double()
    maps = net.relu(net.conv(net.input(["N", 2, 3, 3]), 4, 3))
    weight = net.weight([4, 2, 2, 2])
    made = net.node("ConvTranspose", [maps, weight], ["N", 2, 6, 6], strides=[2, 2])
    model = net.build(net.relu(made))
    assert_slopes(model, "w_0", {weight: lambda c: c}, energy)


def test_an_output_without_classes_is_taken_by_its_energy() -> None:
    net = double()
    model = net.build(net.linear(net.relu(net.linear(net.input(["N", 2, 4]), 5)), 3))
    assert_slopes(model, "w_0", {"w_1": lambda unit: unit}, energy, axis=1)


def test_a_reconstruction_of_the_input_holds_no_classes() -> None:
    net = double()
    model = net.build(net.gemm(net.relu(net.gemm(net.input(["N", 4]), 5)), 4))
    assert_slopes(model, "w_0", {"w_1": column}, energy)


def test_the_losses_of_several_outputs_are_added() -> None:
    net = double()
    hidden = net.relu(net.gemm(net.input(["N", 4]), 5))
    model = net.build(net.gemm(hidden, 3), net.gemm(hidden, 1))

    def both(outputs: list[Array]) -> float:
        return cross_entropy(outputs[:1]) + energy(outputs[1:])

    assert_slopes(model, "w_0", {"w_1": column, "w_2": column}, both)


def test_probabilities_are_taken_as_such() -> None:
    scores = []
    for last in ("", "Softmax", "LogSoftmax"):
        net = double()
        logits = net.gemm(net.relu(net.gemm(net.input(["N", 4]), 5)), 3)
        model = net.build(net.node(last, [logits], axis=1) if last else logits)
        scores.append(taylor(coupled(model), batches_for(model)))
    assert (scores[0] < 0).all()
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-9)
    np.testing.assert_allclose(scores[2], scores[0], rtol=1e-9)


def test_of_a_weight_used_twice_the_use_that_consumes_counts() -> None:
    net = double()
    data = net.input(["N", 4])
    weight = net.weight([5, 4])
    hidden = net.relu(net.node("Gemm", [data, weight], ["N", 5], transB=1))
    back = net.relu(net.node("Gemm", [hidden, weight], ["N", 4]))
    tied = net.build(net.gemm(back, 3))
    net = double()
    data = net.input(["N", 4])
    apart = [net.weight([5, 4]), net.weight([5, 4])]
    hidden = net.relu(net.node("Gemm", [data, apart[0]], ["N", 5], transB=1))
    back = net.relu(net.node("Gemm", [hidden, apart[1]], ["N", 4]))
    untied = net.build(net.gemm(back, 3))
    arrays = editable(tied)
    untied = replaced(untied, w_0=arrays["w_0"], w_1=arrays["w_0"], w_2=arrays["w_1"], b_0=arrays["b_0"])
    coupling = coupled(tied)
    batches = batches_for(tied)
    expected = importance(untied, batches, {"w_1": lambda unit: unit}, cross_entropy, 5)
    found = taylor(coupling, batches)[units_on(coupling, "w_0", 0)]
    np.testing.assert_allclose(found, -expected, rtol=1e-5)


def test_dimensions_of_queries_and_keys_meet_each_other() -> None:
    net = double()
    data = net.input(["N", 3, 4])
    query, key = net.linear(data, 5, bias=False), net.linear(data, 5, bias=False)
    met = net.node("MatMul", [query, net.transpose(key, [0, 2, 1])], ["N", 3, 3])
    model = net.build(net.node("Tanh", [met]))
    assert_slopes(model, "w_0", {"w_1": column}, energy, axis=1)


def test_batches_count_the_same_and_their_squares_are_averaged() -> None:
    net = double()
    model = net.build(net.gemm(net.relu(net.gemm(net.input(["N", 4]), 5)), 3))
    coupling, batches = coupled(model), batches_for(model)
    one_by_one = [taylor(coupling, [batch]) for batch in batches]
    np.testing.assert_allclose(taylor(coupling, batches), np.mean(one_by_one, axis=0), rtol=1e-12)
    np.testing.assert_array_equal(taylor(coupling, iter(batches)), taylor(coupling, batches))


def test_units_that_no_float_output_depends_on_have_no_score() -> None:
    net = Net()
    hidden = net.relu(net.gemm(net.input(["N", 4]), 5))
    chosen = net.node("ArgMax", [net.gemm(hidden, 3)], ["N", 1], kind=TensorProto.INT64, axis=1)
    alone = net.build(chosen)
    assert np.isnan(taylor(coupled(alone), batches_for(alone))).all()
    seen = net.relu(net.gemm("x_0", 6))
    both = net.build(chosen, net.gemm(seen, 3))
    coupling = coupled(both)
    scores = taylor(coupling, batches_for(both))
    assert np.isnan(scores[units_on(coupling, "w_0", 0)]).all()
    assert (scores[units_on(coupling, "w_2", 0)] <= 0).all()


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_other_precisions_give_nearly_the_same(kind: int) -> None:
    scores = []
    for precision in (TensorProto.DOUBLE, kind):
        net = Net(kind=precision)
        model = net.build(net.gemm(net.relu(net.gemm(net.input(["N", 4]), 5)), 3))
        scores.append(taylor(coupled(model), batches_for(model)))
    np.testing.assert_allclose(scores[1], scores[0], rtol=0.1 if kind == TensorProto.FLOAT16 else 1e-4)


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(net: Net, op: str, data: str, width: int, **attributes: Any) -> str:
    """Add a recurrent layer with a bias: [steps, N, width]."""
    steps, batch, inputs = net.shapes[data]
    rows = GATES[op] * width
    names = [net.weight([1, rows, int(inputs)], fan_in=4), net.weight([1, rows, width], fan_in=8)]
    bias = net.initializer(net.random.uniform(-0.5, 0.5, (1, 2 * rows)), net.name("b"))
    made = net.node(op, [data, *names, bias], [steps, 1, batch, width], hidden_size=width, **attributes)
    return net.squeeze(made, [1])


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("linear_before_reset", [0, 1])
def test_hidden_units_of_a_recurrent_layer_are_read_by_themselves_and_by_the_next(
    op: str, linear_before_reset: int
) -> None:
    options = {"linear_before_reset": linear_before_reset} if op == "GRU" else {}
    net = double()
    inner = recurrent(net, op, net.input([5, "N", 3]), 4, **options)
    outer = recurrent(net, op, inner, 6, **options)
    model = net.build(net.linear(outer, 3))
    within = {"w_1": lambda unit: np.s_[:, :, unit], "w_2": lambda unit: np.s_[:, :, unit]}
    assert_slopes(model, "w_1", within, energy, axis=2)
    assert_slopes(model, "w_3", {"w_3": lambda unit: np.s_[:, :, unit], "w_4": lambda unit: unit}, energy, axis=2)


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_both_directions_of_a_layer_count(op: str) -> None:
    """Summed over both, since a hidden unit goes in both; by ONNX Runtime, in float32."""
    net = Net()
    data, rows = net.input([5, "N", 3]), GATES[op] * 4
    names = [net.weight([2, rows, 3], fan_in=4), net.weight([2, rows, 4], fan_in=8)]
    made = net.node(op, [data, *names], [5, 2, "N", 4], hidden_size=4, direction="bidirectional")
    model = net.build(net.linear(made, 3))
    coupling, batches = coupled(model), batches_for(model)

    def loss(unit: int, factor: float, batch: dict[str, Array]) -> float:
        arrays = editable(model)
        arrays["w_1"][:, :, unit] *= factor
        arrays["w_2"][unit] *= factor
        return energy(list(run(replaced(model, **arrays), batch).values()))

    step = 2e-2  # as large as float32 asks for; the error is of its square
    slopes = [[(loss(u, 1 + step, b) - loss(u, 1 - step, b)) / (2 * step) for b in batches] for u in range(4)]
    expected = np.mean(np.square(slopes), axis=1)
    np.testing.assert_allclose(taylor(coupling, batches)[units_on(coupling, "w_1", 2)], -expected, rtol=1e-2)


def test_weights_in_a_branch_count() -> None:
    net = Net()
    model = in_branches(net.build(net.gemm(net.relu(net.gemm(net.input(["N", 4]), 5)), 3)))
    coupling = coupled(model)
    batches = [{**batch, "flag": np.array(True)} for batch in batches_for(net.build())]
    scores = taylor(coupling, batches)
    plain = taylor(coupled(net.build()), batches_for(net.build()))
    np.testing.assert_allclose(scores[units_on(coupling, "then_w_0", 0)], plain, rtol=1e-5)
    assert np.isnan(scores[units_on(coupling, "else_w_0", 0)]).all()


def test_operators_that_torch_lacks_are_named_and_another_criterion_is_advised() -> None:
    net = Net(opset=19)
    maps = net.conv(net.input(["N", 2, 6, 6]), 4, 3)
    pooled = net.node("AveragePool", [maps], ["N", 4, 4, 4], kernel_shape=[2, 2], dilations=[2, 2])
    model = net.build(net.conv(pooled, 3))
    with pytest.raises(UnsupportedOperatorError, match=r"(?s)AveragePool.*another --criterion"):
        taylor(coupled(model), batches_for(model))


def test_what_is_consumed_without_a_weight_is_named() -> None:
    net = Net()
    net.imports["com.microsoft"] = 1
    data = net.input(["N", 5, 6])
    inputs = [*(net.linear(data, 8, bias=False) for _ in range(3)), net.vector(24)]
    made = net.node("MultiHeadAttention", inputs, ["N", 5, 8], domain="com.microsoft", num_heads=2)
    model = net.build(net.linear(made, 3))
    with pytest.raises(UnsupportedOperatorError, match=r"(?s)MultiHeadAttention.*another --criterion"):
        taylor(coupled(model), batches_for(model))


def test_gradients_that_are_no_numbers_are_an_error() -> None:
    net = Net()
    mixed = net.gemm(net.relu(net.gemm(net.input(["N", 4]), 5)), 6)
    length = net.node("Sqrt", [net.add(mixed, mixed, op="Mul")])  # its slope at 0 is not defined
    model = net.build(net.gemm(length, 3))
    arrays = editable(model)
    arrays["w_1"][2], arrays["b_1"][2] = 0, 0
    model = replaced(model, **arrays)
    with pytest.raises(ModelError, match=r"(?s)infinite.*another --criterion"):
        taylor(coupled(model), batches_for(model))


def test_no_batch_is_an_error() -> None:
    net = Net()
    model = net.build(net.gemm(net.relu(net.gemm(net.input(["N", 4]), 5)), 3))
    with pytest.raises(CalibrationError, match="no sample"):
        taylor(coupled(model), [])
