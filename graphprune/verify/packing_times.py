"""How long products take, dense and packed: measured once in ONNX Runtime, and kept on disk."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphprune.ir.graph import Graph
from graphprune.ir.packing import Packed, Site, with_packed
from graphprune.ir.session import CPU, Feeds
from graphprune.ir.tensors import FIRST_WITHOUT_INPUTS
from graphprune.verify.cache import cache_path, key_of, read_times, write_times
from graphprune.verify.statistics import paired_ratio
from graphprune.verify.timing import Bench, Setting

RUNS = 20
"""Timings of each."""
SECONDS = 0.5
"""About how long they may take."""
STEPS = 64
"""Counts of inputs are rounded up to multiples of this part of all inputs, so that a few times serve many counts."""
VALUES = 4096
"""Different values of a weight, which is large, and whose values take no part in its time."""


class PackingTimes:
    """Times of products on this machine, at the shapes that they have in one call of a model.

    Parameters
    ----------
    feeds : mapping of str to ndarray
        Inputs of that call.
    threads : int
        Threads inside one operator.
    provider : str, optional
        Execution provider of ONNX Runtime.
    """

    def __init__(self, feeds: Feeds, threads: int, provider: str = CPU) -> None:
        self.feeds = feeds
        self.setting = Setting(threads, provider=provider)
        self.path = cache_path("packing", provider, f"{threads}threads")
        self.known = read_times(self.path)

    def of(self, graph: Graph, site: Site, groups: int, count: int) -> tuple[float, float]:
        """Return how long a product takes dense and packed, in milliseconds.

        Parameters
        ----------
        graph : Graph
            With concrete input shapes.
        site : Site
        groups : int
            Groups that the outputs fall into.
        count : int
            Inputs that each group reads.

        Raises
        ------
        ModelError
            When ONNX Runtime cannot run it.
        """
        part = -(-site.inputs // STEPS)
        count = min(-(-count // part) * part, site.inputs)
        key = _key(graph, site, groups, count)
        names = f"{key} dense", f"{key} packed"
        if not all(name in self.known for name in names):
            self.known.update(zip(names, self._measure(graph, site, groups, count), strict=True))
            write_times(self.path, self.known)
        return self.known[names[0]], self.known[names[1]]

    def _measure(self, graph: Graph, site: Site, groups: int, count: int) -> tuple[float, float]:
        """Time both in turns."""
        random = np.random.default_rng(0)
        values = random.standard_normal(VALUES).astype(np.float32)
        dense = _alone(graph, site, values)
        inputs = np.stack([np.sort(random.choice(site.inputs, count, replace=False)) for _ in range(groups)])
        blocks = np.resize(values, (groups, count, -(-site.outputs // groups)))
        packed = with_packed(Graph(dense), {site.weight: Packed(inputs, blocks)})
        data = site.node.inputs[0]
        feeds = {data: np.resize(values, _extents(graph, data))}
        timings = Bench(dense, packed, (feeds, feeds), self.setting, runs=RUNS, budget_seconds=SECONDS).time()
        ratio, _ = paired_ratio(timings)  # other work beside takes less part in it than in the medians
        return timings.before_ms, timings.before_ms * ratio


def _alone(graph: Graph, site: Site, values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> onnx.ModelProto:
    """Make a model of a product alone."""
    data, *others = (name for name in site.node.inputs if name)
    stored = [numpy_helper.from_array(np.resize(values, _extents(graph, name)), name) for name in others]
    entry = helper.make_tensor_value_info(data, TensorProto.FLOAT, _extents(graph, data))
    result = onnx.ValueInfoProto(name=site.node.outputs[0])
    model = helper.make_model(
        helper.make_graph([site.node.proto], "product", [entry], [result], stored),
        opset_imports=[helper.make_opsetid("", graph.opset)],
        ir_version=max(graph.proto.ir_version, FIRST_WITHOUT_INPUTS),
    )
    return onnx.shape_inference.infer_shapes(model)


def _extents(graph: Graph, name: str) -> tuple[int, ...]:
    """The shape of a tensor, all of whose extents are known."""
    shape = graph.shape(name)
    assert shape is not None
    return tuple(extent for extent in shape if isinstance(extent, int))


def _key(graph: Graph, site: Site, groups: int, count: int) -> str:
    """What makes two products the same."""
    shapes = [_extents(graph, name) for name in site.node.inputs if name]
    return key_of(site.node.proto, shapes, groups, count, graph.opset)
