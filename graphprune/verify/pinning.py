"""Threads kept on cores of their own while they are timed.

A worker thread stays on the core that it first woke up on, and if that is the core of the thread that it works for, or
one that another program computes on, its session is slower by a fifth or more for as long as it lives (measured with 2
threads on 2 cores). Two sessions of one model then differ by as much; pinned, all of them run on the same cores.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def cores_for(threads: int) -> tuple[int, ...]:
    """Return the cores to pin threads to, the caller's first; none where there is nothing to pin.

    Parameters
    ----------
    threads : int
        Threads inside one operator, the caller's included.

    Returns
    -------
    tuple of int
        As many as there are threads: one logical core of every physical one first, then the others. Empty for one
        thread, which the system moves away from other work, for more threads than this process may use cores, and
        where the system does not pin threads (it takes Linux).
    """
    if sys.platform != "linux" or threads < 2:
        return ()
    allowed = sorted(os.sched_getaffinity(0))
    if threads > len(allowed):
        return ()
    siblings = {core: _siblings(core) for core in allowed}
    firsts = [core for core in allowed if not any(other in siblings[core] for other in allowed if other < core)]
    return tuple([*firsts, *(core for core in allowed if core not in firsts)][:threads])


@contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Keep the calling thread on the first of these cores while the block runs; nothing is done without any."""
    if sys.platform != "linux" or not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    with suppress(OSError):  # the cores of a container may change at any time; timings are then only noisier
        os.sched_setaffinity(0, {cores[0]})
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setaffinity(0, before)


def _siblings(core: int) -> frozenset[int]:
    """Return the logical cores that share a physical one; the core alone where the system does not tell."""
    try:
        text = Path(_TOPOLOGY.format(core)).read_text(encoding="ascii").strip()
        ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
    except (OSError, ValueError):
        return frozenset({core})
    return frozenset(number for part in ends for number in range(part[0], part[-1] + 1))
