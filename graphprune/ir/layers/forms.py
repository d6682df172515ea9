"""How an operator becomes a matrix product: output = rows @ matrix, a row for every place of the output.

Convolutions are unfolded (im2col): the row of a place holds the window that it sees. Every function takes and gives
the groups of a grouped convolution as an axis of its own, so that the product is one of stacks of matrices.

Reference: https://onnx.ai/onnx/operators/ (Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU, RNN)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Attributes = Mapping[str, Any]
Places = npt.NDArray[np.int64]
"""Flat indices into the places of one sample's output: its spatial positions, or the rows of a matrix product."""

_ALL = slice(None)


@dataclass(frozen=True)
class Form:
    """An operator as a matrix product.

    Attributes
    ----------
    matrix : callable
        From attributes and the weight to a stack of matrices, shape (groups, rows' width, outputs of a group).
    weight : callable
        The way back: from attributes, matrix and the weight's shape to the weight.
    rows : callable
        From attributes, the weight's shape, the data and places to rows, shape (samples * places, groups, width).
    channel_axis : int
        Axis of the output that the channels lie along.
    computed : bool
        Whether the product is the operator's output; a recurrent operator uses it inside.
    """

    matrix: Callable[[Attributes, Array], Array]
    weight: Callable[[Attributes, Array, tuple[int, ...]], Array]
    rows: Callable[[Attributes, tuple[int, ...], Array, Places], Array]
    channel_axis: int
    computed: bool = True


# -- convolutions ------------------------------------------------------------------------------------------------


