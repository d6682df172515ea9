"""The passes and the order in which they run; nothing global."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from graphprune.calib.run import calibrate, probes_for
from graphprune.calib.sources import SourceLike, input_specs, open_source
from graphprune.calib.stats import Key, Moments
from graphprune.calib.stream import Source
from graphprune.calib.synthetic import FREE_SIZES, free_sizes, random_source
from graphprune.errors import ModelError, TargetError
from graphprune.ir.cost import count_weights, weights_left
from graphprune.ir.coupling.resizing import SAME, Resized, freed, resized
from graphprune.ir.coupling.units import BoolArray, Coupling
from graphprune.ir.coupling.walk import couple
from graphprune.ir.graph import Graph
from graphprune.ir.model import Model
from graphprune.ir.session import Feeds, ModelLike, open_session, run_session
from graphprune.ir.surgery import Kept, remove
from graphprune.passes import compensate, sparsify, trim
from graphprune.passes.canonicalize import canonicalize
from graphprune.passes.criteria import Scores, score
from graphprune.passes.fold import fold
from graphprune.recipe import Recipe
from graphprune.verify.equivalence import Proof, check_canonical, check_equivalence
from graphprune.verify.fidelity import Fidelity, compare_outputs
from graphprune.verify.gate import drop
from graphprune.verify.latency import Latency, compare_latency

FIDELITY_SAMPLES = 256
"""Calibration samples on which original and results are compared."""
BATCH_SIZE = 8


@dataclass(frozen=True)
class Analysis:
    """What is known of the model before anything is decided.

    Attributes
    ----------
    coupling : Coupling
        Of the canonical model.
    statistics : dict of (str, int) to Moments
        By tensor and axis.
    scores : Scores
    weights_before : int
        Weights of the original.
    """

    coupling: Coupling
    statistics: dict[Key, Moments]
    scores: Scores
    weights_before: int


@dataclass(frozen=True)
class Draft:
    """A model on its way through the passes.

    Attributes
    ----------
    model : onnx.ModelProto
    kept : dict
        What stays of every initializer that lost something.
    zeroed : dict of str to int
        By initializer, how many of its weights were set to 0.
    """

    model: onnx.ModelProto
    kept: Kept = field(default_factory=dict)
    zeroed: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Pass:
    """A named step that makes one draft of another, given the analysis and the units to remove."""

    name: str
    run: Callable[[Draft, Analysis, BoolArray, Recipe], Draft]


@dataclass(frozen=True)
class Verification:
    """How original and result compare."""

    equivalence: Proof
    fidelity: Fidelity
    latency: Latency


def _trim(draft: Draft, analysis: Analysis, removed: BoolArray, recipe: Recipe) -> Draft:
    model, kept = remove(analysis.coupling, removed)
    return replace(draft, model=model, kept=kept)


def _compensate(draft: Draft, analysis: Analysis, removed: BoolArray, recipe: Recipe) -> Draft:
    if recipe.recover:
        deltas = compensate.plan(analysis.coupling, removed, analysis.statistics)
        compensate.apply(draft.model, deltas)
    return draft


def _sparsify(draft: Draft, analysis: Analysis, removed: BoolArray, recipe: Recipe) -> Draft:
    if recipe.target is None:
        return draft
    names = sparsify.zeroable(analysis.coupling.graph, analysis.coupling.contractions)
    final = fold(draft.model) if recipe.recover else draft.model
    zeros = sparsify.plan(draft.model, names, weights_before=analysis.weights_before, target=recipe.target, final=final)
    sparsify.apply(draft.model, zeros)
    return replace(draft, zeroed={name: len(indices) for name, indices in zeros.items()})


def _fold(draft: Draft, analysis: Analysis, removed: BoolArray, recipe: Recipe) -> Draft:
    return replace(draft, model=fold(draft.model)) if recipe.recover else draft


PASSES = (Pass("trim", _trim), Pass("compensate", _compensate), Pass("sparsify", _sparsify), Pass("fold", _fold))
"""What makes the result of the canonical model, in order."""


class Stopwatch:
    """Seconds by name, summed up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add the time that the block takes."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def source_for(original: Model, recipe: Recipe, calibration: SourceLike) -> Source:
    """Open the calibration data; without any, make random inputs, of the first free size that the model runs on."""
    specs = input_specs(original.proto)
    if calibration is not None or not free_sizes(specs):
        return open_source(calibration, specs, seed=recipe.seed)
    sources = [random_source(specs, recipe.seed, free_size=size) for size in FREE_SIZES]
    for source in sources:
        try:
            session = open_session(original.path or original.proto, custom_ops=recipe.custom_ops)
            run_session(session, next(iter(source.batches(BATCH_SIZE))))
        except ModelError:
            continue
        return source
    return sources[0]  # the error that it leads to is the one to show


