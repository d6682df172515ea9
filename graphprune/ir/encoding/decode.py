"""From an encoded model back to the dense one, bit for bit.

What is encoded is found by names and structure; a mark in the model's metadata says what names begin with. The stored
values stand where the weight stood, as an initializer or in a Constant node, and keep everything of it but values and
shape, so nothing else need be remembered. A weight whose decoder somebody has folded already is left as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from graphprune.errors import ModelError
from graphprune.ir.encoding import forms
from graphprune.ir.encoding.decoders import MARK, VERSION, Stored, decoder, shape_of, shared_value
from graphprune.ir.tensors import array

TYPED = {
    onnx.TensorProto.FLOAT: "float_data",
    onnx.TensorProto.FLOAT16: "int32_data",
    onnx.TensorProto.DOUBLE: "double_data",
}
"""The field that holds values which are not raw, by element type."""


def is_encoded(proto: onnx.ModelProto) -> bool:
    """Return whether a model bears the mark of `graphprune.passes.encode`."""
    return any(entry.key == MARK for entry in proto.metadata_props)


def decode(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the dense model that an encoded one stands for.

    Parameters
    ----------
    proto : onnx.ModelProto
        Its weights in memory; not changed.

    Returns
    -------
    onnx.ModelProto
        The model that was encoded, bit for bit; where values were rounded to float16, with these. The very model given
        when it is not encoded.

    Raises
    ------
    ModelError
        When the model was encoded by another version, or what it stores is damaged.
    """
    if not is_encoded(proto):
        return proto
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    prefix = _prefix(result)
    parts = _Parts(result, prefix)
    for stem in list(parts.stems):
        try:
            _rebuild(parts, stem)
        except ValueError as error:
            raise _damaged(f"weight {parts.name_of(stem)!r}", str(error)) from error
    parts.clean()
    for place in reversed(range(len(result.metadata_props))):
        if result.metadata_props[place].key == MARK:
            del result.metadata_props[place]
    return result


def store(tensor: onnx.TensorProto, name: str, values: npt.NDArray[np.generic], shape: tuple[int, ...]) -> None:
    """Give a tensor another name, other values and another shape, in place; it keeps them in the field that it did."""
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    raw = tensor.HasField("raw_data") or kind != tensor.data_type
    for field in ("raw_data", *TYPED.values()):
        tensor.ClearField(field)
    tensor.data_type = kind
    if tensor.name != name:  # a name that is not there is not the same as an empty one, in the file
        tensor.name = name
    del tensor.dims[:]
    tensor.dims.extend(shape)
    if raw:
        tensor.raw_data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    else:
        numbers = values.view(np.uint16) if kind == onnx.TensorProto.FLOAT16 else values
        getattr(tensor, TYPED[kind]).extend(numbers.tolist())


def _damaged(where: str, why: str) -> ModelError:
    return ModelError(
        "an encoded weight of the model is damaged",
        where=where,
        why=why,
        hint="get the file again, or encode the dense model again (graphprune --encode)",
    )


def _prefix(proto: onnx.ModelProto) -> str:
    value = next(entry.value for entry in proto.metadata_props if entry.key == MARK)
    version, _, prefix = value.partition(" ")
    if version != VERSION or not prefix:
        raise ModelError(
            "the model's weights are encoded in a way that this version does not know",
            where=f"metadata {MARK!r}",
            why=f"it says {value!r}, and {VERSION!r} is known",
            hint="decode it with the version of graphprune that wrote it",
        )
    return prefix


@dataclass(frozen=True)
class _Tensor:
    """A stored tensor: an initializer, or what a Constant node holds."""

    proto: onnx.TensorProto
    node: onnx.NodeProto | None = None


