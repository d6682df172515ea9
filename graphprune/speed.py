"""Remove units until the model is as fast as asked for, at the least predicted error.

Units go by whole blocks of channels, those first that cost least for the time they save. How long what is left takes
is predicted from measured times of its kernels (`graphprune.verify.kernel_times`), and from how much of the
activations is left for all nodes that hold no weights; then the narrower model is timed against the original, and the
prediction put right where it was wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from graphprune.analysis import Analysis
from graphprune.errors import TargetError
from graphprune.ir.coupling.resizing import resized
from graphprune.ir.coupling.units import BoolArray, Coupling
from graphprune.ir.graph import Graph
from graphprune.ir.kernels import widths
from graphprune.ir.session import Feeds, ModelLike
from graphprune.ir.shapes.inference import Shape
from graphprune.ir.surgery import remove
from graphprune.ledger import SpeedRecord
from graphprune.passes import trim
from graphprune.passes.allocation import in_order
from graphprune.passes.choice import Step, take
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


@dataclass(frozen=True)
class Speedup:
    """A removal, and what it does to latency.

    Attributes
    ----------
    removed : ndarray of bool, shape (units,)
    record : SpeedRecord
    """

    removed: BoolArray
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

    def of(self, removed: BoolArray) -> float:
        """Return the predicted speedup."""
        kernels, volume = self._parts(*self._narrowed(removed))
        after = kernels + self.rest * volume / max(self.volume, 1.0)
        return (self.kernels + self.rest) / max(after, 1e-9)

    def measured(self, removed: BoolArray) -> float:
        """Return the speedup as it is timed; weights are as they were, which makes no difference."""
        recipe = self.recipe
        latency = compare_latency(
            self.original,
            self._narrowed(removed)[0],
            self.feeds,
            change=resized(self.coupling, removed),
            threads=recipe.threads,
            provider=recipe.provider,
            custom_ops=recipe.custom_ops,
            runs=recipe.runs,
            seed=recipe.seed,
        )
        return 1 / latency.ratio

    def _narrowed(self, removed: BoolArray) -> tuple[onnx.ModelProto, dict[str, tuple[int, ...]]]:
        """The model as it will be handed over but for its weights, and the shapes of its inputs."""
        change = resized(self.coupling, removed)
        trimmed, _ = remove(self.coupling, removed)
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
        The slowest of the models tried that is fast enough.

    Raises
    ------
    TargetError
        When all that may go does not make the model so fast.
    """
    coupling, block = analysis.coupling, widths(recipe.align).block
    forecast = Forecast(original, coupling, recipe, feeds)
    if analysis.curves is None:
        steps = trim.by_rank(analysis.queues)
    else:
        steps = in_order(coupling, analysis.queues, block=block, worth=forecast.worth())
    goal, tried = speedup, list[Speedup]()
    for _ in range(ROUNDS):
        removed = _least(forecast, steps, goal, block)
        if any(np.array_equal(removed, other.removed) for other in tried):
            break
        found = SpeedRecord(speedup, forecast.of(removed), forecast.measured(removed))
        tried.append(Speedup(removed, found))
        if 0 <= found.measured / speedup - 1 <= AMPLE:
            return tried[-1]
        # The next one is asked for what this one was predicted, put right by how wrong that was.
        goal = found.predicted * speedup * (1 + AMPLE / 2) / found.measured
    enough = [one for one in tried if one.record.measured >= speedup * (1 - CLOSE)]
    if not enough:
        best = max(one.record.measured for one in tried)
        raise TargetError(
            f"a speedup of {speedup:g} cannot be reached",
            reachable=best,
            why=f"with as few units as can be left, by whole blocks of {block}, the model is {best:.2f} times as fast",
            hint=f"ask for less than --speedup {best:.2f}",
        )
    return min(enough, key=lambda one: one.record.measured)


def _least(forecast: Forecast, steps: Sequence[Step], goal: float, block: int) -> BoolArray:
    """The shortest prefix of the steps that is predicted to be as fast as the goal; all where none is."""

    def removed(count: int) -> BoolArray:
        return take(forecast.coupling, trim.aligned(forecast.coupling, steps[:count], block))

    low, high = 0, len(steps)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if forecast.of(removed(middle)) >= goal else (middle + 1, high)
    return removed(low)
