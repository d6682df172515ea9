"""Decide what goes: which units are removed, and how many entries of each weight become zero."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from graphprune.analysis import Analysis
from graphprune.entries import RecoveryRecord
from graphprune.errors import TargetError
from graphprune.ir.cost import count_macs, count_weights, macs_by_weight, weights_left
from graphprune.ir.coupling.resizing import resized
from graphprune.ir.coupling.units import BoolArray, Coupling
from graphprune.ir.graph import Graph
from graphprune.ir.kernels import widths
from graphprune.ir.layers.layer import Layer, kernel_of
from graphprune.ir.layers.writing import add_biases
from graphprune.ir.surgery import remove
from graphprune.passes import compensate, trim
from graphprune.passes.allocation import in_order, share_whole, share_zeros
from graphprune.passes.branches import Branch, cut
from graphprune.passes.choice import Queue, Step, take
from graphprune.passes.patterns import Pattern
from graphprune.passes.sparsify import allowed_nonzero
from graphprune.recipe import Recipe
from graphprune.recovery.repair import solved_layers

REMOVALS = tuple(2.0**-power for power in range(14, -1, -1))
"""Squared errors of the outputs that removals to be tried are predicted to cost; the first matters nowhere."""
MEASURED = 1.005
"""How many times the error of the first removal with zeros may be measured where more units go."""
NOISE = 0.004
"""How much more of the answers may change: about one of 256."""
NEGLIGIBLE = 0.05
"""Relative error of the outputs that matters little: a four-hundredth of their variance."""
TRIALS = 4
"""The most removals that are built and measured, beside none."""


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
    branches : tuple of Branch
        What is cut off whole.
    """

    removed: BoolArray
    kept: Mapping[str, int] = field(default_factory=dict)
    error: float | None = None
    branches: tuple[Branch, ...] = ()


def plan(analysis: Analysis, recipe: Recipe, target: float | None, trial: Callable[[Plan], RecoveryRecord]) -> Plan:
    """Decide what goes, with the least predicted error.

    Parameters
    ----------
    analysis : Analysis
        With error curves.
    recipe : Recipe
    target : float or None
        Fraction of the weights that must be gone; the recipe's, or another to try.
    trial : callable
        Builds what a plan leads to, and measures it.

    Returns
    -------
    Plan

    Raises
    ------
    TargetError
        When the target cannot be reached.
    """
    coupling, step = analysis.coupling, widths(recipe.align).step
    if recipe.channels is not None:
        return with_zeros(analysis, recipe, trim.by_fraction(coupling, analysis.queues, recipe.channels, step), target)
    if recipe.macs is not None:
        worth = macs_by_weight(coupling.graph.proto, analysis.shapes)
        steps = in_order(coupling, analysis.queues, block=step, worth=worth)
        return with_zeros(analysis, recipe, by_macs(analysis, steps, recipe.macs, step), target)
    if recipe.structural != "auto":
        steps = in_order(coupling, analysis.queues, block=step) if recipe.structural else []
        removed = by_share(analysis, steps, target, float(recipe.structural), step)
        return with_zeros(analysis, recipe, removed, target)
    return _largest_bearable(_plans(analysis, recipe, target), trial)


def _plans(analysis: Analysis, recipe: Recipe, target: float | None) -> list[Plan]:
    """Return plans that meet a target by more and more removal, where that saves most time for what it costs."""
    coupling, block = analysis.coupling, widths(recipe.align).block
    worth = macs_by_weight(coupling.graph.proto, analysis.shapes)
    # No more goes than was asked for: without a target, nothing.
    fewest = allowed_nonzero(analysis.weights_before, target or 0.0)
    plans: list[Plan] = []
    missed: TargetError | None = None
    for most in REMOVALS:
        steps = in_order(coupling, analysis.queues, block=block, worth=worth, most=most)
        removed = take(coupling, trim.aligned(coupling, steps[: _most_steps(coupling, steps, fewest)], block))
        if not any(np.array_equal(removed, other.removed) for other in plans):
            try:
                plans.append(with_zeros(analysis, recipe, removed, target))
            except TargetError as error:
                missed = error
    if missed and not plans:
        raise missed
    return plans


def _most_steps(coupling: Coupling, steps: Sequence[Step], fewest: int) -> int:
    """How many of some steps can be taken so that this many weights are left."""
    counts = range(1, len(steps) + 1)
    return bisect_left(counts, True, key=lambda count: weights_left(coupling, take(coupling, steps[:count])) < fewest)


def _largest_bearable(plans: Sequence[Plan], trial: Callable[[Plan], RecoveryRecord]) -> Plan:
    """The plan that removes most among those that are measured to be hardly worse than the one that removes least."""
    chosen, low, high = plans[0], 1, len(plans)
    if low == high:
        return chosen
    limit = trial(chosen)
    for _ in range(TRIALS):
        if low == high:
            break
        middle = (low + high) // 2
        found = trial(plans[middle])
        if found.drop <= limit.drop + NOISE and found.measured_l2 <= max(limit.measured_l2 * MEASURED, NEGLIGIBLE):
            chosen, low = plans[middle], middle + 1
        else:
            high = middle
    return chosen


def by_share(analysis: Analysis, steps: Sequence[Step], target: float | None, share: float, align: int) -> BoolArray:
    """Return the removal that meets a share of the target."""
    coupling = analysis.coupling
    removed = np.zeros(coupling.units, dtype=np.bool_)
    if not share or target is None:
        return removed
    outside = count_weights(coupling.graph.proto) - weights_left(coupling, removed)
    most_left = allowed_nonzero(analysis.weights_before, share * target)
    before = analysis.weights_before
    return trim.by_weights(coupling, steps, most_left, weights_outside=outside, weights_before=before, align=align)


