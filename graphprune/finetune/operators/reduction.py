"""Reductions along axes, ArgMax and ArgMin."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from graphprune.finetune.operators.call import Call, Operator


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    """Give a reduction its axes: an attribute, or an input from operator set 18 (ReduceSum: 13) on."""

    def run(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = call.ints("axes", axes)
        if not chosen:
            if call.get("noop_with_empty_axes", 0):
                return x
            chosen = list(range(x.dim()))
        # Without a batch of axes to walk, a scalar is its own one-element vector.
        if x.dim() == 0:
            return function(x.reshape(1), [0], False)
        return function(x, chosen, bool(call.get("keepdims", 1)))

    return run


def _prod(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = torch.prod(x, dim=axis, keepdim=keepdim)
    return x


def _arg(function: Callable[..., Tensor]) -> Operator:
    def run(call: Call, x: Tensor) -> Tensor:
        axis, keepdims = call.get("axis", 0), bool(call.get("keepdims", 1))
        if call.get("select_last_index", 0):
            last = function(x.flip(axis), dim=axis, keepdim=keepdims)
            return torch.sub(x.shape[axis] - 1, last)
        return function(x, dim=axis, keepdim=keepdims)

    return run


# ReduceL2 uses the norm, whose gradient at 0 is 0, and not the root of a sum, whose gradient there is NaN.
REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceL1": lambda x, axes, keepdim: x.abs().sum(axes, keepdim),
    "ReduceL2": lambda x, axes, keepdim: torch.linalg.vector_norm(x, 2, axes, keepdim),
    "ReduceLogSum": lambda x, axes, keepdim: x.sum(axes, keepdim).log(),
    "ReduceLogSumExp": lambda x, axes, keepdim: x.logsumexp(axes, keepdim),
    "ReduceMax": lambda x, axes, keepdim: x.amax(axes, keepdim),
    "ReduceMean": lambda x, axes, keepdim: x.mean(axes, keepdim),
    "ReduceMin": lambda x, axes, keepdim: x.amin(axes, keepdim),
    "ReduceProd": _prod,
    "ReduceSum": lambda x, axes, keepdim: x.sum(axes, keepdim, dtype=x.dtype),
    "ReduceSumSquare": lambda x, axes, keepdim: (x * x).sum(axes, keepdim, dtype=x.dtype),
}

OPERATORS: dict[str, Operator] = {
    **{name: _reduction(function) for name, function in REDUCTIONS.items()},
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
}
