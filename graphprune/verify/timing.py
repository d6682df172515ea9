"""Timings of two models side by side: sessions opened in turns, blocks interleaved A B B A."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import onnx
import onnxruntime as ort

from graphprune.ir.session import CPU, Feeds, ModelLike, open_session, run_session
from graphprune.ir.tensors import is_large
from graphprune.verify.pinning import cores_for, pinned
from graphprune.verify.statistics import Timings

MIN_BLOCKS = 5
"""Blocks A B B A that are timed however slow the models are."""

_SESSION_PAIRS = 10  # sessions are opened anew this often in a stage, where opening is cheap
_TIMING_SECONDS = 2e-4  # one timing repeats the call until it lasts this long, well above the clock's steps
_WARMUP_SECONDS = 0.01  # what worker threads need to wake up and a core to reach its clock; much less does not do
_WORTH_IT = 0.5  # a stage that fits into what is left of the budget by a smaller part than this is not begun

_Call: TypeAlias = tuple[ort.InferenceSession, Feeds]
"""A session and what it is fed."""


@dataclass(frozen=True)
class Setting:
    """How models are run: the same for both.

    Attributes
    ----------
    threads : int
        Threads inside one operator.
    custom_ops : tuple of str
        Shared libraries of custom operators, by path.
    provider : str
        Execution provider.
    warmup : int
        Calls of each session, at least 1, before it is timed.
    """

    threads: int = 1
    custom_ops: tuple[str, ...] = ()
    provider: str = CPU
    warmup: int = 3

    @cached_property
    def cores(self) -> tuple[int, ...]:
        """The cores that the threads are pinned to, the caller's first; none where they are not."""
        return cores_for(self.threads) if self.provider == CPU else ()

    def open(self, model: ModelLike) -> ort.InferenceSession:
        """Open a session."""
        return open_session(
            model, threads=self.threads, custom_ops=self.custom_ops, provider=self.provider, cores=self.cores
        )


@dataclass(frozen=True)
class _Plan:
    pairs: int
    blocks: int
    repeats: int
    opening: float  # seconds
    block: float

    @property
    def seconds(self) -> float:
        return self.pairs * self.opening + self.blocks * self.block


class Bench:
    """Times two models against each other, stage after stage.

    Both models get sessions with the same options. Where it fits into half of the budget, sessions are opened anew
    several times in each stage, in alternating order: a session keeps for life the speed that its place in memory
    gives it. Every block times both models twice, A B B A or B A A B in turns, so that drift cancels out.

    Parameters
    ----------
    before, after : path-like, bytes or onnx.ModelProto
    inputs : tuple of feeds
        One call's inputs of each.
    setting : Setting
    runs : int
        Timings of each model in the first stage, rounded up to an even number, at least 10; fewer where the budget
        ends.
    budget_seconds : float
        About how long all stages may take.

    Raises
    ------
    ModelError
        When ONNX Runtime cannot load or run one of them.
    """

    def __init__(
        self,
        before: ModelLike,
        after: ModelLike,
        inputs: tuple[Feeds, Feeds],
        setting: Setting,
        *,
        runs: int = 50,
        budget_seconds: float = 10.0,
    ) -> None:
        self.models = (serialised(before), serialised(after))
        self.inputs = inputs
        self.setting = setting
        self.asked = math.ceil(runs / 2)
        self.pairs = 0  # timed so far
        self.calls: tuple[_Call, ...] = ()
        self.deadline = time.perf_counter() + budget_seconds
        start = time.perf_counter()
        self._open_pair()
        self.plan = _plan(self.calls, time.perf_counter() - start, runs, budget_seconds)

    def stages(self, shares: Sequence[int]) -> Iterator[Timings]:
        """Yield the timings of each stage, the first whatever it takes, and others while the budget lasts.

        Parameters
        ----------
        shares : sequence of int
            How much each is of the first. All together make no more timings than that many times what was asked for,
            also where the first had to make more.
        """
        blocks = self.asked * sum(shares)
        for stage, share in enumerate(shares):
            in_time = (self.deadline - time.perf_counter()) / (share * self.plan.seconds)
            left = min(in_time, blocks / (share * self.plan.blocks))
            if stage and left < _WORTH_IT:
                return
            timings = self.time(share if not stage else share * min(1.0, left))
            blocks -= len(timings.milliseconds)
            yield timings

    def time(self, share: float = 1.0) -> Timings:
        """Make the timings of one stage, or of a share of it."""
        pairs = max(1, round(self.plan.pairs * share)) if self.plan.pairs > 1 else 1
        blocks = max(pairs, round(self.plan.blocks * share))
        rows: list[list[float]] = []
        numbers: list[int] = []
        for pair in range(pairs):
            if self.pairs:
                self._open_pair()
            count = blocks // pairs + (pair < blocks % pairs)
            with _collector_paused(), pinned(self.setting.cores):
                rows += self._blocks(count)
            # One pair a stage is too few to draw pairs from: then blocks are drawn, as of one pair.
            numbers += [self.pairs if self.plan.pairs > 1 else 0] * count
            self.pairs += 1
        return Timings(np.asarray(rows), np.asarray(numbers, dtype=np.intp))

    def close(self) -> None:
        """Free the sessions."""
        self.calls = ()

    def _blocks(self, count: int) -> Iterator[list[float]]:
        """Yield rows of milliseconds: before, after, after, before."""
        a, b = self.calls
        # Opening alternates with every pair, and what a pair begins with with every second one.
        swap = self.pairs // 2 % 2 == 1
        # Untimed, and ending with the model that the first block begins with: like the others, it must find its own
        # data in the cache.
        for call in (a, b) if swap else (b, a):
            _time(call, self.plan.repeats)
        for _ in range(count):
            outer, inner = (b, a) if swap else (a, b)
            first, second, third, last = (_time(call, self.plan.repeats) * 1e3 for call in (outer, inner, inner, outer))
            yield [second, first, last, third] if swap else [first, second, third, last]
            swap = not swap

    def _open_pair(self) -> None:
        """Open a session of each, in alternating order, and warm them up in turns."""
        self.calls = ()  # freed first, so that no more than two are in memory
        swap = self.pairs % 2 == 1
        sessions = [self.setting.open(model) for model in (self.models[::-1] if swap else self.models)]
        self.calls = tuple(zip(sessions[::-1] if swap else sessions, self.inputs, strict=True))
        with pinned(self.setting.cores):
            self._warm_up()

    def _warm_up(self) -> None:
        end = time.perf_counter() + _WARMUP_SECONDS
        done = 0
        while done < max(1, self.setting.warmup) or time.perf_counter() < end:
            for session, feeds in self.calls:
                run_session(session, feeds)
            done += 1


def serialised(model: ModelLike) -> ModelLike:
    """Serialise a model once for all the sessions that are opened from it."""
    if isinstance(model, onnx.ModelProto) and not is_large(model):
        return model.SerializeToString()
    return model


def _plan(calls: Sequence[_Call], opening: float, runs: int, budget: float) -> _Plan:
    once = [min(_time(call, 1) for _ in range(3)) for call in calls]
    repeats = max(1, math.ceil(_TIMING_SECONDS / min(once)))
    block = 2 * sum(once) * repeats
    pairs = _SESSION_PAIRS if opening * _SESSION_PAIRS <= budget / 2 else 1
    wanted = max(MIN_BLOCKS, math.ceil(runs / 2))
    blocks = min(wanted, max(MIN_BLOCKS, int((budget - pairs * opening) / block)))
    return _Plan(min(pairs, blocks), blocks, repeats, opening, block)


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
