"""What is predicted, against what becomes of the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from graphprune import Recipe
from graphprune.analysis import Analysis, analyse
from graphprune.api import as_model
from graphprune.calib.sources import input_specs, open_source
from graphprune.ir.graph import Graph
from graphprune.ir.layers.layer import find_layers
from graphprune.passes.canonicalize import canonicalize
from graphprune.passes.choice import queues, take
from graphprune.passes.curves import LEVELS
from graphprune.passes.fold import fold
from graphprune.pipeline import Trials
from graphprune.planning import Plan
from graphprune.recovery.prediction import Predictor, predictor, price
from graphprune.watch import Stopwatch
from tests import small
from tests.measure import editable, given_scores, replaced
from tests.nets import Net
from tests.oracles import feeds


def analysed(model: onnx.ModelProto, count: int = 96, **given: Any) -> tuple[Analysis, Recipe]:
    recipe = Recipe(**{"target": 0.5, "runs": 2, **given})
    source = open_source(feeds(model, 1, count), input_specs(model))
    return analyse(as_model(model), recipe, source, Stopwatch()), recipe


def predicted(analysis: Analysis) -> Predictor:
    return predictor(analysis.coupling, analysis.data.fitted, analysis.data.held_out)


def network(seed: int = 0) -> onnx.ModelProto:
    net = Net(seed=seed)
    data = net.relu(net.conv(net.input(["N", 3, 6, 6]), 16, 3))
    data = net.relu(net.add(data, net.conv(net.relu(net.conv(data, 12, 3)), 16)))
    return net.build(net.gemm(net.relu(net.gemm(net.flatten(net.pool(data)), 16)), 3))


def measured(analysis: Analysis, recipe: Recipe, removed: npt.NDArray[np.bool_]) -> float:
    return Trials(analysis, recipe).of(Plan(removed)).measured_l2


@pytest.mark.parametrize("name", ["w_0", "w_1", "w_3"])
def test_units_by_predicted_error_beat_random_ones(name: str) -> None:
    best, others = [], []
    for seed in range(3):
        analysis, recipe = analysed(network(seed), criterion="obs")
        (queue,) = (queue for queue in analysis.queues if analysis.coupling.groups[queue.groups[0]].name == name)
        count, random = len(queue.steps) // 3, np.random.default_rng(0)
        best.append(measured(analysis, recipe, take(analysis.coupling, queue.steps[:count])))
        for chosen in (random.permutation(len(queue.steps))[:count] for _ in range(4)):
            others.append(measured(analysis, recipe, take(analysis.coupling, [queue.steps[place] for place in chosen])))
    assert np.mean(best) < np.mean(others)
    assert np.mean(best) < np.median(others)


def test_few_samples_do_not_make_a_wide_layer_look_free() -> None:
    """With fewer rows than columns, least squares make up for anything on the rows that they are computed from."""
    net = Net()
    hidden = net.relu(net.gemm(net.input(["N", 24]), 160))
    model = net.build(net.gemm(hidden, 10))
    analysis, recipe = analysed(model, 96)
    (queue,) = analysis.queues
    removed = take(analysis.coupling, queue.steps[:64])
    predicted = float(np.sqrt(sum(queue.costs[:64])))
    assert predicted == pytest.approx(measured(analysis, recipe, removed), rel=0.5)


@pytest.mark.parametrize("criterion", ["auto", "obs", "apoz", "l1", "random"])
def test_every_step_but_the_last_has_a_cost_and_none_is_negative(criterion: str) -> None:
    analysis, _ = analysed(network(), criterion=criterion)
    assert len(analysis.queues) == 3
    for queue in analysis.queues:
        assert len(queue.costs) == len(queue.steps) - 1
        assert min(queue.costs) >= 0
        half = len(queue.costs) // 2
        assert sum(queue.costs) > 0
        if criterion in ("auto", "obs"):
            assert sum(queue.costs[:half]) < sum(queue.costs[half:]), "what is left is dearer and dearer"
        assert criterion == "auto" or queue.criterion == criterion
        assert sorted(int(unit) for step in queue.steps for unit in step.units) == sorted(
            int(unit) for group in queue.groups for unit in analysis.coupling.groups[group].units
        )


def test_an_order_that_was_asked_for_is_kept() -> None:
    analysis, _ = analysed(network(), criterion="l1")
    for queue, plain in zip(analysis.queues, queues(analysis.coupling, analysis.scores), strict=True):
        assert [step.units.tolist() for step in queue.steps] == [step.units.tolist() for step in plain.steps]
        assert plain.costs == ()


def test_auto_takes_the_order_of_the_cheaper_criterion() -> None:
    analysis, _ = analysed(network(), criterion="obs")
    predictions, coupling = predicted(analysis), analysis.coupling
    for queue in analysis.queues:
        place = {int(unit): rank for rank, step in enumerate(queue.steps) for unit in step.units}
        same = np.array([-place.get(unit, 0) for unit in range(coupling.units)], dtype=np.float64)
        # Another order that is as good wins nothing; its reverse is dearer.
        for scores in (same, -same):
            assert price(predictions, queue, {"other": scores}, ordered=False).criterion == "obs"
        # Where the order is given, a better one is taken instead.
        backwards = type(queue)(queue.steps[::-1], queue.groups, "given")
        found = price(predictions, backwards, {"other": same}, ordered=True)
        assert found.criterion == "other"
        assert [step.units.tolist() for step in found.steps] == [step.units.tolist() for step in queue.steps]
        assert sum(found.costs[:4]) == pytest.approx(sum(queue.costs[:4]), rel=0.2)


def test_scores_and_criteria_of_the_groups_follow_the_order() -> None:
    analysis, _ = analysed(network(), criterion="obs")
    assert set(analysis.scores.criteria) == {"obs"}
    for queue in analysis.queues:
        values = [analysis.scores.values[step.units].mean() for step in queue.steps]
        assert (np.diff(values) <= 0).all()


def test_every_weight_that_may_be_zero_has_a_growing_curve() -> None:
    model = network()
    analysis, _ = analysed(model)
    assert analysis.curves is not None
    sizes = {name: value.size for name, value in editable(model).items() if value.ndim > 1}
    assert {curve.weight: curve.size for curve in analysis.curves} == sizes
    for curve in analysis.curves:
        assert curve.errors.shape == (len(LEVELS),)
        assert curve.errors[0] == 0
        assert (np.diff(curve.errors) >= 0).all()
        assert 0.01 < curve.errors[-1] < 10


def test_a_layer_that_matters_more_has_the_higher_curve() -> None:
    """Two branches that are added up, one of them a hundred times smaller."""
    net = Net()
    data = net.input(["N", 12])
    strong, weak = (net.gemm(net.relu(net.gemm(data, 16)), 6) for _ in range(2))
    model = net.build(net.add(strong, weak))
    arrays = editable(model)
    model = replaced(model, w_3=arrays["w_3"] / 100, b_3=arrays["b_3"] / 100)
    analysis, _ = analysed(model)
    assert analysis.curves is not None
    curves = {curve.weight: curve.errors for curve in analysis.curves}
    assert (curves["w_0"][1:] > 100 * curves["w_2"][1:]).all()
    costs = {analysis.coupling.groups[queue.groups[0]].name: sum(queue.costs) for queue in analysis.queues}
    assert costs["w_0"] > 100 * costs["w_2"]


def test_weights_of_no_layer_are_priced_by_their_magnitudes() -> None:
    """A matrix that is turned before it is multiplied by is no layer's own."""
    net = Net()
    data = net.relu(net.linear(net.input(["N", 5, 8]), 10))
    turned = net.node("Mul", [net.weight([10, 6], fan_in=10), net.weight([10, 6], fan_in=10)])
    data = net.relu(net.node("MatMul", [data, turned], ["N", 5, 6]))
    analysis, _ = analysed(net.build(net.linear(data, 3)))
    assert analysis.curves is not None
    curves = {curve.weight: curve for curve in analysis.curves}
    assert {"w_0", "w_3"} <= set(curves)
    layers = {layer.weight for layer in find_layers(analysis.coupling.graph)}
    for name in set(curves) - layers - {"w_0"}:
        assert (np.diff(curves[name].errors) >= 0).all()
        assert curves[name].errors[-1] > 0


def test_units_that_no_known_layer_reads_share_the_whole_output() -> None:
    analysis, _ = analysed(network())
    found = queues(analysis.coupling, given_scores(analysis.coupling))[0]
    blind = replace(predicted(analysis), problems=[])
    costs = price(blind, found, {}, ordered=True).costs
    assert costs == pytest.approx([1 / 16] * 15)


def test_no_prediction_without_repair() -> None:
    model = small.network()
    for given in ({"recover": False}, {}):
        source = open_source(small.calibration(model) if given else None, input_specs(model))
        found = analyse(as_model(model), Recipe(target=0.5, runs=2, **given), source, Stopwatch())
        assert found.curves is None
        assert (found.data.every, found.data.splits) == ([], False)
        assert set(found.scores.criteria) == {"apoz"}
        assert all(queue.costs == () for queue in found.queues)
    folded, plain = Graph(fold(canonicalize(model))), Graph(canonicalize(model))
    with_repair, _ = analysed(model)
    assert len(with_repair.coupling.graph.nodes) == len(folded.nodes) < len(plain.nodes)
