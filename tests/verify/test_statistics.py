from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.verify.sequential import STAGES, judge, proven, verdict
from graphprune.verify.statistics import Timings, paired_ratio, student_quantile


def simulated(
    rng: np.random.Generator,
    slowdown: float,
    *,
    pairs: int = 10,
    blocks: int = 25,
    session: float = 0.014,
    noise: float = 0.02,
    bursts: float = 0.08,
) -> Timings:
    """Timings as a shared machine gives them: noise, bursts that only add time, drift, and lucky sessions."""
    pair = np.sort(np.arange(blocks) % pairs)
    lucky = rng.normal(0, session, pairs)[pair] if pairs > 1 else np.zeros(blocks)
    drift = 1 + 0.002 * np.arange(4 * blocks).reshape(blocks, 4)
    extra = (rng.random((blocks, 4)) < bursts) * rng.exponential(0.5, (blocks, 4))
    milliseconds = np.exp(rng.normal(0, noise, (blocks, 4)) + extra) * drift
    milliseconds[:, 1:3] *= slowdown * np.exp(lucky)[:, None]
    return Timings(milliseconds, pair)


def stages(
    rng: np.random.Generator, slowdown: float, *, pairs: int = 10, blocks: int = 25, **machine: Any
) -> Iterator[Timings]:
    """Stages of a run; with one pair of sessions a stage, blocks are all there is to draw."""
    opened = 0
    for share in STAGES:
        count = pairs * share if pairs > 1 else 1
        found = simulated(rng, slowdown, pairs=count, blocks=blocks * share, **machine)
        yield Timings(found.milliseconds, found.pair + opened)
        opened += count if pairs > 1 else 0


def verdicts(slowdown: float, count: int, **machine: Any) -> list[str]:
    rng = np.random.default_rng(0)
    return [judge(stages(rng, slowdown, **machine)).verdict for _ in range(count)]


@pytest.mark.parametrize(
    "machine",
    [
        {},
        {"noise": 0.04, "session": 0.005},
        {"pairs": 1},
        {"pairs": 1, "bursts": 0.2},
        {"pairs": 1, "blocks": 5},
    ],
)
def test_equal_models_are_called_different_in_under_one_per_cent(machine: dict[str, Any]) -> None:
    found = verdicts(1.0, 1000, **machine)
    assert found.count("slower") < 10
    assert found.count("faster") < 10


@pytest.mark.parametrize(
    "machine", [{}, {"noise": 0.03, "session": 0.003}, {"pairs": 1, "noise": 0.03}, {"pairs": 1, "bursts": 0.15}]
)
def test_a_slowdown_of_five_per_cent_is_found(machine: dict[str, Any]) -> None:
    assert verdicts(1.05, 300, **machine).count("slower") > 270
    assert verdicts(1 / 1.05, 300, **machine).count("faster") > 270


def test_the_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(1)
    intervals = [paired_ratio(simulated(rng, 1.3))[1] for _ in range(500)]
    assert sum(low <= 1.3 <= high for low, high in intervals) > 0.97 * 500


@given(st.integers(2, 30), st.integers(1, 12), st.integers(0, 2**32 - 1), st.floats(0.1, 10))
def test_the_interval_holds_the_ratio(blocks: int, pairs: int, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    pair = np.arange(blocks) % min(pairs, blocks)
    timings = Timings(rng.lognormal(0, 0.5, (blocks, 4)), pair)
    ratio, (low, high) = paired_ratio(timings)
    assert 0 < low <= ratio <= high
    assert paired_ratio(timings) == (ratio, (low, high))
    scaled = timings.milliseconds * np.array([1, scale, scale, 1])
    assert paired_ratio(Timings(scaled, pair))[0] == pytest.approx(ratio * scale)


def test_exact_timings_give_an_exact_ratio() -> None:
    timings = Timings(np.tile([2.0, 1.0, 1.0, 2.0], (5, 1)), np.zeros(5, dtype=np.intp))
    assert paired_ratio(timings) == (0.5, (0.5, 0.5))
    assert (timings.runs, timings.before_ms, timings.after_ms) == (10, 2.0, 1.0)


def test_one_block_has_no_interval() -> None:
    with pytest.raises(ValueError, match="2 blocks"):
        paired_ratio(Timings(np.ones((1, 4)), np.zeros(1, dtype=np.intp)))


@pytest.mark.parametrize(
    ("ratio", "interval", "expected"),
    [
        (1.05, (1.001, 1.1), "slower"),
        (1.05, (0.999, 1.1), "same"),
        (1.005, (1.002, 1.008), "same"),
        (0.5, (0.4, 0.6), "faster"),
        (0.995, (0.99, 0.999), "same"),
    ],
)
def test_verdict(ratio: float, interval: tuple[float, float], expected: str) -> None:
    assert verdict(ratio, interval) == expected
    assert (proven(ratio, interval) > 1) == (expected == "slower")


@pytest.mark.parametrize(
    ("degrees", "table"), [(1, 63.657), (2, 9.925), (3, 5.841), (4, 4.604), (9, 3.250), (24, 2.797), (10**6, 2.576)]
)
def test_student_quantile(degrees: int, table: float) -> None:
    assert student_quantile(0.995, degrees) == pytest.approx(table, rel=0.02)
    assert not math.isnan(student_quantile(0.5, degrees))
