"""The Python interface: prune, inspect and compare models, and write what came out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import onnx

from graphprune import ranks, record
from graphprune.analysis import analyse, source_for
from graphprune.attempts import attempt
from graphprune.calib.calls import one_call
from graphprune.calib.sources import SourceLike
from graphprune.entries import CalibrationRecord, DeclinedRecord, FileRecord, GroupRecord, ReasonRecord
from graphprune.errors import ModelError
from graphprune.ir.cost import count_weights
from graphprune.ir.model import Model, from_proto, load
from graphprune.ledger import Ledger
from graphprune.notes import notes_on
from graphprune.passes import trim
from graphprune.passes.choice import take
from graphprune.pipeline import demand_runnable
from graphprune.recipe import Recipe, demand_recipe
from graphprune.rounds import Rounds, follow
from graphprune.threads import fitting
from graphprune.training import Function, training_of
from graphprune.watch import Stopwatch


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
    reasons : list of ReasonRecord
    """

    model: FileRecord
    calibration: CalibrationRecord
    weights: int
    macs: int
    groups: list[GroupRecord]
    declined: list[DeclinedRecord]
    reasons: list[ReasonRecord]
    notes: list[str]


def prune(
    model: str | os.PathLike[str] | onnx.ModelProto | Model,
    recipe: Recipe,
    calibration: SourceLike = None,
    *,
    finetune: Function | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[onnx.ModelProto, Ledger]:
    """Prune a trained model.

    Parameters
    ----------
    model : path-like, onnx.ModelProto or Model
        Never changed. Where its weights are encoded, the dense model that they stand for is pruned.
    recipe : Recipe
        What is asked for.
    calibration : path-like, mapping, array, iterable or callable, optional
        Calibration inputs, see `graphprune.calib.sources.open_source`. Random ones by default; the ledger notes it.
    finetune : callable, optional
        Trains a `graphprune.finetune.GraphModule` in place, in every round; instead of one that the recipe names. In
        processes that torchrun started it is called in all of them; the first one prunes, and all return the same.
    progress : callable, optional
        Called with the number of calibration samples that each run took, and of batches that were learnt from.

    Returns
    -------
    model : onnx.ModelProto
        The pruned model, encoded where the recipe says so; the very original when there was nothing to do.
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
    demand_recipe(recipe)
    demand_runnable(recipe)
    original = as_model(model)
    source = source_for(original, recipe, calibration)
    if recipe.batch is not None:
        one_call(source, recipe.batch)
    training = training_of(recipe, source, finetune, progress)
    channel = ranks.Channel() if training is not None and ranks.world() > 1 else None
    if training is not None and channel is not None and ranks.rank() > 0:
        return follow(training, channel)
    watch = Stopwatch()
    with fitting(count_weights(original.proto)):
        analysis = analyse(original, recipe, source, watch, progress)
        if training is None:
            found = attempt(original, analysis, recipe, source, watch)
        else:
            found = Rounds(original, analysis, recipe, source, watch, training, channel).run()
        ledger = record.record(original, recipe, source, analysis, found, watch)
    if channel is not None:
        channel.tell(ranks.Done(found.result.SerializeToString(), ledger))
    return found.result, ledger


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
        Its criterion, seed and ``allow_resize`` are used.

    Returns
    -------
    Inspection

    Raises
    ------
    RecipeError, ModelError, CalibrationError
        When the request, the model or the calibration data cannot be used.
    """
    demand_recipe(recipe)
    original = as_model(model)
    source = source_for(original, recipe, calibration)
    analysis = analyse(original, replace(recipe, recover=False), source, Stopwatch(), progress)
    named = take(analysis.coupling, trim.by_threshold(analysis.coupling, analysis.scores))
    alone = record.left_alone(analysis)
    return Inspection(
        model=record.file_record(original),
        calibration=record.calibration_record(source),
        weights=analysis.weights_before,
        macs=analysis.macs_before,
        groups=record.group_records(analysis, named),
        declined=record.declined_records(analysis.coupling.graph, alone),
        reasons=record.reason_records(analysis.coupling.graph, alone),
        notes=notes_on(source),
    )


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
