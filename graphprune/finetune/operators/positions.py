"""Operators that make or move values by their position along axes: cumulation, ranking, order, masks, ranges.

References: https://onnx.ai/onnx/operators/onnx__CumSum.html, onnx__TopK.html, onnx__ReverseSequence.html,
onnx__OneHot.html, onnx__Trilu.html, onnx__EyeLike.html, onnx__Range.html, onnx__NonZero.html
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from graphprune.finetune.operators.call import Call, Operator, Restriction
from graphprune.finetune.tensors import TORCH_TYPES


def _cumulated(function: Callable[..., Tensor], neutral: int) -> Operator:
    """CumSum or CumProd: with ``exclusive`` without the position itself, with ``reverse`` from the end."""

    def run(call: Call, x: Tensor, axis: Tensor | None = None) -> Tensor:
        along = (call.ints("axis", axis) or [0])[0]
        backwards = bool(call.get("reverse", 0))
        y = x.flip(along) if backwards else x
        if call.get("exclusive", 0):
            first = torch.full_like(y.narrow(along, 0, min(1, y.shape[along])), neutral)
            y = torch.cat([first, y.narrow(along, 0, max(y.shape[along] - 1, 0))], along)
        y = function(y, dim=along, dtype=x.dtype)
        return y.flip(along) if backwards else y

    return run


def top_k(call: Call, x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """TopK along an axis: of equal values the first, as ONNX Runtime has it.

    Parameters
    ----------
    call : Call
        Attributes ``axis``, ``largest``; ``k`` up to operator set 9. Results are always sorted.
    x : torch.Tensor
        Any shape.
    k : torch.Tensor, optional
        One int, from operator set 10 on.

    Returns
    -------
    tuple of torch.Tensor
        Values, and their places as int64.
    """
    axis, count = call.get("axis", -1), (call.ints("k", k) or [0])[0]
    values, places = torch.sort(x, dim=axis, descending=bool(call.get("largest", 1)), stable=True)
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)


def reverse_sequence(call: Call, x: Tensor, lengths: Tensor) -> Tensor:
    """ReverseSequence: of every sample the first positions, as many as its length says, in the opposite order."""
    return reversed_by_length(x, lengths, call.get("time_axis", 0), call.get("batch_axis", 1))


def reversed_by_length(x: Tensor, lengths: Tensor | Sequence[int], time_axis: int, batch_axis: int) -> Tensor:
    """Turn the order of the first positions of every sample.

    Parameters
    ----------
    x : torch.Tensor
        Any shape.
    lengths : torch.Tensor or sequence of int
        [batch]: how many positions.
    time_axis, batch_axis : int

    Returns
    -------
    torch.Tensor
    """
    counts = torch.as_tensor(lengths, device=x.device)
    steps = torch.arange(x.shape[time_axis], device=x.device)[:, None]
    places = torch.where(steps < counts, counts - 1 - steps, steps)
    places = places if time_axis < batch_axis else places.t()
    shape = [extent if axis in (time_axis, batch_axis) else 1 for axis, extent in enumerate(x.shape)]
    return torch.gather(x, time_axis, places.reshape(shape).expand(x.shape))


def one_hot(call: Call, indices: Tensor, depth: Tensor | None, values: Tensor) -> Tensor:
    """OneHot: a new axis of ``depth`` positions; negative indices count from its end, those beyond hit nothing."""
    count = (call.ints("depth", depth) or [0])[0]
    axis = call.get("axis", -1)
    axis = axis + indices.dim() + 1 if axis < 0 else axis
    shape = [count if k == axis else 1 for k in range(indices.dim() + 1)]
    classes = torch.arange(count, device=indices.device).reshape(shape)
    wanted = torch.where(indices < 0, indices + count, indices).unsqueeze(axis)
    return torch.where(wanted == classes, values[1], values[0])


def trilu(call: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    """Trilu: the upper or lower triangle of the last two axes, from the k-th diagonal on."""
    diagonal = (call.ints("k", k) or [0])[0]
    return torch.triu(x, diagonal) if call.get("upper", 1) else torch.tril(x, diagonal)


def eye_like(call: Call, x: Tensor) -> Tensor:
    """EyeLike: ones on the k-th diagonal of a matrix of x's shape."""
    diagonal = call.get("k", 0)
    dtype = TORCH_TYPES[call.get("dtype")] if "dtype" in call.attributes else x.dtype
    return torch.ones(x.shape, device=x.device).triu(diagonal).tril(diagonal).to(dtype)


def range_(call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """Range: start, start + delta, .. below the limit (above it where delta is negative)."""
    count = max(math.ceil((limit.item() - start.item()) / delta.item()), 0)
    return start + torch.arange(count, dtype=start.dtype, device=start.device) * delta


def compress(call: Call, x: Tensor, condition: Tensor) -> Tensor:
    """Compress: the positions of an axis, of the flattened input where none is named, for which the condition holds."""
    axis = call.get("axis")
    if axis is None:
        x, axis = x.reshape(-1), 0
    return x.index_select(axis, condition.nonzero().reshape(-1))


def _eye_limits(call: Call) -> str:
    dtype = call.get("dtype", 1)
    return "" if dtype in TORCH_TYPES else f"torch has no element type for ONNX type {dtype}"


OPERATORS: dict[str, Operator] = {
    "Compress": compress,
    "CumProd": _cumulated(torch.cumprod, 1),
    "CumSum": _cumulated(torch.cumsum, 0),
    "EyeLike": eye_like,
    "NonZero": lambda call, x: x.nonzero().t(),
    "OneHot": one_hot,
    "Range": range_,
    "ReverseSequence": reverse_sequence,
    "TopK": top_k,
    "Trilu": trilu,
}

RESTRICTIONS: dict[str, Restriction] = {"EyeLike": _eye_limits}
