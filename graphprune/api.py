"""The Python interface: prune, inspect and compare models, and write what came out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from graphprune import record
from graphprune.calib.sources import SourceLike, input_specs, open_source
from graphprune.errors import RecipeError
from graphprune.ir.cost import count_macs, count_nonzero, count_weights
from graphprune.ir.model import Model, data_file, from_proto, load, save
from graphprune.ledger import CalibrationRecord, Change, DeclinedRecord, FileRecord, GroupRecord, Ledger
from graphprune.passes import trim
from graphprune.passes.canonicalize import canonicalize
from graphprune.passes.choice import take
from graphprune.passes.sparsify import allowed_nonzero
from graphprune.pipeline import (
    BATCH_SIZE,
    FIDELITY_SAMPLES,
    Draft,
    Stopwatch,
    analyse,
    build,
    choose,
    trial_error,
    verify,
)
from graphprune.recipe import Recipe
from graphprune.verify.fidelity import Fidelity, compare_outputs
from graphprune.verify.gate import Gate, check_gates
from graphprune.verify.latency import Latency, compare_latency


@dataclass(frozen=True)
class Inspection:
    """What could be removed from a model, and what is frozen and why.

    Attributes
    ----------
    weights : int
    macs : int
        Of one sample.
    groups : list of GroupRecord
        ``removed`` holds what the criterion's rule names.
    declined : list of DeclinedRecord
    """

    model: FileRecord
    calibration: CalibrationRecord
    weights: int
    macs: int
    groups: list[GroupRecord]
    declined: list[DeclinedRecord]
    notes: list[str]


@dataclass(frozen=True)
class Comparison:
    """Two models beside each other.

    Attributes
    ----------
    nonzero : Change
        Weights that are not 0.
    """

    before: FileRecord
    after: FileRecord
    weights: Change
    nonzero: Change
    macs: Change
    bytes: Change
    latency: Latency
    fidelity: Fidelity
    gates: list[Gate]
    notes: list[str]

    @property
    def ok(self) -> bool:
        """Whether every gate held."""
        return all(gate.ok for gate in self.gates)


def prune(
    model: str | os.PathLike[str] | onnx.ModelProto | Model,
    recipe: Recipe,
    calibration: SourceLike = None,
    *,
    progress: Callable[[int], None] | None = None,
) -> tuple[onnx.ModelProto, Ledger]:
    """Prune a trained model.

    Parameters
    ----------
    model : path-like, onnx.ModelProto or Model
        Never changed.
    recipe : Recipe
        What is asked for.
    calibration : path-like, mapping, array, iterable or callable, optional
        Calibration inputs, see `graphprune.calib.sources.open_source`. Random ones by default; the ledger notes it.
    progress : callable, optional
        Called with the number of calibration samples that each run took.

    Returns
    -------
    model : onnx.ModelProto
        The pruned model; the very original when there was nothing to do.
    ledger : Ledger
        What was removed, why, what was left alone and why, and how outputs and latency compare. Gates that were
        missed are in it and raise nothing.

    Raises
    ------
    RecipeError, ModelError, CalibrationError
        When the request, the model or the calibration data cannot be used.
    TargetError
        When the target cannot be reached; it names the best that can.
    EquivalenceError
        When the pruned model does not equal the masked original: a defect of graphprune.

    Examples
    --------
    >>> from graphprune import Recipe, prune
    >>> model, ledger = prune("models/digits.onnx", Recipe(target=0.9), "models/digits_calib.npz")
    >>> ledger.weights.sparsity >= 0.9
    True
    """
    original = as_model(model)
    source = open_source(calibration, input_specs(original.proto), seed=recipe.seed)
    watch = Stopwatch()
    analysis = analyse(original, recipe, source, watch, progress)
    with watch.time("choose"):
        removed = choose(analysis, recipe, trial_error(original, analysis, recipe, source))
    draft = build(analysis, removed, recipe, watch)
    if not draft.kept and not draft.zeroed and _reaches(original.proto, recipe.target):
        draft = Draft(original.proto)
    with watch.time("verify"):
        verification = verify(original, analysis, removed, draft.model, recipe, source)
    ledger = record.record(original, recipe, source, analysis, removed, draft, verification, watch)
    return draft.model, ledger


def inspect(
    model: str | os.PathLike[str] | onnx.ModelProto | Model,
    recipe: Recipe,
    calibration: SourceLike = None,
    *,
    progress: Callable[[int], None] | None = None,
) -> Inspection:
    """Find a model's groups, score their units, and list what is frozen and why; change nothing.

    Parameters
    ----------
    model, calibration, progress
        As for `prune`.
    recipe : Recipe
        Its criterion and seed are used.

    Returns
    -------
    Inspection

    Raises
    ------
    RecipeError, ModelError, CalibrationError
        When the request, the model or the calibration data cannot be used.
    """
    original = as_model(model)
    source = open_source(calibration, input_specs(original.proto), seed=recipe.seed)
    analysis = analyse(original, recipe, source, Stopwatch(), progress)
    named = take(analysis.coupling, trim.by_threshold(analysis.coupling, analysis.scores))
    return Inspection(
        model=_file(original),
        calibration=record.calibration_record(source),
        weights=analysis.weights_before,
        macs=count_macs(analysis.coupling.graph.proto, record.one_sample_shapes(source)),
        groups=record.group_records(analysis, named),
        declined=record.declined_records(analysis),
        notes=record.notes(source),
    )


def compare(before: Model, after: Model, recipe: Recipe, calibration: SourceLike = None) -> Comparison:
    """Compare two models that take the same inputs: outputs, paired latency, weights, MACs, bytes.

    Parameters
    ----------
    before, after : Model
    recipe : Recipe
        Its gates, threads, runs and seed are used.
    calibration
        As for `prune`.

    Returns
    -------
    Comparison

    Raises
    ------
    RecipeError, ModelError, CalibrationError
        When the request, a model or the calibration data cannot be used.
    """
    source = open_source(calibration, input_specs(before.proto), seed=recipe.seed)
    feeds = next(iter(source.subset(1).batches(1)))
    shapes = record.one_sample_shapes(source)
    models = before.path or before.proto, after.path or after.proto
    fidelity = compare_outputs(*models, source.subset(FIDELITY_SAMPLES).batches(BATCH_SIZE))
    latency = compare_latency(*models, feeds, threads=recipe.threads, runs=recipe.runs, seed=recipe.seed)
    limits = {"max_latency_ratio": recipe.max_latency_ratio, "max_drop": recipe.max_drop}
    return Comparison(
        before=_file(before),
        after=_file(after),
        weights=Change(count_weights(before.proto), count_weights(after.proto)),
        nonzero=Change(count_nonzero(before.proto), count_nonzero(after.proto)),
        macs=Change(*(count_macs(canonicalize(m.proto, fold_weights=False), shapes) for m in (before, after))),
        bytes=Change(before.file_bytes, after.file_bytes),
        latency=latency,
        fidelity=fidelity,
        gates=list(check_gates(latency=latency, fidelity=fidelity, **limits)),
        notes=record.notes(source),
    )


def check_output(
    model: str | os.PathLike[str] | Model,
    output: str | os.PathLike[str] | None,
    report: str | os.PathLike[str] | None,
) -> tuple[Path, Path]:
    """Decide where result and ledger go, before any work is done.

    Parameters
    ----------
    model : path-like or Model
        The input; a Model that was read from a file.
    output, report : path-like, optional
        By default ``MODEL.pruned.onnx`` and ``MODEL.pruned.json`` (beside ``output``, where that is given).

    Returns
    -------
    output, report : Path

    Raises
    ------
    RecipeError
        When a folder does not exist, or one file would be written over the input or the other.
    """
    source = Path((model.path or "") if isinstance(model, Model) else model)
    data_files = model.data_files if isinstance(model, Model) else ()
    inputs = [path.resolve() for path in (source, *data_files)]
    output = Path(output) if output else source.with_suffix(".pruned.onnx")
    report = Path(report) if report else output.with_suffix(".json")
    for path in (output, data_file(output), report):
        if not path.parent.is_dir():
            raise RecipeError("the output folder does not exist", where=str(path.parent), hint="create it first")
        if path.is_dir():
            raise RecipeError("the output is a folder", where=str(path), hint="name a file")
        if path.resolve() in inputs:
            raise RecipeError("the output would be written over the input", where=str(path), hint="name another file")
    if report.resolve() in (output.resolve(), data_file(output).resolve()):
        raise RecipeError("model and report would be one file", where=str(output), hint="name another report")
    return output, report


def write(pruned: onnx.ModelProto, ledger: Ledger, original: Model, output: Path, report: Path) -> Ledger:
    """Write a pruned model and its ledger; return the ledger with the file in it.

    Raises
    ------
    RecipeError
        When a file cannot be written.
    """
    size = save(pruned, output, external=original.external)
    sha256 = hashlib.sha256(output.read_bytes()).hexdigest()
    ledger = replace(ledger, output=FileRecord(str(output), sha256), bytes=Change(ledger.bytes.before, size))
    ledger.save(report)
    return ledger


def as_model(model: str | os.PathLike[str] | onnx.ModelProto | Model) -> Model:
    """Load a path, check a model made in memory, or return a Model as it is."""
    if isinstance(model, Model):
        return model
    return from_proto(model) if isinstance(model, onnx.ModelProto) else load(model)


def _reaches(proto: onnx.ModelProto, target: float | None) -> bool:
    """Whether a model is as sparse as asked for as it is: to fold BatchNormalization may be all that a target needs."""
    return target is None or count_nonzero(proto) <= allowed_nonzero(count_weights(proto), target)


def _file(model: Model) -> FileRecord:
    return FileRecord(str(model.path) if model.path else None, model.sha256)
