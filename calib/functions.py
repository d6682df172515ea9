"""Calibration data made by the user's own Python code: functions and iterables of dictionaries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from graphprune.calib.chunks import Chunk, check_chunk
from graphprune.calib.specs import InputSpec
from graphprune.errors import CalibrationError, user_code
from graphprune.imports import import_function


def import_source(reference: str) -> Callable[[], Iterable[Mapping[str, Any]]]:
    """Import the calibration function ``module:function``; the module may lie in the working folder.

    Raises
    ------
    CalibrationError
        When the module cannot be imported or holds no such function.
    """
    use = "give a function without arguments that yields dictionaries of arrays"
    return import_function(reference, "calibration function", CalibrationError, use)


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
    hint = "call it alone to see where it fails"
    with user_code(CalibrationError, "the calibration function failed", where=where, hint=hint):
        items = make()
        if isinstance(items, Mapping) or not isinstance(items, Iterable):
            raise _not_mappings(where, f"it returns a {type(items).__name__}")
        yield from items


def _not_mappings(where: str, why: str) -> CalibrationError:
    return CalibrationError(
        "the calibration function does not yield dictionaries of arrays",
        where=where,
        why=why,
        hint="yield {input name: array} for each batch, and at least once",
    )
