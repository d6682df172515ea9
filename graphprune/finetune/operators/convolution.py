"""Conv and ConvTranspose of one, two and three spatial axes."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from graphprune.finetune.operators.call import Call, Operator
from graphprune.finetune.operators.windows import pad_spatial, window

CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Conv: grouped, dilated, with any padding.

    Parameters
    ----------
    call : Call
        Attributes ``auto_pad``, ``dilations``, ``group``, ``pads``, ``strides``.
    x : torch.Tensor
        [N, C, spatial...].
    weight : torch.Tensor
        [M, C / group, kernel...].
    bias : torch.Tensor, optional
        [M].

    Returns
    -------
    torch.Tensor
        [N, M, spatial...].
    """
    geometry = window(call, x, weight.shape[2:])
    padding = geometry.begin
    if geometry.begin != geometry.end:  # torch pads both sides alike
        x, padding = pad_spatial(x, geometry.begin, geometry.end, 0.0), [0] * len(geometry.begin)
    run = CONV[weight.dim() - 2]
    return run(x, weight, bias, geometry.stride, padding, geometry.dilation, call.get("group", 1))


def conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """ConvTranspose: computed without padding, then cropped.

    Parameters
    ----------
    call : Call
        Attributes of Conv, and ``output_padding``, ``output_shape``.
    x : torch.Tensor
        [N, C, spatial...].
    weight : torch.Tensor
        [C, M / group, kernel...].
    bias : torch.Tensor, optional
        [M].

    Returns
    -------
    torch.Tensor
        [N, M, spatial...].
    """
    rank = weight.dim() - 2
    stride = list(call.get("strides") or [1] * rank)
    dilation = list(call.get("dilations") or [1] * rank)
    extra = list(call.get("output_padding") or [0] * rank)
    run = TRANSPOSED[rank]
    full = run(x, weight, bias, stride, 0, extra, call.get("group", 1), dilation)
    begin, end = _crops(call, list(x.shape[2:]), list(full.shape[2:]), stride)
    return pad_spatial(full, [-amount for amount in begin], [-amount for amount in end], 0.0)


def _crops(call: Call, size: list[int], full: list[int], stride: list[int]) -> tuple[list[int], list[int]]:
    """How many positions the specification's ``pads`` take off each side of the full output."""
    rank, mode = len(size), call.get("auto_pad", "NOTSET")
    wanted = call.get("output_shape")
    if wanted is None and mode in ("NOTSET", "VALID"):
        pads = list(call.get("pads") or [0] * (2 * rank)) if mode == "NOTSET" else [0] * (2 * rank)
        return pads[:rank], pads[rank:]
    targets = list(wanted)[-rank:] if wanted else [n * step for n, step in zip(size, stride, strict=True)]
    totals = [have - want for have, want in zip(full, targets, strict=True)]
    small = [total // 2 for total in totals]
    large = [total - half for total, half in zip(totals, small, strict=True)]
    return (small, large) if mode == "SAME_UPPER" else (large, small)


OPERATORS: dict[str, Operator] = {"Conv": conv, "ConvTranspose": conv_transpose}
