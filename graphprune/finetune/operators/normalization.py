"""Normalisation by mean and variance, by a norm, or to probabilities; and Dropout."""

from __future__ import annotations

import math
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
    if not (call.training or call.get("training_mode", 0)):
        y = F.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)
        return y if call.outputs == 1 else (y, mean, variance)
    # With a momentum of 1 torch leaves the batch's own statistics here: the variance with one degree of freedom less.
    centre, spread = torch.zeros_like(mean), torch.zeros_like(variance)
    y = F.batch_norm(x, centre, spread, scale, bias, True, 1.0, epsilon)
    count = x.numel() / max(x.shape[1], 1)
    with torch.no_grad():
        new_mean = mean * momentum + centre * (1 - momentum)
        new_variance = variance * momentum + spread * ((count - 1) / count) * (1 - momentum)
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


def hardmax(x: Tensor, axis: int) -> Tensor:
    """Hardmax: 1 where the first of the largest values stands, 0 elsewhere."""
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


def layer_normalization(
    call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Tensor | tuple[Tensor, ...]:
    """LayerNormalization over the axes from ``axis`` on.

    Parameters
    ----------
    call : Call
        Attributes ``axis``, ``epsilon``.
    x : torch.Tensor
        Any shape.
    scale, bias : torch.Tensor
        Broadcast to the axes normalised over.

    Returns
    -------
    torch.Tensor or tuple of torch.Tensor
        Shape of x; with mean and the inverse of the standard deviation where the node names them.
    """
    axis, epsilon = call.get("axis", -1) % x.dim(), call.get("epsilon", 1e-5)
    shape = x.shape[axis:]
    if scale.shape == shape and (bias is None or bias.shape == shape):
        y = F.layer_norm(x, shape, scale, bias, epsilon)
    else:
        y = F.layer_norm(x, shape, None, None, epsilon) * scale
        y = y if bias is None else y + bias
    if call.outputs == 1:
        return y
    variance, mean = torch.var_mean(x, dim=list(range(axis, x.dim())), correction=0, keepdim=True)
    return y, mean, (variance + epsilon).rsqrt()


def rms_normalization(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    """RMSNormalization over the axes from ``axis`` on, computed in float32 at least."""
    axes = list(range(call.get("axis", -1) % x.dim(), x.dim()))
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    length = (wide.square().mean(axes, keepdim=True) + call.get("epsilon", 1e-5)).rsqrt()
    normal: Tensor = (wide * length).to(x.dtype)
    return normal * scale


def group_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """GroupNormalization: [N, C, ...], groups of channels, then a scale for each channel."""
    return torch.group_norm(x, call.get("num_groups"), scale, bias, call.get("epsilon", 1e-5))


def instance_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """InstanceNormalization: [N, C, ...], each channel of each sample by itself."""
    return torch.group_norm(x, x.shape[1], scale, bias, call.get("epsilon", 1e-5))


def lp_normalization(call: Call, x: Tensor) -> Tensor:
    """LpNormalization along one axis; what is 0 stays 0."""
    return F.normalize(x, p=call.get("p", 2), dim=call.get("axis", -1), eps=torch.finfo(x.dtype).tiny)


def mean_variance_normalization(call: Call, x: Tensor) -> Tensor:
    """MeanVarianceNormalization over the axes 0, 2 and 3 where the node names no others."""
    axes = [axis % x.dim() for axis in call.get("axes") or (0, 2, 3)]
    centred = x - x.mean(axes, keepdim=True)
    # The norm's gradient at 0 is 0, and that of the root of a sum is not a number.
    length: Tensor = torch.linalg.vector_norm(centred, 2, axes, keepdim=True)
    return centred / (length / math.sqrt(math.prod(x.shape[axis] for axis in axes)) + 1e-9)


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
    chance = call.get("ratio", 0.5) if ratio is None else ratio
    if not call.training:
        return x if call.outputs == 1 else (x, torch.ones_like(x, dtype=torch.bool))
    kept = torch.rand_like(x) >= chance
    y = torch.where(kept, x / (1 - chance), 0.0)
    return y if call.outputs == 1 else (y, kept)


OPERATORS: dict[str, Operator] = {
    "BatchNormalization": batch_normalization,
    "Dropout": dropout,
    "GroupNormalization": group_normalization,
    "Hardmax": _softmax(hardmax),
    "InstanceNormalization": instance_normalization,
    "LRN": lrn,
    "LayerNormalization": layer_normalization,
    "LogSoftmax": _softmax(torch.log_softmax),
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "RMSNormalization": rms_normalization,
    "Softmax": _softmax(torch.softmax),
}

RESTRICTIONS: dict[str, Restriction] = {"BatchNormalization": _batch_normalization_limits}
