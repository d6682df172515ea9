"""Sliding windows: the padding that convolutions and poolings share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from graphprune.finetune.operators.call import Call


@dataclass(frozen=True)
class Window:
    """A window's geometry, one entry for each spatial axis, in positions.

    Attributes
    ----------
    kernel, stride, dilation : list of int
        As in the ONNX attributes, >= 1.
    begin, end : list of int
        Padding before and after, with ``auto_pad`` resolved for the input at hand.
    """

    kernel: list[int]
    stride: list[int]
    dilation: list[int]
    begin: list[int]
    end: list[int]

    def extent(self, axis: int) -> int:
        """Return how many positions the dilated window spans along an axis."""
        return (self.kernel[axis] - 1) * self.dilation[axis] + 1


def window(call: Call, x: Tensor, kernel: Sequence[int]) -> Window:
    """Resolve a node's ``strides``, ``dilations``, ``pads`` and ``auto_pad`` for one input.

    Parameters
    ----------
    call : Call
        A Conv or pooling node.
    x : torch.Tensor
        Its input, [N, C, spatial...].
    kernel : sequence of int
        Kernel size along each spatial axis.

    Returns
    -------
    Window
    """
    rank = len(kernel)
    stride = [int(value) for value in call.get("strides") or [1] * rank]
    dilation = [int(value) for value in call.get("dilations") or [1] * rank]
    mode = call.get("auto_pad", "NOTSET")
    pads = [int(value) for value in call.get("pads") or [0] * (2 * rank)]
    begin, end = pads[:rank], pads[rank:]
    if mode == "VALID":
        begin = end = [0] * rank
    elif mode != "NOTSET":
        begin, end = [], []
        for size, width, step, gap in zip(x.shape[2:], kernel, stride, dilation, strict=True):
            total = max((-(-size // step) - 1) * step + (width - 1) * gap + 1 - size, 0)
            small, large = total // 2, total - total // 2
            begin.append(small if mode == "SAME_UPPER" else large)
            end.append(large if mode == "SAME_UPPER" else small)
    return Window(list(kernel), stride, dilation, begin, end)


def pad_spatial(x: Tensor, begin: Sequence[int], end: Sequence[int], value: float) -> Tensor:
    """Pad the trailing axes with a constant; a negative amount crops.

    Parameters
    ----------
    x : torch.Tensor
        Any rank >= the number of amounts.
    begin, end : sequence of int
        Positions to add before and after, for the last ``len(begin)`` axes in order.
    value : float
        What to fill with.

    Returns
    -------
    torch.Tensor
    """
    if not any(begin) and not any(end):
        return x
    # torch wants the last axis first.
    amounts = [amount for pair in zip(reversed(begin), reversed(end), strict=True) for amount in pair]
    return F.pad(x, amounts, value=value)
