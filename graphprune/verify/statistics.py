"""The paired latency ratio and its confidence interval, from timings alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.99
"""Coverage of the ratio's interval: equal models are called slower in at most half of the rest."""

_RESAMPLES = 2000
_TRIM = 0.35  # share of the pairs cut off on either side: other work hits one session for as long as it lives


@dataclass(frozen=True)
class Timings:
    """Interleaved timings of two models.

    Attributes
    ----------
    milliseconds : float64 array [blocks, 4]
        One row for each block, in the order before, after, after, before.
    pair : integer array [blocks]
        Which pair of sessions the block was timed with.
    """

    milliseconds: npt.NDArray[np.float64]
    pair: npt.NDArray[np.intp]

    @property
    def runs(self) -> int:
        """Timings of each model."""
        return 2 * len(self.milliseconds)

    @property
    def before_ms(self) -> float:
        """Median time of the model before, in milliseconds."""
        return float(np.median(self.milliseconds[:, [0, 3]]))

    @property
    def after_ms(self) -> float:
        """Median time of the model after, in milliseconds."""
        return float(np.median(self.milliseconds[:, [1, 2]]))


def paired_ratio(
    timings: Timings, *, confidence: float = CONFIDENCE, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Estimate the ratio of latencies, after over before, with a bootstrap confidence interval.

    Each pair of sessions gives the ratio of its best timings: other work on the machine only ever adds time, and
    rarely hits all timings of a model. The estimate is the mean of the pairs' middle third (of logarithms), so that
    pairs of which one session was hit for as long as it lived are cut off. The bootstrap draws whole pairs as well,
    since one session can be a few per cent faster than its twin by where its weights lie in memory. With a single pair
    blocks stand for pairs. Percentile intervals of few draws are too narrow, so the interval is widened as Student's t
    is against the normal distribution.

    Parameters
    ----------
    timings : Timings
        At least 2 blocks.
    confidence : float, default 0.99
        Coverage of the interval, in (0, 1).
    seed : int, default 0
        Of the bootstrap.

    Returns
    -------
    ratio : float
    interval : tuple of float
        Low and high end; it holds the ratio.
    """
    ratios = np.sort(_log_ratios(timings))
    count = len(ratios)
    if count < 2:
        raise ValueError("a confidence interval needs at least 2 blocks")
    estimate = float(_trimmed_weights(np.ones((1, count)))[0] @ ratios)
    resampled = _bootstrap(count, seed) @ ratios
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    widening = student_quantile(1 - tail, count - 1) / NormalDist().inv_cdf(1 - tail)
    widening *= math.sqrt(count / (count - 1))
    low, high = min(0.0, low - estimate) * widening, max(0.0, high - estimate) * widening
    return math.exp(estimate), (math.exp(estimate + low), math.exp(estimate + high))


def _log_ratios(timings: Timings) -> npt.NDArray[np.float64]:
    """Return the logarithm of after over before of every pair, or of every block where there is one pair alone."""
    rows, pair = timings.milliseconds, np.unique(timings.pair, return_inverse=True)[1]
    best = np.stack([rows[:, [0, 3]].min(axis=1), rows[:, [1, 2]].min(axis=1)])
    count = int(pair.max()) + 1
    if count > 1:
        order = np.argsort(pair, kind="stable")
        best = np.minimum.reduceat(best[:, order], np.searchsorted(pair[order], np.arange(count)), axis=1)
    return np.asarray(np.log(best[1] / best[0]))


def student_quantile(probability: float, degrees: int) -> float:
    """Return the quantile of Student's t distribution, for a probability in [0.5, 1).

    Exact for 1 and 2 degrees of freedom; above, the expansion of Abramowitz and Stegun 26.7.5, within 2 % for
    probabilities up to 0.995.
    """
    if degrees == 1:
        return math.tan(math.pi * (probability - 0.5))
    if degrees == 2:
        centred = 2 * probability - 1
        return centred * math.sqrt(2 / (1 - centred * centred))
    z: float = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees**power for power, term in enumerate(terms, start=1))


@lru_cache(maxsize=8)
def _bootstrap(count: int, seed: int) -> npt.NDArray[np.float64]:
    """Weights of sorted values in the trimmed means of resamples of them, a row each."""
    draws = np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=_RESAMPLES)
    return _trimmed_weights(draws.astype(np.float64))


def _trimmed_weights(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Weights of sorted values in their trimmed mean, for each row of how often each value is there."""
    share = np.cumsum(counts, axis=1)
    share /= share[:, -1:]
    kept = np.diff(np.clip(share, _TRIM, 1 - _TRIM), axis=1, prepend=_TRIM)
    return np.asarray(kept / (1 - 2 * _TRIM))
