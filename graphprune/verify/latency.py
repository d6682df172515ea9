"""Latency of two models side by side: interleaved runs in ONNX Runtime and what they prove."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import onnx
import onnxruntime as ort

from graphprune.ir.coupling.resizing import SAME, Resized
from graphprune.ir.session import Feeds, ModelLike, open_session, run_session
from graphprune.ir.tensors import is_large
from graphprune.verify.statistics import CONFIDENCE, Timings, paired_ratio

MIN_BLOCKS = 5
"""Blocks A B B A that are timed however slow the models are."""

NEGLIGIBLE = 0.01
"""A ratio nearer to 1 is called the same: two sessions of one and the same model differ by as much."""

_SESSION_PAIRS = 10  # sessions are opened anew this often, where opening is cheap
_TIMING_SECONDS = 2e-4  # one timing repeats the call until it lasts this long, well above the clock's steps

_Call: TypeAlias = tuple[ort.InferenceSession, Feeds]
"""A session and what it is fed."""

Verdict: TypeAlias = Literal["faster", "slower", "same"]


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
    """

    threads: int
    runs: int
    before_ms: float
    after_ms: float
    ratio: float
    ratio_ci: tuple[float, float]
    confidence: float
    verdict: Verdict


@dataclass(frozen=True)
class _Plan:
    pairs: int
    blocks: int
    repeats: int


def compare_latency(
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
    custom_ops : sequence of str, default ()
        Shared libraries of custom operators, by path.
    runs : int, default 50
        Timings of each model, rounded up to an even number; fewer where the budget ends, at least 10.
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
    """
    timings = measure(
        before,
        after,
        feeds,
        change=change,
        threads=threads,
        custom_ops=custom_ops,
        runs=runs,
        warmup=warmup,
        budget_seconds=budget_seconds,
    )
    ratio, interval = paired_ratio(timings, seed=seed)
    return Latency(
        threads=threads,
        runs=timings.runs,
        before_ms=timings.before_ms,
        after_ms=timings.after_ms,
        ratio=ratio,
        ratio_ci=interval,
        confidence=CONFIDENCE,
        verdict=verdict(ratio, interval),
    )


def verdict(ratio: float, interval: tuple[float, float]) -> Verdict:
    """Say what a ratio and its confidence interval prove."""
    if interval[0] > 1 and ratio > 1 + NEGLIGIBLE:
        return "slower"
    return "faster" if interval[1] < 1 and ratio < 1 - NEGLIGIBLE else "same"


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
    """Make the timings that `compare_latency` judges; parameters as there.

    Both models get sessions with the same options. Where it fits into half of the budget, sessions are opened
    anew several times, in alternating order: a session keeps for life the speed that its place in memory gives it.
    """
    models = (_serialised(before), _serialised(after))
    inputs = (dict(feeds), change.cut_feeds(feeds))
    start = time.perf_counter()
    calls = _open_pair(models, inputs, threads, custom_ops, max(1, warmup), swap=False)
    opening = time.perf_counter() - start
    plan = _plan(calls, opening, runs, budget_seconds)
    rows, pairs = [], []
    for pair in range(plan.pairs):
        if pair:
            calls = ()  # freed first, so that no more than two are in memory
            calls = _open_pair(models, inputs, threads, custom_ops, max(1, warmup), swap=pair % 2 == 1)
        blocks = plan.blocks // plan.pairs + (pair < plan.blocks % plan.pairs)
        a, b = calls
        with _collector_paused():
            # Untimed, and ending with the model that the first block begins with: like the others, it must find
            # its own data in the cache.
            for call in (b, a):
                _time(call, plan.repeats)
            rows += [[_time(call, plan.repeats) * 1e3 for call in (a, b, b, a)] for _ in range(blocks)]
        pairs += [pair] * blocks
    return Timings(np.asarray(rows), np.asarray(pairs, dtype=np.intp))


def _plan(calls: Sequence[_Call], opening: float, runs: int, budget: float) -> _Plan:
    once = [min(_time(call, 1) for _ in range(3)) for call in calls]
    repeats = max(1, math.ceil(_TIMING_SECONDS / min(once)))
    block = 2 * sum(once) * repeats
    pairs = _SESSION_PAIRS if opening * _SESSION_PAIRS <= budget / 2 else 1
    wanted = max(MIN_BLOCKS, math.ceil(runs / 2))
    blocks = min(wanted, max(MIN_BLOCKS, int((budget - pairs * opening) / block)))
    return _Plan(min(pairs, blocks), blocks, repeats)


def _serialised(model: ModelLike) -> ModelLike:
    """Serialise a model once for all the sessions that are opened from it."""
    if isinstance(model, onnx.ModelProto) and not is_large(model):
        return model.SerializeToString()
    return model


def _open_pair(
    models: tuple[ModelLike, ModelLike],
    inputs: tuple[Feeds, Feeds],
    threads: int,
    custom_ops: Sequence[str],
    warmup: int,
    *,
    swap: bool,
) -> tuple[_Call, ...]:
    order = models[::-1] if swap else models
    sessions = tuple(open_session(model, threads=threads, custom_ops=custom_ops) for model in order)
    calls = tuple(zip(sessions[::-1] if swap else sessions, inputs, strict=True))
    for session, feeds in calls:
        for _ in range(warmup):
            run_session(session, feeds)
    return calls


def _time(call: _Call, repeats: int) -> float:
    """Seconds that one call takes, averaged over `repeats`."""
    run, inputs = call[0].run, call[1]
    start = time.perf_counter_ns()
    for _ in range(repeats):
        run(None, inputs)
    return (time.perf_counter_ns() - start) / repeats / 1e9


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep Python's garbage collector out of the timings."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
