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

CPU = "CPUExecutionProvider"

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
    provider: str = CPU,
    cores: Sequence[int] = (),
    profile_to: str | os.PathLike[str] | None = None,
) -> ort.InferenceSession:
    """Open an ONNX Runtime session, on the CPU where nothing else is asked for.

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
    provider : str, optional
        Execution provider; operators that it lacks run on the CPU.
    cores : sequence of int, default ()
        Logical cores, one for each of `threads`: the threads besides the caller's are kept on those besides the first.
    profile_to : path-like, optional
        What the name of a profile is to begin with, that ``end_profiling`` writes.

    Returns
    -------
    onnxruntime.InferenceSession

    Raises
    ------
    ModelError
        When ONNX Runtime refuses the model.
    RecipeError
        When a library does not exist or cannot be loaded, or a provider is not installed or does not start.
    """
    demand_provider(provider)
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
    if profile_to is not None:
        options.enable_profiling = True
        options.profile_file_prefix = os.fspath(profile_to)
    options.log_severity_level = QUIET
    # Idle worker threads spin for a while after a run: they would steal the cores from the session timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if len(cores) > 1:
        # ONNX Runtime counts processors from 1.
        options.add_session_config_entry(
            "session.intra_op_thread_affinities", ";".join(str(core + 1) for core in cores[1:])
        )
    if isinstance(model, onnx.ModelProto):
        if is_large(model):
            return _open_large(model, options, provider)
        return _open(model.SerializeToString(), options, "the model in memory", provider)
    if isinstance(model, bytes):
        return _open(model, options, "the model in memory", provider)
    return _open(os.fspath(model), options, os.fspath(model), provider)


def demand_provider(provider: str) -> None:
    """Demand that the installed ONNX Runtime has an execution provider.

    Raises
    ------
    RecipeError
        When it has not; the message lists those that it has.
    """
    there = ort.get_available_providers()
    if provider not in there:
        raise RecipeError(
            f"the installed ONNX Runtime has no execution provider {provider!r}",
            where=f"--provider {provider}",
            hint=f"it has {', '.join(there)}; others come with other builds of it, such as onnxruntime-gpu",
        )


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


def _open(source: str | bytes, options: ort.SessionOptions, where: str, provider: str) -> ort.InferenceSession:
    try:
        session = ort.InferenceSession(source, options, providers=list(dict.fromkeys([provider, CPU])))
    except _ORT_ERRORS as error:
        _demand_registered(source, where, error)
        raise ModelError(
            "ONNX Runtime cannot load the model",
            where=where,
            why=str(error).strip(),
            hint="check that the installed onnxruntime knows the model's operators and opset",
        ) from error
    # ONNX Runtime takes the CPU instead without a word where a provider's own libraries are missing.
    if provider not in session.get_providers():
        raise RecipeError(
            f"the execution provider {provider!r} does not start",
            where=f"--provider {provider}",
            why=f"ONNX Runtime opened the session on {', '.join(session.get_providers())} instead",
            hint="install the libraries and drivers that it needs",
        )
    return session


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


def _open_large(model: onnx.ModelProto, options: ort.SessionOptions, provider: str) -> ort.InferenceSession:
    # Windows may still hold the weights mapped when the folder goes.
    with tempfile.TemporaryDirectory(prefix="graphprune-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        save(model, path, external=True)
        return _open(str(path), options, "the model in memory", provider)


@contextmanager
def quiet_sessions() -> Iterator[None]:
    """Keep sessions that other libraries open in the block from writing to stderr."""
    ort.set_default_logger_severity(QUIET)
    try:
        yield
    finally:
        ort.set_default_logger_severity(DEFAULT_SEVERITY)