def analyse(
    original: Model, recipe: Recipe, source: Source, watch: Stopwatch, progress: Callable[[int], None] | None = None
) -> Analysis:
    """Bring the model into canonical form, couple it, and measure its activations.

    Raises
    ------
    RecipeError
        When an input or output that may be resized does not exist.
    ModelError
        When the model cannot be used: its graph contradicts itself, or its outputs are random or not numbers.
    """
    with watch.time("canonicalize"):
        canonical = canonicalize(original.proto)
    graph = Graph(canonical)
    may_change = freed(graph, recipe.allow_resize)
    with watch.time("check"):
        batch = next(iter(source.batches(BATCH_SIZE)))
        check_canonical(original.path or original.proto, canonical, batch, custom_ops=recipe.custom_ops)
    with watch.time("couple"):
        coupling = couple(graph, may_change.names, may_change.states)
    with watch.time("calibrate"):
        statistics = calibrate(
            coupling.graph, probes_for(coupling), source, custom_ops=recipe.custom_ops, progress=progress
        )
    with watch.time("score"):
        scores = score(coupling, statistics, recipe.criterion)
    return Analysis(coupling, statistics, scores, count_weights(original.proto))


def choose(analysis: Analysis, recipe: Recipe, trial: Callable[[BoolArray], float]) -> BoolArray:
    """Decide which units go.

    Parameters
    ----------
    analysis : Analysis
    recipe : Recipe
    trial : callable
        Gives the error of the outputs that a removal leads to; asked only where ``structural`` is ``"auto"``.

    Returns
    -------
    ndarray of bool, shape (units,)

    Raises
    ------
    TargetError
        When removal alone cannot reach its share of the target.
    """
    coupling, scores = analysis.coupling, analysis.scores
    if recipe.channels is not None:
        return trim.by_fraction(coupling, scores, recipe.channels)
    if recipe.structural == "auto":
        return trim.by_trial(coupling, trim.by_threshold(coupling, scores), trial)
    removed = np.zeros(coupling.units, dtype=np.bool_)
    if recipe.structural == 0:
        return removed
    outside = count_weights(coupling.graph.proto) - weights_left(coupling, removed)
    most_left = sparsify.allowed_nonzero(analysis.weights_before, float(recipe.structural) * (recipe.target or 0.0))
    return trim.by_weights(coupling, scores, most_left, weights_outside=outside, weights_before=analysis.weights_before)


def build(analysis: Analysis, removed: BoolArray, recipe: Recipe, watch: Stopwatch) -> Draft:
    """Run the passes."""
    draft = Draft(analysis.coupling.graph.proto)
    for step in PASSES:
        with watch.time(step.name):
            # Every pass may write into the model that it is given, and trim, the first, makes a new one.
            draft = step.run(draft, analysis, removed, recipe)
    return draft


def trial_error(original: Model, analysis: Analysis, recipe: Recipe, source: Source) -> Callable[[BoolArray], float]:
    """Return a function that builds the result of a removal and measures its `drop`."""
    subset = source.subset(FIDELITY_SAMPLES)
    before = original.path or original.proto

    def error(removed: BoolArray) -> float:
        try:
            draft = build(analysis, removed, recipe, Stopwatch())
        except TargetError:  # zeros alone do not reach the target after so little removal
            return float("inf")
        change = resized(analysis.coupling, removed)
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
    feeds: Feeds = next(iter(source.subset(1).batches(1)))
    before = original.path or original.proto
    # The weights are changed by later passes in place, so the removal is made again for the proof.
    trimmed, _ = remove(analysis.coupling, removed)
    batch = next(iter(source.batches(BATCH_SIZE)))
    equivalence = check_equivalence(analysis.coupling, removed, trimmed, batch, custom_ops=recipe.custom_ops)
    change = resized(analysis.coupling, removed)
    return Verification(equivalence, *compare_runs(before, result, feeds, recipe, source, change))


def compare_runs(
    before: ModelLike, after: ModelLike, feeds: Feeds, recipe: Recipe, source: Source, change: Resized = SAME
) -> tuple[Fidelity, Latency]:
    """Compare two models' outputs on the calibration samples, and time both on one call's inputs."""
    samples = source.subset(FIDELITY_SAMPLES).batches(BATCH_SIZE)
    fidelity = compare_outputs(before, after, samples, change=change, custom_ops=recipe.custom_ops)
    latency = compare_latency(
        before,
        after,
        feeds,
        change=change,
        threads=recipe.threads,
        custom_ops=recipe.custom_ops,
        runs=recipe.runs,
        seed=recipe.seed,
    )
    return fidelity, latency
