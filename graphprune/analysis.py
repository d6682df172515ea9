"""What is known of a model before anything is decided."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from graphprune.calib.calls import one_call, one_sample_shapes
from graphprune.calib.pairs import Batch
from graphprune.calib.run import calibrate, probes_for
from graphprune.calib.sources import SourceLike, input_specs, open_source
from graphprune.calib.stats import Key, Moments
from graphprune.calib.stream import Source
from graphprune.calib.synthetic import FREE_SIZES, free_sizes, random_source
from graphprune.errors import ModelError
from graphprune.ir.cost import count_macs, count_weights, nonzero_entries
from graphprune.ir.coupling.resizing import freed
from graphprune.ir.coupling.units import Coupling
from graphprune.ir.coupling.walk import couple
from graphprune.ir.graph import Graph
from graphprune.ir.model import Model
from graphprune.ir.session import open_session, run_session
from graphprune.passes.canonicalize import canonicalize
from graphprune.passes.choice import Queue, queues
from graphprune.passes.criteria import FloatArray, Scores, score
from graphprune.passes.curves import ZeroCurve
from graphprune.passes.fold import fold
from graphprune.recipe import Recipe
from graphprune.recovery.prediction import predictor, price
from graphprune.verify.equivalence import check_canonical
from graphprune.verify.packing_times import PackingTimes
from graphprune.watch import Stopwatch

BATCH_SIZE = 8
REPAIR_SAMPLES = 512
"""Calibration samples that least squares use, and judge by; the statistics of units use all."""
REPAIR_BYTES = 512 * 2**20
"""The most memory that they take."""
HELD_OUT = 4
"""Every fourth batch is held out to measure what comes out."""
FEWEST_BATCHES = 8
"""With fewer, nothing is held out."""
BY_ERROR = ("auto", "obs")
"""Criteria that order units by their predicted error."""


@dataclass(frozen=True)
class Data:
    """The calibration inputs that a repair uses.

    Attributes
    ----------
    every : list of dict
        All of them, batch by batch.
    fitted, held_out : list of dict
        What a trial is computed from, and what it is measured on; the same where there is too little data.
    """

    every: list[Batch] = field(default_factory=list)
    fitted: list[Batch] = field(default_factory=list)
    held_out: list[Batch] = field(default_factory=list)

    @property
    def splits(self) -> bool:
        """Whether anything is held out."""
        return len(self.fitted) < len(self.every)


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
    queues : list of Queue
        All units that may go, group by group in the order in which they go.
    weights_before : int
        Weights of the original.
    macs_before : int
        Its multiply-accumulates.
    shapes : dict of str to tuple of int
        Of the inputs, for one sample.
    data : Data
    curves : list of ZeroCurve or None
        What zeroing weights is predicted to cost; None where kept weights may not change, or there is no real data.
    packing : PackingTimes or None
        How long products take, dense and packed; None where none are to be packed.
    trained : bool
        Whether what is made of the model is trained afterwards.
    """

    coupling: Coupling
    statistics: dict[Key, Moments]
    scores: Scores
    queues: list[Queue]
    weights_before: int
    macs_before: int
    shapes: dict[str, tuple[int, ...]]
    data: Data
    curves: list[ZeroCurve] | None
    packing: PackingTimes | None = None
    trained: bool = False

    def entries(self, proto: onnx.ModelProto) -> dict[str, int]:
        """Return how many entries of every weight will not be 0 in the end, by initializer.

        Those that are not 0 now, and all biases and norm parameters where training fills them; other zeros it keeps.
        """
        entries = nonzero_entries(proto)
        for tensor in proto.graph.initializer:
            if self.trained and tensor.name in entries and len(tensor.dims) < 2:
                entries[tensor.name] = math.prod(tensor.dims)
        return entries


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
    """Bring the model into canonical form, couple it, measure its activations, and predict what removal costs.

    Raises
    ------
    RecipeError
        When an input or output that may be resized does not exist.
    ModelError
        When the model cannot be used: its graph contradicts itself, or its outputs are random or not numbers.
    """
    repairs = recipe.recover and source.real
    with watch.time("canonicalize"):
        canonical = canonicalize(original.proto)
        if repairs:  # least squares need no scales apart from the weights, and branches add up without them
            canonical = fold(canonical)
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
    data = split(source) if repairs else Data()
    with watch.time("score"):
        scores = _scores(coupling, statistics, recipe, source, by_error=repairs)
        found = queues(coupling, scores)
    curves = None
    if repairs:
        with watch.time("predict"):
            predicted = predictor(coupling, data.fitted, data.held_out, recipe.custom_ops)
            if recipe.structural != 0:
                others = _others(coupling, statistics) if recipe.criterion == "auto" else {}
                ordered = recipe.criterion not in BY_ERROR
                found = [price(predicted, queue, others, ordered=ordered) for queue in found]
                scores = by_cost(scores, found)
            curves = predicted.curves  # the moments that it holds are large, and needed no more
    weights = count_weights(original.proto)
    packing = None
    if recipe.pack != "off":
        packing = PackingTimes(one_call(source, recipe.batch), recipe.threads, recipe.provider)
    shapes = one_sample_shapes(source)
    macs = count_macs(coupling.graph.proto, shapes)
    return Analysis(coupling, statistics, scores, found, weights, macs, shapes, data, curves, packing)


