"""BatchNormalization, LRN, Softmax and LogSoftmax, Dropout."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from graphprune.finetune.operators.call import Call, Operator, Restriction


def batch_normalization(
    call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor | tuple[Tensor, ...]:
    """BatchNormalization over every axis but the channel axis.

    In training mode (the module's, or the node's own ``training_mode``) the batch's statistics normalise, and
    the module's running ones are updated in place, with the population variance as the specification says:
    ``running = running * momentum + batch * (1 - momentum)``.

    Parameters
    ----------
    call : Call
        Attributes ``epsilon``, ``momentum``, ``training_mode``.
    x : torch.Tensor
        [N, C, ...].
    scale, bias, mean, variance : torch.Tensor
        [C]; the last two are the running statistics.

    Returns
    -------
    torch.Tensor or tuple of torch.Tensor
        Shape of x; with the running mean and variance where the node names them.
    """
    epsilon, momentum = call.get("epsilon", 1e-5), call.get("momentum", 0.9)
    batch = call.training or bool(call.get("training_mode", 0))
    if not batch:
        y = F.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)
        return y if call.outputs == 1 else (y, mean, variance)
    y = F.batch_norm(x, None, None, scale, bias, True, 0.0, epsilon)
    with torch.no_grad():
        axes = [axis for axis in range(x.dim()) if axis != 1]
        spread, centre = torch.var_mean(x, dim=axes, correction=0)
        new_mean = mean * momentum + centre * (1 - momentum)
        new_variance = variance * momentum + spread * (1 - momentum)
        if call.training:
            mean.copy_(new_mean)
            variance.copy_(new_variance)
    return y if call.outputs == 1 else (y, new_mean, new_variance)


def _batch_normalization_limits(call: Call) -> str:
    return "" if call.get("spatial", 1) else "statistics for each position (spatial=0) are not computed"


def lrn(call: Call, x: Tensor) -> Tensor:
    """LRN across channels: the window is [c - floor((size-1)/2), c + ceil((size-1)/2)]."""
    size: int = call.get("size")
    before, after = (size - 1) // 2, size // 2
    amounts = [0, 0] * (x.dim() - 2) + [before, after]
    sums = F.pad(x * x, amounts).unfold(1, size, 1).sum(-1)
    bias, alpha, beta = (float(call.get(*entry)) for entry in (("bias", 1.0), ("alpha", 1e-4), ("beta", 0.75)))
    return x / torch.pow(bias + alpha / size * sums, beta)


def _softmax(function: Callable[..., Tensor]) -> Operator:
    """Softmax along one axis from operator set 13 on; before it, over all axes from ``axis`` on."""

    def run(call: Call, x: Tensor) -> Tensor:
        if call.opset >= 13:
            return function(x, call.get("axis", -1))
        axis = call.get("axis", 1)
        axis = axis + x.dim() if axis < 0 else axis
        return function(x.flatten(axis), -1).reshape(x.shape) if axis < x.dim() else function(x.unsqueeze(-1), -1)

    return run


def dropout(
    call: Call, x: Tensor, ratio: Tensor | None = None, training_mode: Tensor | None = None
) -> Tensor | tuple[Tensor, ...]:
    """Dropout: acts in the module's training mode alone; ``training_mode`` of the node is not looked at.

    Parameters
    ----------
    call : Call
        Attribute ``ratio`` up to operator set 11.
    x : torch.Tensor
        Any shape.
    ratio : torch.Tensor, optional
        Scalar in [0, 1), from operator set 12 on; 0.5 where the node leaves it out.
    training_mode : torch.Tensor, optional
        Scalar bool, from operator set 12 on.

    Returns
    -------
    torch.Tensor or tuple of torch.Tensor
        Shape of x; with the bool mask of what was kept where the node names it.
    """
    chance = call.get("ratio", 0.5) if ratio is None else float(ratio)
    if not call.training:
        return x if call.outputs == 1 else (x, torch.ones_like(x, dtype=torch.bool))
    kept = torch.rand_like(x) >= chance
    y = torch.where(kept, x / (1 - chance), 0.0)
    return y if call.outputs == 1 else (y, kept)


OPERATORS: dict[str, Operator] = {
    "BatchNormalization": batch_normalization,
    "Dropout": dropout,
    "LRN": lrn,
    "LogSoftmax": _softmax(torch.log_softmax),
    "Softmax": _softmax(torch.softmax),
}

RESTRICTIONS: dict[str, Restriction] = {"BatchNormalization": _batch_normalization_limits}
