"""Load and save ONNX files: whole, checked, atomically, with external data."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import external_data_helper

from graphprune.errors import ModelError, RecipeError
from graphprune.ir.encoding.decode import decode, is_encoded
from graphprune.ir.publication import data_file, publication
from graphprune.ir.tensors import FLOAT_TYPES, all_tensors, is_large, stored_bytes

EXTERNAL_FROM = 1024
"""Bytes from which on a tensor goes to external data."""


@dataclass(frozen=True)
class Model:
    """An ONNX model in memory, all weights loaded, and where it came from.

    Attributes
    ----------
    proto : onnx.ModelProto
        The model; external data has been read into the initializers, and encoded weights are dense again.
    path : Path or None
        The file that it was read from, None for a model made in memory.
    sha256 : str or None
        Hash of the .onnx file (of the serialised message for a model made in memory), hexadecimal; see `fingerprint`.
    file_bytes : int
        Size of the file and of its external data files, in bytes.
    external : bool
        Whether the weights came from external data files; they are then saved the same way.
    data_files : tuple of Path
        Those files.
    encoded : bool
        Whether weights of the file are encoded (`graphprune.passes.encode`).
    """

    proto: onnx.ModelProto
    path: Path | None
    sha256: str | None
    file_bytes: int
    external: bool
    data_files: tuple[Path, ...] = ()
    encoded: bool = False


def load(path: str | os.PathLike[str]) -> Model:
    """Read and check an ONNX file.

    Parameters
    ----------
    path : path-like
        An ``.onnx`` file; its external data is read from the same folder.

    Returns
    -------
    Model

    Raises
    ------
    RecipeError
        When there is no such file.
    ModelError
        When the file is empty, truncated, not ONNX, refused by ``onnx.checker``, or its external data is
        missing; when its weights are encoded, and damaged.
    """
    path = Path(path)
    where = str(path)
    if path.is_dir():
        raise RecipeError("the model is a folder, not a file", where=where, hint="give the .onnx file inside it")
    if not path.is_file():
        raise RecipeError("the model file does not exist", where=where, hint="check the path")
    data = path.read_bytes()
    if not data:
        raise ModelError("the model file is empty", where=where, hint="export the model again")
    proto = _parse(data, where)
    files = _external_files(proto, path.parent)
    missing = [name for name in files if not name.is_file()]
    if missing:
        raise ModelError(
            "the model's external data file is missing",
            where=str(missing[0]),
            hint="keep the data file beside the .onnx file, under the name that the model gives it",
        )
    _check(path if files else proto, where)
    try:
        external_data_helper.load_external_data_for_model(proto, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(
            "the model's external data cannot be read",
            where=where,
            why=str(error),
            hint="export or download the model again, with its data file",
        ) from error
    _check_sizes(proto, where)
    size = len(data) + sum(name.stat().st_size for name in files)
    sha256 = hashlib.sha256(data).hexdigest()
    return Model(decode(proto), path, sha256, size, bool(files), tuple(files), encoded=is_encoded(proto))


def from_proto(proto: onnx.ModelProto) -> Model:
    """Check a model made in memory and wrap it.

    Parameters
    ----------
    proto : onnx.ModelProto
        The model, all weights inside.

    Returns
    -------
    Model

    Raises
    ------
    ModelError
        When ``onnx.checker`` refuses the model, or its weights are encoded and damaged.
    """
    _check(proto, "the model given")
    _check_sizes(proto, "the model given")
    return Model(decode(proto), None, *fingerprint(proto), external=False, encoded=is_encoded(proto))


def fingerprint(proto: onnx.ModelProto) -> tuple[str | None, int]:
    """Return the hash (SHA-256, hexadecimal) and the size in bytes of the file that a model is saved to.

    A model over 2 GB has no single file: its hash is None.
    """
    if is_large(proto):
        return None, stored_bytes(proto)
    data = proto.SerializeToString(deterministic=True)
    return hashlib.sha256(data).hexdigest(), len(data)


def save(proto: onnx.ModelProto, path: str | os.PathLike[str], *, external: bool = False) -> int:
    """Write a model atomically: the file is there whole, or what was there before is untouched.

    Parameters
    ----------
    proto : onnx.ModelProto
        The model; it is not changed.
    path : path-like
        The ``.onnx`` file to write. With external data, ``<name>.data`` is written beside it.
    external : bool, default False
        Whether to keep weights of 1 KiB and more in external data; done in any case above 2 GB.

    Returns
    -------
    int
        Bytes written, external data included.

    Raises
    ------
    RecipeError
        When the folder does not exist or cannot be written.
    """
    with publication(path) as (draft,):
        return write_draft(proto, draft, external=external)


def write_draft(proto: onnx.ModelProto, path: Path, *, external: bool) -> int:
    """Write a model as `save` does, to a place that is all its own; return the bytes written."""
    external = external or is_large(proto)
    data = 0
    if external:
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        proto, data = copy, _move_out(copy, data_file(path))
    return data + path.write_bytes(proto.SerializeToString(deterministic=True))


def _move_out(proto: onnx.ModelProto, path: Path) -> int:
    """Move large initializers from a model to a data file; return the bytes written."""
    large = [
        tensor
        for tensor in _initializers(proto.graph)
        if tensor.HasField("raw_data") and len(tensor.raw_data) >= EXTERNAL_FROM
    ]
    if not large:
        return 0
    with path.open("wb") as file:
        for tensor in large:
            start = file.tell()
            length = file.write(tensor.raw_data)
            external_data_helper.set_external_data(tensor, path.name, start, length)
            tensor.ClearField("raw_data")
        return file.tell()


def _initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _initializers(inner)


def _parse(data: bytes, where: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(
            "the file is not an ONNX model, or it is truncated",
            where=where,
            why=str(error),
            hint="export or download it again",
        ) from error
    if not proto.HasField("graph") or not proto.graph.node:
        raise ModelError(
            "the file holds no ONNX graph, or one without nodes", where=where, hint="give an .onnx file with a graph"
        )
    return proto


def _check(model: onnx.ModelProto | Path, where: str) -> None:
    try:
        onnx.checker.check_model(str(model) if isinstance(model, Path) else model)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise ModelError(
            "onnx.checker refuses the model",
            where=where,
            why=str(error).strip().splitlines()[0],
            hint="export the model again; python -m onnx.checker shows the whole complaint",
        ) from error


def _check_sizes(proto: onnx.ModelProto, where: str) -> None:
    """Refuse weights with more or less data than their shape says, which the checker lets pass."""
    for tensor in all_tensors(proto):
        if tensor.data_type in FLOAT_TYPES and tensor.HasField("raw_data"):
            size = int(np.prod(tensor.dims, dtype=np.int64))
            if len(tensor.raw_data) != size * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize:
                raise ModelError(
                    "a tensor of the model holds more or less data than its shape says",
                    where=where,
                    why=f"{tensor.name!r} of shape {list(tensor.dims)} holds {len(tensor.raw_data)} bytes",
                    hint="export the model again",
                )


def _external_files(proto: onnx.ModelProto, folder: Path) -> list[Path]:
    names: dict[str, None] = {}
    for tensor in all_tensors(proto):
        if external_data_helper.uses_external_data(tensor):
            names[next((entry.value for entry in tensor.external_data if entry.key == "location"), "")] = None
    return [folder / name for name in names]
