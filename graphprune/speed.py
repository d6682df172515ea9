"""Remove units until the model is as fast as asked for, at the least predicted error.

Units go by whole blocks of channels, those first that cost least for the time they save, and residual branches that
lose all of their units go whole. How long what is left takes is predicted from measured times of its kernels
(`graphprune.verify.kernel_times`), and from how much of the activations is left for all nodes that hold no weights;
then the narrower model is timed against the original, and the prediction put right where it was wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import onnx

from graphprune.analysis import Analysis
from graphprune.entries import SpeedRecord
from graphprune.errors import TargetError
from graphprune.ir.coupling.resizing import resized
from graphprune.ir.coupling.units import BoolArray, Coupling
from graphprune.ir.graph import Graph
from graphprune.ir.kernels import widths
from graphprune.ir.session import Feeds, ModelLike
from graphprune.ir.shapes.inference import Shape
from graphprune.ir.surgery import remove
from graphprune.passes import trim
from graphprune.passes.allocation import in_order
from graphprune.passes.branches import Branch, cut, find_branches
from graphprune.passes.choice import Queue, Step, take
from graphprune.passes.fold import fold
from graphprune.passes.lower import lower
from graphprune.recipe import Recipe
from graphprune.verify.kernel_times import KernelTimes, kernels_of, shapes_of
from graphprune.verify.latency import compare_latency

ROUNDS = 4
"""Narrower models that are timed."""
CLOSE = 0.03
"""How much less than the speedup asked for is near enough: two measurements differ by as much."""
AMPLE = 0.06
"""How much more is too much."""
TRUST = 1 / 3
"""How wrong a prediction is taken to be at most; a measurement that is further off is disturbed."""
GIVEN_BACK = 8
"""Groups that may get a block back where that still leaves the model fast enough."""

Way: TypeAlias = tuple[BoolArray, tuple[Branch, ...]]
"""Units and branches that go."""


@dataclass(frozen=True)
class Speedup:
    """A removal, and what it does to latency.

    Attributes
    ----------
    removed : ndarray of bool, shape (units,)
    branches : tuple of Branch
        What is cut off whole.
    record : SpeedRecord
    """

    removed: BoolArray
    branches: tuple[Branch, ...]
    record: SpeedRecord


class Forecast:
    """Predicts how long a model takes that lost units.

    Nodes that hold weights take what their kernels take (`graphprune.verify.kernel_times`); all others together take in
    proportion to the elements that they make.

    Parameters
    ----------
    original : path-like or onnx.ModelProto
        What the narrower model is timed against.
    coupling : Coupling
        Of the same, in canonical form.
    recipe : Recipe
        Its threads, provider, and latency runs count.
    feeds : mapping of str to ndarray
        One call's inputs.
    """

    def __init__(self, original: ModelLike, coupling: Coupling, recipe: Recipe, feeds: Feeds) -> None:
        self.original = original
        self.coupling = coupling
        self.recipe = recipe
        self.feeds = feeds
        self.times = KernelTimes(recipe.threads, recipe.provider)
        proto = fold(coupling.graph.proto)
        self.kernels, self.volume = self._parts(proto, shapes_of(feeds))
        share = self.times.share(proto, feeds)
        self.rest = self.kernels * (1 - share) / max(share, 1e-9)

    def worth(self) -> dict[str, float]:
        """Return by weight how long the kernel takes that it belongs to, in microseconds."""
        graph = Graph(self.coupling.graph.proto, shapes_of(self.feeds))
        found: dict[str, float] = {}
        for kernel, time in zip(kernels := kernels_of(graph), self.times.of(kernels), strict=True):
            for name in kernel.node.input:
                if name in graph.initializers and len(graph.initializers[name].dims) > 1:
                    found[name] = found.get(name, 0.0) + 1e3 * time
        return found

    def of(self, removed: BoolArray, branches: tuple[Branch, ...] = ()) -> float:
        """Return the predicted speedup."""
        kernels, volume = self._parts(*self._narrowed(removed, branches))
        after = kernels + self.rest * volume / max(self.volume, 1.0)
        return (self.kernels + self.rest) / max(after, 1e-9)

    def measured(self, removed: BoolArray, branches: tuple[Branch, ...] = ()) -> float:
        """Return the speedup as it is timed; weights are as they were, which makes no difference."""
        if not removed.any() and not branches:
            return 1.0
        recipe = self.recipe
        latency = compare_latency(
            self.original,
            self._narrowed(removed, branches)[0],
            self.feeds,
            change=resized(self.coupling, removed),
            threads=recipe.threads,
            provider=recipe.provider,
            custom_ops=recipe.custom_ops,
            runs=recipe.runs,
            seed=recipe.seed,
        )
        return 1 / latency.ratio

    def _narrowed(
        self, removed: BoolArray, branches: tuple[Branch, ...]
    ) -> tuple[onnx.ModelProto, dict[str, tuple[int, ...]]]:
        """The model as it will be handed over but for its weights, and the shapes of its inputs."""
        change = resized(self.coupling, removed)
        trimmed, _ = remove(self.coupling, removed)
        cut(trimmed, branches)
        # ONNX Runtime folds what is not folded in the file.
        return lower(fold(trimmed)), shapes_of(change.cut_feeds(self.feeds))

    def _parts(self, proto: onnx.ModelProto, shapes: Mapping[str, Shape]) -> tuple[float, float]:
        """Milliseconds of the nodes that hold weights, and elements that the others make."""
        graph = Graph(proto, shapes)
        kernels = kernels_of(graph)
        own = {name for kernel in kernels for name in kernel.node.output}
        made = [graph.shape(name) or () for node in graph.main for name in node.outputs if name and name not in own]
        sizes = [np.prod([n for n in shape if isinstance(n, int)], dtype=np.float64) for shape in made]
        return sum(self.times.of(kernels)), float(sum(sizes))


def removal_for(original: ModelLike, analysis: Analysis, recipe: Recipe, feeds: Feeds, speedup: float) -> Speedup:
    """Choose the units that go for a speedup.

    Parameters
    ----------
    original : path-like or onnx.ModelProto
    analysis : Analysis
    recipe : Recipe
    feeds : mapping of str to ndarray
        One call's inputs.
    speedup : float
        Latency before over after, above 1.

    Returns
    -------
    Speedup
        The slowest of the models tried that is fast enough, or the fastest where it is as good as that.

    Raises
    ------
    TargetError
        When all that may go does not make the model so fast.
    """
    forecast = Forecast(original, analysis.coupling, recipe, feeds)
    ways = Ways(analysis, recipe, forecast.worth())
    goal, tried = speedup, list[Speedup]()
    for _ in range(ROUNDS):
        removed, branches = ways.least(forecast.of, goal)
        if any(np.array_equal(removed, other.removed) and branches == other.branches for other in tried):
            break
        found = SpeedRecord(
            asked=speedup,
            predicted=forecast.of(removed, branches),
            measured=forecast.measured(removed, branches),
            branches=[branch.total for branch in branches],
        )
        tried.append(Speedup(removed, branches, found))
        if 0 <= found.measured / speedup - 1 <= AMPLE:
            return tried[-1]
        # The next one is asked for what this one was predicted, put right by how wrong that was.
        off = np.clip(found.predicted / found.measured, 1 - TRUST, 1 + TRUST)
        goal = speedup * (1 + AMPLE / 2) * float(off)
    fastest = max(tried, key=lambda one: one.record.measured)
    best = fastest.record.measured
    if best < speedup * (1 - CLOSE):
        less = f"ask for less than --speedup {best:.2f}"
        raise TargetError(
            f"a speedup of {speedup:g} cannot be reached",
            reachable=best,
            why=f"with as few units as can be left, by whole blocks of {ways.block}, the model is {best:.2f} times as "
            "fast",
            hint=less if best > 1.01 else "graphprune inspect tells why units stay",
        )
    enough = [one for one in tried if one.record.measured >= speedup]
    return min(enough, key=lambda one: one.record.measured, default=fastest)


class Ways:
    """Removals, each a part of the next: units in the order in which they should go, and branches after their units.

    Parameters
    ----------
    analysis : Analysis
    recipe : Recipe
    worth : mapping of str to float
        By weight how long its kernel takes.
    """

    def __init__(self, analysis: Analysis, recipe: Recipe, worth: Mapping[str, float]) -> None:
        self.coupling, self.block = analysis.coupling, widths(recipe.align).block
        self.branches: dict[int, Branch] = {}
        if analysis.curves is None:
            self.steps = trim.by_rank(analysis.queues)
        else:
            there = {branch.group: branch for branch in find_branches(self.coupling)}
            whole = {curve.weight: float(curve.errors[-1]) for curve in analysis.curves}
            queues = [self._with_branch(queue, there, whole) for queue in analysis.queues]
            self.steps = in_order(self.coupling, queues, block=self.block, worth=worth)

    def _with_branch(self, queue: Queue, there: Mapping[int, Branch], whole: Mapping[str, float]) -> Queue:
        """A queue whose last unit may go too: with it goes all that the branch it is in still gives."""
        branch = there.get(queue.groups[0]) if len(queue.groups) == 1 else None
        if branch is None or branch.weight not in whole or len(queue.costs) != queue.most:
            return queue
        self.branches[branch.group] = branch
        return replace(queue, costs=(*queue.costs, max(whole[branch.weight] - sum(queue.costs), 0.0)))

    def way(self, steps: Sequence[Step]) -> Way:
        """Return what goes with steps: units by whole blocks, and branches that lose all of theirs."""
        chosen = trim.aligned(self.coupling, steps, self.block)
        lost, groups = Counter(step.group for step in chosen), self.coupling.groups
        cut_off = tuple(b for group, b in self.branches.items() if lost[group] == len(groups[group].units))
        return take(self.coupling, chosen), cut_off

    def least(self, gain: Callable[[BoolArray, tuple[Branch, ...]], float], goal: float) -> Way:
        """Return the smallest removal that gains enough; the largest where none does.

        Parameters
        ----------
        gain : callable
            The speedup that a removal is predicted.
        goal : float
        """
        low, high = 0, len(self.steps)
        while low < high:
            middle = (low + high) // 2
            enough = gain(*self.way(self.steps[:middle])) >= goal
            low, high = (low, middle) if enough else (middle + 1, high)
        steps = self.steps[:low]
        gained = gain(*self.way(steps))
        # The last step may have gained much more than was missing: others, the dearest first, need not go then.
        for group in list(dict.fromkeys(step.group for step in reversed(steps)))[: GIVEN_BACK + 1]:
            if gained <= goal * (1 + AMPLE):
                break
            fewer = self._without_block(steps, group)
            less = gain(*self.way(fewer))
            if less >= goal:
                steps, gained = fewer, less
        return self.way(steps)

    def _without_block(self, steps: Sequence[Step], group: int) -> list[Step]:
        """All steps but the last of a group that make up a block."""
        own = [place for place, step in enumerate(steps) if step.group == group]
        left = set(own[: max(len(own) - self.block, 0)])
        return [step for place, step in enumerate(steps) if step.group != group or place in left]
