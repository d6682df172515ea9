"""Activation statistics that can be added up: over batches, over shards, over machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Sums over all samples and positions, for every channel of one axis of one tensor.

    Attributes
    ----------
    count : int
        Values summed per channel: samples times positions.
    total : ndarray of float64, shape (channels,)
        Sum of the values.
    zeros : ndarray of float64, shape (channels,), or None
        How many values are <= 0; None where it was not asked for.
    squares : ndarray of float64, shape (channels,), or None
        Sum of the squared values; None where it was not asked for.
    sampled : bool
        Whether only a part of the positions was looked at, and the sums scaled up from there.
    """

    count: int
    total: FloatArray
    zeros: FloatArray | None = None
    squares: FloatArray | None = None
    sampled: bool = False

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of both sets of samples together."""
        return Moments(
            self.count + other.count,
            self.total + other.total,
            _sum(self.zeros, other.zeros),
            _sum(self.squares, other.squares),
            self.sampled or other.sampled,
        )

    @property
    def mean(self) -> FloatArray:
        """Mean value per channel."""
        return self.total / max(self.count, 1)

    @property
    def apoz(self) -> FloatArray | None:
        """Average percentage of zeros per channel, as a fraction in [0, 1] (Hu et al. 2016, equation 1)."""
        return None if self.zeros is None else self.zeros / max(self.count, 1)


Key = tuple[str, int]
"""Tensor name and axis."""
Statistics = Mapping[Key, Moments]


def merge(left: Statistics, right: Statistics) -> dict[Key, Moments]:
    """Return the statistics of both sets of samples together.

    Parameters
    ----------
    left, right : mapping of (tensor, axis) to Moments
        Of the same probes; the order does not matter.
    """
    merged = dict(left)
    for key, moments in right.items():
        merged[key] = merged[key] + moments if key in merged else moments
    return merged


def _sum(left: FloatArray | None, right: FloatArray | None) -> FloatArray | None:
    return None if left is None or right is None else left + right
