"""GatherND, ScatterND, ScatterElements, MaxUnpool: values read from and written to places that indices name.

Where several updates are written to one place without a reduction, which one stays is open.

References: https://onnx.ai/onnx/operators/onnx__GatherND.html, onnx__ScatterND.html, onnx__ScatterElements.html,
onnx__MaxUnpool.html
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from graphprune.finetune.operators.call import Call, Operator

REDUCTIONS = {"add": "sum", "max": "amax", "min": "amin", "mul": "prod"}
"""torch's names of ONNX's reductions."""


def _within(indices: Tensor, extent: int) -> Tensor:
    """Return indices of which negative ones count from the end as such from the start."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + extent, indices)


def _flat(indices: Tensor, extents: Sequence[int]) -> Tensor:
    """Turn tuples of indices, the last axis, into single ones of the flattened axes."""
    place = torch.zeros_like(indices[..., 0], dtype=torch.int64)
    for axis, extent in enumerate(extents):
        place = place * extent + _within(indices[..., axis], extent)
    return place


def gather_nd(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """GatherND: every tuple of indices picks from the axes behind the ``batch_dims`` first.

    Parameters
    ----------
    call : Call
        Attribute ``batch_dims``.
    x : torch.Tensor
        Any shape.
    indices : torch.Tensor
        [batch axes.., .., k], int.

    Returns
    -------
    torch.Tensor
        [batch axes.., .., axes of x behind those indexed..].
    """
    first, count = call.get("batch_dims", 0), indices.shape[-1]
    picked, rest = x.shape[first : first + count], x.shape[first + count :]
    batch, size = math.prod(x.shape[:first]), math.prod(picked)
    places = _flat(indices, picked).reshape(batch, -1)
    places = places + size * torch.arange(batch, device=x.device)[:, None]
    found = x.reshape(batch * size, *rest).index_select(0, places.reshape(-1))
    return found.reshape(*indices.shape[:-1], *rest)


def scatter_nd(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """ScatterND: every tuple of indices names a place of the first axes that an update is written to.

    Parameters
    ----------
    call : Call
        Attribute ``reduction``, what an update and the old value are joined by.
    x : torch.Tensor
        Any shape.
    indices : torch.Tensor
        [.., k], int.
    updates : torch.Tensor
        [.., axes of x behind those indexed..].

    Returns
    -------
    torch.Tensor
        Shape of x.
    """
    count = indices.shape[-1]
    size, rest = math.prod(x.shape[:count]), math.prod(x.shape[count:])
    places = _flat(indices, x.shape[:count]).reshape(-1)
    flat, new = x.reshape(size, rest), updates.to(x.dtype).reshape(-1, rest)
    reduction = call.get("reduction", "none")
    if reduction == "none":
        return flat.index_copy(0, places, new).reshape(x.shape)
    places = places[:, None].expand(new.shape)
    return flat.scatter_reduce(0, places, new, REDUCTIONS[reduction]).reshape(x.shape)


def scatter_elements(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """ScatterElements, before operator set 11 Scatter: one index along an axis for every update."""
    axis = call.get("axis", 0)
    places, new = _within(indices, x.shape[axis]), updates.to(x.dtype)
    reduction = call.get("reduction", "none")
    if reduction == "none":
        return x.scatter(axis, places, new)
    return x.scatter_reduce(axis, places, new, REDUCTIONS[reduction])


def max_unpool(call: Call, x: Tensor, indices: Tensor, shape: Tensor | None = None) -> Tensor:
    """MaxUnpool: values at places of the flattened output, 0 elsewhere.

    Parameters
    ----------
    call : Call
        Attributes ``kernel_shape``, ``pads``, ``strides``.
    x : torch.Tensor
        [N, C, spatial...].
    indices : torch.Tensor
        Of its shape, as MaxPool gives them.
    shape : torch.Tensor, optional
        Of the output; computed from the attributes where left out.

    Returns
    -------
    torch.Tensor
    """
    if shape is None:
        kernel = call.get("kernel_shape")
        rank = len(kernel)
        strides, pads = call.get("strides") or [1] * rank, call.get("pads") or [0] * (2 * rank)
        spatial = [
            (extent - 1) * stride - begin - end + width
            for extent, stride, begin, end, width in zip(
                x.shape[2:], strides, pads[:rank], pads[rank:], kernel, strict=True
            )
        ]
        sizes = [*x.shape[:2], *spatial]
    else:
        sizes = [int(extent) for extent in shape.tolist()]
    flat = x.new_zeros(math.prod(sizes)).index_copy(0, indices.reshape(-1), x.reshape(-1))
    return flat.reshape(sizes)


OPERATORS: dict[str, Operator] = {
    "GatherND": gather_nd,
    "MaxUnpool": max_unpool,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
}
