"""Stream calibration samples through the probed model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from graphprune.calib.probes import BLOCKED_RANK, Probe, probed
from graphprune.calib.stats import FloatArray, Key, Moments
from graphprune.calib.stream import Source
from graphprune.ir.coupling.units import FROZEN, Coupling
from graphprune.ir.graph import Graph
from graphprune.ir.quantized import operand_at
from graphprune.ir.rectified import rectified
from graphprune.ir.session import open_session, run_session

BATCH_SIZE = 8
"""Samples a run where the model takes any number: activations of so many are in memory at once."""


def probes_for(coupling: Coupling) -> list[Probe]:
    """Return the probes that trimming needs: one for every activation through which units are consumed.

    What bodies of control flow compute is out of their reach.
    Zeros are counted after ReLU-like operators, where they mean something; squares are summed elsewhere.
    """
    graph = coupling.graph
    active = rectified(graph)
    found: dict[Key, Probe] = {}
    for contraction in coupling.contractions:
        name, axis = contraction.node.input(contraction.data), contraction.data_axis
        if axis is None or name in graph.constants or graph.is_inside(name):
            continue
        if any(bool((units != FROZEN).any()) for units in coupling.along(name, axis)):
            operand = operand_at(contraction.node, contraction.data)
            slots = (None, None) if operand is None else operand[1:3]
            scale, zero = ("" if slot is None else contraction.node.input(slot) for slot in slots)
            found[name, axis] = Probe(
                name, axis, zeros=name in active, squares=name not in active, scale=scale, zero=zero
            )
    return list(found.values())


def calibrate(
    graph: Graph,
    probes: Sequence[Probe],
    source: Source,
    *,
    batch_size: int = BATCH_SIZE,
    threads: int = 0,
    custom_ops: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> dict[Key, Moments]:
    """Measure statistics over all samples of a source.

    Parameters
    ----------
    graph : Graph
        Of a canonical model.
    probes : sequence of Probe
    source : Source
        Calibration samples.
    batch_size : int, default 8
        Samples a run, where the model takes any number.
    threads : int, default 0
        Threads of ONNX Runtime; 0 for all cores.
    custom_ops : sequence of str, default ()
        Shared libraries of custom operators, by path.
    progress : callable, optional
        Called with the number of samples that each run took.

    Returns
    -------
    dict of (str, int) to Moments
        By tensor and axis. Memory is O(channels); sums are kept in float64.

    Raises
    ------
    CalibrationError
        When the samples cannot be used.
    ModelError
        When ONNX Runtime cannot run the model.
    """
    if not probes:
        return {}
    model, placed = probed(graph, probes)
    session = open_session(model, threads=threads, custom_ops=custom_ops, in_node_order=True)
    names = [name for place in placed for name in place.outputs.values()]
    totals: dict[str, FloatArray] = {}
    rows = dict.fromkeys(names, 0)
    for count, feeds in source.counted(batch_size):
        for name, value in zip(names, run_session(session, feeds, names), strict=True):
            blocked = value.ndim == BLOCKED_RANK
            total = value.sum(axis=0, dtype=np.float64) if blocked else value.astype(np.float64)
            totals[name] = totals[name] + total if name in totals else total
            rows[name] += len(value) if blocked else 1
        if progress is not None:
            progress(count)
    return {(place.probe.tensor, place.probe.axis): place.read(totals, rows) for place in placed}
