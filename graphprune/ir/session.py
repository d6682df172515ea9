"""The one place that opens ONNX Runtime sessions and turns its exceptions into ours."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from graphprune.errors import ModelError, RecipeError
from graphprune.ir.bodies import all_nodes
from graphprune.ir.model import save
from graphprune.ir.tensors import is_large

ModelLike: TypeAlias = "str | os.PathLike[str] | bytes | onnx.ModelProto"
"""What a session can be opened from: a file, a serialised model, or a model in memory."""

Feeds: TypeAlias = "Mapping[str, npt.NDArray[Any]]"
"""One call's inputs, by name."""

QUIET = 4
"""Log severity of fatal errors alone: what fails comes back as an exception, without a second copy on stderr."""
DEFAULT_SEVERITY = 2
"""ONNX Runtime's own: warnings."""

# ONNX Runtime's exceptions share no base below Exception; a name that a version lacks is passed over.
_ORT_ERRORS: tuple[type[Exception], ...] = (
    ValueError,
    *(
        getattr(ort_state, name)
        for name in (
            "EPFail",
            "EngineError",
            "Fail",
            "InvalidArgument",
            "InvalidGraph",
            "InvalidProtobuf",
            "ModelLoaded",
            "NoModel",
            "NoSuchFile",
            "NotImplemented",
            "RuntimeException",
        )
        if hasattr(ort_state, name)
    ),
)

_UNREGISTERED = re.compile(r"(\S+):(\w+)\(-?\d+\) is not a registered function/op")
"""How ONNX Runtime says that it does not know an operator."""


def open_session(
    model: ModelLike,
    *,
    threads: int = 0,
    custom_ops: Sequence[str] = (),
    in_node_order: bool = False,
    optimise: bool = True,
    optimised_to: str | os.PathLike[str] | None = None,
) -> ort.InferenceSession:
    """Open an ONNX Runtime session on the CPU.

    Parameters
    ----------
    model : path-like, bytes or onnx.ModelProto
        A model with external data is best given as a path. A ``ModelProto`` over 2 GB goes through a
        temporary file.
    threads : int, default 0
        Threads inside one operator; 0 leaves the number to ONNX Runtime. Operators run one after another.
    custom_ops : sequence of str, default ()
        Shared libraries of custom operators, by path.
    in_node_order : bool, default False
        Whether every node runs as soon as it can, which frees activations that have many readers early, instead of in
        ONNX Runtime's default order.
    optimise : bool, default True
        Whether ONNX Runtime may rewrite the graph, or runs it node by node as it is written.
    optimised_to : path-like, optional
        Where to write what it made of the graph.

    Returns
    -------
    onnxruntime.InferenceSession

    Raises
    ------
    ModelError
        When ONNX Runtime refuses the model.
    RecipeError
        When a library does not exist or cannot be loaded.
    """
    options = ort.SessionOptions()
    for library in custom_ops:
        _register(library, options)
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    if in_node_order:
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimised_to is not None:
        options.optimized_model_filepath = os.fspath(optimised_to)
    options.log_severity_level = QUIET
    # Idle worker threads spin for a while after a run: they would steal the cores from the session timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if isinstance(model, onnx.ModelProto):
        if is_large(model):
            return _open_large(model, options)
        return _open(model.SerializeToString(), options, "the model in memory")
    if isinstance(model, bytes):
        return _open(model, options, "the model in memory")
    return _open(os.fspath(model), options, os.fspath(model))


def run_session(
    session: ort.InferenceSession, feeds: Feeds, outputs: Sequence[str] | None = None, *, where: str = ""
) -> list[Any]:
    """Run a session once.

    Parameters
    ----------
    session : onnxruntime.InferenceSession
    feeds : mapping of str to array
        Every input by name.
    outputs : sequence of str, optional
        The outputs wanted; all when left out.
    where : str, optional
        What the error message calls the model; the name of its graph when left out.

    Returns
    -------
    list
        The outputs' values, in order.

    Raises
    ------
    ModelError
        When ONNX Runtime cannot run the model on these inputs.
    """
    try:
        return list(session.run(outputs, dict(feeds)))
    except _ORT_ERRORS as error:
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in feeds.items())
        raise ModelError(
            "ONNX Runtime cannot run the model",
            where=f"{where or session.get_modelmeta().graph_name}, inputs {shapes}",
            why=str(error).strip(),
            hint="give inputs that the model takes (--calib); many models take some sizes only, or one batch size",
        ) from error


def _open(source: str | bytes, options: ort.SessionOptions, where: str) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except _ORT_ERRORS as error:
        _demand_registered(source, where, error)
        raise ModelError(
            "ONNX Runtime cannot load the model",
            where=where,
            why=str(error).strip(),
            hint="check that the installed onnxruntime knows the model's operators and opset",
        ) from error


def _register(library: str, options: ort.SessionOptions) -> None:
    if not os.path.isfile(library):
        raise RecipeError(
            "the library of custom operators does not exist", where=f"--custom-ops {library}", hint="check the path"
        )
    try:
        # A path without a folder would be looked for among the system's libraries.
        options.register_custom_ops_library(os.path.abspath(library))
    except _ORT_ERRORS as error:
        raise RecipeError(
            "the library of custom operators cannot be loaded",
            where=f"--custom-ops {library}",
            why=str(error).strip(),
            hint="give a shared library that exports RegisterCustomOps, built for this system and this onnxruntime",
        ) from error


def _demand_registered(source: str | bytes, where: str, error: Exception) -> None:
    """Say which nodes it is that ONNX Runtime has no operator for, where that is why it refuses the model."""
    found = _UNREGISTERED.search(str(error))
    if found is None:
        return
    proto = (
        onnx.ModelProto.FromString(source) if isinstance(source, bytes) else onnx.load(source, load_external_data=False)
    )
    domain, op = found.groups()
    nodes = [node for node in all_nodes(proto) if (node.domain, node.op_type) == (domain, op)]
    first = next((node.name or node.output[0] for node in nodes), "unknown")
    raise ModelError(
        f"ONNX Runtime has no operator {domain}.{op}",
        where=f"{where}, node {first!r}" + (f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""),
        why=str(error).strip(),
        hint="name the shared library that holds the operator: --custom-ops LIBRARY",
    ) from error


def _open_large(model: onnx.ModelProto, options: ort.SessionOptions) -> ort.InferenceSession:
    # Windows may still hold the weights mapped when the folder goes.
    with tempfile.TemporaryDirectory(prefix="graphprune-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        save(model, path, external=True)
        return _open(str(path), options, "the model in memory")


@contextmanager
def quiet_sessions() -> Iterator[None]:
    """Keep sessions that other libraries open in the block from writing to stderr."""
    ort.set_default_logger_severity(QUIET)
    try:
        yield
    finally:
        ort.set_default_logger_severity(DEFAULT_SEVERITY)