def by_macs(analysis: Analysis, steps: Sequence[Step], fraction: float, align: int) -> BoolArray:
    """Return the shortest prefix of some steps that saves a fraction of the original's multiply-accumulates.

    Raises
    ------
    TargetError
        When all steps together do not.
    """
    coupling, before = analysis.coupling, analysis.macs_before

    def saved(removed: BoolArray) -> float:
        shapes = resized(coupling, removed).cut_shapes(analysis.shapes)
        return 1 - count_macs(remove(coupling, removed)[0], shapes) / max(before, 1)

    removed = trim.until(coupling, steps, lambda removed: saved(removed) >= fraction, align)
    if (reachable := saved(removed)) < fraction:
        raise TargetError(
            f"removing units saves {reachable:.4f} of {before:,} multiply-accumulates, and {fraction} is asked for",
            reachable=reachable,
            hint=f"the most that can be reached is --macs {np.floor(reachable * 1e4) / 1e4}"
            + ("; give --align off for more" if align > 1 and steps else "")
            + "; graphprune inspect tells why units stay",
        )
    return removed


def with_zeros(
    analysis: Analysis,
    recipe: Recipe,
    removed: BoolArray,
    target: float | None,
    branches: tuple[Branch, ...] = (),
) -> Plan:
    """Complete a removal by the zeros that the target still needs, or that a pattern makes."""
    assert analysis.curves is not None
    whole, cut_off = {branch.weight for branch in branches}, {branch.group for branch in branches}
    error = _removal_error([queue for queue in analysis.queues if not cut_off.issuperset(queue.groups)], removed)
    error += sum(float(curve.errors[-1]) for curve in analysis.curves if curve.weight in whole)
    if target is None and recipe.pattern is None:
        return Plan(removed, {}, error, branches)
    trimmed, _ = remove(analysis.coupling, removed)
    put_means_right(analysis, removed, trimmed)
    cut(trimmed, branches)
    add_biases(trimmed, only_folded=not removed.any())
    graph, curves = Graph(trimmed), analysis.curves
    layers = [layer for _, layer in solved_layers(analysis.coupling, trimmed)]
    entries = analysis.entries(trimmed)
    sizes = {curve.weight: entries[curve.weight] for curve in curves if curve.weight in entries}
    filled = {layer.bias: int(np.prod(graph.initializers[layer.bias].dims)) for layer in layers if layer.bias}
    nonzero = sum({**entries, **filled}.values())
    needed = nonzero - allowed_nonzero(analysis.weights_before, target) if target is not None else None
    pattern = None if recipe.pattern is None else Pattern.parse(recipe.pattern)
    if pattern is not None and pattern.fixes_count:
        least = _by_pattern(pattern, layers, graph, sizes)
        zeroable = sum(sizes[name] - count for name, count in least.items())
        _demand_reachable(analysis, nonzero, zeroable, needed, target)
        share = share_whole(curves, sizes, least, needed)
    else:
        _demand_reachable(analysis, nonzero, sum(sizes.values()), needed, target)
        share = share_zeros(curves, sizes, max(needed or 0, 0))
    return Plan(removed, share.kept, error + share.error, branches)


def put_means_right(analysis: Analysis, removed: BoolArray, trimmed: onnx.ModelProto) -> None:
    """Make up for the mean of what was removed, in place, where no layer is solved anew; this may add biases."""
    deltas = compensate.plan(analysis.coupling, removed, analysis.statistics)
    if analysis.curves is not None:
        solved = {layer.output for layer, _ in solved_layers(analysis.coupling, trimmed)}
        deltas = {output: delta for output, delta in deltas.items() if output not in solved}
    compensate.apply(trimmed, deltas)


def _by_pattern(pattern: Pattern, layers: Sequence[Layer], graph: Graph, sizes: Mapping[str, int]) -> dict[str, int]:
    """What a pattern leaves of every layer's weight."""
    return {
        layer.weight: pattern.stays(layer.matrix(graph.proto).shape, kernel_of(graph.initializers[layer.weight].dims))
        for layer in layers
        if layer.weight in sizes
    }


def _removal_error(queues: Sequence[Queue], removed: BoolArray) -> float:
    """Sum of what the steps that go are predicted to cost."""
    counts = [(queue, sum(bool(removed[step.units].all()) for step in queue.steps)) for queue in queues]
    return float(sum(sum(queue.costs[:count]) for queue, count in counts))


def _demand_reachable(
    analysis: Analysis, nonzero: int, zeroable: int, needed: int | None, target: float | None
) -> None:
    before = analysis.weights_before
    if target and not before:
        raise TargetError(
            "the model holds no weights to prune", reachable=0.0, hint="check that this is the model meant"
        )
    if needed is None or needed <= zeroable:
        return
    reachable = 1 - (nonzero - zeroable) / before
    raise TargetError(
        f"the target {target} cannot be reached",
        reachable=reachable,
        why=f"only {zeroable:,} of {before:,} weights can be zeroed: those that known operators multiply by, that "
        "nothing else reads, and that the pattern takes; biases and norm parameters are never zeroed",
        hint=f"the most that can be reached is --target {np.floor(reachable * 1e4) / 1e4}; "
        "remove more units (--channels, --structural 1) or lower --target",
    )
