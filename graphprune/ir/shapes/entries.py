"""What is known of small computed tensors, entry by entry: shape arithmetic with extents of which some are dynamic.

Of Shape(x) with x of shape [N, 64, H, W] entry 1 is 64 and the others are the symbols of their extents; Gather, Slice,
Concat and arithmetic pass on what can be told of each entry.

Reference: https://onnx.ai/onnx/api/shape_inference.html (data propagation)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

Entries = npt.NDArray[np.object_]
"""In the shape of the tensor; each entry is a number (a numpy scalar), the symbol (str) of an extent, or None."""
Shapes = Mapping[str, tuple[int | str | None, ...]]

Attributes = Mapping[str, Any]
Operands = Sequence[Any]
"""Entries; None where an optional input is left out."""

LONGEST = 64
"""Tensors of more entries hold no shapes."""
INTEGERS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)


def find_entries(graph: onnx.GraphProto, shapes: Shapes) -> dict[str, Entries]:
    """Follow shape arithmetic through a graph.

    Parameters
    ----------
    graph : onnx.GraphProto
        Its nodes in topological order.
    shapes : mapping
        Shapes of its tensors; extents are numbers, symbols, or None.

    Returns
    -------
    dict of str to ndarray of object
        By name, small initializers, and tensors computed from shapes and from them.
    """
    found: dict[str, Entries] = {}
    for tensor in graph.initializer:
        if int(np.prod(tensor.dims, dtype=np.int64)) <= LONGEST:
            found[tensor.name] = _of(numpy_helper.to_array(tensor))
    for node in graph.node:
        rule = OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rule is None or len(node.output) != 1:
            continue
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if not a.ref_attr_name}
        operands = [_operand(name, found, shapes) for name in node.input]
        if node.op_type in READ_SHAPES:
            shape = shapes.get(node.input[0])
            operands = [None if shape is None else _vector(shape)]
        if all(operand is not None or not name for operand, name in zip(operands, node.input, strict=True)):
            made = _computed(rule, attributes, operands)
            if made is not None and made.size <= LONGEST:
                found[node.output[0]] = made
    return found


def _computed(rule: Callable[..., Entries | None], attributes: Attributes, operands: Operands) -> Entries | None:
    try:
        with np.errstate(all="ignore"):
            return rule(attributes, operands)
    except (ValueError, IndexError):  # a graph that contradicts itself: whoever runs it is told
        return None


def _operand(name: str, found: Mapping[str, Entries], shapes: Shapes) -> Entries | None:
    """Entries of a tensor, each None where only its length is known."""
    shape = shapes.get(name)
    if name in found or shape is None or len(shape) > 1:
        return found.get(name)
    length = shape[0] if shape else 1
    if not isinstance(length, int) or length > LONGEST:
        return None
    unknown = _vector([None] * length)
    return unknown if shape else unknown.reshape(())


def _of(value: npt.ArrayLike) -> Entries:
    """Numbers of an array, each with its element type."""
    array = np.asarray(value)
    result = np.empty(array.shape, dtype=np.object_)
    for place in np.ndindex(array.shape):
        result[place] = array[place]
    return result


def _vector(values: Sequence[Any]) -> Entries:
    result = np.empty(len(values), dtype=np.object_)
    result[:] = [np.int64(value) if isinstance(value, int) else value for value in values]
    return result


def is_number(entry: object) -> bool:
    """Return whether an entry is known."""
    return isinstance(entry, np.generic)


def numbers(entries: Entries | None) -> list[Any] | None:
    """Return the entries as Python numbers, None unless all of them are known.

    Parameters
    ----------
    entries : ndarray of object, or None
    """
    if entries is None or not all(isinstance(entry, np.generic) for entry in entries.ravel()):
        return None
    return [entry.item() for entry in entries.ravel()]


# -- operators: attributes and operands to entries, None where nothing can be told ---------------------------------


def _shape(attributes: Attributes, operands: Operands) -> Entries:
    return np.asarray(operands[0][attributes.get("start", 0) : attributes.get("end")])


def _size(attributes: Attributes, operands: Operands) -> Entries:
    return _reduce_product({"keepdims": 0}, operands)


def _reduce_product(attributes: Attributes, operands: Operands) -> Entries:
    known = numbers(operands[0])
    result = _vector([None if known is None else int(np.prod(known, dtype=np.int64))])
    return result if attributes.get("keepdims", 1) else result.reshape(())


def _constant(attributes: Attributes, operands: Operands) -> Entries | None:
    for name, kind in (("value_int", np.int64), ("value_ints", np.int64), ("value_float", np.float32)):
        if name in attributes:
            return _of(np.array(attributes[name], dtype=kind))
    value = attributes.get("value")
    return None if value is None or np.prod(value.dims) > LONGEST else _of(numpy_helper.to_array(value))


def _filled(attributes: Attributes, operands: Operands) -> Entries | None:
    extents = numbers(operands[0])
    if extents is None or np.prod(extents) > LONGEST:
        return None
    value = attributes.get("value")
    return _of(np.full(extents, np.float32(0) if value is None else numpy_helper.to_array(value)[0]))


def _same(attributes: Attributes, operands: Operands) -> Entries:
    return np.asarray(operands[0])


def _transpose(attributes: Attributes, operands: Operands) -> Entries:
    return np.asarray(operands[0].transpose(attributes.get("perm")))


def _unsqueeze(attributes: Attributes, operands: Operands) -> Entries | None:
    axes = _told("axes", attributes, operands, 1)
    return None if axes is None else np.expand_dims(operands[0], tuple(axes))


def _squeeze(attributes: Attributes, operands: Operands) -> Entries | None:
    axes = _told("axes", attributes, operands, 1)
    if axes is None and len(operands) > 1 and operands[1] is not None:
        return None
    return np.asarray(operands[0].squeeze(None if axes is None else tuple(axes)))


def _reshape(attributes: Attributes, operands: Operands) -> Entries | None:
    target = _told("shape", attributes, operands, 1)
    if target is None:
        return operands[0].ravel() if operands[1].size == 1 else None
    if 0 in target:
        return None
    return np.asarray(operands[0].reshape(target))


def _told(name: str, attributes: Attributes, operands: Operands, slot: int) -> list[int] | None:
    """Numbers given as an attribute or as an input, by operator set; None where they are not known, or left out."""
    if name in attributes:
        return list(attributes[name])
    return numbers(operands[slot]) if slot < len(operands) else None


def _cast(attributes: Attributes, operands: Operands) -> Entries | None:
    kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(attributes["to"]))
    if kind.kind not in "iubf":
        return None
    symbol = attributes["to"] in INTEGERS  # a float may be rounded
    return _each(
        lambda entry: entry.astype(kind) if isinstance(entry, np.generic) else entry if symbol else None, operands
    )


def _gather(attributes: Attributes, operands: Operands) -> Entries | None:
    data, indices = operands
    picked, axis = numbers(indices), int(attributes.get("axis", 0)) % data.ndim
    if picked is None or any(not -data.shape[axis] <= place < data.shape[axis] for place in picked):
        return None
    # By a vector: a scalar index would take the entry out of its array.
    taken = data.take(np.array(picked, dtype=np.int64), axis=axis)
    return np.asarray(taken.reshape((*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])))


def _slice(attributes: Attributes, operands: Operands) -> Entries | None:
    data = operands[0]
    slots = zip(("starts", "ends", "axes", "steps"), (1, 2, 3, 4), strict=True)
    starts, ends, axes, steps = (_told(name, attributes, operands, slot) for name, slot in slots)
    known = all(operand is None or numbers(operand) is not None for operand in operands[1:])
    if starts is None or ends is None or not known:
        return None
    cut = [slice(None)] * data.ndim
    for axis, *bounds in zip(axes or range(data.ndim), starts, ends, steps or [1] * len(starts), strict=False):
        cut[axis] = slice(*bounds)
    return np.asarray(data[tuple(cut)])


def _concat(attributes: Attributes, operands: Operands) -> Entries:
    return np.concatenate(operands, axis=attributes.get("axis", 1))


def _where(attributes: Attributes, operands: Operands) -> Entries:
    return _each(
        lambda condition, yes, no: None if not isinstance(condition, np.generic) else yes if condition else no, operands
    )


def _each(function: Callable[..., Any], operands: Operands) -> Entries:
    arrays = np.broadcast_arrays(*operands)
    result = np.empty(arrays[0].shape, dtype=np.object_)
    for place in np.ndindex(result.shape):
        result[place] = function(*(array[place] for array in arrays))
    return result


def _quotient(left: Any, right: Any) -> Any:
    """ONNX divides integers towards zero."""
    if left.dtype.kind == "f":
        return left / right
    return None if right == 0 else (abs(left) // abs(right) * np.sign(left) * np.sign(right)).astype(left.dtype)


def _remainder(left: Any, right: Any) -> Any:
    return None if right == 0 else np.mod(left, right)


ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Abs": np.abs,
    "Add": np.add,
    "And": np.logical_and,
    "Ceil": np.ceil,
    "Div": _quotient,
    "Equal": np.equal,
    "Floor": np.floor,
    "Greater": np.greater,
    "Less": np.less,
    "Max": np.maximum,
    "Min": np.minimum,
    "Mod": _remainder,
    "Mul": np.multiply,
    "Neg": np.negative,
    "Not": np.logical_not,
    "Or": np.logical_or,
    "Sub": np.subtract,
}
NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}


def _arithmetic(op: str) -> Callable[[Attributes, Operands], Entries | None]:
    def entry(*values: Any) -> Any:
        if all(isinstance(value, np.generic) for value in values):
            return ELEMENTWISE[op](*values) if len(values) <= 2 else None
        return _of_symbols(op, values)

    return lambda attributes, operands: None if attributes.get("fmod") else _each(entry, operands)


def _of_symbols(op: str, values: Sequence[Any]) -> Any:
    """What can be told of arithmetic with an extent that is not known."""
    if op == "Abs" and isinstance(values[0], str):
        return values[0]
    for symbol, number in (values, values[::-1]) if len(values) == 2 else ():
        if isinstance(symbol, str) and isinstance(number, np.integer):
            if op == "Equal" and number < 0:
                return np.False_  # no extent is negative
            if number == NEUTRAL.get(op) and (symbol is values[0] or op in ("Add", "Mul")):
                return symbol
    return None


READ_SHAPES = ("Shape", "Size")
OPERATORS: dict[str, Callable[[Attributes, Operands], Entries | None]] = {
    "Cast": _cast,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Gather": _gather,
    "Identity": _same,
    "ReduceProd": _reduce_product,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
    **{op: _arithmetic(op) for op in ELEMENTWISE},
}
