"""Decide what goes: which units are removed, and how many entries of each weight become zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from graphprune.analysis import Analysis
from graphprune.errors import TargetError
from graphprune.ir.cost import count_weights, nonzero_entries, weights_left
from graphprune.ir.coupling.units import BoolArray
from graphprune.ir.graph import Graph
from graphprune.ir.layers.layer import Layer, find_layers, kernel_of
from graphprune.ir.layers.writing import add_biases
from graphprune.ir.surgery import remove
from graphprune.passes import trim
from graphprune.passes.allocation import in_order, share_whole, share_zeros
from graphprune.passes.choice import Queue, Step, take
from graphprune.passes.patterns import Pattern
from graphprune.passes.sparsify import allowed_nonzero
from graphprune.recipe import Recipe

SHARES = (0.75, 0.5, 0.375, 0.25, 0.125, 0.06, 0.03)
"""Parts of the target that removal may be tried to meet, largest first."""
SLACK = 0.1
"""How much more error than with the best share is predicted for one that removes more."""
BEARABLE = 0.005
"""How much more the outputs may then really drop: about one answer of 256."""


@dataclass(frozen=True)
class Plan:
    """What goes.

    Attributes
    ----------
    removed : ndarray of bool, shape (units,)
    kept : dict of str to int
        By weight how many of its entries may stay; others stay whole.
    error : float or None
        Predicted squared error of the outputs over their variance; None where nothing was predicted.
    """

    removed: BoolArray
    kept: Mapping[str, int] = field(default_factory=dict)
    error: float | None = None


def plan(analysis: Analysis, recipe: Recipe, target: float | None, drop: Callable[[Plan], float]) -> Plan:
    """Decide what goes, with the least predicted error.

    Parameters
    ----------
    analysis : Analysis
        With a predictor.
    recipe : Recipe
    target : float or None
        Fraction of the weights that must be gone; the recipe's, or another to try.
    drop : callable
        Builds what a plan leads to, and measures how much worse its outputs are.

    Returns
    -------
    Plan

    Raises
    ------
    TargetError
        When the target cannot be reached.
    """
    coupling = analysis.coupling
    none = np.zeros(coupling.units, dtype=np.bool_)
    if recipe.channels is not None:
        return with_zeros(analysis, recipe, trim.by_fraction(coupling, analysis.queues, recipe.channels), target)
    steps = in_order(coupling, analysis.queues) if recipe.structural != 0 else []
    if recipe.structural != "auto":
        removed = by_share(analysis, steps, target, float(recipe.structural))
        return with_zeros(analysis, recipe, removed, target)
    plans = []
    for share in (*SHARES, 0.0):
        try:
            removed = by_share(analysis, steps, target, share)
            fitting = take(coupling, trim.in_blocks(coupling, _taken(steps, removed))) if share else none
            plans.append(with_zeros(analysis, recipe, fitting, target))
        except TargetError:
            if not share and not plans:
                raise
    return _largest_bearable(plans, drop)


def _taken(steps: Sequence[Step], removed: BoolArray) -> list[Step]:
    return [step for step in steps if removed[step.units].all()]


def _largest_bearable(plans: Sequence[Plan], drop: Callable[[Plan], float]) -> Plan:
    """The plan that removes most among those that are predicted, and measured, to be hardly worse than the best."""
    least = min(plan.error or 0.0 for plan in plans)
    best = min(plans, key=lambda plan: plan.error or 0.0)
    good = [plan for plan in plans if (plan.error or 0.0) <= least * (1 + SLACK) and plan.removed.any()]
    tried = {int(plan.removed.sum()): plan for plan in good}
    if not tried:
        return best
    limit = drop(plans[-1]) + BEARABLE
    for count in sorted(tried, reverse=True):
        if drop(tried[count]) <= limit:
            return tried[count]
    return plans[-1]


def by_share(analysis: Analysis, steps: Sequence[Step], target: float | None, share: float) -> BoolArray:
    """Return the removal that meets a share of the target."""
    coupling = analysis.coupling
    removed = np.zeros(coupling.units, dtype=np.bool_)
    if not share or target is None:
        return removed
    outside = count_weights(coupling.graph.proto) - weights_left(coupling, removed)
    most_left = allowed_nonzero(analysis.weights_before, share * target)
    return trim.by_weights(coupling, steps, most_left, weights_outside=outside, weights_before=analysis.weights_before)


def with_zeros(analysis: Analysis, recipe: Recipe, removed: BoolArray, target: float | None) -> Plan:
    """Complete a removal by the zeros that the target still needs, or that a pattern makes."""
    assert analysis.predictor is not None
    error = _removal_error(analysis.queues, removed)
    if target is None and recipe.pattern is None:
        return Plan(removed, {}, error)
    trimmed, _ = remove(analysis.coupling, removed)
    add_biases(trimmed)
    layers = find_layers(Graph(trimmed))
    entries = nonzero_entries(trimmed)
    sizes = {curve.weight: entries[curve.weight] for curve in analysis.predictor.curves if curve.weight in entries}
    filled = {layer.bias: int(np.prod(_dims(trimmed, layer.bias))) for layer in layers if layer.bias}
    nonzero = sum({**entries, **filled}.values())
    curves = analysis.predictor.curves
    least = sizes
    if recipe.pattern is not None:
        least = _by_pattern(Pattern.parse(recipe.pattern), layers, trimmed, sizes)
    needed = nonzero - allowed_nonzero(analysis.weights_before, target) if target is not None else None
    _demand_reachable(
        analysis, nonzero, sum(sizes.values()) if least is sizes else _saved(sizes, least), needed, target
    )
    if least is not sizes:
        share = share_whole(curves, sizes, least, needed)
    else:
        share = share_zeros(curves, sizes, max(needed or 0, 0))
    return Plan(removed, share.kept, error + share.error)


def _by_pattern(
    pattern: Pattern, layers: Sequence[Layer], proto: onnx.ModelProto, sizes: Mapping[str, int]
) -> dict[str, int] | Mapping[str, int]:
    """What a pattern leaves of every layer's weight; the sizes themselves where it leaves the number open."""
    if not pattern.fixes_count:
        return sizes
    return {
        layer.weight: pattern.stays(layer.matrix(proto).shape, kernel_of(_dims(proto, layer.weight)))
        for layer in layers
        if layer.weight in sizes
    }


