"""The progress bar of the command line."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

PATIENCE = 2.0
"""Seconds before a progress bar appears."""


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[int], None] | None]:
    """Yield a function that counts calibration samples on a bar, which appears when it takes long."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    bar = Progress(console=console, transient=True)
    task = bar.add_task("calibration samples", total=None)
    start = time.monotonic()

    def advance(samples: int) -> None:
        bar.advance(task, samples)
        if not bar.live.is_started and time.monotonic() - start > PATIENCE:
            bar.start()

    try:
        yield advance
    finally:
        bar.stop()
