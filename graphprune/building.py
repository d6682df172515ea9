"""Carry out a plan: the passes, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from graphprune.analysis import Analysis
from graphprune.calib.pairs import Batch, Pair
from graphprune.entries import LayerRecord
from graphprune.ir.cost import nonzero_entries
from graphprune.ir.coupling.resizing import resized
from graphprune.ir.graph import Graph
from graphprune.ir.layers.layer import kernel_of
from graphprune.ir.packing import find_sites
from graphprune.ir.surgery import Kept, remove
from graphprune.ir.tensors import array
from graphprune.passes import pack, sparsify
from graphprune.passes.branches import cut
from graphprune.passes.encode import Encoding
from graphprune.passes.fold import fold
from graphprune.passes.lower import lower
from graphprune.passes.pack import Packing
from graphprune.passes.patterns import Choice, Pattern, largest, shared_inputs
from graphprune.planning import Plan, put_means_right
from graphprune.recipe import Recipe
from graphprune.recovery.repair import Zeroing, repair, solved_layers
from graphprune.watch import Stopwatch


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
    repairs : tuple of LayerRecord
        What became of the layers that were solved anew.
    packings : dict of str to Packing
        By initializer, which zeros are to be left out; the draft's weights are dense.
    encodings : tuple of Encoding
        How weights are stored in the file; the draft's are dense.
    """

    model: onnx.ModelProto
    kept: Kept = field(default_factory=dict)
    zeroed: dict[str, int] = field(default_factory=dict)
    repairs: tuple[LayerRecord, ...] = ()
    packings: dict[str, Packing] = field(default_factory=dict)
    encodings: tuple[Encoding, ...] = ()


@dataclass(frozen=True)
class Job:
    """What every pass is told.

    Attributes
    ----------
    analysis : Analysis
    plan : Plan
    recipe : Recipe
    batches : sequence of dict
        Calibration inputs to repair by.
    """

    analysis: Analysis
    plan: Plan
    recipe: Recipe
    batches: Sequence[Batch]


@dataclass(frozen=True)
class Pass:
    """A named step that makes one draft of another."""

    name: str
    run: Callable[[Draft, Job], Draft]


def _trim(draft: Draft, job: Job) -> Draft:
    model, kept = remove(job.analysis.coupling, job.plan.removed)
    return replace(draft, model=model, kept=kept)


def _compensate(draft: Draft, job: Job) -> Draft:
    """Put means right where nothing is solved anew."""
    if job.recipe.recover:
        put_means_right(job.analysis, job.plan.removed, draft.model)
    return draft


def _cut(draft: Draft, job: Job) -> Draft:
    """Cut branches off; what only they held is no longer kept either."""
    if not job.plan.branches:
        return draft
    cut(draft.model, job.plan.branches)
    there = {tensor.name for tensor in draft.model.graph.initializer}
    return replace(draft, kept={name: axes for name, axes in draft.kept.items() if name in there})


def _sparsify(draft: Draft, job: Job) -> Draft:
    """Zero weights by magnitude: all where nothing is solved anew, else those that no layer holds."""
    if job.analysis.curves is not None:
        packings = _packings(draft.model, job.plan.kept, job)
        layers = {layer.weight for layer, _ in solved_layers(job.analysis.coupling, draft.model)}
        kept = {name: count for name, count in job.plan.kept.items() if name not in layers | packings.keys()}
        zeros = sparsify.smallest(draft.model, kept) if kept else {}
        shared = set(packings) - layers
    elif job.recipe.target is None:
        return draft
    else:
        coupling = job.analysis.coupling
        final = fold(draft.model) if job.recipe.recover else draft.model
        entries = job.analysis.entries(final)
        zeros = sparsify.plan(
            draft.model,
            sparsify.zeroable(coupling.graph, coupling.contractions),
            weights_before=job.analysis.weights_before,
            target=job.recipe.target,
            final=final,
            nonzero=sum(entries.values()),
        )
        packings = _packings(draft.model, {name: entries[name] - len(zeros[name]) for name in zeros}, job)
        shared = set(packings)
    zeros.update(_shared_zeros(draft.model, shared, packings))
    sparsify.apply(draft.model, zeros)
    return replace(draft, zeroed={name: len(indices) for name, indices in zeros.items()}, packings=packings)


