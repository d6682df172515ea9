"""From what a run found and made to its ledger."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from functools import reduce
from importlib import metadata

import numpy as np

from graphprune.analysis import Analysis
from graphprune.attempts import Attempt
from graphprune.calib.stream import Source
from graphprune.entries import (
    CalibrationRecord,
    Change,
    DeclinedRecord,
    EncodingRecord,
    FileRecord,
    GroupRecord,
    PackedRecord,
    ReasonRecord,
    RecoveryRecord,
    ResizedRecord,
    WeightRecord,
)
from graphprune.ir.cost import count_macs, count_nonzero, count_weights
from graphprune.ir.coupling.atoms import IdArray, support
from graphprune.ir.coupling.resizing import resized
from graphprune.ir.coupling.units import BoolArray, Coupling, Declined
from graphprune.ir.edit import Edit
from graphprune.ir.graph import Graph
from graphprune.ir.model import Model, fingerprint
from graphprune.ir.surgery import kept_indices
from graphprune.ledger import Ledger
from graphprune.notes import notes_of
from graphprune.passes.canonicalize import canonicalize
from graphprune.passes.choice import CROSSING, queues
from graphprune.pipeline import Verification
from graphprune.recipe import Recipe
from graphprune.verify.gate import Gate, at_least, check_gates, finite_outputs, not_slower
from graphprune.watch import Stopwatch


def record(
    original: Model,
    recipe: Recipe,
    source: Source,
    analysis: Analysis,
    found: Attempt,
    watch: Stopwatch,
) -> Ledger:
    """Make the ledger of a run."""
    decision, draft, verification = found.decision, found.draft, found.verification
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
    coupling, removed = analysis.coupling, decision.plan.removed
    change = resized(coupling, removed)
    shapes_after = change.cut_shapes(analysis.shapes)
    macs = Change(analysis.macs_before, count_macs(canonicalize(draft.model), shapes_after))
    sha256, size = fingerprint(found.result)
    alone = left_alone(analysis)
    return Ledger(
        model=file_record(original),
        output=FileRecord(None, sha256),
        target=recipe.target,
        seed=recipe.seed,
        recipe=asdict(recipe),
        versions=_versions(),
        calibration=calibration_record(source),
        weights=weights,
        macs=macs,
        bytes=Change(original.file_bytes, size),
        kept={name: {str(axis): kept for axis, kept in axes.items()} for name, axes in draft.kept.items()},
        zeroed=draft.zeroed,
        groups=group_records(analysis, removed),
        declined=declined_records(coupling.graph, alone),
        reasons=reason_records(coupling.graph, alone),
        latency=verification.latency,
        equivalence=verification.equivalence,
        fidelity=verification.fidelity,
        gates=gates_of(recipe, weights, macs, verification, decision.recovery),
        metric=verification.metric,
        recovery=decision.recovery,
        speed=decision.speed,
        rounds=list(found.rounds),
        repairs=list(draft.repairs),
        resized=resized_records(coupling, removed),
        packed=[PackedRecord(**asdict(packing)) for packing in draft.packings.values()],
        packed_latency=found.gain,
        encodings=[EncodingRecord(**asdict(encoding)) for encoding in draft.encodings],
        notes=notes_of(recipe, source, analysis, found),
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


def gates_of(
    recipe: Recipe, weights: WeightRecord, macs: Change, verification: Verification, recovery: RecoveryRecord | None
) -> list[Gate]:
    """Decide the gates: the target, what was asked for, no slower model, and finite outputs where the original's are.

    Where weights were solved anew the drop is that of the trial, which looked at samples that it was not computed from.
    """
    gates = check_gates(
        max_latency_ratio=recipe.max_latency_ratio,
        min_speedup=recipe.min_speedup,
        latency=verification.latency,
        max_drop=recipe.max_drop,
        fidelity=verification.fidelity,
        held_out=None if recovery is None else recovery.drop,
        metric=verification.metric,
    )
    latency = verification.latency
    if recipe.speedup is not None:
        gates = (at_least("speedup", recipe.speedup, 1 / latency.ratio_ci[0]), *gates)  # missed where that is proven
    if recipe.max_latency_ratio is None and latency.verdict == "slower":
        gates = (*gates, not_slower(latency))
    reached = [] if recipe.target is None else [at_least("target", recipe.target, weights.sparsity)]
    if recipe.macs is not None:
        reached.append(at_least("macs", recipe.macs, 1 - macs.after / max(macs.before, 1)))
    return [*reached, *gates, *finite_outputs(verification.fidelity)]


def _versions() -> dict[str, str]:
    packages = ("graphprune", "onnx", "onnxruntime", "onnx-graphsurgeon", "numpy")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from the source tree without installing
            found[package] = "not installed"
    return found


def left_alone(analysis: Analysis) -> list[Declined]:
    """Return every axis of a weight that was left alone, and why."""
    coupling = analysis.coupling
    stuck = np.ones(coupling.units, dtype=np.bool_)
    for step in (step for queue in queues(coupling, analysis.scores) for step in queue.steps):
        stuck[step.units] = False
    found = list(coupling.declined)
    for group in coupling.groups:
        units = group.units[stuck[group.units]]
        if units.size:
            found.extend(_crossing(coupling, units, name, axis) for name, axis in group.axes)
    return found


def declined_records(graph: Graph, left_alone: Sequence[Declined]) -> list[DeclinedRecord]:
    """Return every axis that was left alone, the largest share of the weights first."""
    total = max(count_weights(graph.proto), 1)

    def record(declined: Declined) -> DeclinedRecord:
        share, reason = _weights_in(graph, [declined]) / total, declined.reason
        return DeclinedRecord(
            declined.tensor, declined.axis, declined.positions, share, reason.node, reason.op, reason.text
        )

    records = map(record, left_alone)
    return sorted(records, key=lambda record: -record.share)


def reason_records(graph: Graph, left_alone: Sequence[Declined]) -> list[ReasonRecord]:
    """Return every reason to leave axes alone, the largest share of the weights first."""
    total = max(count_weights(graph.proto), 1)
    by_reason: dict[tuple[str, str], list[Declined]] = {}
    for declined in left_alone:
        by_reason.setdefault((declined.reason.op, declined.reason.text), []).append(declined)
    records = [
        ReasonRecord(
            op=op,
            reason=text,
            nodes=list(dict.fromkeys(declined.reason.node for declined in found if declined.reason.node)),
            axes=len(found),
            share=_weights_in(graph, found) / total,
        )
        for (op, text), found in by_reason.items()
    ]
    return sorted(records, key=lambda record: -record.share)


def _crossing(coupling: Coupling, units: IdArray, name: str, axis: int) -> Declined:
    held = [np.isin(ids, units) for ids in coupling.ids[name] if axis in support(ids)]
    return Declined(name, axis, np.asarray(reduce(np.logical_or, held)), CROSSING)


def _weights_in(graph: Graph, left_alone: Sequence[Declined]) -> int:
    """Return the number of weights in the frozen positions, each counted once."""
    frozen: dict[str, BoolArray] = {}
    for declined in left_alone:
        known = frozen.get(declined.tensor)
        frozen[declined.tensor] = declined.frozen if known is None else known | declined.frozen
    sizes = {name: int(np.prod(graph.initializers[name].dims, dtype=np.int64)) for name in frozen}
    return sum(int(mask.sum()) * (sizes[name] // mask.size) for name, mask in frozen.items())


def resized_records(coupling: Coupling, removed: BoolArray) -> dict[str, ResizedRecord]:
    """Return the graph inputs and outputs that lose positions."""
    edit, change = Edit(coupling, removed), resized(coupling, removed)
    return {
        name: ResizedRecord(
            before=list(edit.shape(name)),
            after=list(edit.new_shape(name)),
            kept={str(axis): indices for axis, indices in kept_indices(keep).items()},
        )
        for name, keep in {**change.inputs, **change.outputs}.items()
    }


def calibration_record(source: Source) -> CalibrationRecord:
    """Return what the statistics were taken on."""
    return CalibrationRecord(source.description, source.samples, source.real)


def file_record(model: Model) -> FileRecord:
    """Return where a model came from, and its hash."""
    return FileRecord(str(model.path) if model.path else None, model.sha256)
