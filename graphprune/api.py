"""The Python interface: prune, inspect and compare models, and write what came out."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from graphprune import record
from graphprune.calib.sources import InputSpec, SourceLike, input_specs, open_source
from graphprune.errors import ModelError, RecipeError
from graphprune.ir.cost import count_macs, count_nonzero, count_weights
from graphprune.ir.model import Model, data_file, from_proto, load, publication, real_path, write_draft
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
    _demand_recipe(recipe)
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
    _demand_recipe(recipe)
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
        When the request, a model or the calibration data cannot be used; also when the models' inputs differ.
    """
    _demand_recipe(recipe)
    specs = input_specs(before.proto)
    _demand_same_inputs(specs, input_specs(after.proto))
    source = open_source(calibration, specs, seed=recipe.seed)
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
        macs=Change(*(count_macs(canonicalize(m.proto), shapes) for m in (before, after))),
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
    inputs: Sequence[str | os.PathLike[str]] = (),
) -> tuple[Path, Path]:
    """Decide where result and ledger go, before any work is done.

    Parameters
    ----------
    model : path-like or Model
        The input; a Model that was read from a file.
    output, report : path-like, optional
        By default ``MODEL.pruned.onnx`` and ``MODEL.pruned.json`` (beside ``output``, where that is given).
    inputs : sequence of path-like, optional
        Other files that must not be written over; what is no file counts for nothing.

    Returns
    -------
    output, report : Path

    Raises
    ------
    RecipeError
        When a folder does not exist or cannot be written, something that is no file is in the way, or one file would
        be written over an input or the other.
    """
    source = Path((model.path or "") if isinstance(model, Model) else model)
    data_files = model.data_files if isinstance(model, Model) else ()
    taken = [path for path in (source, *data_files, *inputs) if os.path.isfile(path)]
    if "" in (output, report):
        raise RecipeError("the output has no name", where="--output, --report", hint="name a file")
    if output is None and not source.name:
        raise RecipeError("the model has no name to derive the output's from", hint="name the output")
    output = source.with_name(f"{_stem(source)}.pruned.onnx") if output is None else Path(output)
    report = output.with_name(f"{_stem(output)}.json") if report is None else Path(report)
    data = data_file(real_path(output))
    for path in (output, data, report):
        try:
            _check_target(path, taken)
        except OSError as error:
            raise RecipeError(
                "the output cannot be written", where=str(path), why=str(error), hint="name another file"
            ) from error
    if os.path.realpath(report) in (os.path.realpath(output), os.path.realpath(data)):
        raise RecipeError("model and report would be one file", where=str(output), hint="name another report")
    return output, report


def write(pruned: onnx.ModelProto, ledger: Ledger, original: Model, output: Path, report: Path) -> Ledger:
    """Write a pruned model and its ledger, both or neither; return the ledger with the file in it.

    Raises
    ------
    RecipeError
        When a file cannot be written.
    """
    with publication(output, report) as (model_draft, report_draft):
        size = write_draft(pruned, model_draft, external=original.external)
        sha256 = hashlib.sha256(model_draft.read_bytes()).hexdigest()
        ledger = replace(ledger, output=FileRecord(str(output), sha256), bytes=Change(ledger.bytes.before, size))
        report_draft.write_text(ledger.to_json(), encoding="utf-8")
    return ledger


def as_model(model: str | os.PathLike[str] | onnx.ModelProto | Model) -> Model:
    """Load a path, check a model made in memory, or return a Model as it is."""
    if isinstance(model, Model):
        return model
    if isinstance(model, onnx.ModelProto):
        return from_proto(model)
    if isinstance(model, str | os.PathLike):
        return load(model)
    raise ModelError(
        "the model is of an unknown kind",
        where="the model given",
        why=f"it is a {type(model).__name__}",
        hint="give a path or an onnx.ModelProto (onnx.load_model_from_string makes one of bytes)",
    )


def _check_target(path: Path, taken: Sequence[str | os.PathLike[str]]) -> None:
    """Refuse a place that no file can be written to, or that is one of the files taken."""
    target = real_path(path)
    if not target.parent.is_dir():
        raise RecipeError("the output folder does not exist", where=str(target.parent), hint="create it first")
    if path.is_dir():
        raise RecipeError("the output is a folder", where=str(path), hint="name a file")
    if os.path.lexists(target) and not path.is_file():
        raise RecipeError("the output exists and is no regular file", where=str(path), hint="name a file")
    if path.exists() and any(os.path.samefile(path, other) for other in taken):
        raise RecipeError("the output would be written over the input", where=str(path), hint="name another file")
    with tempfile.TemporaryFile(dir=target.parent):
        pass


def _stem(path: Path) -> str:
    """Return a file's name without ``.onnx``; any other dot belongs to the name."""
    return path.stem if path.suffix.lower() == ".onnx" else path.name


def _demand_recipe(recipe: object) -> None:
    if not isinstance(recipe, Recipe):
        raise RecipeError(
            f"what to do must be a graphprune.Recipe, not a {type(recipe).__name__}",
            where="recipe",
            hint="give Recipe(target=0.9), for example",
        )


def _demand_same_inputs(before: Sequence[InputSpec], after: Sequence[InputSpec]) -> None:
    """Refuse two models that no data fits both of; a free size fits any."""
    others = {spec.name: spec for spec in after}
    if {spec.name for spec in before} == set(others) and all(_fit(spec, others[spec.name]) for spec in before):
        return
    raise ModelError(
        "the inputs of the two models differ",
        where=", ".join(map(str, before)) or "no inputs",
        why=f"the other model takes {', '.join(map(str, after)) or 'no inputs'}",
        hint="compare models that take the same inputs",
    )


def _fit(one: InputSpec, other: InputSpec) -> bool:
    return (
        one.dtype == other.dtype
        and len(one.shape) == len(other.shape)
        and all(
            a == b or not (isinstance(a, int) and isinstance(b, int))
            for a, b in zip(one.shape, other.shape, strict=True)
        )
    )


def _reaches(proto: onnx.ModelProto, target: float | None) -> bool:
    """Whether a model is as sparse as asked for as it is: to fold BatchNormalization may be all that a target needs."""
    return target is None or count_nonzero(proto) <= allowed_nonzero(count_weights(proto), target)


def _file(model: Model) -> FileRecord:
    return FileRecord(str(model.path) if model.path else None, model.sha256)