def _packings(model: onnx.ModelProto, kept: Mapping[str, int], job: Job) -> dict[str, Packing]:
    """Decide which weights are packed, of which so many entries may stay."""
    times = job.analysis.packing
    if job.recipe.pack == "off" or times is None:
        return {}
    feeds = resized(job.analysis.coupling, job.plan.removed).cut_feeds(times.feeds)
    return pack.plan(model, kept, feeds, times.of)


def _shared_zeros(model: onnx.ModelProto, names: Set[str], packings: Mapping[str, Packing]) -> sparsify.Zeros:
    """Choose the zeros of weights to pack by magnitude."""
    if not names:
        return {}
    graph = Graph(model)
    sites, zeros = find_sites(graph), {}
    for name in names:
        values, packing = array(graph.initializers[name]), packings[name]
        choose = shared_inputs(packing.inputs, packing.groups)
        kept = sites[name].stored(choose(np.abs(sites[name].matrix(values))[None])[0], values.shape)
        zeros[name] = np.flatnonzero((kept == 0) & (values != 0))
    return zeros


def _repair(draft: Draft, job: Job) -> Draft:
    """Solve all layers anew, and zero their weights on the way."""
    analysis, plan = job.analysis, job.plan
    if analysis.curves is None or not (plan.removed.any() or plan.kept):
        return draft
    before = nonzero_entries(draft.model)
    change = resized(analysis.coupling, plan.removed)

    def pair(original: onnx.ModelProto, model: onnx.ModelProto) -> Pair:
        return Pair(original, model, job.batches, change=change, custom_ops=job.recipe.custom_ops)

    zeroing = Zeroing(_choices(draft.model, job, draft.packings), job.recipe.sparsifier)
    repairs = repair(analysis.coupling, plan.removed, draft.model, pair, zeroing)
    after = nonzero_entries(draft.model)
    zeroed = {name: before[name] - after[name] for name in plan.kept if before[name] > after[name]}
    return replace(draft, zeroed={**draft.zeroed, **zeroed}, repairs=tuple(repairs))


def _choices(model: onnx.ModelProto, job: Job, packings: Mapping[str, Packing]) -> dict[str, Choice]:
    pattern = None if job.recipe.pattern is None else Pattern.parse(job.recipe.pattern)
    dims = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    shared = {name: shared_inputs(packing.inputs, packing.groups) for name, packing in packings.items()}
    return {
        name: largest(count) if pattern is None else pattern.choice(count, kernel_of(dims[name]))
        for name, count in job.plan.kept.items()
        if name in dims
    } | shared


def _fold(draft: Draft, job: Job) -> Draft:
    return replace(draft, model=fold(draft.model)) if job.recipe.recover else draft


def _lower(draft: Draft, job: Job) -> Draft:
    return replace(draft, model=lower(draft.model))


PRUNING = (
    Pass("trim", _trim),
    Pass("compensate", _compensate),
    Pass("cut", _cut),
    Pass("sparsify", _sparsify),
    Pass("repair", _repair),
)
"""What takes weights out of the canonical model, in order; the result can be trained, and pruned again."""
LOWERING = (
    Pass("fold", _fold),
    Pass("lower", _lower),
)
"""What makes that fast, and changes nothing that it computes."""
PASSES = (*PRUNING, *LOWERING)
"""What makes the result of the canonical model, in order."""


def build(
    analysis: Analysis, plan: Plan, recipe: Recipe, watch: Stopwatch, batches: Sequence[Batch] | None = None
) -> Draft:
    """Run all passes.

    Parameters
    ----------
    analysis : Analysis
    plan : Plan
    recipe : Recipe
    watch : Stopwatch
    batches : sequence of dict, optional
        What to repair by; all calibration samples by default.
    """
    job = Job(analysis, plan, recipe, analysis.data.every if batches is None else batches)
    # Every pass may write into the model that it is given, and trim, the first, makes a new one.
    return run(PASSES, Draft(analysis.coupling.graph.proto), job, watch)


def run(passes: Sequence[Pass], draft: Draft, job: Job, watch: Stopwatch) -> Draft:
    """Run some of the passes, one after the other."""
    for step in passes:
        with watch.time(step.name):
            draft = step.run(draft, job)
    return draft