class _Parts:
    """What belongs to the encoding of a model, by name."""

    def __init__(self, proto: onnx.ModelProto, prefix: str) -> None:
        self.graph = proto.graph
        self.prefix = prefix
        self.opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)
        self.stored: dict[str, _Tensor] = {}
        self.producer: dict[str, onnx.NodeProto] = {}
        self.readers: dict[str, onnx.NodeProto] = {}
        self.decoding: set[str] = set()
        for tensor in self.graph.initializer:
            if self.owns(tensor.name):
                self.stored[tensor.name] = _Tensor(tensor)
        for node in self.graph.node:
            for name in filter(self.owns, node.output):
                self.producer[name] = node
                for attribute in node.attribute:
                    if node.op_type == "Constant" and attribute.name == "value":
                        self.stored[name] = _Tensor(attribute.t, node)
            self.readers.update((name, node) for name in node.input if self.owns(name))
        found = (re.fullmatch(rf"({re.escape(prefix)}\.\d+)\.values", name) for name in self.stored)
        self.stems = [match[1] for match in found if match]

    def owns(self, name: str) -> bool:
        return name.startswith(f"{self.prefix}.")

    def last(self, stem: str) -> onnx.NodeProto | None:
        """The node that gives the weight."""
        return self.readers.get(f"{stem}.flat") or self.readers.get(f"{stem}.values")

    def name_of(self, stem: str) -> str:
        last = self.last(stem)
        return last.output[0] if last is not None and last.output else stem

    def clean(self) -> None:
        """Take the decoders off, and demand that nothing reads what they gave each other."""
        fields = self.graph.node, self.graph.initializer, self.graph.value_info
        for field in fields:
            for place in reversed(range(len(field))):
                if self._is_decoding(field[place]):
                    del field[place]
        left = [name for node in self.graph.node for name in (*node.input, *node.output) if self.owns(name)]
        if left:
            raise _damaged(f"tensor {left[0]!r}", "a node reads or makes it that belongs to no encoded weight")

    def _is_decoding(self, item: onnx.NodeProto | onnx.TensorProto | onnx.ValueInfoProto) -> bool:
        if isinstance(item, onnx.NodeProto):  # a weight that a Constant node holds has the name that its decoder gave
            return item.op_type != "Constant" and bool(item.output) and item.output[0] in self.decoding
        return self.owns(item.name)


def _rebuild(parts: _Parts, stem: str) -> None:
    """Put a dense weight back into its place, and note the nodes that are no longer needed."""
    values = parts.stored[f"{stem}.values"]
    code = next((name for name in (f"{stem}.gaps", f"{stem}.bitmap") if name in parts.stored), None)
    stored = _stored(parts, stem, values.proto, code)
    entries = array(values.proto).ravel()
    if code is not None:
        if parts.stored[code].proto.data_type != onnx.TensorProto.UINT8:
            raise ValueError(f"{code!r} does not hold bytes")
        codes = np.asarray(array(parts.stored[code].proto).ravel(), dtype=np.uint8)
        read = forms.from_gaps if stored.form == "gaps" else forms.from_bitmap
        places = read(codes, stored.size)
        if len(places) != stored.entries:
            raise ValueError(f"it has {stored.entries} values for {len(places)} places")
    _demand_decoder(parts, stored, stem)
    dense = entries.astype(helper.tensor_dtype_to_np_dtype(stored.kind)) if stored.half else entries
    if code is not None:
        dense = np.zeros(stored.size, dtype=dense.dtype)
        dense[places] = entries
    if values.node is None:
        store(values.proto, stored.name, dense, stored.shape)
    else:
        store(values.proto, values.proto.name, dense, stored.shape)
        values.node.output[0] = stored.name


def _stored(parts: _Parts, stem: str, values: onnx.TensorProto, code: str | None) -> Stored:
    """Read what the decoder depends on."""
    last = parts.last(stem)
    if last is None or len(last.output) != 1 or parts.owns(last.output[0]):
        raise ValueError("the operators that rebuild it are not there")
    wide = next((node for node in [parts.readers.get(f"{stem}.values")] if node and node.op_type == "Cast"), None)
    kind = values.data_type if wide is None else next((a.i for a in wide.attribute if a.name == "to"), 0)
    if kind not in TYPED or values.data_type not in TYPED:
        raise ValueError(f"it is of element type {kind}, and no such weight is ever encoded")
    if code is None:
        shape = tuple(values.dims)
    else:
        shape = shape_of(last.input[1].removeprefix(f"{parts.prefix}.") if len(last.input) == 2 else "")
    form = "dense" if code is None else code.rpartition(".")[2]
    return Stored(last.output[0], shape, kind, form, int(np.prod(values.dims, dtype=np.int64)), wide is not None)


def _demand_decoder(parts: _Parts, stored: Stored, stem: str) -> None:
    """Demand that the model's operators do what is done here."""
    expected = decoder(stored, stem, parts.prefix, parts.opset)
    for node in expected.nodes:
        name = node.output[0]
        found = parts.producer.get(name) if parts.owns(name) else parts.last(stem)
        if found is None or _meaning(found) != _meaning(node):
            raise ValueError(f"the operator that makes {name!r} is missing or another one")
        parts.decoding.add(name)
    for tensor in expected.shared:
        known = parts.stored.get(tensor.name)
        if known is None or not np.array_equal(array(known.proto), shared_value(tensor.name[len(parts.prefix) + 1 :])):
            raise ValueError(f"constant {tensor.name!r} is missing or another one")


def _meaning(node: onnx.NodeProto) -> list[object]:
    attributes: Iterator[bytes] = (a.SerializeToString(deterministic=True) for a in node.attribute)
    return [node.op_type, node.domain or "", list(node.input), list(node.output), sorted(attributes)]
