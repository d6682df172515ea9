"""How many threads NumPy's linear algebra uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

SMALL = 1_000_000
"""Weights of a model below which its matrices are too small to be worth sharing out."""


@contextmanager
def fitting(weights: int) -> Iterator[None]:
    """Use one thread within the block where a model is small, and what the library would use otherwise.

    Threads that share out products of small matrices wait for each other all the time; beside other work, which takes
    a core away, for a time slice each: a run of 4 seconds then takes over a minute.

    Parameters
    ----------
    weights : int
        Of the model.
    """
    if weights >= SMALL:
        yield
        return
    with threadpool_limits(1, user_api="blas"):
        yield
