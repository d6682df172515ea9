"""From a model to what is left of it: decide, try, build, and verify; nothing global."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx

from graphprune.analysis import BATCH_SIZE, Analysis
from graphprune.building import build
from graphprune.calib.calls import one_call
from graphprune.calib.pairs import Track
from graphprune.calib.stream import Source
from graphprune.entries import RecoveryRecord, SpeedRecord
from graphprune.errors import RecipeError, TargetError
from graphprune.ir.coupling.resizing import SAME, Resized, resized
from graphprune.ir.coupling.units import BoolArray
from graphprune.ir.kernels import widths
from graphprune.ir.model import Model
from graphprune.ir.session import Feeds, ModelLike, demand_provider
from graphprune.ir.surgery import remove
from graphprune.passes import trim
from graphprune.planning import Plan, by_macs, by_share, plan, with_zeros
from graphprune.recipe import Recipe
from graphprune.recovery.effects import compared_outputs, squared_error, values_of
from graphprune.search import drop_of, search
from graphprune.speed import removal_for
from graphprune.verify.equivalence import Proof, check_equivalence
from graphprune.verify.fidelity import Fidelity, compare_outputs
from graphprune.verify.gate import drop
from graphprune.verify.latency import Latency, compare_latency
from graphprune.verify.metric import Metric, compare_metric, load_metric
from graphprune.watch import Stopwatch

FIDELITY_SAMPLES = 256
"""Calibration samples on which original and results are compared."""
ENOUGH_RUNS = 100
"""Latency runs that a result is given up for."""


@dataclass(frozen=True)
class Decision:
    """What goes, and what a trial of it showed; no trial where nothing is repaired, and speed only where it counts."""

    plan: Plan
    recovery: RecoveryRecord | None = None
    speed: SpeedRecord | None = None


@dataclass(frozen=True)
class Verification:
    """How original and result compare."""

    equivalence: Proof
    fidelity: Fidelity
    latency: Latency
    metric: Metric | None = None


class Trials:
    """Builds plans from a part of the data, and measures them on the other; remembers what was tried.

    Parameters
    ----------
    analysis : Analysis
        With error curves.
    recipe : Recipe
    """

    def __init__(self, analysis: Analysis, recipe: Recipe) -> None:
        self.analysis = analysis
        self.recipe = recipe
        self.done: dict[bytes, RecoveryRecord] = {}
        proto = analysis.coupling.graph.proto
        self.names = compared_outputs(analysis.coupling.graph)
        self.track = Track(proto, analysis.data.held_out, recipe.custom_ops)

    def of(self, plan: Plan) -> RecoveryRecord:
        """Return what became of a plan."""
        key = plan.removed.tobytes() + repr((sorted(plan.kept.items()), plan.branches)).encode()
        if key not in self.done:
            self.done[key] = self._measure(plan)
        return self.done[key]

    def _measure(self, plan: Plan) -> RecoveryRecord:
        draft = build(self.analysis, plan, self.recipe, Stopwatch(), self.analysis.data.fitted)
        return self.judged(draft.model, plan.removed, plan.error)

    def judged(self, model: onnx.ModelProto, removed: BoolArray, predicted: float | None = None) -> RecoveryRecord:
        """Measure a model that lost units, and was predicted a squared error of the outputs."""
        data, change = self.analysis.data, resized(self.analysis.coupling, removed)
        before = self.analysis.coupling.graph.proto
        fidelity = compare_outputs(before, model, data.held_out, change=change, custom_ops=self.recipe.custom_ops)
        whole = compare_outputs(before, model, data.every, change=change, custom_ops=self.recipe.custom_ops)
        names = [name for name in self.names if name not in change.outputs]
        after = Track(model, [change.cut_feeds(batch) for batch in data.held_out], self.recipe.custom_ops)
        reference = values_of(self.track, names, self.track.known) if names else []
        error = squared_error(reference, values_of(after, names, after.known)) if names else fidelity.relative_l2**2
        return RecoveryRecord(
            fitted=len(data.fitted) if data.splits else 0,
            held_out=len(data.held_out) if data.splits else 0,
            predicted_l2=float(np.sqrt(predicted or 0.0)),
            measured_l2=float(np.sqrt(error)),
            agreement=fidelity.top1_agreement,
            drop=max(drop(fidelity), drop(whole)),  # few held-out answers show no small drop
        )


def demand_runnable(recipe: Recipe) -> None:
    """Demand that the provider is installed and the metric is there, before any work is done.

    Raises
    ------
    RecipeError
        When they are not.
    """
    demand_provider(recipe.provider)
    if recipe.metric is not None:
        load_metric(recipe.metric)


def decide(original: Model, analysis: Analysis, recipe: Recipe, source: Source) -> Decision:
    """Decide what goes.

    Raises
    ------
    RecipeError
        When what is asked for needs a repair that is ruled out, or for which there is no data.
    TargetError
        When the target or the speedup cannot be reached.
    """
    fast = None
    if recipe.speedup is not None:
        before, feeds = original.path or original.proto, one_call(source, recipe.batch)
        fast = removal_for(before, analysis, recipe, feeds, recipe.speedup)
    speed = None if fast is None else fast.record
    if analysis.curves is None:
        _demand_no_repair(recipe)
        rule = (
            by_rule(analysis, recipe, trial_error(original, analysis, recipe, source)) if fast is None else fast.removed
        )
        return Decision(Plan(rule), speed=speed)
    trials = Trials(analysis, recipe)
    if fast is not None:
        chosen = with_zeros(analysis, recipe, fast.removed, recipe.target, fast.branches)
    elif recipe.searches:
        chosen = search(analysis, recipe, trials.of, drop_of(original, analysis, recipe, trials.of))
    else:
        chosen = plan(analysis, recipe, recipe.target, trials.of)
    nothing = not chosen.removed.any() and not chosen.kept
    return Decision(chosen, None if nothing else trials.of(chosen), speed)


def _demand_no_repair(recipe: Recipe) -> None:
    """Demand that a recipe can be carried out without repair: by ranks and magnitudes alone."""
    asked = "--pattern" if recipe.pattern is not None else "--max-drop alone"
    if recipe.pattern is not None or recipe.searches:
        raise RecipeError(
            f"{asked} needs kept weights to change",
            where="--no-recover" if not recipe.recover else "--calib",
            why="errors are predicted and repaired from real inputs",
            hint="leave out --no-recover" if not recipe.recover else "give --calib",
        )


def by_rule(analysis: Analysis, recipe: Recipe, trial: Callable[[Plan], float]) -> BoolArray:
    """Decide which units go where nothing is predicted: by the scores' ranks.

    Parameters
    ----------
    analysis : Analysis
    recipe : Recipe
    trial : callable
        Gives the error of the outputs that a removal leads to; asked only where ``structural`` is ``"auto"``.
    """
    coupling, scores, good = analysis.coupling, analysis.scores, widths(recipe.align)
    if recipe.channels is not None:
        return trim.by_fraction(coupling, analysis.queues, recipe.channels, good.step)
    if recipe.macs is not None:
        return by_macs(analysis, trim.by_rank(analysis.queues), recipe.macs, good.step)
    if recipe.structural == "auto":
        steps = trim.by_threshold(coupling, scores)
        return trim.by_trial(coupling, steps, lambda removed: trial(Plan(removed)), good.block)
    steps = trim.by_rank(analysis.queues)
    return by_share(analysis, steps, recipe.target, float(recipe.structural), good.step)


def trial_error(original: Model, analysis: Analysis, recipe: Recipe, source: Source) -> Callable[[Plan], float]:
    """Return a function that builds the result of a plan and measures its `drop`."""
    subset = source.subset(FIDELITY_SAMPLES)
    before = original.path or original.proto

    def error(plan: Plan) -> float:
        try:
            draft = build(analysis, plan, recipe, Stopwatch())
        except TargetError:  # zeros alone do not reach the target after so little removal
            return float("inf")
        change = resized(analysis.coupling, plan.removed)
        batches = subset.batches(BATCH_SIZE)
        return drop(compare_outputs(before, draft.model, batches, change=change, custom_ops=recipe.custom_ops))

    return error


def verify(
    original: Model, analysis: Analysis, removed: BoolArray, result: onnx.ModelProto, recipe: Recipe, source: Source
) -> Verification:
    """Prove the removal, compare the outputs, and time both models.

    Raises
    ------
    EquivalenceError
        When the trimmed model does not equal the masked original.
    """
    feeds: Feeds = one_call(source, recipe.batch)
    before = original.path or original.proto
    # The weights are changed by later passes in place, so the removal is made again for the proof.
    trimmed, _ = remove(analysis.coupling, removed)
    batch = next(iter(source.batches(BATCH_SIZE)))
    equivalence = check_equivalence(analysis.coupling, removed, trimmed, batch, custom_ops=recipe.custom_ops)
    change = resized(analysis.coupling, removed)
    runs = compare_runs(before, result, feeds, recipe, source, change)
    return Verification(equivalence, *runs, metric_of(before, result, recipe))


def metric_of(before: ModelLike, after: ModelLike, recipe: Recipe) -> Metric | None:
    """Call the metric that the recipe names, if any, for both models."""
    if recipe.metric is None:
        return None
    return compare_metric(recipe.metric, before, after, custom_ops=recipe.custom_ops, provider=recipe.provider)


def time_again(
    original: Model, analysis: Analysis, removed: BoolArray, result: onnx.ModelProto, recipe: Recipe, source: Source
) -> Latency:
    """Time both models once more, with enough runs for a verdict that is acted on."""
    feeds: Feeds = one_call(source, recipe.batch)
    longer = replace(recipe, runs=max(recipe.runs, ENOUGH_RUNS))
    return _latency(original.path or original.proto, result, feeds, longer, resized(analysis.coupling, removed))


def time_packed(
    unpacked: onnx.ModelProto, packed: onnx.ModelProto, analysis: Analysis, removed: BoolArray, recipe: Recipe
) -> Latency:
    """Time a result with packed weights beside the same with dense ones."""
    assert analysis.packing is not None
    feeds = resized(analysis.coupling, removed).cut_feeds(analysis.packing.feeds)
    return _latency(unpacked, packed, feeds, recipe, SAME)


def compare_runs(
    before: ModelLike, after: ModelLike, feeds: Feeds, recipe: Recipe, source: Source, change: Resized = SAME
) -> tuple[Fidelity, Latency]:
    """Compare two models' outputs on the calibration samples, and time both on one call's inputs."""
    samples = source.subset(FIDELITY_SAMPLES).batches(BATCH_SIZE)
    fidelity = compare_outputs(before, after, samples, change=change, custom_ops=recipe.custom_ops)
    return fidelity, _latency(before, after, feeds, recipe, change)


def _latency(before: ModelLike, after: ModelLike, feeds: Feeds, recipe: Recipe, change: Resized) -> Latency:
    return compare_latency(
        before,
        after,
        feeds,
        change=change,
        threads=recipe.threads,
        batch=recipe.batch,
        provider=recipe.provider,
        custom_ops=recipe.custom_ops,
        runs=recipe.runs,
        seed=recipe.seed,
    )
