"""Slice, Gather and Pad: operators that pick positions along axes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from graphprune.finetune.operators.call import Call, Operator, Restriction

PAD_MODES = {"constant", "edge", "reflect", "wrap"}


def slice_(
    call: Call,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Slice: bounds as in numpy, attributes up to operator set 9, inputs from 10 on; steps may be negative.

    Parameters
    ----------
    call : Call
        Attributes ``starts``, ``ends``, ``axes`` up to operator set 9.
    x : torch.Tensor
        Any shape.
    starts, ends, axes, steps : torch.Tensor, optional
        Int vectors of one length.

    Returns
    -------
    torch.Tensor
    """
    first, last = call.ints("starts", starts) or [], call.ints("ends", ends) or []
    where = call.ints("axes", axes) or list(range(len(first)))
    pace = call.ints("steps", steps) or [1] * len(first)
    for axis, begin, end, step in zip(where, first, last, pace, strict=True):
        positions = range(*slice(begin, end, step).indices(x.shape[axis]))
        if step > 0:
            index = [slice(None)] * x.dim()
            index[axis] = slice(positions.start, max(positions.start, positions.stop), step)
            x = x[tuple(index)]
        else:  # torch has no view that runs backwards
            x = _take(x, axis, np.asarray(positions))
    return x


def _take(x: Tensor, axis: int, positions: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Tensor:
    index = torch.from_numpy(positions.astype(np.int64)).to(x.device)
    return x.index_select(axis, index)


def gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Gather along an axis: the indices' shape takes the axis's place; negative ones count from the end."""
    axis = call.get("axis", 0) % x.dim()
    flat = indices.reshape(-1).to(torch.int64)
    picked = x.index_select(axis, torch.where(flat < 0, flat + x.shape[axis], flat))
    return picked.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


def gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """GatherElements along an axis: one index for each element; negative ones count from the end."""
    axis = call.get("axis", 0)
    where = indices.to(torch.int64)
    return torch.gather(x, axis, torch.where(where < 0, where + x.shape[axis], where))


def pad(
    call: Call, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    """Pad, or crop where an amount is negative, by a constant, the edge, a reflection or wrapping round.

    Parameters
    ----------
    call : Call
        Attribute ``mode``; ``pads`` and ``value`` up to operator set 10.
    x : torch.Tensor
        Any shape.
    pads : torch.Tensor, optional
        [2 * axes]: all amounts before, then all after (operator set 11 on).
    value : torch.Tensor, optional
        Scalar, 0 where left out (operator set 11 on).
    axes : torch.Tensor, optional
        The axes padded, all where left out (operator set 18 on).

    Returns
    -------
    torch.Tensor
    """
    amounts = call.ints("pads", pads) or []
    given = call.ints("axes", axes)
    where = list(range(x.dim())) if given is None else [axis % x.dim() for axis in given]
    sides = dict(zip(where, zip(amounts[: len(where)], amounts[len(where) :], strict=True), strict=True))
    mode = call.get("mode", "constant")
    if mode == "constant":
        # torch wants the last axis first.
        flat = [amount for axis in reversed(range(x.dim())) for amount in sides.get(axis, (0, 0))]
        (fill,) = call.numbers("value", value) or [0.0]
        return torch.nn.functional.pad(x, flat, value=fill)
    for axis, (before, after) in sides.items():
        size = x.shape[axis]
        kept = np.arange(max(-before, 0), size - max(-after, 0))
        if before or after:
            x = _take(x, axis, np.pad(kept, (max(before, 0), max(after, 0)), mode=mode))
    return x


def _pad_limits(call: Call) -> str:
    mode = call.get("mode", "constant")
    return "" if mode in PAD_MODES else f"mode {mode} is not known"


OPERATORS: dict[str, Operator] = {
    "Gather": gather,
    "GatherElements": gather_elements,
    "Pad": pad,
    "Slice": slice_,
}

RESTRICTIONS: dict[str, Restriction] = {"Pad": _pad_limits}
