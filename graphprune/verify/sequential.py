"""How long two models are timed: stage after stage, until what the timings show is clear."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from graphprune.verify.statistics import CONFIDENCE, Timings, paired_ratio

NEGLIGIBLE = 0.01
"""A ratio nearer to 1 is called the same: two sessions of one and the same model differ by as much."""

EQUAL = 0.03
"""Two models are the same for good where the whole interval is nearer to 1: the 5 % worth finding would show."""

STAGES = (1, 1, 2, 4)
"""Timings of every stage, in parts of the first: one that is over early has found a clear answer."""

Verdict: TypeAlias = Literal["faster", "slower", "same"]


@dataclass(frozen=True)
class Judgement:
    """What timings show of two models.

    Attributes
    ----------
    timings : Timings
        All that were made.
    ratio : float
        Latency after over before.
    interval : tuple of float
        Its confidence interval.
    verdict : {"faster", "slower", "same"}
    """

    timings: Timings
    ratio: float
    interval: tuple[float, float]
    verdict: Verdict


def judge(stages: Iterable[Timings], *, seed: int = 0) -> Judgement:
    """Take timings until they show which of two models is faster, or that they are the same.

    Whoever looks at timings again and again, and stops at what he likes, errs every time anew: so the confidence of
    each look is such that all looks together err no more than `CONFIDENCE` allows (Bonferroni).

    Parameters
    ----------
    stages : iterable of Timings
        At least one; of more than ``len(STAGES)`` the first. None is drawn that is not needed.
    seed : int, default 0
        Of the bootstrap.

    Returns
    -------
    Judgement
    """
    confidence = 1 - (1 - CONFIDENCE) / len(STAGES)
    timings, found = None, None
    for _, stage in zip(STAGES, stages, strict=False):
        timings = stage if timings is None else _joined(timings, stage)
        ratio, interval = paired_ratio(timings, confidence=confidence, seed=seed)
        found = Judgement(timings, ratio, interval, verdict(ratio, interval))
        if found.verdict != "same" or (interval[0] > 1 / (1 + EQUAL) and interval[1] < 1 + EQUAL):
            break
    if found is None:
        raise ValueError("there are no timings to judge")
    return found


def verdict(ratio: float, interval: tuple[float, float]) -> Verdict:
    """Say what a ratio and its confidence interval prove."""
    if proven(ratio, interval) > 1:
        return "slower"
    return "faster" if interval[1] < 1 and ratio < 1 - NEGLIGIBLE else "same"


def proven(ratio: float, interval: tuple[float, float]) -> float:
    """Return the figure that is above 1 just where the verdict is slower.

    The low end of the interval, or the ratio less `NEGLIGIBLE` where that is smaller.
    """
    return min(interval[0], ratio / (1 + NEGLIGIBLE))


def _joined(one: Timings, other: Timings) -> Timings:
    """Put the blocks of two stages together; pairs are numbered through already."""
    return Timings(
        np.concatenate([one.milliseconds, other.milliseconds]), np.concatenate([one.pair, other.pair]).astype(np.intp)
    )
