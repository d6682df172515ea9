"""Operators that move, join and reshape data, or make it from shapes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from graphprune.finetune.operators.call import Call, Operator


def flatten(call: Call, x: Tensor) -> Tensor:
    """Flatten to a matrix: the axes before ``axis`` and those from it on."""
    axis = call.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def reshape(call: Call, x: Tensor, shape: Tensor | None = None) -> Tensor:
    """Reshape: -1 is inferred, 0 copies the input's size unless ``allowzero`` is set."""
    sizes = call.ints("shape", shape) or []
    if not call.get("allowzero", 0):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def transpose(call: Call, x: Tensor) -> Tensor:
    """Transpose: the axes are reversed where ``perm`` is left out."""
    return x.permute(call.get("perm") or list(reversed(range(x.dim()))))


def concat(call: Call, *inputs: Tensor) -> Tensor:
    """Concat along an axis."""
    return torch.cat(inputs, dim=call.get("axis"))


def split(call: Call, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    """Split along an axis: by sizes (attribute up to operator set 12, then an input), or into equal parts.

    With ``num_outputs`` (operator set 18 on) the last part is smaller where the axis does not divide.
    """
    axis = call.get("axis", 0)
    parts = call.ints("split", sizes)
    if parts is None:
        count = call.get("num_outputs", call.outputs)
        whole = -(-x.shape[axis] // count)
        parts = [whole] * (count - 1) + [x.shape[axis] - whole * (count - 1)]
    return tuple(torch.split(x, parts, dim=axis))


def squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Squeeze the named axes (an input from operator set 13 on), or all of size 1."""
    chosen = call.ints("axes", axes)
    return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))


def unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Unsqueeze: the axes (an input from operator set 13 on) count in the output."""
    chosen = call.ints("axes", axes) or []
    rank = x.dim() + len(chosen)
    for axis in sorted(axis % rank for axis in chosen):
        x = x.unsqueeze(axis)
    return x


def expand(call: Call, x: Tensor, shape: Tensor | None = None) -> Tensor:
    """Expand: x and the shape broadcast both ways."""
    wanted = call.ints("shape", shape) or []
    rank = max(len(wanted), x.dim())
    ours, theirs = [1] * (rank - x.dim()) + list(x.shape), [1] * (rank - len(wanted)) + wanted
    return x.expand([b if a == 1 else a for a, b in zip(ours, theirs, strict=True)])


def shape_of(call: Call, x: Tensor) -> Tensor:
    """Shape, cut by ``start`` and ``end`` (operator set 15 on), as int64."""
    return torch.tensor(list(x.shape)[call.get("start", 0) : call.get("end")], dtype=torch.int64, device=x.device)


def size_of(call: Call, x: Tensor) -> Tensor:
    """Size: the number of elements, as an int64 scalar."""
    return torch.tensor(x.numel(), dtype=torch.int64, device=x.device)


def constant_of_shape(call: Call, shape: Tensor) -> Tensor:
    """ConstantOfShape: one value, float32 zero where ``value`` is left out."""
    value: Tensor | None = call.get("value")
    sizes = shape.tolist()
    if value is None:
        return torch.zeros(sizes, device=shape.device)
    return value.to(shape.device).reshape(()).expand(sizes).clone()


def depth_to_space(call: Call, x: Tensor) -> Tensor:
    """DepthToSpace of [N, C, H, W], depth-column-row (DCR) or column-row-depth (CRD)."""
    block = call.get("blocksize")
    n, c, h, w = x.shape
    inner = c // block**2
    if call.get("mode", "DCR") == "DCR":
        y = x.reshape(n, block, block, inner, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, inner, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
    return y.reshape(n, inner, h * block, w * block)


def space_to_depth(call: Call, x: Tensor) -> Tensor:
    """SpaceToDepth of [N, C, H, W], the reverse of DepthToSpace in its DCR mode."""
    block = call.get("blocksize")
    n, c, h, w = x.shape
    y = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return y.reshape(n, c * block**2, h // block, w // block)


OPERATORS: dict[str, Operator] = {
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Flatten": flatten,
    "Reshape": reshape,
    "Shape": shape_of,
    "Size": size_of,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": lambda call, x, repeats=None: x.repeat(call.ints("repeats", repeats)),
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