def _conv_matrix(attributes: Attributes, weight: Array) -> Array:
    groups = attributes.get("group", 1)
    return weight.reshape(groups, len(weight) // groups, -1).swapaxes(1, 2)


def _conv_weight(attributes: Attributes, matrix: Array, shape: tuple[int, ...]) -> Array:
    return matrix.swapaxes(1, 2).reshape(shape)


def _conv_rows(attributes: Attributes, shape: tuple[int, ...], data: Array, places: Places) -> Array:
    kernel = shape[2:]
    strides = attributes.get("strides", [1] * len(kernel))
    padding = _padding(attributes, data.shape[2:], kernel)
    return _windows(attributes, np.pad(data, ((0, 0), (0, 0), *padding)), kernel, strides, places)


def _transposed_matrix(attributes: Attributes, weight: Array) -> Array:
    groups, spatial = attributes.get("group", 1), tuple(range(2, weight.ndim))
    flipped = np.flip(weight, spatial).reshape(groups, len(weight) // groups, weight.shape[1], -1)
    return flipped.swapaxes(2, 3).reshape(groups, -1, weight.shape[1])


def _transposed_weight(attributes: Attributes, matrix: Array, shape: tuple[int, ...]) -> Array:
    groups = attributes.get("group", 1)
    stacked = matrix.reshape(groups, shape[0] // groups, -1, shape[1]).swapaxes(2, 3).reshape(shape)
    return np.flip(stacked, tuple(range(2, len(shape))))


def _transposed_rows(attributes: Attributes, shape: tuple[int, ...], data: Array, places: Places) -> Array:
    """A transposed convolution is one of stride 1 over the data spread out by the stride."""
    kernel, rank = shape[2:], len(shape) - 2
    strides = attributes.get("strides", [1] * rank)
    dilations = attributes.get("dilations", [1] * rank)
    extra = attributes.get("output_padding", [0] * rank)
    pads = attributes.get("pads", [0] * 2 * rank)
    extents = [(extent - 1) * step + 1 for extent, step in zip(data.shape[2:], strides, strict=True)]
    spread = np.zeros((*data.shape[:2], *extents), data.dtype)
    spread[(_ALL, _ALL, *(slice(None, None, step) for step in strides))] = data
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    around = [(reach[i] - pads[i], reach[i] - pads[i + rank] + extra[i]) for i in range(rank)]
    cut = [slice(max(-a, 0), spread.shape[i + 2] - max(-b, 0)) for i, (a, b) in enumerate(around)]
    padded = np.pad(spread[(_ALL, _ALL, *cut)], ((0, 0), (0, 0), *((max(a, 0), max(b, 0)) for a, b in around)))
    return _windows(attributes, padded, kernel, [1] * rank, places)


def _windows(attributes: Attributes, data: Array, kernel: tuple[int, ...], strides: list[int], places: Places) -> Array:
    """What every place sees, of padded data."""
    rank, groups = len(kernel), attributes.get("group", 1)
    dilations = attributes.get("dilations", [1] * rank)
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    seen = np.lib.stride_tricks.sliding_window_view(data, reach, axis=tuple(range(2, 2 + rank)))
    seen = seen[(_ALL, _ALL, *(slice(None, None, step) for step in (*strides, *dilations)))]
    index: tuple[Any, ...] = (_ALL, _ALL, *np.unravel_index(places, seen.shape[2 : 2 + rank]))
    # [samples, channels, places, kernel...] to [samples * places, groups, channels of a group * kernel]
    return np.asarray(np.moveaxis(seen[index], 2, 1).reshape(len(data) * len(places), groups, -1))


def _padding(attributes: Attributes, extents: tuple[int, ...], kernel: tuple[int, ...]) -> list[tuple[int, int]]:
    rank, auto = len(kernel), attributes.get("auto_pad", b"NOTSET")
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        strides, dilations = attributes.get("strides", [1] * rank), attributes.get("dilations", [1] * rank)
        needed = [
            max((-(-extent // stride) - 1) * stride + (size - 1) * dilation + 1 - extent, 0)
            for extent, stride, size, dilation in zip(extents, strides, kernel, dilations, strict=True)
        ]
        halves = [(total // 2, total - total // 2) for total in needed]
        return halves if auto == b"SAME_UPPER" else [(after, before) for before, after in halves]
    pads = attributes.get("pads", [0] * 2 * rank)
    return list(zip(pads[:rank], pads[rank:], strict=True))


# -- matrix products ---------------------------------------------------------------------------------------------


def _gemm_matrix(attributes: Attributes, weight: Array) -> Array:
    return np.asarray((weight.T if attributes.get("transB", 0) else weight)[None])


def _gemm_weight(attributes: Attributes, matrix: Array, shape: tuple[int, ...]) -> Array:
    return np.asarray(matrix[0].T if attributes.get("transB", 0) else matrix[0])


def _gemm_rows(attributes: Attributes, shape: tuple[int, ...], data: Array, places: Places) -> Array:
    return np.asarray(attributes.get("alpha", 1.0) * data[:, None])


def _matmul_matrix(attributes: Attributes, weight: Array) -> Array:
    return np.asarray(weight[None])


def _matmul_weight(attributes: Attributes, matrix: Array, shape: tuple[int, ...]) -> Array:
    return np.asarray(matrix[0])


def _matmul_rows(attributes: Attributes, shape: tuple[int, ...], data: Array, places: Places) -> Array:
    return data.reshape(len(data), -1, data.shape[-1])[:, places].reshape(-1, 1, data.shape[-1])


# -- inputs of recurrent operators -------------------------------------------------------------------------------


def _recurrent_matrix(attributes: Attributes, weight: Array) -> Array:
    return np.asarray(weight.reshape(-1, weight.shape[-1]).T[None])


def _recurrent_weight(attributes: Attributes, matrix: Array, shape: tuple[int, ...]) -> Array:
    return np.asarray(matrix[0].T.reshape(shape))


def _recurrent_rows(attributes: Attributes, shape: tuple[int, ...], data: Array, places: Places) -> Array:
    """All steps of all samples; there are few."""
    return data.reshape(-1, 1, data.shape[-1])


_CONVOLUTION = Form(_conv_matrix, _conv_weight, _conv_rows, 1)
_RECURRENT = Form(_recurrent_matrix, _recurrent_weight, _recurrent_rows, -1, computed=False)

FORMS: dict[str, Form] = {
    "Conv": _CONVOLUTION,
    "ConvTranspose": Form(_transposed_matrix, _transposed_weight, _transposed_rows, 1),
    "GRU": _RECURRENT,
    "Gemm": Form(_gemm_matrix, _gemm_weight, _gemm_rows, -1),
    "LSTM": _RECURRENT,
    "MatMul": Form(_matmul_matrix, _matmul_weight, _matmul_rows, -1),
    "RNN": _RECURRENT,
}
"""By operator."""


def places_of(form: Form, shape: tuple[int, ...]) -> int:
    """Return how many places one sample's output has.

    Parameters
    ----------
    form : Form
    shape : tuple of int
        Of the output, or of the data of a recurrent operator.
    """
    if form.channel_axis == 1:
        return int(np.prod(shape[2:], dtype=np.int64))
    return int(np.prod(shape[1:-1], dtype=np.int64))


def output_rows(form: Form, output: Array, places: Places) -> Array:
    """Return an output's values as rows, shape (samples * places, channels)."""
    if form.channel_axis == 1:
        flat = output.reshape(*output.shape[:2], -1)[:, :, places]
        return flat.swapaxes(1, 2).reshape(-1, output.shape[1])
    flat = output.reshape(len(output), -1, output.shape[-1])[:, places]
    return flat.reshape(-1, output.shape[-1])
