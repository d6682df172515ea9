"""Put finished files in their places: all of them whole, or what was there before untouched."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from graphprune.errors import RecipeError


def write_text(text: str, path: str | os.PathLike[str]) -> None:
    """Write a text file atomically.

    Raises
    ------
    RecipeError
        When the folder does not exist or cannot be written.
    """
    with publication(path) as (draft,):
        draft.write_text(text, encoding="utf-8")


@contextmanager
def publication(*paths: str | os.PathLike[str]) -> Iterator[tuple[Path, ...]]:
    """Write files together: the block fills drafts, and all of them are moved to their places when it ends well.

    When it fails, what was there before is untouched. Ctrl-C waits until everything is done and cleaned up.

    Parameters
    ----------
    *paths : path-like
        The files to write; of a symbolic link its target, the link stays.

    Yields
    ------
    tuple of Path
        A draft for each; a data file (`data_file`) beside a draft moves with it.

    Raises
    ------
    RecipeError
        When a folder does not exist or cannot be written, or something that is no regular file is in the way.
    """
    targets = [real_path(path) for path in paths]
    for target in targets:
        if not target.parent.is_dir():
            raise RecipeError("the output folder does not exist", where=str(target.parent), hint="create it first")
    with uninterrupted():
        try:
            with ExitStack() as stack:
                folders = [
                    stack.enter_context(tempfile.TemporaryDirectory(prefix=".graphprune-", dir=target.parent))
                    for target in targets
                ]
                drafts = tuple(Path(folder) / target.name for folder, target in zip(folders, targets, strict=True))
                yield drafts
                _publish(drafts, targets)
        except OSError as error:
            where = ", ".join(str(path) for path in paths)
            raise RecipeError("the output cannot be written", where=where, why=str(error)) from error


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block has ended; in another than the main thread it never arrives."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield
        return
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            signal.raise_signal(signal.SIGINT)


def data_file(path: Path) -> Path:
    """Return the file beside a model that its external data goes to."""
    return path.with_name(f"{path.name}.data")


def real_path(path: str | os.PathLike[str]) -> Path:
    """Return the file that is meant where a path may be a symbolic link."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)


def _publish(drafts: Sequence[Path], targets: Sequence[Path]) -> None:
    # The data goes first: a reader never sees a model whose data is not there yet.
    moves = [
        (source, place)
        for draft, target in zip(drafts, targets, strict=True)
        for source, place in ((data_file(draft), data_file(target)), (draft, target))
        if source.exists()
    ]
    for _, place in moves:
        if place.exists() and not place.is_file():
            raise OSError(f"{place} is not a regular file")
    for source, place in moves:
        os.replace(source, place)
