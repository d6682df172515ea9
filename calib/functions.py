"""Calibration data made by the user's own Python code: functions and iterables of dictionaries."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from graphprune.calib.chunks import Chunk, check_chunk
from graphprune.calib.specs import InputSpec
from graphprune.errors import CalibrationError

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_reference(text: str) -> bool:
    """Whether a text has the form ``module:function``."""
    return _REFERENCE.fullmatch(text) is not None


def import_function(reference: str) -> Callable[[], Iterable[Mapping[str, Any]]]:
    """Import ``module:function``; the module may lie in the working folder.

    Raises
    ------
    CalibrationError
        When the module cannot be imported or holds no such function.
    """
    module_name, _, name = reference.partition(":")
    # A console script does not look into the working folder, where users keep such a module.
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        function = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # the user's module runs here, and may fail in any way
        raise CalibrationError(
            "the calibration function cannot be imported",
            where=reference,
            why=f"{type(error).__name__}: {error}",
            hint="give module:function; the module must be installed or lie in the working folder",
        ) from error
    if not callable(function):
        raise CalibrationError(
            "the calibration function is not a function",
            where=reference,
            why=f"it is a {type(function).__name__}",
            hint="give a function without arguments that yields dictionaries of arrays",
        )
    return function  # type: ignore[no-any-return]


def mapping_chunks(
    make: Callable[[], Iterable[Mapping[str, Any]]], specs: tuple[InputSpec, ...], where: str
) -> Iterator[Chunk]:
    """Call `make` and check each dictionary that it yields, lazily.

    Raises
    ------
    CalibrationError
        When the user's code fails, yields something else, or yields nothing.
    """
    count = -1
    for count, item in enumerate(_guarded(make, where)):
        at = f"{where}, item {count}"
        if not isinstance(item, Mapping):
            raise _not_mappings(at, f"it is a {type(item).__name__}")
        yield check_chunk(item, specs, at)
    if count < 0:
        raise _not_mappings(where, "it yields nothing")


def _guarded(make: Callable[[], Iterable[Any]], where: str) -> Iterator[Any]:
    try:
        items = make()
        if isinstance(items, Mapping) or not isinstance(items, Iterable):
            raise _not_mappings(where, f"it returns a {type(items).__name__}")
        yield from items
    except CalibrationError:
        raise
    except Exception as error:  # the user's code runs here, and may fail in any way
        raise CalibrationError(
            "the calibration function failed",
            where=where,
            why=f"{type(error).__name__}: {error}",
            hint="call it alone to see where it fails",
        ) from error


def _not_mappings(where: str, why: str) -> CalibrationError:
    return CalibrationError(
        "the calibration function does not yield dictionaries of arrays",
        where=where,
        why=why,
        hint="yield {input name: array} for each batch, and at least once",
    )
