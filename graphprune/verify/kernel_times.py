"""How long ONNX Runtime's kernels take, node by node and shape by shape: measured once, and kept on disk.

A node that holds weights is run on its own, with random inputs of the shapes that it has in a model, under ONNX
Runtime's profiler: what counts is the kernel alone, in the layout that it has in a whole model, without the reordering
that a graph of one node needs.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from graphprune.ir.graph import Graph
from graphprune.ir.nodes import Node
from graphprune.ir.session import CPU, Feeds, open_session, run_session
from graphprune.verify.cache import cache_path, key_of, read_times, write_times

RUNS, WARMUP = 20, 3
"""Timings of every kernel, and what runs before them."""
TOGETHER = 12
"""Kernels in one session."""
RESOLUTION = 1e-3
"""What the profiler counts in, in milliseconds: it cuts off half of one on average."""
_NAMED = re.compile(r"(?<![a-zA-Z0-9])kernel(\d+)(?!\d)")

_Type: TypeAlias = tuple[tuple[int, ...], int]
Event: TypeAlias = dict[str, Any]
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Kernel:
    """A node that holds weights, and the shapes that it works on.

    Attributes
    ----------
    node : onnx.NodeProto
    types : tuple
        Of every input, in order: shape and element type; None for one that is left out.
    stored : tuple of bool
        Which inputs are initializers.
    opset : int
    """

    node: onnx.NodeProto
    types: tuple[_Type | None, ...]
    stored: tuple[bool, ...]
    opset: int

    @property
    def key(self) -> str:
        """What makes two kernels the same."""
        return key_of(self.node, self.types, self.stored, self.opset)


class KernelTimes:
    """Times of kernels on this machine.

    Parameters
    ----------
    threads : int
        Threads inside one operator.
    provider : str, optional
        Execution provider of ONNX Runtime.
    """

    def __init__(self, threads: int, provider: str = CPU) -> None:
        self.threads = threads
        self.provider = provider
        self.path = cache_path("kernels", provider, f"{threads}threads")
        self.known = read_times(self.path)

    def of(self, kernels: Sequence[Kernel]) -> list[float]:
        """Return how long each takes, in milliseconds; what is not known yet is measured.

        Raises
        ------
        ModelError
            When ONNX Runtime cannot run one of them.
        """
        new = list({kernel.key: kernel for kernel in kernels if kernel.key not in self.known}.values())
        for start in range(0, len(new), TOGETHER):
            part = new[start : start + TOGETHER]
            self.known.update(zip((kernel.key for kernel in part), self._measure(part), strict=True))
        if new:
            write_times(self.path, self.known)
        return [self.known[kernel.key] for kernel in kernels]

    def share(self, proto: onnx.ModelProto, feeds: Feeds) -> float:
        """Return what part of a model's nodes' time is that of its kernels.

        Parameters
        ----------
        proto : onnx.ModelProto
        feeds : mapping of str to ndarray
            One call's inputs.
        """
        operators = {kernel.node.op_type for kernel in kernels_of(Graph(proto, shapes_of(feeds)))}
        operators |= {"Gemm"} if "MatMul" in operators else set()  # ONNX Runtime makes it of MatMul and Add
        times = self._profiled(proto, feeds, lambda event: _operator(event).removeprefix("Fused") in operators)
        return times.get(True, 0.0) / max(sum(times.values()), RESOLUTION)

    def _measure(self, kernels: Sequence[Kernel]) -> list[float]:
        times = self._profiled(*_together(kernels), _number)
        return [times.get(index, 0.0) for index in range(len(kernels))]

    def _profiled(self, proto: onnx.ModelProto, feeds: Feeds, kind: Callable[[Event], Kind]) -> dict[Kind, float]:
        """Milliseconds that nodes of every kind take together."""
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            prefix = Path(folder) / "profile"
            session = open_session(proto, threads=self.threads, provider=self.provider, profile_to=prefix)
            for _ in range(WARMUP + RUNS):
                run_session(session, feeds)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        found: dict[Kind, list[float]] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                found.setdefault(kind(event), []).append(event["dur"] / 1e3 + RESOLUTION / 2)
        return {one: _typical(times) for one, times in found.items()}


def _operator(event: Event) -> str:
    return str(event["args"]["op_name"])


def _number(event: Event) -> int | None:
    """The number of a kernel; none for what puts its inputs and outputs into another layout."""
    found = _NAMED.search(event["name"])
    return int(found[1]) if found and not _operator(event).startswith("Reorder") else None


def kernels_of(graph: Graph) -> list[Kernel]:
    """Return the nodes of a model's main graph that hold weights, with concrete shapes.

    Parameters
    ----------
    graph : Graph
        With concrete input shapes; nodes whose shapes are unknown nevertheless are left out.
    """
    return [kernel for node in graph.main if (kernel := _kernel(graph, node)) is not None]


def shapes_of(feeds: Feeds) -> dict[str, tuple[int, ...]]:
    """Return the shapes of inputs by name."""
    return {name: tuple(np.shape(values)) for name, values in feeds.items()}


def _kernel(graph: Graph, node: Node) -> Kernel | None:
    weights = [name for name in node.inputs if name in graph.initializers and graph.is_weight(name)]
    if not any(len(graph.initializers[name].dims) > 1 for name in weights) or node.bodies or node.proto.domain:
        return None
    types: list[_Type | None] = []
    for name in node.inputs:
        shape, kind = graph.shape(name), graph.element_types.get(name)
        if name in graph.initializers:
            shape, kind = tuple(graph.initializers[name].dims), graph.initializers[name].data_type
        extents = tuple(extent for extent in shape or () if isinstance(extent, int))
        if name and (shape is None or kind is None or len(extents) < len(shape)):
            return None
        types.append((extents, int(kind or 0)) if name else None)
    opset = next((entry.version for entry in graph.proto.opset_import if not entry.domain), 1)
    return Kernel(node.proto, tuple(types), tuple(name in graph.initializers for name in node.inputs), opset)


def _together(kernels: Sequence[Kernel]) -> tuple[onnx.ModelProto, dict[str, npt.NDArray[np.generic]]]:
    """One model of several kernels that have nothing to do with each other, and what to feed it."""
    random = np.random.default_rng(0)
    nodes, inputs, outputs, stored, feeds = [], [], [], [], {}
    for index, kernel in enumerate(kernels):
        node = onnx.NodeProto()
        node.CopyFrom(kernel.node)
        node.name = f"kernel{index}"
        for slot, of_input in enumerate(kernel.types):
            if of_input is None:
                continue
            shape, kind = of_input
            node.input[slot] = name = f"input{index}_{slot}"
            values = (0.1 * random.standard_normal(shape)).astype(helper.tensor_dtype_to_np_dtype(kind))
            if kernel.stored[slot]:
                stored.append(numpy_helper.from_array(values, name))
            else:
                inputs.append(helper.make_tensor_value_info(name, kind, shape))
                feeds[name] = values
        node.output[:] = [f"kernel{index}_{slot}" if name else "" for slot, name in enumerate(node.output)]
        outputs.append(onnx.ValueInfoProto(name=next(name for name in node.output if name)))
        nodes.append(node)
    graph = helper.make_graph(nodes, "kernels", inputs, outputs, stored)
    opset = [helper.make_opsetid("", kernels[0].opset)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10), feeds


def _typical(times: list[float]) -> float:
    """The mean time of a run, of the faster three quarters; a node may be run as several, and warm-up comes first.

    A mean, as over many runs it shows the fractions that the profiler cuts off.
    """
    runs = np.array(times[: len(times) - len(times) % (WARMUP + RUNS)]).reshape(WARMUP + RUNS, -1)
    return float(np.sort(runs[WARMUP:].sum(axis=1))[: max(3 * RUNS // 4, 1)].mean())
