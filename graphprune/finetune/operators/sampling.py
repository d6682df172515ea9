"""GridSample, RoiAlign and MaxRoiPool: samples of every channel, at places that other inputs tell.

References: https://onnx.ai/onnx/operators/onnx__GridSample.html, onnx__RoiAlign.html, onnx__MaxRoiPool.html
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from graphprune.finetune.operators.call import Call, Operator, Restriction

MODES = {"bicubic": "bicubic", "bilinear": "bilinear", "cubic": "bicubic", "linear": "bilinear", "nearest": "nearest"}
"""torch's names of ONNX's modes, those up to operator set 19 too."""


def grid_sample(call: Call, x: Tensor, grid: Tensor) -> Tensor:
    """GridSample of two or three spatial axes.

    Parameters
    ----------
    call : Call
        Attributes ``align_corners``, ``mode``, ``padding_mode``.
    x : torch.Tensor
        [N, C, spatial...].
    grid : torch.Tensor
        [N, new spatial..., 2 or 3]: places, the last axis of x first; -1 and 1 are its ends.

    Returns
    -------
    torch.Tensor
        [N, C, new spatial...].
    """
    mode = MODES[call.get("mode", "linear")]
    return F.grid_sample(x, grid, mode, call.get("padding_mode", "zeros"), bool(call.get("align_corners", 0)))


def roi_align(call: Call, x: Tensor, rois: Tensor, batch: Tensor) -> Tensor:
    """RoiAlign: means of samples that are interpolated between the four positions around each.

    Along height and width samples are taken apart, so that a region is a product with a matrix on either side.

    Parameters
    ----------
    call : Call
        Attributes ``coordinate_transformation_mode``, ``output_height``, ``output_width``, ``sampling_ratio``,
        ``spatial_scale``.
    x : torch.Tensor
        [N, C, H, W].
    rois : torch.Tensor
        [regions, 4]: left, top, right, bottom; no gradient goes there.
    batch : torch.Tensor
        [regions], int: the sample that each lies in.

    Returns
    -------
    torch.Tensor
        [regions, C, output height, output width].
    """
    half = call.get("coordinate_transformation_mode", "half_pixel" if call.opset >= 16 else "") == "half_pixel"
    scale, ratio = call.get("spatial_scale", 1.0), call.get("sampling_ratio", 0)
    sizes = call.get("output_height", 1), call.get("output_width", 1)
    made = []
    for region, sample in zip(rois.tolist(), batch.tolist(), strict=True):
        left, top, right, bottom = (value * scale - (0.5 if half else 0.0) for value in region)
        spans = [(top, bottom - top), (left, right - left)]
        if not half:
            spans = [(start, max(length, 1.0)) for start, length in spans]
        rows, columns = (
            _means(start, length, size, x.shape[axis], ratio).to(x)
            for (start, length), size, axis in zip(spans, sizes, (2, 3), strict=True)
        )
        made.append(rows @ x[int(sample)] @ columns.t())
    return torch.stack(made) if made else x.new_zeros((0, x.shape[1], *sizes))


def _means(start: float, length: float, size: int, extent: int, ratio: int) -> Tensor:
    """Return the matrix, [size, extent], of the means of a region's bins along one axis."""
    count = ratio if ratio > 0 else math.ceil(length / size)
    matrix = torch.zeros(size, extent, dtype=torch.float64)
    width = length / size
    for place in range(size):
        for sample in range(count):
            at = start + place * width + (sample + 0.5) * width / count
            if not -1.0 <= at <= extent:
                continue
            at = min(max(at, 0.0), extent - 1.0)
            low = min(int(at), extent - 1)
            high = min(low + 1, extent - 1)
            matrix[place, low] += (1 - (at - low)) / count
            matrix[place, high] += (at - low) / count
    return matrix


def max_roi_pool(call: Call, x: Tensor, rois: Tensor) -> Tensor:
    """MaxRoiPool: the largest value of every bin of a region, 0 in an empty one.

    Parameters
    ----------
    call : Call
        Attributes ``pooled_shape``, ``spatial_scale``.
    x : torch.Tensor
        [N, C, H, W].
    rois : torch.Tensor
        [regions, 5]: sample, left, top, right, bottom.

    Returns
    -------
    torch.Tensor
        [regions, C, pooled height, pooled width].
    """
    sizes, scale = call.get("pooled_shape"), call.get("spatial_scale", 1.0)
    made = []
    for sample, *region in rois.tolist():
        left, top, right, bottom = (_rounded(value * scale) for value in region)
        rows = _bins(top, bottom, sizes[0], x.shape[2])
        columns = _bins(left, right, sizes[1], x.shape[3])
        image = x[int(sample)]
        bins = [
            image[:, above:below, before:behind].amax((1, 2))
            if below > above and behind > before
            else 0 * image[:, 0, 0]
            for above, below in rows
            for before, behind in columns
        ]
        made.append(torch.stack(bins, dim=1).reshape(-1, *sizes))
    return torch.stack(made) if made else x.new_zeros((0, x.shape[1], *sizes))


def _rounded(value: float) -> int:
    """Round halves away from 0, as C does."""
    return math.floor(value + 0.5) if value >= 0 else math.ceil(value - 0.5)


def _bins(first: int, last: int, count: int, extent: int) -> list[tuple[int, int]]:
    """Return where the bins of a region begin and end along one axis."""
    width = max(last - first + 1, 1) / count
    return [
        (
            min(max(first + math.floor(place * width), 0), extent),
            min(max(first + math.ceil((place + 1) * width), 0), extent),
        )
        for place in range(count)
    ]


def _roi_limits(call: Call) -> str:
    return "" if call.get("mode", "avg") == "avg" else "only the mode avg is computed"


def _grid_limits(call: Call) -> str:
    mode = call.get("mode", "linear")
    return "" if mode in MODES else f"mode {mode} is not known"


OPERATORS: dict[str, Operator] = {"GridSample": grid_sample, "MaxRoiPool": max_roi_pool, "RoiAlign": roi_align}

RESTRICTIONS: dict[str, Restriction] = {"GridSample": _grid_limits, "RoiAlign": _roi_limits}
