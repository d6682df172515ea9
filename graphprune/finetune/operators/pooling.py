"""Pooling: MaxPool, AveragePool and their global forms."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from graphprune.finetune.operators.call import Call, Operator, Restriction
from graphprune.finetune.operators.windows import Window, pad_spatial, window

MAX: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _overhang(call: Call, geometry: Window, size: list[int]) -> list[int]:
    """Positions that ``ceil_mode`` lets the last window reach beyond the padded input, per axis."""
    if not call.get("ceil_mode", 0):
        return [0] * len(size)
    over = []
    for axis, length in enumerate(size):
        begin, step, extent = geometry.begin[axis], geometry.stride[axis], geometry.extent(axis)
        padded = begin + length + geometry.end[axis]
        count = -(-(padded - extent) // step) + 1
        if (count - 1) * step >= begin + length:  # a window must not start in the padding after the input
            count -= 1
        over.append(max((count - 1) * step + extent - padded, 0))
    return over


def max_pool(call: Call, x: Tensor) -> Tensor:
    """MaxPool without indices; padding never wins.

    Parameters
    ----------
    call : Call
        Attributes ``auto_pad``, ``ceil_mode``, ``dilations``, ``kernel_shape``, ``pads``, ``strides``.
    x : torch.Tensor
        [N, C, spatial...], float.

    Returns
    -------
    torch.Tensor
        [N, C, spatial...].
    """
    kernel = call.get("kernel_shape")
    geometry = window(call, x, kernel)
    over = _overhang(call, geometry, list(x.shape[2:]))
    end = [a + b for a, b in zip(geometry.end, over, strict=True)]
    padding = geometry.begin
    if padding != end or any(2 * amount > width for amount, width in zip(padding, kernel, strict=True)):
        x, padding = pad_spatial(x, geometry.begin, end, -torch.inf), [0] * len(end)
    return MAX[len(kernel)](x, kernel, geometry.stride, padding, geometry.dilation)


def average_pool(call: Call, x: Tensor) -> Tensor:
    """AveragePool: the divisor counts the input's positions, and the padding's with ``count_include_pad``.

    Parameters
    ----------
    call : Call
        Attributes ``auto_pad``, ``ceil_mode``, ``count_include_pad``, ``kernel_shape``, ``pads``,
        ``strides``.
    x : torch.Tensor
        [N, C, spatial...].

    Returns
    -------
    torch.Tensor
        [N, C, spatial...].
    """
    kernel = call.get("kernel_shape")
    geometry = window(call, x, kernel)
    over = _overhang(call, geometry, list(x.shape[2:]))
    end = [a + b for a, b in zip(geometry.end, over, strict=True)]
    run = AVERAGE[len(kernel)]
    if not any(geometry.begin) and not any(end):
        return run(x, kernel, geometry.stride)
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    if call.get("count_include_pad", 0):
        ones = pad_spatial(ones, geometry.begin, geometry.end, 1.0)
        ones = pad_spatial(ones, [0] * len(end), over, 0.0)
    else:
        ones = pad_spatial(ones, geometry.begin, end, 0.0)
    total = run(pad_spatial(x, geometry.begin, end, 0.0), kernel, geometry.stride)
    # Both averages divide by the kernel's size, which cancels.
    return total / run(ones, kernel, geometry.stride)


def global_average_pool(call: Call, x: Tensor) -> Tensor:
    """GlobalAveragePool over all spatial axes, kept with size 1."""
    return x.mean(dim=list(range(2, x.dim())), keepdim=True)


def global_max_pool(call: Call, x: Tensor) -> Tensor:
    """GlobalMaxPool over all spatial axes, kept with size 1."""
    return x.amax(dim=list(range(2, x.dim())), keepdim=True)


def lp_pool(call: Call, x: Tensor) -> Tensor:
    """LpPool: the p-norm of every window, padding counted as 0.

    Parameters
    ----------
    call : Call
        Attributes ``auto_pad``, ``ceil_mode``, ``kernel_shape``, ``p``, ``pads``, ``strides``.
    x : torch.Tensor
        [N, C, spatial...].

    Returns
    -------
    torch.Tensor
        [N, C, spatial...].
    """
    kernel = call.get("kernel_shape")
    geometry = window(call, x, kernel)
    over = _overhang(call, geometry, list(x.shape[2:]))
    windows = pad_spatial(x, geometry.begin, [a + b for a, b in zip(geometry.end, over, strict=True)], 0.0)
    for axis, (width, step) in enumerate(zip(kernel, geometry.stride, strict=True)):
        windows = windows.unfold(2 + axis, width, step)
    norms: Tensor = torch.linalg.vector_norm(windows, call.get("p", 2), list(range(x.dim(), x.dim() + len(kernel))))
    return norms


def global_lp_pool(call: Call, x: Tensor) -> Tensor:
    """GlobalLpPool: the p-norm over all spatial axes, kept with size 1."""
    norms: Tensor = torch.linalg.vector_norm(x, call.get("p", 2), list(range(2, x.dim())), keepdim=True)
    return norms


def _max_pool_limits(call: Call) -> str:
    return "its Indices output is not computed" if call.outputs > 1 else ""


def _dilation_limits(call: Call) -> str:
    return "dilations above 1 are not computed" if any(d != 1 for d in call.get("dilations") or []) else ""


OPERATORS: dict[str, Operator] = {
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalLpPool": global_lp_pool,
    "GlobalMaxPool": global_max_pool,
    "LpPool": lp_pool,
    "MaxPool": max_pool,
}

RESTRICTIONS: dict[str, Restriction] = {
    "AveragePool": _dilation_limits,
    "LpPool": _dilation_limits,
    "MaxPool": _max_pool_limits,
}
