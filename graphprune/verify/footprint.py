"""What a session costs besides the time of its calls: how long it takes to open, and how much memory it holds."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from graphprune.ir.session import Feeds, ModelLike, run_session
from graphprune.verify.timing import Setting

_ROUNDS = 3


@dataclass(frozen=True)
class Footprint:
    """What a session costs.

    Attributes
    ----------
    load_ms : float
        Time that opening it takes, in milliseconds: the model is read, optimised, and its weights are packed.
    memory_bytes : int or None
        By how much the resident memory of the process grows when it is opened and called once: weights, packed weights
        and activations. Multiples of a page; None where the system does not tell (it takes Linux and its C library).
        Memory of a device, such as a GPU, is not in it.
    """

    load_ms: float
    memory_bytes: int | None


def compare_footprints(
    models: tuple[ModelLike, ModelLike], inputs: tuple[Feeds, Feeds], setting: Setting, *, budget_seconds: float = 5.0
) -> tuple[Footprint, Footprint]:
    """Open and call a session of each of two models alone, in turns, and take the medians.

    Parameters
    ----------
    models : tuple of path-like, bytes or onnx.ModelProto
    inputs : tuple of feeds
        One call's inputs of each.
    setting : Setting
    budget_seconds : float, default 5
        No further round is begun after as long.

    Returns
    -------
    tuple of Footprint

    Raises
    ------
    ModelError
        When ONNX Runtime cannot load or run one of them.
    """
    gc.collect()  # once: sessions are in no cycles, and it takes long where much is in memory
    start = time.perf_counter()
    found: tuple[list[Footprint], list[Footprint]] = ([], [])
    for _ in range(_ROUNDS):
        for model, feeds, list_ in zip(models, inputs, found, strict=True):
            list_.append(_measure(model, feeds, setting))
        if time.perf_counter() - start > budget_seconds:
            break
    return _median(found[0]), _median(found[1])


def _measure(model: ModelLike, feeds: Feeds, setting: Setting) -> Footprint:
    _give_back()
    before = _resident()
    start = time.perf_counter()
    session = setting.open(model)
    load = (time.perf_counter() - start) * 1e3
    run_session(session, feeds)
    after = _resident()
    return Footprint(load, None if before is None or after is None else max(0, after - before))


def _median(found: list[Footprint]) -> Footprint:
    memory = [each.memory_bytes for each in found if each.memory_bytes is not None]
    return Footprint(
        statistics.median(each.load_ms for each in found), statistics.median_low(memory) if memory else None
    )


def _give_back() -> None:
    """Give freed memory back to the system: a session that takes it again would not seem to grow anything."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # not glibc
        return None
    return found


def _resident() -> int | None:
    """Return the resident memory of this process in bytes, where it can be known and freed memory given back."""
    if _malloc_trim() is None:
        return None
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
