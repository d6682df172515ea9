"""How often verdicts are right, by simulation on timings recorded on a noisy machine.

``timings.npz`` holds, for several models and numbers of threads, timings of a model against itself: milliseconds
[pairs of sessions, blocks, 4], made by ``benchmarks/latency.py --record`` on a machine of 2 cores on which two other
programs were computing all the time. A simulated run draws whole pairs, as a real one opens them; a slow-down is put on
the second model's timings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from graphprune.verify.sequential import STAGES, judge
from graphprune.verify.statistics import Timings

Array = npt.NDArray[np.float64]

PAIRS, BLOCKS = 10, 25
"""Of the first stage, with the default ``--runs 50``."""

with np.load(Path(__file__).parent / "timings.npz") as recorded:
    RECORDED: dict[str, Array] = {name: recorded[name].astype(np.float64) for name in recorded.files}


def simulated(recorded: Array, slowdown: float, rng: np.random.Generator) -> Iterator[Timings]:
    """Stages of a run on the machine of the recording."""
    # Swapping the names of two equal models makes an odd pair of an even one: their timings mirrored are as true, and
    # with them the models are equal exactly, not only up to the luck of the recording.
    mirrored = recorded[:, :, [1, 0, 3, 2]]
    kinds = [np.concatenate([recorded[parity::2], mirrored[1 - parity :: 2]]) for parity in (0, 1)]
    opened = 0
    for share in STAGES:
        pairs = opened + np.arange(PAIRS * share)
        drawn = rng.integers(0, len(kinds[0]), len(pairs))
        counts = BLOCKS * share // len(pairs) + (np.arange(len(pairs)) < BLOCKS * share % len(pairs))
        chosen = zip(pairs, drawn, counts, strict=True)
        rows = np.concatenate([kinds[pair % 2][index, :count] for pair, index, count in chosen])
        yield Timings(rows * [1, slowdown, slowdown, 1], np.repeat(pairs, counts).astype(np.intp))
        opened += len(pairs)


def verdicts(name: str, slowdown: float, count: int) -> Counter[str]:
    rng = np.random.default_rng(0)
    return Counter(judge(simulated(RECORDED[name], slowdown, rng)).verdict for _ in range(count))


@pytest.mark.parametrize("name", RECORDED)
def test_a_model_is_called_different_from_itself_in_under_one_per_cent(name: str) -> None:
    found = verdicts(name, 1.0, 1000)
    assert found["slower"] < 10
    assert found["faster"] < 10


@pytest.mark.parametrize("name", RECORDED)
def test_a_slowdown_of_five_per_cent_is_found_in_over_ninety(name: str) -> None:
    assert verdicts(name, 1.05, 500)["slower"] > 450
    assert verdicts(name, 1 / 1.05, 500)["faster"] > 450


def test_what_is_clear_takes_the_first_stage_alone() -> None:
    rng = np.random.default_rng(0)
    found = judge(simulated(RECORDED["resnet20_cifar10, 1 threads"], 1.3, rng))
    assert found.timings.runs == 2 * BLOCKS
    assert found.verdict == "slower"


def test_stages_that_end_early_are_judged_as_they_are() -> None:
    rng = np.random.default_rng(0)
    stages = list(simulated(RECORDED["mobilenet_v2_imagenet, 2 threads"], 1.0, rng))[:2]
    assert judge(stages).timings.runs == 4 * BLOCKS
    with pytest.raises(ValueError, match="no timings"):
        judge([])
