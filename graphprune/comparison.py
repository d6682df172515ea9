"""Two models beside each other: outputs, paired latency, weights, MACs, bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from graphprune import record
from graphprune.analysis import source_for
from graphprune.calib.calls import one_call, one_sample_shapes
from graphprune.calib.sources import InputSpec, SourceLike, input_specs
from graphprune.entries import Change, FileRecord
from graphprune.errors import ModelError
from graphprune.ir.cost import count_macs, count_nonzero, count_weights
from graphprune.ir.model import Model
from graphprune.notes import notes_on
from graphprune.passes.canonicalize import canonicalize
from graphprune.pipeline import compare_runs, demand_runnable, metric_of
from graphprune.recipe import Recipe, demand_recipe
from graphprune.verify.fidelity import Fidelity
from graphprune.verify.gate import Gate, check_gates, finite_outputs, not_slower
from graphprune.verify.latency import Latency
from graphprune.verify.metric import Metric


@dataclass(frozen=True)
class Comparison:
    """Two models beside each other.

    Attributes
    ----------
    nonzero : Change
        Weights that are not 0.
    metric : Metric or None
        What the user's own metric gave for both, where one was named.
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
    metric: Metric | None = None

    @property
    def ok(self) -> bool:
        """Whether every gate held."""
        return all(gate.ok for gate in self.gates)


def compare(before: Model, after: Model, recipe: Recipe, calibration: SourceLike = None) -> Comparison:
    """Compare two models that take the same inputs: outputs, paired latency, weights, MACs, bytes.

    Parameters
    ----------
    before, after : Model
    recipe : Recipe
        Its gates, metric, custom operators, threads, batch, provider, runs and seed are used.
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
    demand_recipe(recipe)
    demand_runnable(recipe)
    specs = input_specs(before.proto)
    _demand_same_inputs(specs, input_specs(after.proto))
    source = source_for(before, recipe, calibration)
    feeds = one_call(source, recipe.batch)
    shapes = one_sample_shapes(source)
    models = before.path or before.proto, after.path or after.proto
    fidelity, latency = compare_runs(*models, feeds, recipe, source)
    metric = metric_of(*models, recipe)
    limits = {name: getattr(recipe, name) for name in ("max_latency_ratio", "min_speedup", "max_drop")}
    return Comparison(
        before=record.file_record(before),
        after=record.file_record(after),
        weights=Change(count_weights(before.proto), count_weights(after.proto)),
        nonzero=Change(count_nonzero(before.proto), count_nonzero(after.proto)),
        macs=Change(*(count_macs(canonicalize(m.proto), shapes) for m in (before, after))),
        bytes=Change(before.file_bytes, after.file_bytes),
        latency=latency,
        fidelity=fidelity,
        gates=list(check_gates(latency=latency, fidelity=fidelity, metric=metric, **limits)),
        notes=notes_on(source),
        metric=metric,
    )


def check(before: Model, after: Model, recipe: Recipe, calibration: SourceLike = None) -> Comparison:
    """Compare two models, and gate the second: by the recipe's limits, or where it sets none by not being slower.

    Parameters
    ----------
    before, after, recipe, calibration
        As for `compare`.

    Returns
    -------
    Comparison
        With one gate at least; values that are NaN or infinite in the outputs of ``after`` alone miss one of their own.

    Raises
    ------
    RecipeError, ModelError, CalibrationError
        As `compare`.
    """
    found = compare(before, after, recipe, calibration)
    gates = found.gates or [not_slower(found.latency)]
    return replace(found, gates=[*gates, *finite_outputs(found.fidelity)])


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