def _saved(sizes: Mapping[str, int], least: Mapping[str, int]) -> int:
    return sum(sizes[name] - count for name, count in least.items())


def _dims(proto: onnx.ModelProto, name: str) -> tuple[int, ...]:
    return next(tuple(tensor.dims) for tensor in proto.graph.initializer if tensor.name == name)


def _removal_error(queues: Sequence[Queue], removed: BoolArray) -> float:
    """Sum of what the steps that go are predicted to cost."""
    counts = [(queue, sum(bool(removed[step.units].all()) for step in queue.steps)) for queue in queues]
    return float(sum(sum(queue.costs[:count]) for queue, count in counts))


def _demand_reachable(
    analysis: Analysis, nonzero: int, zeroable: int, needed: int | None, target: float | None
) -> None:
    if needed is None or needed <= zeroable:
        return
    before = analysis.weights_before
    if not before:
        raise TargetError(
            "the model holds no weights to prune", reachable=0.0, hint="check that this is the model meant"
        )
    reachable = 1 - (nonzero - zeroable) / before
    raise TargetError(
        f"the target {target} cannot be reached",
        reachable=reachable,
        why=f"only {zeroable:,} of {before:,} weights can be zeroed: those that known operators multiply by, that "
        "nothing else reads, and that the pattern takes; biases and norm parameters are never zeroed",
        hint=f"the most that can be reached is --target {np.floor(reachable * 1e4) / 1e4}; "
        "remove more units (--channels, --structural 1) or lower --target",
    )
