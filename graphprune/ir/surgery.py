"""Cut removed positions out of a model: slice initializers, patch shape constants and attributes. Decides nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx

from graphprune.ir.bodies import captured
from graphprune.ir.coupling.units import BoolArray, Coupling
from graphprune.ir.edit import Edit, kept_extents
from graphprune.ir.nodes import Node, rebuilt
from graphprune.ir.rewriting.simplify import drop_dead
from graphprune.ir.rules import rule_for
from graphprune.ir.tensors import array, list_initializers, replace_values

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
    _copy_fields(result.graph, source.graph, leave=("initializer", "node", "value_info", "input", "output"))
    for tensor in source.graph.initializer:
        keep = coupling.keeps(tensor.name, removed)
        if keep is None:
            result.graph.initializer.append(tensor)
        else:
            result.graph.initializer.append(slice_tensor(tensor, keep))
            kept[tensor.name] = kept_indices(keep)
    result.graph.node.extend(rebuilt(coupling.graph.main, lambda node: _in_place_of(node, edit)))
    result.graph.input.extend(_resized(value, edit) for value in source.graph.input)
    result.graph.output.extend(_resized(value, edit) for value in source.graph.output)
    notes = (value for value in source.graph.value_info if not _is_stale(value, edit))
    result.graph.value_info.extend(_resized(value, edit) for value in notes)
    result.graph.initializer.extend(edit.constants.values())
    if any(_is_cut_across(node, edit) for node in coupling.graph.nodes):
        drop_dead(result)  # the moves in whose place the Gathers are
    _drop_unused(result, source)
    list_initializers(result)
    return result, kept


def _in_place_of(node: Node, edit: Edit) -> list[onnx.NodeProto]:
    before = len(edit.inserted)
    patched = _patched(node, edit)
    return [*edit.inserted[before:], patched]


def _patched(node: Node, edit: Edit) -> onnx.NodeProto:
    if _is_cut_across(node, edit):
        return _as_gather(node, edit)
    rule = rule_for(node.op)
    if rule is None or rule.patch is None or not any(edit.changes(name) for name in (*node.inputs, *node.outputs)):
        return node.proto
    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    rule.patch(node, proto, edit)
    return proto


def _is_cut_across(node: Node, edit: Edit) -> bool:
    """Whether a node ends a shuffle, and what stays is no rectangle on the way to it."""
    shuffle = edit.coupling.shuffles.get(node.index)
    between = () if shuffle is None else shuffle.between
    keeps = (edit.coupling.keeps(name, edit.removed) for name in between)
    return any(keep is not None and not is_product(keep) for keep in keeps)


def _as_gather(node: Node, edit: Edit) -> onnx.NodeProto:
    """Take what stays of a shuffled axis from where it comes from, position by position."""
    shuffle = edit.coupling.shuffles[node.index]
    keep = edit.kept(shuffle.source, shuffle.axis)
    assert keep is not None, "what is no rectangle on the way has lost positions at its start"
    indices = (np.cumsum(keep) - 1)[shuffle.positions[keep[shuffle.positions]]]
    inputs = [shuffle.source, edit.constant(indices.astype(np.int64))]
    return onnx.helper.make_node("Gather", inputs, [node.outputs[0]], name=node.proto.name, axis=shuffle.axis)


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
    if is_product(keep):
        for axis, vector in enumerate(_vectors(keep)):
            if vector.size > 1 and not vector.all():
                values = np.compress(vector, values, axis=axis)
        return values
    extents = [now if keep.shape[axis] > 1 else values.shape[axis] for axis, now in enumerate(kept_extents(keep))]
    return values[np.broadcast_to(keep, values.shape)].reshape(extents)


def is_product(keep: BoolArray) -> bool:
    """Return whether what stays is a rectangle: the same positions of one axis whatever those of the others."""
    return int(keep.sum()) == int(np.prod([vector.sum() for vector in _vectors(keep)]))


def _vectors(keep: BoolArray) -> list[BoolArray]:
    return [np.asarray(keep.any(axis=tuple(a for a in range(keep.ndim) if a != axis))) for axis in range(keep.ndim)]


def kept_indices(keep: BoolArray) -> dict[int, list[int] | list[list[int]]]:
    """Return by axis the indices that stay, as in `Kept`.

    Parameters
    ----------
    keep : ndarray of bool
        In the rank of the tensor.
    """
    vectors = _vectors(keep)
    result: dict[int, list[int] | list[list[int]]] = {}
    ragged = not is_product(keep)
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
    read_before = {name for node in source.graph.node for name in (*node.input, *captured(node))}
    read_after = {name for node in result.graph.node for name in (*node.input, *captured(node))}
    read_after |= {value.name for value in result.graph.output}
    for tensor in [t for t in result.graph.initializer if t.name in read_before and t.name not in read_after]:
        result.graph.initializer.remove(tensor)
        for value in [v for v in result.graph.input if v.name == tensor.name]:
            result.graph.input.remove(value)
