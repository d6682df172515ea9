"""The user's own metric of a model: a function of theirs, called with a session of each of two models."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

import onnxruntime as ort

from graphprune.errors import RecipeError, user_code
from graphprune.imports import import_function
from graphprune.ir.session import CPU, ModelLike, open_session

MetricFunction: TypeAlias = "Callable[[ort.InferenceSession], Any]"

_USE = "give a function that takes an onnxruntime.InferenceSession and returns a number, the higher the better"


@dataclass(frozen=True)
class Metric:
    """What the user's metric gives for two models.

    Attributes
    ----------
    name : str
        ``module:function``.
    before, after : float
        The higher, the better.
    drop : float
        `before` minus `after`: what was lost, negative where something was won.
    """

    name: str
    before: float
    after: float
    drop: float


def load_metric(reference: str) -> MetricFunction:
    """Import the metric ``module:function``; the module may lie in the working folder.

    Raises
    ------
    RecipeError
        When the module cannot be imported or holds no such function.
    """
    return import_function(reference, "metric", RecipeError, _USE)


def compare_metric(
    reference: str,
    before: ModelLike,
    after: ModelLike,
    *,
    custom_ops: Sequence[str] = (),
    provider: str = CPU,
) -> Metric:
    """Call the user's metric with a session of each of two models.

    Parameters
    ----------
    reference : str
        ``module:function``; the function takes an ``onnxruntime.InferenceSession`` on all cores and returns a number,
        the higher the better.
    before, after : path-like, bytes or onnx.ModelProto
    custom_ops : sequence of str, default ()
        Shared libraries of custom operators, by path.
    provider : str, optional
        Execution provider of the sessions.

    Returns
    -------
    Metric

    Raises
    ------
    RecipeError
        When the function cannot be imported, fails, or returns something that is no finite number.
    ModelError
        When ONNX Runtime cannot load one of the models.
    """
    # One after the other, so that one session is in memory.
    first, second = (
        measure_metric(reference, model, which, custom_ops=custom_ops, provider=provider)
        for which, model in (("model before", before), ("model after", after))
    )
    return Metric(reference, first, second, first - second)


def measure_metric(
    reference: str, model: ModelLike, which: str, *, custom_ops: Sequence[str] = (), provider: str = CPU
) -> float:
    """Call the user's metric with a session of one model; parameters and errors as for `compare_metric`.

    Parameters
    ----------
    which : str
        What errors call the model.
    """
    function, where = load_metric(reference), f"{reference}, {which}"
    session = open_session(model, custom_ops=custom_ops, provider=provider)
    hint = "call it alone, with onnxruntime.InferenceSession(PATH), to see where it fails"
    with user_code(RecipeError, "the metric failed", where=where, hint=hint):
        value = function(session)
        # NumPy and torch wrap their numbers in arrays without axes.
        value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, Real) or isinstance(value, bool):
        why = f"it is a {type(value).__name__}"
        raise RecipeError("the metric returned no number", where=where, why=why, hint=_USE)
    if not math.isfinite(value):
        raise RecipeError(
            "the metric returned no finite number", where=where, why=f"it is {value}", hint="check what it divides by"
        )
    return float(value)
