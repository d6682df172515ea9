"""How long ONNX Runtime's kernels take, node by node and shape by shape: measured once, and kept on disk.

A node that holds weights is run on its own, with random inputs of the shapes that it has in a model, under ONNX
Runtime's profiler: what is counted is the kernel alone, in the layout that it has in a whole model, without the
reordering that a graph of one node needs.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from graphprune.ir.graph import Graph
from graphprune.ir.nodes import Node
from graphprune.ir.session import open_session, run_session

RUNS, WARMUP = 20, 3
"""Timings of every kernel, and what runs before them."""
TOGETHER = 12
"""Kernels in one session."""
KERNEL = re.compile(r"kernel(\d+)(?:_|$|\b)")


@dataclass(frozen=True)
class Kernel:
    """A node that holds weights, and the shapes that it works on.

    Attributes
    ----------
    node : onnx.NodeProto
    shapes : tuple
        Of every input, in order: shape and element type; none for one that is left out.
    opset : tuple
        Domains and versions.
    """

    node: onnx.NodeProto
    shapes: tuple[tuple[tuple[int, ...], int] | None, ...]
    opset: tuple[tuple[str, int], ...]
    stored: tuple[bool, ...]

    @property
    def key(self) -> str:
        """What makes two kernels the same, as text."""
        plain = onnx.NodeProto()
        plain.CopyFrom(self.node)
        del plain.input[:], plain.output[:]
        plain.name = plain.doc_string = ""
        text = (plain.SerializeToString(deterministic=True), self.shapes, self.opset, self.stored)
        return hashlib.sha256(repr(text).encode()).hexdigest()[:24]


class KernelTimes:
    """Times of kernels on this machine.

    Parameters
    ----------
    threads : int
        Threads inside one operator.
    folder : path-like, optional
        Where to keep them; by default ``graphprune`` in the user's cache folder.
    """

    def __init__(self, threads: int, folder: str | os.PathLike[str] | None = None) -> None:
        self.threads = threads
        self.path = Path(folder or _cache_folder()) / f"kernels-{_machine(threads)}.json"
        self.known = _read(self.path)

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
            _write(self.path, self.known)
        return [self.known[kernel.key] for kernel in kernels]

    def _measure(self, kernels: Sequence[Kernel]) -> list[float]:
        proto, feeds = _together(kernels)
        with tempfile.TemporaryDirectory() as folder:
            session = open_session(proto, threads=self.threads, profile_to=Path(folder) / "profile")
            for _ in range(WARMUP + RUNS):
                run_session(session, feeds)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        found: dict[int, list[float]] = {}
        for event in events:
            name = event.get("name", "")
            match = KERNEL.match(name)
            if match and event.get("cat") == "Node" and name.endswith("_kernel_time"):
                if not event["args"]["op_name"].startswith("Reorder"):
                    found.setdefault(int(match[1]), []).append(event["dur"] / 1e3)
        # A node may be run as several: what one run of them takes together counts.
        return [_typical(found.get(index, [])) for index in range(len(kernels))]


def kernels_of(graph: Graph) -> list[Kernel]:
    """Return the nodes of a model's main graph that hold weights, with concrete shapes.

    Parameters
    ----------
    graph : Graph
        With concrete input shapes.
    """
    return [kernel for node in graph.main if (kernel := _kernel(graph, node)) is not None]


def _kernel(graph: Graph, node: Node) -> Kernel | None:
    weights = [name for name in node.inputs if name in graph.initializers and graph.is_weight(name)]
    if not any(len(graph.initializers[name].dims) > 1 for name in weights) or node.bodies:
        return None
    shapes: list[tuple[tuple[int, ...], int] | None] = []
    for name in node.inputs:
        shape, kind = graph.shape(name), graph.element_types.get(name)
        if name in graph.initializers:
            shape, kind = tuple(graph.initializers[name].dims), graph.initializers[name].data_type
        if name and (shape is None or kind is None or not all(isinstance(extent, int) for extent in shape)):
            return None
        shapes.append((tuple(int(extent) for extent in shape or ()), int(kind or 0)) if name else None)
    opset = tuple((entry.domain, entry.version) for entry in graph.proto.opset_import)
    return Kernel(node.proto, tuple(shapes), opset, tuple(name in graph.initializers for name in node.inputs))


def _together(kernels: Sequence[Kernel]) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """One model of several kernels that have nothing to do with each other, and what to feed it."""
    random = np.random.default_rng(0)
    nodes, inputs, outputs, stored, feeds = [], [], [], [], {}
    for index, kernel in enumerate(kernels):
        node = onnx.NodeProto()
        node.CopyFrom(kernel.node)
        node.name = f"kernel{index}"
        for slot, shape in enumerate(kernel.shapes):
            if shape is None:
                continue
            name = f"input{index}_{slot}"
            node.input[slot] = name
            kind = helper.tensor_dtype_to_np_dtype(shape[1])
            values = (0.1 * random.standard_normal(shape[0])).astype(kind)
            if kernel.stored[slot]:
                stored.append(numpy_helper.from_array(values, name))
            else:
                inputs.append(helper.make_tensor_value_info(name, shape[1], shape[0]))
                feeds[name] = values
        for slot, name in enumerate(node.output):
            node.output[slot] = f"kernel{index}_{slot}" if name else ""
        outputs.append(onnx.ValueInfoProto(name=next(name for name in node.output if name)))
        nodes.append(node)
    graph = helper.make_graph(nodes, "kernels", inputs, outputs, stored)
    opset = [helper.make_opsetid(domain, version) for domain, version in kernels[0].opset]
    return helper.make_model(graph, opset_imports=opset, ir_version=10), feeds


def _typical(times: list[float]) -> float:
    """The mean time of a run, in milliseconds, without the slowest quarter; warm-up runs come first.

    The profiler cuts off fractions of microseconds, half of one on average; over many runs the mean shows them.
    """
    if not times:
        return 0.0  # ONNX Runtime made nothing of it
    runs = np.array(times[: len(times) - len(times) % (WARMUP + RUNS)]).reshape(WARMUP + RUNS, -1) + 5e-4
    return float(np.sort(runs[WARMUP:].sum(axis=1))[: max(3 * RUNS // 4, 1)].mean())


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graphprune"


def _machine(threads: int) -> str:
    """What times depend on: the processor, ONNX Runtime's version, threads."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    text = f"{processor}-{os.cpu_count()}-ort{ort.__version__}-threads{threads}"
    return re.sub(r"[^\w.-]+", "_", text)


def _read(path: Path) -> dict[str, float]:
    """What was measured before; nothing where the file is missing or broken: it is only a cache."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {str(key): float(value) for key, value in values.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _write(path: Path, known: Mapping[str, float]) -> None:
    """Keep the times, whole or not at all; where that cannot be, they are measured again another time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as draft:
            json.dump(dict(known), draft)
        Path(draft.name).replace(path)
    except OSError:
        return
