"""Stream calibration samples through the probed model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphprune.calib.probes import Probe, outputs_of, probed, read
from graphprune.calib.stats import Key, Moments, merge
from graphprune.calib.stream import Source
from graphprune.ir.graph import Graph
from graphprune.ir.rectified import rectified
from graphprune.ir.session import open_session, run_session
from graphprune.ir.units import FROZEN, Coupling

BATCH_SIZE = 8
"""Samples a run where the model takes any number: activations of so many are in memory at once."""


def probes_for(coupling: Coupling) -> list[Probe]:
    """Return the probes that trimming needs: one for every activation through which units are consumed.

    Zeros are counted after ReLU-like operators, where they mean something; squares are summed elsewhere.
    """
    graph = coupling.graph
    active = rectified(graph)
    found: dict[Key, Probe] = {}
    for contraction in coupling.contractions:
        name, axis = contraction.node.input(contraction.data), contraction.data_axis
        if axis is None or name in graph.constants:
            continue
        units = coupling.vector(name, axis)
        if units is not None and bool((units != FROZEN).any()):
            found[name, axis] = Probe(name, axis, zeros=name in active, squares=name not in active)
    return list(found.values())


def calibrate(
    graph: Graph,
    probes: Sequence[Probe],
    source: Source,
    *,
    batch_size: int = BATCH_SIZE,
    threads: int = 0,
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
    session = open_session(probed(graph, probes), threads=threads)
    names = [list(outputs_of(index, probe).items()) for index, probe in enumerate(probes)]
    flat = [name for outputs in names for _, name in outputs]
    statistics: dict[Key, Moments] = {}
    for feeds in source.batches(batch_size):
        values = dict(zip(flat, run_session(session, feeds, flat), strict=True))
        found = {
            (probe.tensor, probe.axis): read(probe, {kind: values[name] for kind, name in outputs})
            for probe, outputs in zip(probes, names, strict=True)
        }
        statistics = merge(statistics, found)
        if progress is not None:
            progress(batch_size)
    return statistics
