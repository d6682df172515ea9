"""Which weights are the smallest (magnitude pruning, Han et al. 2015)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def smallest(weights: Sequence[Tensor], zeros: Sequence[Tensor], count: int) -> list[Tensor]:
    """Choose entries of the smallest magnitude.

    Parameters
    ----------
    weights : sequence of torch.Tensor
    zeros : sequence of torch.Tensor
        For each, a bool tensor of its shape: entries that are chosen before all others.
    count : int
        How many to choose, at least as many as those.

    Returns
    -------
    list of torch.Tensor
        For each, a bool tensor of its shape; of entries that are as small the first are chosen.
    """
    pairs = zip(weights, zeros, strict=True)
    flat = torch.cat([_magnitudes(weight).masked_fill(found, -1.0).flatten() for weight, found in pairs])
    # On a GPU kthvalue is refused where algorithms must be deterministic, and sorting is fast; here it is not.
    last = flat.kthvalue(count).values if flat.device.type == "cpu" else flat.sort().values[count - 1]
    chosen = flat < last
    chosen[(flat == last).nonzero().flatten()[: count - int(chosen.sum())]] = True
    parts = torch.split(chosen, [weight.numel() for weight in weights])
    return [part.view(weight.shape) for part, weight in zip(parts, weights, strict=True)]


def _magnitudes(weight: Tensor) -> Tensor:
    """Absolute values in a type that holds them all, and that every device sorts."""
    return weight.abs().to(torch.promote_types(weight.dtype, torch.float32))


def whole_number(share: float, total: int) -> int:
    """Return a share of a number, rounded to the nearest whole number, a half down."""
    # Rounded first, so that 0.55 of 90, in binary a little above 49.5, is 49.
    return max(math.ceil(round(share * total, 6) - 0.5), 0)
