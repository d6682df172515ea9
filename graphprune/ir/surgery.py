"""Cut removed positions out of a model: slice initializers, patch shape constants and attributes. Decides nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx

from graphprune.ir.edit import Edit, kept_extents
from graphprune.ir.graph import Graph, Node
from graphprune.ir.rules import RULES
from graphprune.ir.tensors import array, list_initializers, replace_values
from graphprune.ir.units import BoolArray, Coupling

Kept = dict[str, dict[int, list[int] | list[list[int]]]]
"""For every initializer that lost something, by axis, the indices that stay. Where the indices along an axis differ
from one position of axis 0 to the next (the input channels of a grouped convolution), one list for every position of
axis 0 that stays."""


def remove(coupling: Coupling, removed: BoolArray) -> tuple[onnx.ModelProto, Kept]:
    """Cut units out of the model.

    Parameters
    ----------
    coupling : Coupling
        Of the model to cut.
    removed : ndarray of bool, shape (units,)
        The units that go; the choice must be legal (see `graphprune.passes.trim`).

    Returns
    -------
    model : onnx.ModelProto
        A new model; with nothing to remove, a copy equal byte for byte.
    kept : dict
        What stays of every initializer that lost something.
    """
    source = coupling.graph.proto
    result = onnx.ModelProto()
    if not removed.any():
        result.CopyFrom(source)
        return result, {}
    edit = Edit(coupling, removed)
    kept: Kept = {}
    _copy_fields(result, source, leave=("graph",))
    _copy_fields(result.graph, source.graph, leave=("initializer", "node", "value_info", "input"))
    for tensor in source.graph.initializer:
        keep = coupling.keeps(tensor.name, removed)
        if keep is None:
            result.graph.initializer.append(tensor)
        else:
            result.graph.initializer.append(slice_tensor(tensor, keep))
            kept[tensor.name] = _kept(keep)
    result.graph.node.extend(_patched(node, edit) for node in coupling.graph.nodes)
    result.graph.input.extend(_resized(value, edit) for value in source.graph.input)
    notes = (value for value in source.graph.value_info if not _is_stale(value, edit))
    result.graph.value_info.extend(_resized(value, edit) for value in notes)
    result.graph.initializer.extend(edit.constants.values())
    _drop_unused(result, source)
    list_initializers(result)
    return result, kept


def _patched(node: Node, edit: Edit) -> onnx.NodeProto:
    patch = RULES[node.op].patch if node.op in RULES else None
    if patch is None or not any(edit.changes(name) for name in (*node.inputs, *node.outputs)):
        return node.proto
    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    patch(node, proto, edit)
    return proto


def _resized(value: onnx.ValueInfoProto, edit: Edit) -> onnx.ValueInfoProto:
    if not edit.changes(value.name) or not value.type.tensor_type.HasField("shape"):
        return value
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(value)
    for dim, extent in zip(copy.type.tensor_type.shape.dim, edit.new_shape(value.name), strict=True):
        if isinstance(extent, int) and dim.HasField("dim_value"):
            dim.dim_value = extent
    return copy


def _is_stale(value: onnx.ValueInfoProto, edit: Edit) -> bool:
    """Whether the exporter noted another rank than a tensor that loses positions has."""
    noted = value.type.tensor_type
    return (
        edit.changes(value.name) and noted.HasField("shape") and len(noted.shape.dim) != len(edit.new_shape(value.name))
    )


def slice_tensor(tensor: onnx.TensorProto, keep: BoolArray) -> onnx.TensorProto:
    """Return a tensor of what stays of another.

    Parameters
    ----------
    tensor : onnx.TensorProto
    keep : ndarray of bool
        Broadcastable to the tensor's shape.
    """
    result = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, doc_string=tensor.doc_string)
    result.metadata_props.extend(tensor.metadata_props)
    replace_values(result, take(array(tensor), keep))
    return result


def take(values: npt.NDArray[np.generic], keep: BoolArray) -> npt.NDArray[np.generic]:
    """Push what stays of an array together.

    Parameters
    ----------
    values : ndarray
    keep : ndarray of bool
        Broadcastable to ``values``.
    """
    vectors = _vectors(keep)
    if int(keep.sum()) == int(np.prod([vector.sum() for vector in vectors])):  # a product of its axes
        for axis, vector in enumerate(vectors):
            if vector.size > 1 and not vector.all():
                values = np.compress(vector, values, axis=axis)
        return values
    extents = [now if keep.shape[axis] > 1 else values.shape[axis] for axis, now in enumerate(kept_extents(keep))]
    return values[np.broadcast_to(keep, values.shape)].reshape(extents)


def _vectors(keep: BoolArray) -> list[BoolArray]:
    return [np.asarray(keep.any(axis=tuple(a for a in range(keep.ndim) if a != axis))) for axis in range(keep.ndim)]


def _kept(keep: BoolArray) -> dict[int, list[int] | list[list[int]]]:
    vectors = _vectors(keep)
    result: dict[int, list[int] | list[list[int]]] = {}
    ragged = int(keep.sum()) != int(np.prod([vector.sum() for vector in vectors]))
    for axis, vector in enumerate(vectors):
        if ragged and axis > 0 and vector.size > 1:
            rows = keep.any(axis=tuple(a for a in range(keep.ndim) if a not in (0, axis)))
            result[axis] = [np.flatnonzero(row).tolist() for row in np.atleast_2d(rows) if row.any()]
        elif not vector.all():
            result[axis] = np.flatnonzero(vector).tolist()
    return result


def _copy_fields(
    target: onnx.ModelProto | onnx.GraphProto, source: onnx.ModelProto | onnx.GraphProto, leave: tuple[str, ...]
) -> None:
    for field, value in source.ListFields():
        if field.name in leave:
            continue
        if field.type != field.TYPE_MESSAGE:
            setattr(target, field.name, value)
        else:  # all message fields but the graph are lists
            getattr(target, field.name).extend(value)


def _drop_unused(result: onnx.ModelProto, source: onnx.ModelProto) -> None:
    """Drop the shape constants that patched nodes no longer read."""
    read_before = {name for node in source.graph.node for name in node.input}
    read_after = {name for node in result.graph.node for name in node.input}
    read_after |= {value.name for value in result.graph.output}
    stale = [t for t in result.graph.initializer if t.name in read_before and t.name not in read_after]
    captured = {name for node in Graph(result).nodes for name in node.captured} if stale else set()
    for tensor in stale:
        if tensor.name not in captured:
            result.graph.initializer.remove(tensor)
            for value in [v for v in result.graph.input if v.name == tensor.name]:
                result.graph.input.remove(value)
