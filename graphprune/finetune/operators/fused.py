"""Operators of ONNX Runtime that stand for a few of ONNX's.

Activations with biases, products with activations, normalisation with the sum in front of it.

Reference: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from graphprune.finetune.operators.call import Call, Operator, Restriction
from graphprune.finetune.operators.convolution import conv
from graphprune.finetune.operators.linear import gemm

# by name: the function of x and its parameters
ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "Clip": lambda x, low, high: x.clamp(low, high),
    "HardSigmoid": lambda x, alpha, beta: torch.clamp(alpha * x + beta, 0, 1),
    "LeakyRelu": F.leaky_relu,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
}


def fused_conv(
    call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None, added: Tensor | None = None
) -> Tensor:
    """FusedConv: Conv, a sum with another tensor, and an activation (``activation``, ``activation_params``)."""
    y = conv(call, x, weight, bias)
    y = y if added is None else y + added
    name = call.get("activation")
    return ACTIVATIONS[name](y, *call.get("activation_params", [])) if name else y


def fused_gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """FusedGemm: Gemm and an activation (``activation``, ``activation_alpha``, ``activation_beta``)."""
    name = call.get("activation")
    parameters = [call.get(f"activation_{key}") for key in ("alpha", "beta")]
    y = gemm(call, a, b, c)
    return ACTIVATIONS[name](y, *(value for value in parameters if value is not None)) if name else y


def fused_matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """FusedMatMul: ``alpha * a' @ b'``, of each the last two axes transposed where its attribute says so."""
    left = a.transpose(-1, -2) if call.get("transA", 0) and a.dim() > 1 else a
    right = b.transpose(-1, -2) if call.get("transB", 0) and b.dim() > 1 else b
    alpha = call.get("alpha", 1.0)
    product = torch.matmul(left, right)
    return product if alpha == 1.0 else alpha * product


def fast_gelu(call: Call, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """FastGelu: the approximation by the hyperbolic tangent, of x and a bias."""
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


def quick_gelu(call: Call, x: Tensor) -> Tensor:
    """QuickGelu: ``x * sigmoid(alpha * x)``."""
    return x * torch.sigmoid(call.get("alpha", 1.702) * x)


def skip_layer_normalization(
    call: Call, x: Tensor, skip: Tensor, scale: Tensor, shift: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, ...]:
    """SkipLayerNormalization: of the sum of x, skip and a bias, over the last axis.

    Parameters
    ----------
    call : Call
        Attribute ``epsilon``.
    x, skip : torch.Tensor
        [N, S, D], skip broadcast to x.
    scale, shift, bias : torch.Tensor
        [D].

    Returns
    -------
    tuple of torch.Tensor
        Shape of x; mean, inverse of the standard deviation, and the sum.
    """
    total = x + skip if bias is None else x + skip + bias
    epsilon = call.get("epsilon", 1e-12)
    y = F.layer_norm(total, scale.shape, scale, shift, epsilon)
    if call.outputs == 1:
        return (y,)
    variance, mean = torch.var_mean(total, dim=-1, correction=0, keepdim=True)
    return y, mean, (variance + epsilon).rsqrt(), total


def skip_simplified(
    call: Call, x: Tensor, skip: Tensor, scale: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, ...]:
    """SkipSimplifiedLayerNormalization: as `skip_layer_normalization`, by the root mean square alone."""
    total = x + skip if bias is None else x + skip + bias
    length = (total.square().mean(-1, keepdim=True) + call.get("epsilon", 1e-12)).rsqrt()
    return total * length * scale, torch.zeros_like(length), length, total


def embed_layer_normalization(
    call: Call,
    words: Tensor,
    segments: Tensor | None,
    of_words: Tensor,
    of_positions: Tensor,
    of_segments: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """EmbedLayerNormalization: of the sum of the embeddings of words, positions and segments.

    Parameters
    ----------
    call : Call
        Attribute ``epsilon``.
    words, segments : torch.Tensor
        [N, S], int.
    of_words, of_positions, of_segments : torch.Tensor
        [numbers, D].
    scale, shift : torch.Tensor
        [D].
    mask : torch.Tensor, optional
        [N, S], int, 1 where a word counts.
    positions : torch.Tensor, optional
        [N, S], int; from 0 on where left out.

    Returns
    -------
    tuple of torch.Tensor
        [N, S, D]; how many words count in each sample, int32; the sum.
    """
    places = torch.arange(words.shape[1], device=words.device)[None] if positions is None else positions
    total = F.embedding(words, of_words) + F.embedding(places, of_positions)
    if segments is not None and of_segments is not None:
        total = total + F.embedding(segments, of_segments)
    y = F.layer_norm(total, scale.shape, scale, shift, call.get("epsilon", 1e-12))
    counted = words.new_zeros(len(words)) if mask is None else mask.sum(1)
    return y, counted.to(torch.int32), total


def _activation_limits(call: Call) -> str:
    name = call.get("activation")
    return "" if not name or name in ACTIVATIONS else f"activation {name} is not known"


def _matmul_limits(call: Call) -> str:
    moved = call.get("transBatchA", 0) or call.get("transBatchB", 0)
    return "transBatchA and transBatchB are not computed" if moved else ""


OPERATORS: dict[str, Operator] = {
    "com.microsoft.BiasGelu": lambda call, x, bias: F.gelu(x + bias),
    "com.microsoft.EmbedLayerNormalization": embed_layer_normalization,
    "com.microsoft.FastGelu": fast_gelu,
    "com.microsoft.FusedConv": fused_conv,
    "com.microsoft.FusedGemm": fused_gemm,
    "com.microsoft.FusedMatMul": fused_matmul,
    "com.microsoft.Gelu": lambda call, x: F.gelu(x),
    "com.microsoft.QuickGelu": quick_gelu,
    "com.microsoft.SkipLayerNormalization": skip_layer_normalization,
    "com.microsoft.SkipSimplifiedLayerNormalization": skip_simplified,
}

RESTRICTIONS: dict[str, Restriction] = {
    "com.microsoft.FusedConv": _activation_limits,
    "com.microsoft.FusedGemm": _activation_limits,
    "com.microsoft.FusedMatMul": _matmul_limits,
}
