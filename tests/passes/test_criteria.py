"""Scores of units, against a plain computation on activations kept in full."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper

from graphprune.ir.coupling.units import FROZEN
from graphprune.passes.criteria import CRITERIA, Scores, normalised, score
from tests.measure import Array, editable, materialise, measured, replaced, scored
from tests.nets import Net
from tests.oracles import feeds, units_on, values


def zeros_by_channel(value: Array, axis: int = 1) -> tuple[npt.NDArray[np.int64], int]:
    """Count values <= 0 by channel, and all values of a channel."""
    rows = np.moveaxis(value, axis, 0).reshape(value.shape[axis], -1)
    return (rows <= 0).sum(axis=1), rows.shape[1]


def scores_on(model: onnx.ModelProto, weight: str, *, samples: int = 11) -> tuple[list[float], str]:
    """Return the scores of a weight's output channels, and their criterion."""
    coupling, scores = scored(model, feeds(model, 3, samples))
    units = units_on(coupling, weight, 0)
    assert FROZEN not in units
    criteria = {c for g, c in zip(coupling.groups, scores.criteria, strict=True) if set(g.units) & set(units)}
    assert len(criteria) == 1
    return scores.values[units].tolist(), criteria.pop()


@pytest.mark.parametrize("tail", ["pooled", "strided", "average", "transposed"])
def test_apoz_over_flattened_maps_counts_every_position_of_a_channel(tail: str) -> None:
    net = Net()
    maps = net.relu(net.conv(net.input(["N", 2, 6, 6]), 5, 3))
    read = {
        "pooled": lambda: net.pool(maps),
        "strided": lambda: net.slice(maps, {2: (0, 6, 2), 3: (0, 6, 3)}),
        "average": lambda: net.pool(maps, "AveragePool"),
        "transposed": lambda: net.transpose(maps, [0, 1, 3, 2]),
    }[tail]()
    model = net.build(net.gemm(net.flatten(read), 3))
    found, criterion = scores_on(model, "w_0")
    kept = materialise(model, [read], feeds(model, 3, 11))[read]
    zeros, count = zeros_by_channel(kept)
    assert zeros.min() > 0
    assert zeros.max() < count
    assert (found, criterion) == ((zeros / count).tolist(), "apoz")


def test_apoz_is_of_what_the_consumer_reads_not_of_the_relu() -> None:
    net = Net()
    maps = net.relu(net.conv(net.input(["N", 2, 6, 6]), 5, 3))
    pooled = net.pool(maps)
    model = net.build(net.conv(pooled, 3, 3))
    found, _ = scores_on(model, "w_0")
    kept = materialise(model, [maps, pooled], feeds(model, 3, 11))
    before, after = (zeros / count for zeros, count in map(zeros_by_channel, kept.values()))
    assert found == after.tolist()
    assert (after < before).all()


def test_apoz_behind_concat_goes_to_the_unit_that_each_channel_came_from() -> None:
    net = Net()
    data = net.input(["N", 2, 4, 4])
    left, right = net.relu(net.conv(data, 3, 3)), net.relu(net.conv(data, 4, 1))
    model = net.build(net.conv(net.concat(right, left), 2, 3))
    kept = materialise(model, [left, right], feeds(model, 3, 11))
    for weight, name in (("w_0", left), ("w_1", right)):
        zeros, count = zeros_by_channel(kept[name])
        assert scores_on(model, weight) == ((zeros / count).tolist(), "apoz")


def test_apoz_of_a_residual_stage_is_over_all_tensors_that_consumers_read() -> None:
    net = Net()
    stem = net.relu(net.conv(net.input(["N", 2, 8, 8]), 6, 3))
    inner = net.relu(net.conv(stem, 4, 3))
    joined = net.relu(net.add(stem, net.conv(inner, 6, 3)))
    small = net.pool(joined)
    model = net.build(net.conv(small, 2, 3))
    found, criterion = scores_on(model, "w_0")
    kept = materialise(model, [stem, small, inner], feeds(model, 3, 11))
    # The stem's 64 positions and the 16 behind the pooling all count the same.
    zeros, counts = zip(*(zeros_by_channel(kept[name]) for name in (stem, small)), strict=True)
    assert found == (sum(zeros) / sum(counts)).tolist()
    assert criterion == "apoz"
    zeros, count = zeros_by_channel(kept[inner])
    assert scores_on(model, "w_1")[0] == (zeros / count).tolist()


