"""Latency of two models side by side: interleaved runs in ONNX Runtime and what they prove."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphprune.ir.coupling.resizing import SAME, Resized
from graphprune.ir.session import CPU, Feeds, ModelLike
from graphprune.verify.footprint import Footprint, compare_footprints
from graphprune.verify.sequential import NEGLIGIBLE, STAGES, Verdict, judge, proven, verdict
from graphprune.verify.statistics import CONFIDENCE, Timings
from graphprune.verify.timing import MIN_BLOCKS, Bench, Setting

__all__ = ["MIN_BLOCKS", "NEGLIGIBLE", "Latency", "Verdict", "compare_latency", "measure", "verdict"]


@dataclass(frozen=True)
class Latency:
    """Two models' latency, measured side by side.

    Attributes
    ----------
    threads : int
        Threads inside one operator.
    runs : int
        Timings of each model that were made.
    before_ms, after_ms : float
        Medians, in milliseconds.
    ratio : float
        Paired estimate of after over before; not exactly the ratio of the medians.
    ratio_ci : tuple of float
        Bootstrap confidence interval of the ratio, low and high.
    confidence : float
        Coverage of the interval.
    verdict : {"faster", "slower", "same"}
        Faster or slower only when the whole interval is below or above 1, and the ratio is further from 1 than
        `NEGLIGIBLE`.
    batch : int or None
        Samples in one call that were asked for; None for one, or what the model fixes.
    provider : str
        Execution provider of both sessions.
    before, after : Footprint or None
        Load time and memory of a session of each model.
    """

    threads: int
    runs: int
    before_ms: float
    after_ms: float
    ratio: float
    ratio_ci: tuple[float, float]
    confidence: float
    verdict: Verdict
    batch: int | None = None
    provider: str = CPU
    before: Footprint | None = None
    after: Footprint | None = None

    @property
    def proven(self) -> float:
        """What is proven of the ratio; above 1 just where the verdict is slower."""
        return proven(self.ratio, self.ratio_ci)


def compare_latency(
    before: ModelLike,
    after: ModelLike,
    feeds: Feeds,
    *,
    change: Resized = SAME,
    threads: int = 1,
    batch: int | None = None,
    provider: str = CPU,
    custom_ops: Sequence[str] = (),
    runs: int = 50,
    warmup: int = 3,
    budget_seconds: float = 10.0,
    seed: int = 0,
) -> Latency:
    """Time two models in ONNX Runtime, interleaved A B B A, and compare them.

    Parameters
    ----------
    before, after : path-like, bytes or onnx.ModelProto
    feeds : mapping of str to array
        One call's inputs of ``before``.
    change : Resized, optional
        What ``after`` takes of the inputs of ``before``; all by default.
    threads : int, default 1
    batch : int, optional
        Samples in `feeds`, where that was asked for; it is recorded and nothing else.
    provider : str, optional
        Execution provider of both sessions; operators that it lacks run on the CPU.
    custom_ops : sequence of str, default ()
        Shared libraries of custom operators, by path.
    runs : int, default 50
        Timings of each model, rounded up to an even number; fewer where the budget ends, at least 10, and up to eight
        times as many where they leave open which model is faster.
    warmup : int, default 3
        Calls of each session, at least 1, before it is timed.
    budget_seconds : float, default 10
        About how long it may take.
    seed : int, default 0
        Of the bootstrap.

    Returns
    -------
    Latency

    Raises
    ------
    ModelError
        When ONNX Runtime cannot load or run one of them.
    RecipeError
        When the provider is not installed or does not start.
    """
    setting = Setting(threads, tuple(custom_ops), provider, warmup)
    inputs = (dict(feeds), change.cut_feeds(feeds))
    bench = Bench(before, after, inputs, setting, runs=runs, budget_seconds=budget_seconds)
    found = judge(bench.stages(STAGES), seed=seed)
    models = bench.models
    bench.close()
    first, second = compare_footprints(models, inputs, setting, budget_seconds=budget_seconds / 10)
    return Latency(
        threads=threads,
        runs=found.timings.runs,
        before_ms=found.timings.before_ms,
        after_ms=found.timings.after_ms,
        ratio=found.ratio,
        ratio_ci=found.interval,
        confidence=CONFIDENCE,
        verdict=found.verdict,
        batch=batch,
        provider=provider,
        before=first,
        after=second,
    )


def measure(
    before: ModelLike,
    after: ModelLike,
    feeds: Feeds,
    *,
    change: Resized = SAME,
    threads: int = 1,
    custom_ops: Sequence[str] = (),
    runs: int = 50,
    warmup: int = 3,
    budget_seconds: float = 10.0,
) -> Timings:
    """Make the timings of the first stage of `compare_latency`; parameters as there."""
    setting = Setting(threads, tuple(custom_ops), warmup=warmup)
    inputs = (dict(feeds), change.cut_feeds(feeds))
    return Bench(before, after, inputs, setting, runs=runs, budget_seconds=budget_seconds).time()
