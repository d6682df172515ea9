"""Quantised numbers: QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear, MatMulInteger, ConvInteger.

They are computed as ONNX says. Rounding has no slope: no gradient goes through what is quantised, as none goes through
Round; scales of what is dequantised get theirs. Sums of products of integers are made in float64, where they are exact.

References: https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html, onnx__DequantizeLinear.html,
onnx__DynamicQuantizeLinear.html, onnx__MatMulInteger.html, onnx__ConvInteger.html
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphprune.finetune.operators.call import Call, Operator, Restriction
from graphprune.finetune.operators.convolution import conv
from graphprune.finetune.tensors import TORCH_TYPES


def _spread(call: Call, parameter: Tensor, x: Tensor) -> Tensor:
    """Lay scales or zero points out as what they belong to: one, one for each position of the axis, or for a block."""
    axis, block = call.get("axis", 1), call.get("block_size", 0)
    if parameter.numel() == 1:
        return parameter.reshape(())
    if block:
        return parameter.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return parameter.reshape([-1 if place == axis % x.dim() else 1 for place in range(x.dim())])


def quantize_linear(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """QuantizeLinear: ``round(x / scale) + zero``, kept within its type; halves go to the even neighbour.

    Parameters
    ----------
    call : Call
        Attributes ``axis``, ``block_size``, ``output_dtype``.
    x : torch.Tensor
        Any shape.
    scale : torch.Tensor
        Scalar, one for each position of the axis, or for each block of it.
    zero : torch.Tensor, optional
        Of its shape; of its type the result is, uint8 where left out.

    Returns
    -------
    torch.Tensor
        Shape of x, int.
    """
    dtype = TORCH_TYPES[call.get("output_dtype") or 2] if zero is None else zero.dtype
    rounded = torch.round(x / _spread(call, scale, x))
    if zero is not None:
        rounded = rounded + _spread(call, zero, x)
    return rounded.clamp(torch.iinfo(dtype).min, torch.iinfo(dtype).max).to(dtype)


def dequantize_linear(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """DequantizeLinear: ``(x - zero) * scale``; the parameters are as in `quantize_linear`."""
    wide = x.to(torch.int32)
    if zero is not None:
        wide = wide - _spread(call, zero, x).to(torch.int32)
    return wide.to(scale.dtype) * _spread(call, scale, x)


def dynamic_quantize_linear(call: Call, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """DynamicQuantizeLinear: to uint8, 0 and all values in range; returns values, scale and zero point."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    zero = torch.round((0 - low) / scale).clamp(0, 255)
    return (torch.round(x / scale) + zero).clamp(0, 255).to(torch.uint8), scale, zero.to(torch.uint8)


def _shifted(x: Tensor, zero: Tensor | None) -> Tensor:
    return x.double() if zero is None else x.double() - zero.double()


def matmul_integer(
    call: Call, a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    """MatMulInteger: the product without zero points, those of a by row and of b by column; int32."""
    if a_zero is not None and a_zero.dim() == 1:
        a_zero = a_zero[:, None]
    return torch.matmul(_shifted(a, a_zero), _shifted(b, b_zero)).to(torch.int32)


def conv_integer(
    call: Call, x: Tensor, weight: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None
) -> Tensor:
    """ConvInteger: Conv without zero points, that of the weight by output channel; int32."""
    if w_zero is not None and w_zero.numel() > 1:
        w_zero = w_zero.reshape(-1, *[1] * (weight.dim() - 1))
    return conv(call, _shifted(x, x_zero), _shifted(weight, w_zero)).to(torch.int32)


def _quantize_limits(call: Call) -> str:
    dtype = TORCH_TYPES.get(call.get("output_dtype") or 2)
    return "" if dtype and not dtype.is_floating_point else "torch does not round to the type of its output"


OPERATORS: dict[str, Operator] = {
    "ConvInteger": conv_integer,
    "DequantizeLinear": dequantize_linear,
    "DynamicQuantizeLinear": dynamic_quantize_linear,
    "MatMulInteger": matmul_integer,
    "QuantizeLinear": quantize_linear,
}

RESTRICTIONS: dict[str, Restriction] = {"QuantizeLinear": _quantize_limits}

WHY = "it computes with rounded numbers, through which no gradient goes"
HINT = "train the float model, and quantise it afterwards"
REFUSED: dict[str, tuple[str, str]] = dict.fromkeys(
    """QLinearConv QLinearMatMul com.microsoft.DynamicQuantizeLSTM com.microsoft.DynamicQuantizeMatMul
    com.microsoft.MatMulIntegerToFloat com.microsoft.QGemm com.microsoft.QLinearAdd com.microsoft.QLinearAveragePool
    com.microsoft.QLinearConcat com.microsoft.QLinearGlobalAveragePool com.microsoft.QLinearLeakyRelu
    com.microsoft.QLinearMul com.microsoft.QLinearSigmoid com.microsoft.QLinearSoftmax""".split(),
    (WHY, HINT),
)
"""Operators left out on purpose: why, and what to do."""