def test_a_tensor_read_twice_counts_once() -> None:
    net = Net()
    stem = net.relu(net.conv(net.input(["N", 2, 6, 6]), 5, 3))
    small = net.relu(net.conv(net.pool(stem), 5, 1))
    model = net.build(net.conv(stem, 2, 1), net.conv(stem, 3, 3), net.conv(small, 3, 3))
    pooled = next(name for name in net.shapes if name.startswith("maxpool"))
    kept = materialise(model, [stem, pooled], feeds(model, 3, 11))
    zeros, counts = zip(*(zeros_by_channel(kept[name]) for name in (stem, pooled)), strict=True)
    assert scores_on(model, "w_0")[0] == (sum(zeros) / sum(counts)).tolist()


def test_apoz_counts_zeros_of_relu6_too() -> None:
    net = Net()
    active = net.clip(net.conv(net.input(["N", 2, 4, 4]), 5, 3))
    model = net.build(net.conv(active, 2, 1))
    zeros, count = zeros_by_channel(materialise(model, [active], feeds(model, 3, 11))[active])
    assert scores_on(model, "w_0") == ((zeros / count).tolist(), "apoz")


@pytest.mark.parametrize("activation", ["Sigmoid", "Tanh", "", "Clip"])
def test_without_a_relu_the_fallback_is_named_and_is_the_mean_energy(activation: str) -> None:
    net = Net()
    maps = net.conv(net.input(["N", 2, 4, 4]), 5, 3)
    if activation == "Clip":
        maps = net.clip(maps, low=-1.0)
    elif activation:
        maps = net.node(activation, [maps])
    model = net.build(net.conv(maps, 3, 3))
    found, criterion = scores_on(model, "w_0")
    kept = materialise(model, [maps], feeds(model, 3, 11))[maps].astype(np.float64)
    weight = values(model)["w_1"].astype(np.float64)
    energy = (kept**2).mean(axis=(0, 2, 3)) * (weight**2).sum(axis=(0, 2, 3))
    assert criterion == "activation"
    assert found == pytest.approx((-energy).tolist(), rel=1e-5)


def test_the_criterion_activation_can_be_asked_for_behind_a_relu_too() -> None:
    net = Net()
    active = net.relu(net.gemm(net.input(["N", 6]), 5))
    model = net.build(net.gemm(active, 3, transposed=False))
    coupling, scores = scored(model, feeds(model, 3, 11), "activation")
    kept = materialise(model, [active], feeds(model, 3, 11))[active].astype(np.float64)
    energy = kept.mean(axis=0) ** 2 * (values(model)["w_1"].astype(np.float64) ** 2).sum(axis=1)
    assert set(scores.criteria) == {"activation"}
    assert scores.values[units_on(coupling, "w_0", 0)] == pytest.approx(-energy, rel=1e-5)


def test_a_group_with_one_unit_without_a_relu_is_scored_by_the_fallback_as_a_whole() -> None:
    net = Net()
    wide = net.conv(net.input(["N", 2, 4, 4]), 6, 3)
    first, second = net.split(wide, [3, 3])
    model = net.build(net.conv(net.concat(net.relu(first), net.node("Sigmoid", [second])), 2, 1))
    coupling, scores = scored(model, feeds(model, 3, 11))
    assert [len(group.units) for group in coupling.groups] == [6]
    assert scores.criteria == ("activation",)
    assert (scores.values < 0).all()


