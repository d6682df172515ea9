"""What a model asks of its inputs: names, shapes and element types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx

from graphprune.errors import ModelError

Array: TypeAlias = "npt.NDArray[Any]"


@dataclass(frozen=True)
class InputSpec:
    """One graph input.

    Attributes
    ----------
    name : str
    shape : tuple of int, str or None
        A fixed size, the name of a free size, or None for a free size without a name.
    dtype : numpy.dtype
        The element type; ``str`` for text.
    """

    name: str
    shape: tuple[int | str | None, ...]
    dtype: np.dtype[Any]

    @property
    def fixed_batch(self) -> int | None:
        """The size of axis 0 where the model fixes it, else None."""
        lead = self.shape[0] if self.shape else None
        return lead if isinstance(lead, int) else None

    def __str__(self) -> str:
        return f"{self.name!r} {self.dtype} {format_shape(self.shape)}"


def format_shape(shape: tuple[int | str | None, ...]) -> str:
    """Write a shape for a message, a free size without a name as ``?``."""
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def input_specs(proto: onnx.ModelProto) -> list[InputSpec]:
    """List the inputs that a caller must feed: graph inputs that are no initializers.

    Parameters
    ----------
    proto : onnx.ModelProto

    Returns
    -------
    list of InputSpec
        In the graph's order.

    Raises
    ------
    ModelError
        When an input is no dense tensor, or does not say its rank.
    """
    stored = {tensor.name for tensor in proto.graph.initializer}
    stored |= {tensor.values.name for tensor in proto.graph.sparse_initializer}
    return [_spec(value) for value in proto.graph.input if value.name not in stored]


def common_fixed_batch(specs: tuple[InputSpec, ...]) -> int | None:
    """Return the size of axis 0 that every input with a fixed one agrees on, else None."""
    sizes = {spec.fixed_batch for spec in specs} - {None}
    return sizes.pop() if len(sizes) == 1 else None


def _spec(value: onnx.ValueInfoProto) -> InputSpec:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
        raise ModelError(
            "a graph input is not a tensor of known rank",
            where=f"input {value.name!r}",
            why=f"its type is {value.type.WhichOneof('value') or 'not given'}",
            hint="export the model with plain tensors as inputs",
        )
    return InputSpec(value.name, tuple(_size(dim) for dim in tensor.shape.dim), _dtype(tensor.elem_type))


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_param") and dim.dim_param:
        return str(dim.dim_param)
    # Some exporters write -1 or 0 for a free size.
    return int(dim.dim_value) if dim.dim_value > 0 else None


def _dtype(elem_type: int) -> np.dtype[Any]:
    if elem_type == onnx.TensorProto.STRING:
        return np.dtype(np.str_)
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type))
