"""Where a result and its ledger go, decided before any work is done, and how they get there."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from graphprune.entries import Change, FileRecord
from graphprune.errors import RecipeError
from graphprune.ir.model import Model, write_draft
from graphprune.ir.publication import data_file, publication, real_path
from graphprune.ledger import Ledger


def check_output(
    model: str | os.PathLike[str] | Model,
    output: str | os.PathLike[str] | None,
    report: str | os.PathLike[str] | None,
    inputs: Sequence[str | os.PathLike[str]] = (),
) -> tuple[Path, Path]:
    """Decide where result and ledger go, before any work is done.

    Parameters
    ----------
    model : path-like or Model
        The input; a Model that was read from a file.
    output, report : path-like, optional
        By default ``MODEL.pruned.onnx`` and ``MODEL.pruned.json`` (beside ``output``, where that is given).
    inputs : sequence of path-like, optional
        Other files that must not be written over; what is no file counts for nothing.

    Returns
    -------
    output, report : Path

    Raises
    ------
    RecipeError
        When a folder does not exist or cannot be written, something that is no file is in the way, or one file would
        be written over an input or the other.
    """
    source = Path((model.path or "") if isinstance(model, Model) else model)
    data_files = model.data_files if isinstance(model, Model) else ()
    taken = [path for path in (source, *data_files, *inputs) if os.path.isfile(path)]
    if "" in (output, report):
        raise RecipeError("the output has no name", where="--output, --report", hint="name a file")
    if output is None and not source.name:
        raise RecipeError("the model has no name to derive the output's from", hint="name the output")
    output = source.with_name(f"{_stem(source)}.pruned.onnx") if output is None else Path(output)
    report = output.with_name(f"{_stem(output)}.json") if report is None else Path(report)
    data = data_file(real_path(output))
    for path in (output, data, report):
        check_target(path, taken)
    if os.path.realpath(report) in (os.path.realpath(output), os.path.realpath(data)):
        raise RecipeError("model and report would be one file", where=str(output), hint="name another report")
    return output, report


def check_decoded(model: Model, output: str | os.PathLike[str] | None) -> Path:
    """Decide where a decoded model goes: by default to ``MODEL.decoded.onnx``.

    Raises
    ------
    RecipeError
        As for `check_output`.
    """
    source = model.path or Path()
    if output == "" or (output is None and not source.name):
        raise RecipeError("the output has no name", where="--output", hint="name a file")
    output = source.with_name(f"{_stem(source)}.decoded.onnx") if output is None else Path(output)
    taken = [path for path in (source, *model.data_files) if os.path.isfile(path)]
    for path in (output, data_file(real_path(output))):
        check_target(path, taken)
    return output


def write(pruned: onnx.ModelProto, ledger: Ledger, original: Model, output: Path, report: Path) -> Ledger:
    """Write a pruned model and its ledger, both or neither; return the ledger with the file in it.

    Raises
    ------
    RecipeError
        When a file cannot be written.
    """
    with publication(output, report) as (model_draft, report_draft):
        size = write_draft(pruned, model_draft, external=original.external)
        sha256 = hashlib.sha256(model_draft.read_bytes()).hexdigest()
        ledger = replace(ledger, output=FileRecord(str(output), sha256), bytes=Change(ledger.bytes.before, size))
        report_draft.write_text(ledger.to_json(), encoding="utf-8")
    return ledger


def check_target(path: Path, taken: Sequence[str | os.PathLike[str]]) -> None:
    """Demand that a file can be written to a place, and that it is none of the files taken.

    Raises
    ------
    RecipeError
        When it cannot, or is one of them.
    """
    try:
        _check_target(path, taken)
    except OSError as error:
        raise RecipeError(
            "the output cannot be written", where=str(path), why=str(error), hint="name another file"
        ) from error


def _check_target(path: Path, taken: Sequence[str | os.PathLike[str]]) -> None:
    target = real_path(path)
    if not target.parent.is_dir():
        raise RecipeError("the output folder does not exist", where=str(target.parent), hint="create it first")
    if path.is_dir():
        raise RecipeError("the output is a folder", where=str(path), hint="name a file")
    if os.path.lexists(target) and not path.is_file():
        raise RecipeError("the output exists and is no regular file", where=str(path), hint="name a file")
    if path.exists() and any(os.path.samefile(path, other) for other in taken):
        raise RecipeError("the output would be written over the input", where=str(path), hint="name another file")
    with tempfile.TemporaryFile(dir=target.parent):
        pass


def _stem(path: Path) -> str:
    """Return a file's name without ``.onnx``; any other dot belongs to the name."""
    return path.stem if path.suffix.lower() == ".onnx" else path.name
