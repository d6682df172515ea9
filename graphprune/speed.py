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
from graphprune.ir.coupling.units import BoolArray
from graphprune.ir.graph import Graph
from graphprune.ir.kernels import widths
from graphprune.ir.session import Feeds
from graphprune.ir.shapes.inference import Shape
from graphprune.ir.surgery import remove
from graphprune.passes import trim
from graphprune.passes.allocation import in_order
from graphprune.passes.choice import Step, take
from graphprune.passes.fold import fold
from graphprune.passes.lower import lower
from graphprune.recipe import Recipe
from graphprune.verify.kernel_times import KernelTimes, kernels_of
from graphprune.verify.latency import Latency, compare_latency

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
    predicted, measured : float
        Latency before over after: from kernel times, and timed.
    """

    removed: BoolArray
    predicted: float
    measured: float


class Forecast:
    """Predicts how long a model takes that lost units.

    Parameters
    ----------
    analysis : Analysis
    recipe : Recipe
        Its threads count.
    feeds : mapping of str to ndarray
        One call's inputs.
    """

    def __init__(self, analysis: Analysis, recipe: Recipe, feeds: Feeds) -> None:
        self.coupling = analysis.coupling
        self.feeds = feeds
        self.times = KernelTimes(recipe.threads)
        self.recipe = recipe
        self.original = faster(self.coupling.graph.proto)
        self.kernels, self.volume = self._parts(self.original, _shapes(self.feeds))
        whole = self._latency(self.original, self.original).before_ms
        self.rest = max(whole - self.kernels, 0.0)

    def worth(self) -> dict[str, float]:
        """Return by weight how long the kernel takes that it belongs to, in microseconds."""
        graph = Graph(self.original, _shapes(self.feeds))
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
        return 1 / self._latency(self.coupling.graph.proto, self._narrowed(removed)[0], removed).ratio

    def _narrowed(self, removed: BoolArray) -> tuple[onnx.ModelProto, dict[str, Shape]]:
        change = resized(self.coupling, removed)
        return faster(remove(self.coupling, removed)[0]), _shapes(change.cut_feeds(self.feeds))

    def _parts(self, proto: onnx.ModelProto, shapes: Mapping[str, Shape]) -> tuple[float, float]:
        """Milliseconds of the nodes that hold weights, and elements that the others make."""
        graph = Graph(proto, shapes)
        kernels = kernels_of(graph)
        own = {name for kernel in kernels for name in kernel.node.output}
        made = [graph.shape(name) or () for node in graph.main for name in node.outputs if name and name not in own]
        sizes = [np.prod([n for n in shape if isinstance(n, int)], dtype=np.float64) for shape in made]
        return sum(self.times.of(kernels)), float(sum(sizes))

    def _latency(self, before: onnx.ModelProto, after: onnx.ModelProto, removed: BoolArray | None = None) -> Latency:
        recipe = self.recipe
        return compare_latency(
            before,
            after,
            self.feeds,
            change=resized(self.coupling, np.zeros(self.coupling.units, np.bool_) if removed is None else removed),
            threads=recipe.threads,
            custom_ops=recipe.custom_ops,
            runs=recipe.runs,
            seed=recipe.seed,
        )


def removal_for(analysis: Analysis, recipe: Recipe, feeds: Feeds, speedup: float) -> Speedup:
    """Choose the units that go for a speedup.

    Parameters
    ----------
    analysis : Analysis
    recipe : Recipe
    feeds : mapping of str to ndarray
        One call's inputs.
    speedup : float
        Latency before over after, above 1.

    Raises
    ------
    TargetError
        When all that may go does not make the model so fast.
    """
    coupling, block = analysis.coupling, widths(recipe.align).block
    forecast = Forecast(analysis, recipe, feeds)
    if analysis.curves is None:
        steps = trim.by_rank(analysis.queues)
    else:
        steps = in_order(coupling, analysis.queues, block=block, worth=forecast.worth())
    goal, found = speedup, list[Speedup]()
    for _ in range(ROUNDS):
        removed = _least(forecast, steps, goal, block)
        if found and np.array_equal(removed, found[-1].removed):
            break
        found.append(Speedup(removed, forecast.of(removed), forecast.measured(removed)))
        if -CLOSE <= found[-1].measured / speedup - 1 <= AMPLE:
            return found[-1]
        goal *= speedup / found[-1].measured
    enough = [one for one in found if one.measured >= speedup * (1 - CLOSE)]
    if not enough:
        best = max(one.measured for one in found)
        raise TargetError(
            f"a speedup of {speedup:g} cannot be reached",
            reachable=best,
            why=f"without all units that may go the model is {best:.2f} times as fast",
            hint=f"ask for less than --speedup {best:.2f}",
        )
    return min(enough, key=lambda one: one.measured)


def _least(forecast: Forecast, steps: Sequence[Step], goal: float, block: int) -> BoolArray:
    """The shortest prefix of the steps that is predicted to be as fast as the goal; all where none is."""

    def removed(count: int) -> BoolArray:
        return take(forecast.coupling, trim.aligned(forecast.coupling, steps[:count], block))

    low, high = 0, len(steps)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if forecast.of(removed(middle)) >= goal else (middle + 1, high)
    return removed(low)


def faster(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model as it will be handed over, but for its weights."""
    return lower(fold(proto))


def _shapes(feeds: Feeds) -> dict[str, Shape]:
    return {name: tuple(values.shape) for name, values in feeds.items()}
