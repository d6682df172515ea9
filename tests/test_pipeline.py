"""The passes in their order, and who decides what goes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from graphprune import EquivalenceError, ModelError, Recipe, RecipeError, TargetError, prune
from graphprune.analysis import Analysis, analyse, source_for
from graphprune.api import as_model
from graphprune.building import PASSES, build
from graphprune.calib.sources import input_specs, open_source
from graphprune.entries import Change, WeightRecord
from graphprune.ir.cost import count_nonzero, count_weights
from graphprune.ir.surgery import remove
from graphprune.passes import trim
from graphprune.passes.choice import take
from graphprune.pipeline import Trials, Verification, by_rule, decide, trial_error, verify
from graphprune.planning import Plan
from graphprune.record import gates_of
from graphprune.verify.equivalence import Proof
from graphprune.verify.fidelity import Fidelity
from graphprune.verify.latency import compare_latency
from graphprune.watch import Stopwatch
from tests import small
from tests.measure import editable, replaced
from tests.nets import Net
from tests.oracles import feeds, run

MODEL = as_model(small.network())
CALIB = small.calibration(MODEL.proto)
SOURCE = open_source(CALIB, input_specs(MODEL.proto))


def analysed(**given: Any) -> tuple[Analysis, Recipe]:
    recipe = Recipe(**{"target": 0.5, "runs": 2, **given})
    return analyse(MODEL, recipe, SOURCE, Stopwatch()), recipe


def planned(analysis: Analysis, recipe: Recipe) -> Plan:
    return decide(MODEL, analysis, recipe, SOURCE).plan


def never(plan: Plan) -> float:
    raise AssertionError("no trial was asked for")


def test_the_passes_run_in_order_and_each_is_timed() -> None:
    assert [step.name for step in PASSES] == ["trim", "compensate", "cut", "sparsify", "repair", "fold", "lower"]
    analysis, recipe = analysed(target=None, channels=0.25)
    watch = Stopwatch()
    build(analysis, planned(analysis, recipe), recipe, watch)
    assert list(watch.seconds) == ["trim", "compensate", "cut", "sparsify", "repair", "fold", "lower"]
    assert min(watch.seconds.values()) > 0


@pytest.mark.parametrize("recover", [True, False])
def test_building_changes_neither_the_canonical_model_nor_the_original(recover: bool) -> None:
    analysis, recipe = analysed(channels=0.25, recover=recover)
    canonical = analysis.coupling.graph.proto
    before = canonical.SerializeToString(deterministic=True), MODEL.proto.SerializeToString(deterministic=True)
    plan = planned(analysis, recipe)
    first = build(analysis, plan, recipe, Stopwatch())
    second = build(analysis, plan, recipe, Stopwatch())
    after = canonical.SerializeToString(deterministic=True), MODEL.proto.SerializeToString(deterministic=True)
    assert after == before
    assert first.model.SerializeToString(deterministic=True) == second.model.SerializeToString(deterministic=True)
    assert (first.kept, first.zeroed) == (second.kept, second.zeroed)


@pytest.mark.parametrize("recover", [True, False])
def test_channels_are_chosen_by_fraction(recover: bool) -> None:
    analysis, recipe = analysed(channels=0.5, recover=recover)
    expected = trim.by_fraction(analysis.coupling, analysis.queues, 0.5)
    assert planned(analysis, recipe).removed.tolist() == expected.tolist()


@pytest.mark.parametrize("share", [0.2, 0.6, 1.0])
@pytest.mark.parametrize("recover", [True, False])
def test_a_structural_share_is_met_by_removal_and_no_more_than_needed(recover: bool, share: float) -> None:
    analysis, recipe = analysed(target=0.7, structural=share, recover=recover)
    plan = planned(analysis, recipe)
    gone = count_weights(MODEL.proto) - count_weights(remove(analysis.coupling, plan.removed)[0])
    assert gone >= share * 0.7 * count_weights(MODEL.proto)
    draft = build(analysis, plan, recipe, Stopwatch())
    assert 1 - count_nonzero(draft.model) / count_weights(MODEL.proto) >= 0.7
    assert (draft.zeroed == {}) == (share == 1.0)


@pytest.mark.parametrize("recover", [True, False])
def test_zeros_only_removes_nothing(recover: bool) -> None:
    analysis, recipe = analysed(structural=0, recover=recover)
    assert not planned(analysis, recipe).removed.any()


def test_where_nothing_is_predicted_auto_asks_for_trials_of_the_rules_units() -> None:
    analysis, recipe = analysed(recover=False)
    assert analysis.curves is None
    assert set(analysis.scores.criteria) == {"apoz"}
    named = take(analysis.coupling, trim.by_threshold(analysis.coupling, analysis.scores))
    asked: list[npt.NDArray[np.bool_]] = []

    def bearable(plan: Plan) -> float:
        asked.append(plan.removed)
        return 0.0

    removed = by_rule(analysis, recipe, bearable)
    assert len(asked) == 2, "the dead units alone, and all"
    assert set(np.flatnonzero(removed)) <= set(np.flatnonzero(named))
    assert named.any()


@pytest.mark.parametrize("given", [{"channels": 0.5}, {"structural": 0}, {"structural": 1}], ids=str)
def test_what_is_told_exactly_needs_no_trial(given: dict[str, Any]) -> None:
    analysis, recipe = analysed(recover=False, **given)
    assert by_rule(analysis, recipe, never).any() == (given != {"structural": 0})


def test_a_trial_by_the_rule_is_the_share_of_answers_that_change() -> None:
    analysis, recipe = analysed(target=0.8, recover=False)
    trial = trial_error(MODEL, analysis, recipe, SOURCE)
    expected = run(MODEL.proto, CALIB)["gemm_1"].argmax(axis=1)
    for fraction in (0.0, 0.25, 0.5):
        plan = Plan(trim.by_fraction(analysis.coupling, analysis.queues, fraction))
        model = build(analysis, plan, recipe, Stopwatch()).model
        changed = run(model, CALIB)["gemm_1"].argmax(axis=1) != expected
        assert trial(plan) == pytest.approx(changed.mean(), abs=1e-12)


def test_a_trial_that_cannot_reach_the_target_is_unbearable() -> None:
    analysis, recipe = analysed(target=0.99, recover=False)
    trial = trial_error(MODEL, analysis, recipe, SOURCE)
    nothing = Plan(np.zeros(analysis.coupling.units, dtype=np.bool_))
    with pytest.raises(TargetError):
        build(analysis, nothing, recipe, Stopwatch())
    assert trial(nothing) == float("inf")


def test_a_trial_of_a_repair_is_measured_on_samples_that_it_was_not_computed_from() -> None:
    analysis, recipe = analysed(target=0.7, structural=0.5)
    trials, plan = Trials(analysis, recipe), planned(analysis, recipe)
    found = trials.of(plan)
    data = analysis.data
    assert (found.fitted, found.held_out) == (len(data.fitted), len(data.held_out)) == (6, 2)
    every = np.concatenate([batch["image"] for batch in data.every])
    np.testing.assert_array_equal(every, CALIB["image"])
    seen = {row.tobytes() for batch in data.fitted for row in batch["image"]}
    held_out = np.concatenate([batch["image"] for batch in data.held_out])
    assert not any(row.tobytes() in seen for row in held_out)

    model = build(analysis, plan, recipe, Stopwatch(), data.fitted).model
    expected, got = (run(proto, {"image": held_out})["gemm_1"] for proto in (MODEL.proto, model))
    spread = np.square(expected - expected.mean()).sum()
    assert found.measured_l2 == pytest.approx(np.sqrt(np.square(expected - got).sum() / spread), rel=1e-3)
    agreement = (expected.argmax(axis=1) == got.argmax(axis=1)).mean()
    assert found.agreement == pytest.approx(agreement)
    answers = [run(proto, {"image": every})["gemm_1"].argmax(axis=1) for proto in (MODEL.proto, model)]
    assert found.drop == pytest.approx(1 - min(agreement, (answers[0] == answers[1]).mean()))
    assert found.predicted_l2 == pytest.approx(np.sqrt(plan.error))
    assert trials.of(plan) is found, "what was tried is remembered"


@pytest.mark.parametrize("given", [{"pattern": "2:4"}, {"max_drop": 0.1}], ids=str)
@pytest.mark.parametrize("lacking", ["--no-recover", "--calib"])
def test_what_needs_a_repair_is_refused_without(given: dict[str, Any], lacking: str) -> None:
    recipe = Recipe(**given, recover=lacking != "--no-recover", runs=2)
    with pytest.raises(RecipeError, match=lacking):
        prune(MODEL, recipe, CALIB if lacking == "--no-recover" else None)


def test_without_recovery_there_is_no_pass_that_changes_what_is_kept() -> None:
    analysis, recipe = analysed(target=None, channels=0.5, recover=False)
    plan = planned(analysis, recipe)
    draft = build(analysis, plan, recipe, Stopwatch())
    trimmed, kept = remove(analysis.coupling, plan.removed)
    assert draft.model == trimmed
    assert (draft.kept, draft.zeroed, draft.repairs) == (kept, {}, ())
    repairing = Recipe(channels=0.5)
    found = analyse(MODEL, repairing, SOURCE, Stopwatch())
    repaired = build(found, planned(found, repairing), repairing, Stopwatch()).model
    assert len(editable(repaired)) < len(editable(trimmed)), "the normalisation is folded"


def test_the_proof_catches_a_wrong_removal() -> None:
    analysis, recipe = analysed(target=None, channels=0.5, recover=False)
    plan = planned(analysis, recipe)
    removed, model = plan.removed, build(analysis, plan, recipe, Stopwatch()).model
    assert verify(MODEL, analysis, removed, model, recipe, SOURCE).equivalence.relative_l2 < 1e-6
    # The proof cuts again: with weights changed behind the analysis's back it no longer holds.
    weight = next(t for t in analysis.coupling.graph.proto.graph.initializer if t.name == "w_4")
    assert weight.dims == [5, 12]
    coupling = analysis.coupling
    consumer = next(c for c in coupling.contractions if c.node.inputs[1] == "w_4")
    units = coupling.along(consumer.node.inputs[0], 1)[0]
    assert units is not None
    coupling.ids["w_4"] = tuple(np.roll(ids, 1) if ids.size == 12 else ids for ids in coupling.ids["w_4"])
    with pytest.raises(EquivalenceError, match="masked original") as caught:
        verify(MODEL, analysis, removed, model, recipe, SOURCE)
    assert caught.value.exit_code == 1


def test_stopwatch_sums_by_name() -> None:
    watch = Stopwatch()
    for name in ("a", "b", "a"):
        with watch.time(name):
            onnx.ModelProto()
    assert list(watch.seconds) == ["a", "b"]


def test_zeros_by_magnitude_are_ranked_before_normalisation_is_folded() -> None:
    """A channel that normalisation scales down keeps its large weights; its folded ones would be the smallest."""
    net = Net()
    data = net.batch_norm(net.conv(net.input(["N", 3, 6, 6]), 8, 3))
    model = net.build(net.conv(net.relu(data), 3, 1))
    arrays = editable(model)
    arrays["scale_0"][:4] = 1e-3
    model = replaced(model, **arrays)
    pruned, ledger = prune(model, Recipe(target=0.4, structural=0, runs=2))  # random inputs: nothing is solved anew
    assert ledger.weights.sparsity >= 0.4
    assert "BatchNormalization" not in [node.op_type for node in pruned.graph.node]
    by_channel = (editable(pruned)["w_0"] == 0).sum(axis=(1, 2, 3))
    assert by_channel[:4].sum() < 0.75 * by_channel.sum()


def test_zeros_by_predicted_error_hit_what_is_hardly_heard() -> None:
    """A channel that normalisation scales down adds next to nothing: with real data its weights go first."""
    net = Net()
    data = net.batch_norm(net.conv(net.input(["N", 3, 6, 6]), 8, 3))
    model = net.build(net.conv(net.relu(data), 3, 1))
    arrays = editable(model)
    arrays["scale_0"][:4] = 1e-3
    model = replaced(model, **arrays)
    pruned, _ = prune(model, Recipe(target=0.4, structural=0, runs=2), feeds(model, 3, 32))
    by_channel = (editable(pruned)["w_0"] == 0).sum(axis=(1, 2, 3))
    assert by_channel[:4].sum() > 0.95 * by_channel.sum()


def test_a_result_that_is_not_finite_misses_a_gate() -> None:
    verification = Verification(
        Proof(0.0, 0.0, 0.0),
        Fidelity((), batches=1, relative_l2=0.0, top1_agreement=None, nonfinite=3),
        compare_latency(MODEL.proto, MODEL.proto, next(iter(SOURCE.batches(1))), runs=2),
    )
    weights = WeightRecord(before=10, after=10, removed=0, zeroed=5, nonzero=5, sparsity=0.5, nonzero_before=10)
    asked = Recipe(target=0.5, macs=0.2)
    gates = {gate.name: gate for gate in gates_of(asked, weights, Change(100, 81), verification, None)}
    assert gates["target"].ok
    assert (gates["macs"].value, gates["macs"].ok) == (pytest.approx(0.19), False)
    assert (gates["nonfinite-outputs"].value, gates["nonfinite-outputs"].ok) == (3, False)


def reflecting(front: int, free: str = "T") -> onnx.ModelProto:
    """A model that runs only where its free axis is longer than what it pads by reflection."""
    net = Net()
    data = net.input(["N", 3, free])
    pads = net.constant(np.array([0, 0, front, 0, 0, 0]), "pads")
    padded = net.node("Pad", [data, pads], ["N", 3, f"{free}+{front}"], mode="reflect")
    return net.build(net.conv(net.relu(net.conv(padded, 8)), 2))


@pytest.mark.parametrize(("front", "size"), [(10, 64), (100, 256), (300, 64)])
def test_random_inputs_take_the_first_free_size_that_the_model_runs_on(front: int, size: int) -> None:
    model, recipe = as_model(reflecting(front)), Recipe(channels=0.5, recover=False, runs=2)
    source = source_for(model, recipe, None)
    assert next(iter(source.batches(8)))["x_0"].shape == (8, 3, size)
    if front < 256:
        _, ledger = prune(model, recipe)
        assert f"free sizes {size}" in ledger.calibration.source
    else:
        with pytest.raises(ModelError, match=r"x_0 \[8, 3, 64\][\s\S]*give inputs that the model takes"):
            prune(model, recipe)


def test_calibration_data_is_taken_as_it_is() -> None:
    data = feeds(reflecting(100), batch=4)
    assert source_for(as_model(reflecting(100)), Recipe(target=0.5), data).real


def test_zeros_alone_leave_the_graph_as_it_is() -> None:
    net = Net()  # layers without biases: with them they would be slower, and no removed unit makes up for that
    hidden = net.relu(net.conv(net.input(["N", 3, 6, 6]), 8, 3, bias=False))
    proto = net.build(net.conv(hidden, 4, 3, bias=False))
    data = feeds(proto, 1, 64)
    zeroed, _ = prune(proto, Recipe(target=0.5, structural=0, runs=2), data)
    assert [node.op_type for node in zeroed.graph.node] == ["Conv", "Relu", "Conv"]
    assert count_weights(zeroed) == count_weights(proto)
    removed, _ = prune(proto, Recipe(target=0.5, structural=1, align="off", runs=2), data)
    assert len(removed.graph.node[2].input) == 3, "what was removed had a mean"
