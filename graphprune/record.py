"""From what a run found and made to its ledger."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib import metadata

import numpy as np

from graphprune.calib.stream import Source
from graphprune.ir.atoms import Reason
from graphprune.ir.cost import count_macs, count_nonzero, count_weights
from graphprune.ir.graph import Shape
from graphprune.ir.model import Model, fingerprint
from graphprune.ir.units import BoolArray
from graphprune.ledger import (
    CalibrationRecord,
    Change,
    DeclinedRecord,
    FileRecord,
    GroupRecord,
    Ledger,
    WeightRecord,
)
from graphprune.passes import trim
from graphprune.passes.canonicalize import canonicalize
from graphprune.passes.choice import CROSSING, queues
from graphprune.pipeline import Analysis, Draft, Stopwatch, Verification
from graphprune.recipe import Recipe
from graphprune.verify.gate import Gate, check_gates

NOT_REAL = (
    "warning: no calibration data was given: the statistics come from random inputs and say nothing about real ones; "
    "give --calib"
)
HELD_BACK = (
    "the rule names {named} units, and {removed} were removed: the rest would have changed more answers than zeros "
    "alone do, or left convolutions of widths that ONNX Runtime runs no faster (--channels removes regardless)"
)


def record(
    original: Model,
    recipe: Recipe,
    source: Source,
    analysis: Analysis,
    removed: BoolArray,
    draft: Draft,
    verification: Verification,
    watch: Stopwatch,
) -> Ledger:
    """Make the ledger of a run."""
    after, nonzero = count_weights(draft.model), count_nonzero(draft.model)
    before = analysis.weights_before
    weights = WeightRecord(
        before=before,
        after=after,
        removed=before - after,
        zeroed=sum(draft.zeroed.values()),
        nonzero=nonzero,
        sparsity=1 - nonzero / before if before else 0.0,
        nonzero_before=count_nonzero(original.proto),
    )
    shapes = one_sample_shapes(source)
    sha256, size = fingerprint(draft.model)
    return Ledger(
        model=file_record(original),
        output=FileRecord(None, sha256),
        target=recipe.target,
        seed=recipe.seed,
        recipe=asdict(recipe),
        versions=_versions(),
        calibration=calibration_record(source),
        weights=weights,
        macs=Change(count_macs(analysis.coupling.graph.proto, shapes), count_macs(canonicalize(draft.model), shapes)),
        bytes=Change(original.file_bytes, size),
        kept={name: {str(axis): kept for axis, kept in axes.items()} for name, axes in draft.kept.items()},
        zeroed=draft.zeroed,
        groups=group_records(analysis, removed),
        declined=declined_records(analysis),
        latency=verification.latency,
        equivalence=verification.equivalence,
        fidelity=verification.fidelity,
        gates=gates_of(recipe, weights, verification),
        notes=[*notes(source), *_held_back(analysis, removed, recipe)],
        seconds={name: round(value, 4) for name, value in watch.seconds.items()},
    )


def group_records(analysis: Analysis, removed: BoolArray) -> list[GroupRecord]:
    """Return what is known of every group, with the units that go."""
    coupling, scores = analysis.coupling, analysis.scores
    return [
        GroupRecord(
            name=group.name,
            axes=list(group.axes),
            size=len(group.units),
            removed=np.flatnonzero(removed[group.units]).tolist(),
            score=[float(f"{value:.6g}") for value in scores.values[group.units]],
            criterion=criterion,
            exact=True,  # every rule so far removes only what masking equals
        )
        for group, criterion in zip(coupling.groups, scores.criteria, strict=True)
    ]


def gates_of(recipe: Recipe, weights: WeightRecord, verification: Verification) -> list[Gate]:
    """Decide the gates: the target, what was asked for, and finite outputs wherever the original's are."""
    gates = check_gates(
        max_latency_ratio=recipe.max_latency_ratio,
        latency=verification.latency,
        max_drop=recipe.max_drop,
        fidelity=verification.fidelity,
    )
    if verification.fidelity.nonfinite:
        gates = (*gates, Gate("nonfinite-outputs", 0, verification.fidelity.nonfinite, ok=False))
    if recipe.target is None:
        return list(gates)
    return [Gate("target", recipe.target, weights.sparsity, weights.sparsity >= recipe.target), *gates]


def _versions() -> dict[str, str]:
    packages = ("graphprune", "onnx", "onnxruntime", "onnx-graphsurgeon", "numpy")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from the source tree without installing
            found[package] = "not installed"
    return found


def declined_records(analysis: Analysis) -> list[DeclinedRecord]:
    """Return every axis of a weight that was left alone, and why."""
    coupling = analysis.coupling
    total = max(count_weights(coupling.graph.proto), 1)

    def record(tensor: str, axis: int, positions: int, reason: Reason) -> DeclinedRecord:
        dims = coupling.graph.initializers[tensor].dims
        share = positions / dims[axis] * int(np.prod(dims, dtype=np.int64)) / total
        return DeclinedRecord(tensor, axis, positions, share, reason.node, reason.op, reason.text)

    records = [record(d.tensor, d.axis, d.positions, d.reason) for d in coupling.declined]
    for queue in queues(coupling, analysis.scores):
        if not queue.steps:
            for group in (coupling.groups[index] for index in queue.groups):
                records.extend(record(name, axis, len(group.units), CROSSING) for name, axis in group.axes)
    return records


def _held_back(analysis: Analysis, removed: BoolArray, recipe: Recipe) -> list[str]:
    """Say how much of the criterion's rule was not carried out."""
    if recipe.structural != "auto" or recipe.channels is not None:
        return []
    steps = trim.by_threshold(analysis.coupling, analysis.scores)
    named, gone = sum(len(step.units) for step in steps), int(removed.sum())
    return [HELD_BACK.format(named=named, removed=gone)] if gone < named else []


def calibration_record(source: Source) -> CalibrationRecord:
    """Return what the statistics were taken on."""
    return CalibrationRecord(source.description, source.samples, source.real)


def notes(source: Source) -> list[str]:
    """Return what the user must be told."""
    return [] if source.real else [NOT_REAL]


def one_sample_shapes(source: Source) -> dict[str, Shape]:
    """Return the input shapes of one sample, batch axis included."""
    feeds = next(iter(source.subset(1).batches(1)))
    return {name: tuple(value.shape) for name, value in feeds.items()}


def file_record(model: Model) -> FileRecord:
    """Return where a model came from, and its hash."""
    return FileRecord(str(model.path) if model.path else None, model.sha256)