def _scores(
    coupling: Coupling, statistics: dict[Key, Moments], recipe: Recipe, source: Source, *, by_error: bool
) -> Scores:
    """Scores by the recipe's criterion; where units go by predicted error, those that break ties.

    Where nothing is predicted, ``auto`` is APoZ with its rule.
    """
    if recipe.criterion != "taylor":
        names = {"auto": "activation" if by_error else "apoz", "obs": "activation"}
        return score(coupling, statistics, names.get(recipe.criterion, recipe.criterion), seed=recipe.seed)
    from graphprune.finetune.taylor import taylor  # noqa: PLC0415 - torch only where it is asked for

    values = taylor(coupling, source.batches(BATCH_SIZE))
    return score(coupling, statistics, "taylor", seed=recipe.seed, measured={"taylor": values})


def _others(coupling: Coupling, statistics: dict[Key, Moments]) -> dict[str, FloatArray]:
    """Scores that ``auto`` compares with predicted errors."""
    return {name: score(coupling, statistics, name).values for name in ("apoz", "activation")}


def by_cost(scores: Scores, found: Sequence[Queue]) -> Scores:
    """Return scores under which units go in the order of the queues, where that is by another criterion than theirs."""
    values, names = scores.values.copy(), list(scores.criteria)
    for queue in found:
        if queue.criterion == scores.criteria[queue.groups[0]]:
            continue
        total = np.cumsum([*queue.costs, 0.0])
        for step, error in zip(queue.steps, total, strict=True):
            values[step.units] = -error
        for group in queue.groups:
            names[group] = queue.criterion
    return Scores(values, tuple(names), scores.dead)


def split(source: Source) -> Data:
    """Take the samples that a repair uses, and hold some out."""
    samples = source.subset(REPAIR_SAMPLES)
    size = min(BATCH_SIZE, max(samples.samples // FEWEST_BATCHES, 1))  # of few samples, too, some are held out
    every: list[Batch] = []
    for batch in samples.batches(size):
        every.append(dict(batch))
        if sum(value.nbytes for value in batch.values()) * (len(every) + 1) > REPAIR_BYTES:
            break
    if len(every) < FEWEST_BATCHES:
        return Data(every, every, every)
    held_out = every[HELD_OUT - 1 :: HELD_OUT]
    return Data(every, [batch for index, batch in enumerate(every, 1) if index % HELD_OUT], held_out)
