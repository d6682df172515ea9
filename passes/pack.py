"""Pack products where that pays: choose how many columns share their inputs, by time and error, and rewrite them.

The fewer columns share their inputs, the less error zeros cause; the more, the faster the packed product is. Of the
sizes that pay the smallest is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from graphprune.ir.graph import Graph
from graphprune.ir.packing import Site, blocks_name, find_sites, inputs_name, packed, with_packed
from graphprune.ir.session import Feeds
from graphprune.ir.tensors import array

COLUMNS = (64, 128, 256, 512, 1024)
"""How many columns may share their inputs, beside all: as close to it as groups of one size allow."""
SMALLEST = 2**17
"""Multiply-accumulates of the smallest product that is timed: below, it is no longer than the operators around it."""
PAYS = 0.7
"""What a packed product may take at most of the dense one's time."""
CLOSE = 1.5
"""And of the time of the fastest packed one."""

Times = Callable[[Graph, Site, int, int], "tuple[float, float]"]
"""From graph, site, groups, and the inputs of each to milliseconds dense and packed."""


@dataclass(frozen=True)
class Packing:
    """How one weight is packed.

    Attributes
    ----------
    weight, node, op : str
        The initializer that was dense, and the node that multiplied by it.
    groups : int
        Groups that the outputs fall into.
    columns : int
        Outputs of a group; the last may have fewer.
    inputs : int
        Inputs that each group reads.
    blocks, indices : str
        Initializers that hold the groups' weights, and the inputs that they read.
    dense_ms, packed_ms : float
        What the product takes alone, in one call.
    """

    weight: str
    node: str
    op: str
    groups: int
    columns: int
    inputs: int
    blocks: str
    indices: str
    dense_ms: float
    packed_ms: float


def plan(proto: onnx.ModelProto, kept: Mapping[str, int], feeds: Feeds, times: Times) -> dict[str, Packing]:
    """Decide which weights to pack, and how.

    Parameters
    ----------
    proto : onnx.ModelProto
    kept : mapping of str to int
        By weight, how many of its entries may stay.
    feeds : mapping of str to ndarray
        One call's inputs.
    times : callable

    Returns
    -------
    dict of str to Packing
        By weight, those that pay.
    """
    graph = Graph(proto, {name: value.shape for name, value in feeds.items()})
    # What is rewritten must be known whatever the shapes are; only its time is that of one call's.
    always, found = find_sites(Graph(proto)), {}
    for name, site in find_sites(graph).items():
        inputs = kept.get(name, 0) // max(site.outputs, 1) if name in always else 0
        if 0 < inputs <= PAYS * site.inputs and _work(graph, site) >= SMALLEST:
            found.update(_fewest_columns(graph, site, inputs, times))
    return found


def apply(proto: onnx.ModelProto, packings: Mapping[str, Packing]) -> onnx.ModelProto:
    """Return the model with its weights packed.

    Parameters
    ----------
    proto : onnx.ModelProto
        With zeros where the packings say; not changed.
    packings : mapping of str to Packing
        By weight.
    """
    if not packings:
        return proto
    graph = Graph(proto)
    sites = find_sites(graph)
    values = {name: sites[name].matrix(array(graph.initializers[name])) for name in packings}
    return with_packed(graph, {name: packed(values[name], packings[name].groups) for name in packings})


def _work(graph: Graph, site: Site) -> int:
    """Multiply-accumulates of a product; 0 where an extent of what it reads is not known."""
    shapes = [graph.shape(name) for name in site.node.inputs if name]
    if not all(shape is not None and all(isinstance(extent, int) for extent in shape) for shape in shapes):
        return 0
    return int(np.prod([int(extent or 0) for extent in shapes[0] or ()], dtype=np.int64)) * site.outputs


def _fewest_columns(graph: Graph, site: Site, inputs: int, times: Times) -> dict[str, Packing]:
    """Of what pays, that with the smallest groups; nothing where nothing does.

    Larger groups come first. A single one may be slow where several are not; else smaller ones only take longer.
    """
    outputs, node = site.outputs, site.node
    sizes = {-(-outputs // max(round(outputs / columns), 1)) for columns in (*COLUMNS, outputs)}
    names = blocks_name(graph, site.weight), inputs_name(graph, site.weight)
    timed: list[Packing] = []
    fastest, limit = float("inf"), PAYS
    for size in sorted(sizes, reverse=True):
        groups = -(-outputs // size)
        if not site.fits(groups):
            continue
        if len(timed) > 1 and timed[-1].packed_ms > limit * timed[-1].dense_ms:
            break
        times_found = times(graph, site, groups, inputs)
        timed.append(Packing(site.weight, node.label, node.op, groups, size, inputs, *names, *times_found))
        fastest = min(fastest, timed[-1].packed_ms / timed[-1].dense_ms)
        limit = min(PAYS, CLOSE * fastest)
    paying = [packing for packing in timed if packing.packed_ms <= limit * packing.dense_ms]
    return {site.weight: paying[-1]} if paying else {}
