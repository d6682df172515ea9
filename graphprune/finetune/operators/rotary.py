"""RotaryEmbedding, ONNX's and ONNX Runtime's: head dimensions turned in pairs, by the position of their step.

References: https://onnx.ai/onnx/operators/onnx__RotaryEmbedding.html,
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.RotaryEmbedding
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphprune.finetune.operators.call import Call, Operator, Restriction


def rotated(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """Turn pairs of head dimensions: the first half with the second, or neighbours.

    Parameters
    ----------
    x : torch.Tensor
        [N, heads, steps, D].
    cos, sin : torch.Tensor
        [N or 1, steps, R / 2], R <= D; dimensions from R on stay.
    interleaved : bool
        Whether neighbours are paired.

    Returns
    -------
    torch.Tensor
        Shape of x.
    """
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    turned, rest = torch.split(x, [2 * cos.shape[-1], x.shape[-1] - 2 * cos.shape[-1]], -1)
    a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    real, imaginary = cos * a - sin * b, sin * a + cos * b
    pairs = torch.stack([real, imaginary], -1).flatten(-2) if interleaved else torch.cat([real, imaginary], -1)
    return torch.cat([pairs, rest], -1)


def _rotate(call: Call, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the heads of [N, heads, S, D] or [N, S, heads * D]."""
    interleaved = bool(call.get("interleaved", 0))
    if x.dim() == 4:
        return rotated(x, cos, sin, interleaved=interleaved)
    # ONNX Runtime's may leave the number of heads out: then the whole head is turned.
    heads = call.get("num_heads", 0) or x.shape[2] // (2 * cos.shape[-1])
    split = x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)
    return rotated(split, cos, sin, interleaved=interleaved).transpose(1, 2).flatten(2)


def rotary_embedding(call: Call, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
    """ONNX's RotaryEmbedding: angles [positions, R / 2] by position, or [N, S, R / 2] without positions."""
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    return _rotate(call, x, cos, sin)


def runtime_rotary_embedding(call: Call, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """ONNX Runtime's RotaryEmbedding: positions [N, S], or the first one alone, [1]."""
    if positions.dim() == 1:
        positions = positions + torch.arange(x.shape[-2], device=x.device)[None]
    return _rotate(call, x, cos[positions], sin[positions])


def _runtime_limits(call: Call) -> str:
    if call.get("is_packed_batching", 0):
        return "samples packed behind each other are not known"
    return "" if call.get("scale", 1.0) == 1.0 else "a scale is not known"


OPERATORS: dict[str, Operator] = {
    "RotaryEmbedding": rotary_embedding,
    "com.microsoft.RotaryEmbedding": runtime_rotary_embedding,
}

RESTRICTIONS: dict[str, Restriction] = {"com.microsoft.RotaryEmbedding": _runtime_limits}
