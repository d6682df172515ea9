"""Resize and Upsample: separable interpolation, axis by axis."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from graphprune.finetune.operators.call import Call, Operator, Restriction

Floats = npt.NDArray[np.float64]

# position in the output, scale, input size, output size -> position in the input
COORDINATES: dict[str, Callable[[Floats, float, int, int], Floats]] = {
    "align_corners": lambda x, scale, size, new: x * (size - 1) / (new - 1) if new > 1 else x * 0,
    "asymmetric": lambda x, scale, size, new: x / scale,
    "half_pixel": lambda x, scale, size, new: (x + 0.5) / scale - 0.5,
    "half_pixel_symmetric": lambda x, scale, size, new: size / 2 * (1 - new / (scale * size)) + (x + 0.5) / scale - 0.5,
    "pytorch_half_pixel": lambda x, scale, size, new: (x + 0.5) / scale - 0.5 if new > 1 else x * 0,
}

NEAREST: dict[str, Callable[[Floats], Floats]] = {
    "ceil": np.ceil,
    "floor": np.floor,
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
}


def resize(
    call: Call,
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """Resize by scales or to sizes: nearest, linear or cubic.

    Parameters
    ----------
    call : Call
        Attributes ``axes``, ``coordinate_transformation_mode``, ``cubic_coeff_a``, ``exclude_outside``,
        ``mode``, ``nearest_mode``.
    x : torch.Tensor
        Any shape.
    roi : torch.Tensor, optional
        Not used: it belongs to a mode that is refused. In operator set 10 the scales stand here.
    scales : torch.Tensor, optional
        Float vector, > 0.
    sizes : torch.Tensor, optional
        Int vector.

    Returns
    -------
    torch.Tensor
    """
    axes = [axis % x.dim() for axis in call.get("axes") or range(x.dim())]
    targets = call.ints("sizes", sizes) or []
    if targets:
        factors = [new / x.shape[axis] for axis, new in zip(axes, targets, strict=True)]
    else:
        factors = call.numbers("scales", scales) or (call.numbers("roi", roi) if call.opset < 11 else None) or []
        targets = [math.floor(x.shape[axis] * factor) for axis, factor in zip(axes, factors, strict=True)]
    for axis, factor, new in zip(axes, factors, targets, strict=True):
        if factor != 1 or new != x.shape[axis]:
            x = _resize_axis(call, x, axis, factor, new)
    return x


def _resize_axis(call: Call, x: Tensor, axis: int, scale: float, new: int) -> Tensor:
    """Each output position is a weighted sum of 1, 2 or 4 input positions."""
    size = x.shape[axis]
    default = "asymmetric" if call.opset < 11 else "half_pixel"
    transform = COORDINATES[call.get("coordinate_transformation_mode", default)]
    where = transform(np.arange(new, dtype=np.float64), scale, size, new)
    taps, weights = _taps(call, where, size)
    total: Tensor | None = None
    shape = [-1 if k == axis else 1 for k in range(x.dim())]
    for tap, weight in zip(taps, weights, strict=True):
        index = torch.from_numpy(np.clip(tap, 0, size - 1).astype(np.int64)).to(x.device)
        part = x.index_select(axis, index)
        if len(taps) > 1:
            part = part * torch.from_numpy(weight).to(x).reshape(shape)
        total = part if total is None else total + part
    assert total is not None
    return total


def _taps(call: Call, where: Floats, size: int) -> tuple[list[Floats], list[Floats]]:
    """Input positions (not yet clipped to the input) and their weights, each [new]."""
    mode = call.get("mode", "nearest")
    if mode == "nearest":
        rounding = call.get("nearest_mode", "floor" if call.opset < 11 else "round_prefer_floor")
        return [NEAREST[rounding](where)], [np.ones_like(where)]
    if mode == "linear":
        where = np.clip(where, 0, size - 1)
        base = np.floor(where)
        return [base, base + 1], [1 - (where - base), where - base]
    base = np.floor(where)
    taps = [base + k for k in (-1, 0, 1, 2)]
    weights = [_cubic(np.abs(where - tap), call.get("cubic_coeff_a", -0.75)) for tap in taps]
    if call.get("exclude_outside", 0):
        weights = [np.where((tap < 0) | (tap >= size), 0, w) for tap, w in zip(taps, weights, strict=True)]
        total = np.sum(weights, axis=0)
        weights = [weight / total for weight in weights]
    return taps, weights


def _cubic(distance: Floats, a: float) -> Floats:
    """Keys' cubic convolution kernel at distances in [0, 2]."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, far)


def _limits(call: Call) -> str:
    mode = call.get("coordinate_transformation_mode", "half_pixel")
    if mode not in COORDINATES:
        return f"coordinate_transformation_mode {mode} is not computed"
    if call.get("antialias", 0):
        return "antialias is not computed"
    if call.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "only the keep_aspect_ratio_policy stretch is computed"
    return ""


OPERATORS: dict[str, Operator] = {"Resize": resize, "Upsample": resize}

RESTRICTIONS: dict[str, Restriction] = {"Resize": _limits}
