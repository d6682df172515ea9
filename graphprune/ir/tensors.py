"""Tensors stored in a model: where they are, their values, and writing values back."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

FLOAT_TYPES = frozenset(
    {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.BFLOAT16,
        onnx.TensorProto.DOUBLE,
    }
)
"""Element types whose initializers count as weights."""

FIRST_WITHOUT_INPUTS = 4
"""Since this IR version initializers need not be listed as graph inputs."""


def stored_tensors(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Return the main graph's initializers and Constant nodes that hold a tensor, by tensor name."""
    found = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            found.update((node.output[0], attribute.t) for attribute in node.attribute if attribute.name == "value")
    return found


def float_tensors(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Return the main graph's float initializers and float Constant nodes, by tensor name."""
    return {name: tensor for name, tensor in stored_tensors(proto).items() if tensor.data_type in FLOAT_TYPES}


PROTOBUF_LIMIT = 2**31 - 1
"""Bytes that one protobuf message can hold; a larger model must keep its weights in external data."""
REST = 2**24
"""Bytes that a graph may take beside its tensors, as far as `is_large` is concerned."""


def stored_bytes(proto: onnx.ModelProto) -> int:
    """Return the bytes that a model's tensors hold; protobuf itself cannot tell above 2 GB."""
    return sum(len(t.raw_data) if t.HasField("raw_data") else t.ByteSize() for t in all_tensors(proto))


def is_large(proto: onnx.ModelProto) -> bool:
    """Return whether a model is too large for one protobuf message."""
    return stored_bytes(proto) + REST > PROTOBUF_LIMIT


def list_initializers(proto: onnx.ModelProto) -> int:
    """List every initializer as a graph input, as IR versions before 4 demand; return how many were missing."""
    if proto.ir_version >= FIRST_WITHOUT_INPUTS:
        return 0
    listed = {value.name for value in proto.graph.input}
    missing = [tensor for tensor in proto.graph.initializer if tensor.name not in listed]
    proto.graph.input.extend(onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in missing)
    return len(missing)


def array(tensor: onnx.TensorProto) -> npt.NDArray[np.generic]:
    """Return the values of a tensor whose data is in memory (bfloat16 as ``ml_dtypes.bfloat16``)."""
    return np.asarray(numpy_helper.to_array(tensor))


def replace_values(tensor: onnx.TensorProto, values: npt.NDArray[np.generic]) -> None:
    """Give a tensor other values, of the same element type; its name and notes stay."""
    replacement = numpy_helper.from_array(values, tensor.name)
    if replacement.data_type != tensor.data_type:
        raise TypeError(f"{tensor.name} does not hold values of type {values.dtype}")
    replacement.doc_string = tensor.doc_string
    replacement.metadata_props.extend(tensor.metadata_props)
    tensor.CopyFrom(replacement)


def all_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of the model, those of subgraphs and Constant nodes included."""
    graphs = [proto.graph]
    while graphs:
        graph = graphs.pop()
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("g"):
                    graphs.append(attribute.g)
                graphs.extend(attribute.graphs)
