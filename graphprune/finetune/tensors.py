"""Tensors between ONNX and torch, to the bit."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import Tensor

from graphprune.errors import ModelError
from graphprune.ir.tensors import array

TORCH_TYPES: dict[int, torch.dtype] = {
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.BOOL: torch.bool,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT8: torch.uint8,
}
"""torch's element type of each ONNX element type that the interpreter computes with."""

DATA_FIELDS = ("float_data", "double_data", "int32_data", "raw_data")
"""The fields of a ``TensorProto`` that can hold float values."""


def to_tensor(proto: onnx.TensorProto) -> Tensor:
    """Return a tensor's values as a torch tensor of its own memory.

    Parameters
    ----------
    proto : onnx.TensorProto
        A tensor whose data is in memory.

    Returns
    -------
    torch.Tensor
        Same shape and element type.

    Raises
    ------
    ModelError
        When torch does not compute with the element type.
    """
    dtype = TORCH_TYPES.get(proto.data_type)
    if dtype is None:
        kind = TensorProto.DataType.Name(proto.data_type)
        raise ModelError(f"torch does not compute with tensors of type {kind}", where=proto.name or "a constant")
    values = np.array(array(proto), order="C")
    if dtype is torch.bfloat16:  # numpy's extension type is unknown to torch
        return torch.from_numpy(values.view(np.int16)).view(dtype)
    return torch.from_numpy(values)


def store(tensor: Tensor, proto: onnx.TensorProto) -> None:
    """Write a torch tensor's values into an ONNX float tensor of the same shape.

    The element type stays the ONNX tensor's. Values that are the same to the bit leave it untouched, so that
    what was not trained is not re-encoded.

    Parameters
    ----------
    tensor : torch.Tensor
        The new values, on any device.
    proto : onnx.TensorProto
        The tensor to change.

    Raises
    ------
    ModelError
        When the shapes differ.
    """
    if tuple(tensor.shape) != tuple(proto.dims):
        raise ModelError(
            "a weight's shape has changed, and the graph is written for the old one",
            where=proto.name,
            why=f"it is {tuple(tensor.shape)} and was {tuple(proto.dims)}",
        )
    values = tensor.detach().cpu().to(TORCH_TYPES[proto.data_type]).contiguous()
    numbers = (values.view(torch.int16) if values.dtype is torch.bfloat16 else values).numpy()
    data = numbers.astype(numbers.dtype.newbyteorder("<"), copy=False).tobytes()
    before = array(proto)
    if data == before.astype(before.dtype.newbyteorder("<"), copy=False).tobytes():
        return
    for field in DATA_FIELDS:
        proto.ClearField(field)
    proto.raw_data = data
