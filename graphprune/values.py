"""Which values the fields of a recipe may have."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from graphprune.errors import RecipeError
from graphprune.imports import is_reference

CRITERIA = ("auto", "obs", "apoz", "activation", "l1", "l2", "taylor", "random")
SPARSIFIERS = ("admm", "obs", "wanda", "magnitude")
ENCODINGS = ("off", "auto", "fp16")
PACKINGS = ("off", "auto")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_pattern(value: str) -> bool:
    found = re.fullmatch(r"([1-9]\d{0,3})([:x])([1-9]\d{0,3})", value)
    return found is not None and (found[2] == "x" or int(found[1]) < int(found[3]))


def _names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) and name for name in value)


def plain(value: Any) -> Any:
    """Return a number of any kind, NumPy's for example, as Python's own, a list as a tuple; anything else as it is."""
    if isinstance(value, list):
        return tuple(value)
    return int(value) if _whole(value) else float(value) if _number(value) else value


_DEMANDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "target": (lambda value: _number(value) and 0 <= value < 1, "at least 0 and below 1"),
    "channels": (lambda value: _number(value) and 0 <= value < 1, "at least 0 and below 1"),
    "macs": (lambda value: _number(value) and 0 <= value < 1, "at least 0 and below 1"),
    "speedup": (lambda value: _number(value) and 1 < value <= 1000, "above 1 and at most 1000"),
    "structural": (
        lambda value: 0 <= value <= 1 if _number(value) else isinstance(value, str) and value == "auto",
        '"auto", or from 0 to 1',
    ),
    "criterion": (lambda value: isinstance(value, str) and value in CRITERIA, f"one of {', '.join(CRITERIA)}"),
    "sparsifier": (lambda value: isinstance(value, str) and value in SPARSIFIERS, f"one of {', '.join(SPARSIFIERS)}"),
    "pattern": (
        lambda value: isinstance(value, str) and _is_pattern(value),
        "N:M with 0 < N < M (2:4), or INPUTSxOUTPUTS of a block (16x1)",
    ),
    "align": (
        lambda value: 1 <= value <= 1024 if _whole(value) else isinstance(value, str) and value in ("auto", "off"),
        '"auto", "off", or a whole number from 1 to 1024',
    ),
    "pack": (lambda value: isinstance(value, str) and value in PACKINGS, f"one of {', '.join(PACKINGS)}"),
    "finetune": (
        lambda value: isinstance(value, str) and (value == "distill" or is_reference(value)),
        '"distill" or module:function',
    ),
    "rounds": (lambda value: _whole(value) and 1 <= value <= 1000, "a whole number from 1 to 1000"),
    "epochs": (lambda value: _whole(value) and 1 <= value <= 100_000, "a whole number from 1 to 100000"),
    "recover": (lambda value: isinstance(value, bool), "true or false"),
    "encode": (lambda value: isinstance(value, str) and value in ENCODINGS, f"one of {', '.join(ENCODINGS)}"),
    "max_latency_ratio": (lambda value: _number(value) and value > 0 and _finite(value), "above 0"),
    "max_drop": (lambda value: _number(value) and value >= 0 and _finite(value), "a number, at least 0"),
    "min_speedup": (lambda value: _number(value) and value > 0 and _finite(value), "above 0"),
    "metric": (lambda value: isinstance(value, str) and is_reference(value), "module:function"),
    "allow_resize": (_names, "a list of names of graph inputs and outputs"),
    "custom_ops": (_names, "a list of paths of shared libraries"),
    "threads": (lambda value: _whole(value) and 1 <= value <= 1024, "a whole number from 1 to 1024"),
    "batch": (lambda value: _whole(value) and 1 <= value <= 65_536, "a whole number from 1 to 65536"),
    "provider": (
        lambda value: isinstance(value, str) and bool(value),
        "the name of an execution provider of ONNX Runtime, such as CUDAExecutionProvider",
    ),
    "runs": (lambda value: _whole(value) and 2 <= value <= 1_000_000, "a whole number from 2 to 1000000"),
    "seed": (lambda value: _whole(value) and value >= 0, "a whole number, at least 0"),
}

_OPTIONAL = (
    "target",
    "channels",
    "macs",
    "speedup",
    "pattern",
    "finetune",
    "epochs",
    "max_latency_ratio",
    "max_drop",
    "min_speedup",
    "metric",
    "batch",
)


def demand(name: str, value: Any) -> None:
    """Demand that a field may have a value.

    Raises
    ------
    RecipeError
        When it is out of range; the message names the option and the range.
    """
    holds, words = _DEMANDS[name]
    if not holds(value) and not (value is None and name in _OPTIONAL):
        raise RecipeError(f"{_option(name)} must be {words}, not {value!r}", where=_option(name))
