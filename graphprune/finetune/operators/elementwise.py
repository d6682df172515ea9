"""Elementwise operators: activations, arithmetic, comparisons, bits, Where, Cast."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from graphprune.finetune.operators.call import Call, Operator
from graphprune.finetune.tensors import TORCH_TYPES


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda call, x: function(x)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda call, a, b: function(a, b)


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda call, *inputs: reduce(function, inputs)


def clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Clip: the bounds are attributes up to operator set 10, scalar inputs from 11 on."""
    if call.opset < 11:
        return torch.clamp(x, call.get("min"), call.get("max")) if call.attributes else x
    return x if low is None and high is None else torch.clamp(x, low, high)


def div(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Div: integers are divided towards zero."""
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def mod(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Mod: the result has the sign of the divisor, or of the dividend where ``fmod`` is set."""
    return torch.fmod(a, b) if call.get("fmod", 0) else torch.remainder(a, b)


def power(call: Call, x: Tensor, exponent: Tensor) -> Tensor:
    """Pow: the result has the type of the base."""
    return torch.pow(x, exponent).to(x.dtype)


def prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    """PRelu: the slope broadcasts to x by its trailing axes, as in numpy."""
    return torch.where(x < 0, x * slope, x)


def mean(call: Call, *inputs: Tensor) -> Tensor:
    """Mean of any number of tensors, broadcast."""
    total: Tensor = reduce(torch.add, inputs)
    return total / len(inputs)


def selu(call: Call, x: Tensor) -> Tensor:
    """Selu, with its defaults rounded to float32 as the specification states them."""
    alpha: float = call.get("alpha", 1.6732632423543772)
    gamma: float = call.get("gamma", 1.0507009873554805)
    return F.elu(x, alpha) * gamma


def shrink(call: Call, x: Tensor) -> Tensor:
    """Shrink: values within ``lambd`` of 0 become 0, the others come nearer to it by ``bias``."""
    limit, bias = call.get("lambd", 0.5), call.get("bias", 0.0)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x)))


def swish(call: Call, x: Tensor) -> Tensor:
    """Swish: ``x * sigmoid(alpha * x)``."""
    return x * torch.sigmoid(call.get("alpha", 1.0) * x)


def bit_shift(call: Call, x: Tensor, count: Tensor) -> Tensor:
    """BitShift of unsigned integers."""
    return (
        torch.bitwise_left_shift(x, count) if call.get("direction") == "LEFT" else torch.bitwise_right_shift(x, count)
    )


def is_inf(call: Call, x: Tensor) -> Tensor:
    """IsInf, of either sign or of one only."""
    positive = torch.isposinf(x) & bool(call.get("detect_positive", 1))
    return positive | (torch.isneginf(x) & bool(call.get("detect_negative", 1)))


def cast(call: Call, x: Tensor) -> Tensor:
    """Cast: floats are truncated to integers, anything but 0 becomes True."""
    return x.to(TORCH_TYPES[call.get("to")])


def _cannot_cast(call: Call) -> str:
    return "" if call.get("to") in TORCH_TYPES else f"torch has no element type for ONNX type {call.get('to')}"


UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}

BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}

VARIADIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Sum": torch.add,
}

OPERATORS: dict[str, Operator] = {
    **{name: _unary(function) for name, function in UNARY.items()},
    **{name: _binary(function) for name, function in BINARY.items()},
    **{name: _variadic(function) for name, function in VARIADIC.items()},
    "BitShift": bit_shift,
    "Cast": cast,
    "CastLike": lambda call, x, like: x.to(like.dtype),
    "Celu": lambda call, x: F.celu(x, call.get("alpha", 1.0)),
    "Clip": clip,
    "Div": div,
    "Elu": lambda call, x: F.elu(x, call.get("alpha", 1.0)),
    "Gelu": lambda call, x: F.gelu(x, approximate=call.get("approximate", "none")),
    "HardSigmoid": lambda call, x: torch.clamp(call.get("alpha", 0.2) * x + call.get("beta", 0.5), 0, 1),
    "IsInf": is_inf,
    "LeakyRelu": lambda call, x: F.leaky_relu(x, call.get("alpha", 0.01)),
    "Mean": mean,
    "Mod": mod,
    "PRelu": prelu,
    "Pow": power,
    "Selu": selu,
    "Shrink": shrink,
    "Swish": swish,
    "ThresholdedRelu": lambda call, x: F.threshold(x, call.get("alpha", 1.0), 0.0),
    "Where": lambda call, condition, x, y: torch.where(condition, x, y),
}

RESTRICTIONS = {"Cast": _cannot_cast}