def test_energy_of_a_grouped_convolution_is_by_the_weights_that_read_the_channel() -> None:
    net = Net()
    maps = net.node("Sigmoid", [net.conv(net.input(["N", 2, 4, 4]), 6, 1)])
    model = net.build(net.conv(net.conv(maps, 4, 3, group=2), 2, 1))
    found, criterion = scores_on(model, "w_0")
    kept = materialise(model, [maps], feeds(model, 3, 11))[maps].astype(np.float64)
    weight = values(model)["w_1"].astype(np.float64)  # [4 outputs, 3 of 6 inputs, 3, 3]
    energy = [(weight[2 * (c // 3) : 2 * (c // 3) + 2, c % 3] ** 2).sum() * (kept[:, c] ** 2).mean() for c in range(6)]
    assert criterion == "activation"
    assert found == pytest.approx([-value for value in energy], rel=1e-5)


def dead_units(model: onnx.ModelProto, weight: str) -> list[int]:
    coupling, scores = scored(model, feeds(model, 3, 11))
    return np.flatnonzero(scores.dead[units_on(coupling, weight, 0)]).tolist()


def test_units_that_are_never_active_and_units_that_nobody_reads_are_dead() -> None:
    net = Net()
    hidden = net.relu(net.conv(net.input(["N", 2, 4, 4]), 6, 3))
    model = net.build(net.conv(hidden, 3, 3))
    assert dead_units(model, "w_0") == []
    arrays = editable(model)
    arrays["w_0"][1], arrays["b_0"][1] = 0, -0.5  # always inactive
    arrays["w_1"][:, 4] = 0  # not read
    assert dead_units(replaced(model, **arrays), "w_0") == [1, 4]
    arrays["w_1"][2, 4, 0, 0] = 1e-3  # read a little
    arrays["w_0"][1], arrays["b_0"][1] = 0.1, 0.5  # active now and then
    assert dead_units(replaced(model, **arrays), "w_0") == []


def test_a_unit_without_incoming_weights_is_constant_and_dead() -> None:
    net = Net()
    hidden = net.relu(net.gemm(net.input(["N", 4]), 5))
    model = net.build(net.gemm(hidden, 3))
    arrays = editable(model)
    arrays["w_0"][2], arrays["b_0"][2] = 0, 0.7  # active, and always the same
    assert dead_units(replaced(model, **arrays), "w_0") == [2]


def test_a_unit_that_a_table_makes_too_is_not_constant() -> None:
    net = Net()
    table = net.initializer(net.random.normal(size=(1, 3, 5)), "table")
    hidden = net.add(net.linear(net.input(["N", 3, 4]), 5, bias=False), table)
    model = net.build(net.linear(net.relu(hidden), 3))
    arrays = editable(model)
    arrays["w_0"][:, 2] = 0
    arrays["table"][:, :, 2] = [0.1, 0.2, 0.3]
    coupling, scores = scored(replaced(model, **arrays), feeds(model, 3, 11))
    assert not scores.dead[units_on(coupling, "w_0", 1)].any()


def test_a_unit_active_where_a_sampled_map_was_not_looked_at_is_alive() -> None:
    net = Net()
    data = net.input(["N", 2, 40, 40])
    model = net.build(net.conv(net.relu(net.conv(data, 4, 1)), 3, 1))
    arrays = editable(model)
    arrays["w_0"][1], arrays["b_0"][1] = 1.0, -0.5
    samples = {data: np.zeros((8, 2, 40, 40), np.float32)}
    samples[data][:, :, 1::3, 1::3] = 1.0  # off the grid of every third row and column
    coupling, scores = scored(replaced(model, **arrays), samples)
    unit = units_on(coupling, "w_0", 0)[1]
    assert scores.values[unit] == 1.0
    assert not scores.dead[unit]


def test_a_unit_that_one_of_two_consumers_does_not_read_is_alive() -> None:
    net = Net()
    hidden = net.relu(net.gemm(net.input(["N", 4]), 5))
    model = net.build(net.gemm(hidden, 3), net.gemm(hidden, 2))
    arrays = editable(model)
    arrays["w_1"][:, 2] = 0
    assert dead_units(replaced(model, **arrays), "w_0") == []
    arrays["w_2"][:, 2] = 0
    assert dead_units(replaced(model, **arrays), "w_0") == [2]


def test_normalised_scores_are_standard_deviations_above_the_mean() -> None:
    net = Net()
    model = net.build(net.gemm(net.relu(net.gemm(net.input(["N", 4]), 5)), 3))
    coupling, _ = scored(model, feeds(model))
    (group,) = coupling.groups
    given = np.array([0.1, 0.9, 0.4, 0.4, 0.2])

    def ranks(of: npt.NDArray[np.float64]) -> list[float]:
        return normalised(group, Scores(of, ("apoz",), np.zeros(5, dtype=np.bool_))).tolist()

    assert ranks(given) == pytest.approx(((given - given.mean()) / given.std()).tolist(), abs=1e-12)
    assert ranks(np.full(5, 0.25)) == [0.0] * 5
    # Energies differ by orders of magnitude: their logarithms are compared.
    logs = np.log([1e-6, 1.0, 10.0, 1e3, 1e3])
    assert ranks(-np.exp(logs)) == pytest.approx((-(logs - logs.mean()) / logs.std()).tolist(), abs=1e-9)


def test_half_precision_is_counted_exactly() -> None:
    net = Net(kind=helper.np_dtype_to_tensor_dtype(np.dtype(np.float16)))
    active = net.relu(net.conv(net.input(["N", 2, 24, 24]), 4, 3))
    model = net.build(net.conv(active, 2, 1))
    zeros, count = zeros_by_channel(materialise(model, [active], feeds(model, 3, 11))[active])
    assert count > 2048  # more than half precision could count
    assert scores_on(model, "w_0")[0] == (zeros / count).tolist()


@pytest.mark.parametrize("case", ["read by hidden units alone", "never active outside", "only a bias"])
def test_a_hidden_unit_at_work_inside_its_layer_is_alive(case: str) -> None:
    net = Net()
    data, hidden, gates = net.input([5, 2, 3]), 4, 3
    weight, recurrence = net.weight([1, gates * hidden, 3]), net.weight([1, gates * hidden, hidden], "r")
    bias = net.initializer(np.zeros((1, 2 * gates * hidden)), "bias")
    state = net.node("GRU", [data, weight, recurrence, bias], [5, 1, 2, hidden], hidden_size=hidden)
    model = net.build(net.linear(net.relu(net.squeeze(state, [1])), 3))
    arrays = editable(model)
    rows = [gate * hidden + 1 for gate in range(gates)]
    if case == "read by hidden units alone":
        arrays["w_1"][1] = 0
    else:
        arrays["w_0"][0, rows] = 0
        arrays["r_0"][0, rows] = 0
        arrays["bias"][0, rows[2]] = -1.0 if case == "never active outside" else 1.0
    coupling, scores = scored(replaced(model, **arrays), feeds(model, 3, 2))
    unit = units_on(coupling, "w_1", 0)[1]
    assert unit != FROZEN
    assert not scores.dead[unit]
    arrays["w_1"][1], arrays["r_0"][0, :, 1] = 0, 0  # now nobody reads it, inside or outside
    coupling, scores = scored(replaced(model, **arrays), feeds(model, 3, 2))
    assert scores.dead[units_on(coupling, "w_1", 0)[1]]


# -- norms, chance, and what is measured elsewhere ---------------------------------------------------------------


def norms_of(filters: Array, criterion: str) -> npt.NDArray[np.float64]:
    """Norm of every row."""
    return np.linalg.norm(filters.reshape(len(filters), -1).astype(np.float64), ord=int(criterion[1]), axis=1)


def by_unit(model: onnx.ModelProto, weight: str, criterion: str, axis: int = 0) -> npt.NDArray[np.float64]:
    """Scores of the units along an axis of a weight, all given by this criterion."""
    coupling, scores = scored(model, feeds(model, 3, 5), criterion)
    units = units_on(coupling, weight, axis)
    assert FROZEN not in units
    assert {scores.criteria[k] for k, group in enumerate(coupling.groups) if set(group.units) & set(units)} == {
        criterion
    }
    return scores.values[units]


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_norms_are_of_the_filter_that_makes_a_channel(criterion: str) -> None:
    net = Net()
    model = net.build(net.conv(net.relu(net.conv(net.input(["N", 2, 4, 4]), 5, 3)), 3, 3))
    expected = -norms_of(values(model)["w_0"], criterion)
    assert by_unit(model, "w_0", criterion) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_norms_of_matrices_are_by_column_or_row_as_stored(criterion: str) -> None:
    net = Net()
    first = net.relu(net.gemm(net.input(["N", 4]), 5, alpha=-0.5))
    model = net.build(net.linear(net.relu(net.linear(first, 6)), 3))
    arrays = values(model)
    assert by_unit(model, "w_0", criterion) == pytest.approx(-norms_of(0.5 * arrays["w_0"], criterion), rel=1e-6)
    assert by_unit(model, "w_1", criterion, 1) == pytest.approx(-norms_of(arrays["w_1"].T, criterion), rel=1e-6)


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_a_channel_of_a_residual_stage_is_made_by_all_its_filters_together(criterion: str) -> None:
    net = Net()
    stem = net.relu(net.conv(net.input(["N", 2, 6, 6]), 4, 3))
    joined = net.relu(net.add(stem, net.conv(net.relu(net.conv(stem, 3, 3)), 4, 3)))
    model = net.build(net.conv(joined, 2, 1))
    arrays = values(model)
    together = np.concatenate([arrays[name].reshape(4, -1) for name in ("w_0", "w_2")], axis=1)
    assert by_unit(model, "w_0", criterion) == pytest.approx(-norms_of(together, criterion), rel=1e-6)
    assert by_unit(model, "w_1", criterion) == pytest.approx(-norms_of(arrays["w_1"], criterion), rel=1e-6)


def test_a_depthwise_filter_is_a_part_of_its_channel_and_a_grouped_one_makes_its_own() -> None:
    net = Net()
    wide = net.relu(net.depthwise(net.relu(net.conv(net.input(["N", 2, 4, 4]), 6, 1))))
    model = net.build(net.conv(net.relu(net.conv(wide, 4, 3, group=2)), 2, 1))
    arrays = values(model)
    together = np.concatenate([arrays[name].reshape(6, -1) for name in ("w_0", "w_1")], axis=1)
    assert by_unit(model, "w_0", "l1") == pytest.approx(-norms_of(together, "l1"), rel=1e-6)
    assert by_unit(model, "w_2", "l1") == pytest.approx(-norms_of(arrays["w_2"], "l1"), rel=1e-6)


def test_the_filter_of_a_hidden_state_is_its_rows_of_every_gate() -> None:
    net = Net()
    weight, recurrence = net.weight([1, 12, 3]), net.weight([1, 12, 4], "r")
    state = net.node("GRU", [net.input([5, 2, 3]), weight, recurrence], [5, 1, 2, 4], hidden_size=4)
    model = net.build(net.linear(net.squeeze(state, [1]), 3))
    arrays = values(model)
    gates = np.concatenate([arrays[name].reshape(3, 4, -1) for name in (weight, recurrence)], axis=2)
    expected = -norms_of(gates.swapaxes(0, 1), "l2")
    assert by_unit(model, "w_1", "l2") == pytest.approx(expected, rel=1e-6)


def test_a_weight_that_two_nodes_read_counts_once() -> None:
    net = Net()
    left, right = net.input(["N", 2, 4, 4]), net.input(["N", 2, 4, 4])
    weight = net.weight([5, 2, 3, 3])
    both = net.add(*(net.relu(net.conv(data, 5, 3, weight=weight)) for data in (left, right)))
    model = net.build(net.conv(both, 3, 1))
    assert by_unit(model, weight, "l1") == pytest.approx(-norms_of(values(model)[weight], "l1"), rel=1e-6)


def test_units_that_no_weight_makes_are_scored_by_the_fallback() -> None:
    net = Net()
    table = net.initializer(net.random.normal(size=(7, 4)), "table")
    words = net.input(["N", 3])
    found = net.node("Gather", [table, net.node("Cast", [words], kind=TensorProto.INT64, to=7)], ["N", 3, 4], kind=1)
    model = net.build(net.linear(net.relu(net.linear(found, 5)), 2))
    inputs = {words: np.random.default_rng(0).integers(0, 7, (6, 3)).astype(np.float32)}
    coupling, scores = scored(model, inputs, "l2")
    made_by = {group.name: criterion for group, criterion in zip(coupling.groups, scores.criteria, strict=True)}
    assert made_by == {"table": "activation", "w_0": "l2"}
    _, plain = scored(model, inputs, "activation")
    units = units_on(coupling, "table", 1)
    assert scores.values[units].tolist() == plain.values[units].tolist()


def test_chance_is_seeded_and_uniform() -> None:
    net = Net()
    model = net.build(net.conv(net.relu(net.conv(net.input(["N", 2, 4, 4]), 400, 1)), 2, 1))
    coupling, statistics = measured(model, feeds(model, 3, 2))
    first, again, other = (score(coupling, statistics, "random", seed=seed) for seed in (1, 1, 2))
    assert first.values.tolist() == again.values.tolist()
    assert (first.values != other.values).all()
    assert set(first.criteria) == {"random"}
    assert np.histogram(first.values, bins=4, range=(0, 1))[0].tolist() == pytest.approx([100] * 4, abs=30)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_lets_the_idle_unit_go_first_and_is_ranked_by_group(criterion: str) -> None:
    net = Net()
    model = net.build(net.conv(net.relu(net.conv(net.input(["N", 2, 4, 4]), 6, 3)), 3, 3))
    arrays = editable(model)
    arrays["w_0"][3] *= 1e-3
    arrays["b_0"][3] = -0.1
    coupling, scores = scored(replaced(model, **arrays), feeds(model, 3, 8), criterion)
    (group,) = coupling.groups
    ranks = normalised(group, scores)
    assert np.isfinite(ranks).all()
    assert (np.argsort(ranks) == np.argsort(scores.values[group.units])).all()
    if criterion != "random":
        assert scores.values.argmax() == units_on(coupling, "w_0", 0)[3]


def test_values_measured_elsewhere_are_taken_and_fall_back_by_group() -> None:
    net = Net()
    first = net.relu(net.gemm(net.input(["N", 4]), 5))
    model = net.build(net.gemm(net.relu(net.gemm(first, 6)), 3))
    coupling, statistics = measured(model, feeds(model, 3, 5))
    given = -np.arange(1.0, coupling.units + 1)
    untold = units_on(coupling, "w_1", 0)
    given[untold[2]] = np.nan
    before = given.copy()
    scores = score(coupling, statistics, "taylor", measured={"taylor": given})
    plain = score(coupling, statistics, "activation")
    assert sorted(scores.criteria) == ["activation", "taylor"]
    assert scores.values[units_on(coupling, "w_0", 0)].tolist() == given[units_on(coupling, "w_0", 0)].tolist()
    assert scores.values[untold].tolist() == plain.values[untold].tolist()
    assert scores.dead.tolist() == plain.dead.tolist()
    np.testing.assert_array_equal(given, before)


def test_a_criterion_in_neither_table_is_an_error() -> None:
    net = Net()
    model = net.build(net.gemm(net.relu(net.gemm(net.input(["N", 4]), 5)), 3))
    coupling, statistics = measured(model, feeds(model, 3, 5))
    with pytest.raises(KeyError, match="taylor"):
        score(coupling, statistics, "taylor")
