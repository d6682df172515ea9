"""Predict what removing units and zeroing weights will cost, from one walk over the original.

For every layer the second moments of what it reads give the shape of two curves: the error of its output as more and
more of its weight is zero (`graphprune.passes.curves`), and as more and more of the units that it reads go
(`graphprune.passes.elimination`). How much of such an error reaches the outputs is measured by running the model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import numpy as np
import numpy.typing as npt
import onnx

from graphprune.calib.pairs import Batch, Track, measure_rows
from graphprune.ir.coupling.units import FROZEN, Coupling
from graphprune.ir.graph import Graph
from graphprune.ir.layers.layer import Layer, find_layers
from graphprune.ir.layers.writing import add_biases, write
from graphprune.passes import sparsify
from graphprune.passes.choice import Queue
from graphprune.passes.curves import LEVELS, MEASURED, ZeroCurve, bent, local_errors
from graphprune.passes.damping import damped, damping
from graphprune.passes.elimination import Elimination, Problem, cost_of, eliminate
from graphprune.passes.patterns import largest
from graphprune.passes.ridge import centred
from graphprune.recovery.effects import Effects

FloatArray = npt.NDArray[np.float64]

WIDEST = 2304
"""Where a layer's rows are wider, correlations between different places of its kernel are left out."""
CHEAPER = 0.99
"""How many times the cost of the order found by cost another order may cost at most, to be taken instead."""
LOOKS = (0.25, 0.6)
"""After which parts of a group's steps the model is run."""


@dataclass(frozen=True)
class Reading:
    """A layer of the original, and what was found out about it.

    Attributes
    ----------
    layer : Layer
    mean : ndarray, shape (groups, width)
        Of its rows.
    matrix : ndarray, shape (groups, width, outputs)
    importance : float
        Error of the outputs for every unit of squared error of the layer's output.
    """

    layer: Layer
    mean: FloatArray
    matrix: FloatArray
    importance: float


@dataclass(frozen=True)
class Predictor:
    """What is known of the original's layers.

    Attributes
    ----------
    problems : list of (Reading, int, Problem)
        Every layer that reads units, by reading and group of the layer.
    curves : list of ZeroCurve
        Of the layers' weights.
    effects : Effects
        Runs the original from its inputs on.
    """

    problems: list[tuple[Reading, int, Problem]]
    curves: list[ZeroCurve]
    effects: Effects


def predictor(
    coupling: Coupling, fitted: Sequence[Batch], judging: Sequence[Batch], custom_ops: Sequence[str] = ()
) -> Predictor:
    """Walk over the original once.

    Parameters
    ----------
    coupling : Coupling
    fitted, judging : sequence of dict
        Calibration inputs: what moments are taken of, and what effects are measured on. On the inputs that a change was
        computed from it looks better than it is.
    custom_ops : sequence of str, default ()
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(coupling.graph.proto)
    add_biases(proto)
    track = Track(proto, list(fitted), custom_ops)
    effects = Effects(Track(proto, list(judging), custom_ops))
    problems, curves = [], []
    graph = Graph(proto)
    for number, layer in enumerate(find_layers(graph)):
        track.advance(layer.output)
        effects.track.advance(layer.output)
        parts, biased = measure_rows(track, layer, number), bool(layer.bias)
        rows, matrix = centred(reduce(add, parts), biased=biased), layer.matrix(proto)
        if not np.isfinite(rows.covariance).all():
            continue
        amount = damping(parts, matrix, largest(matrix.size // 2), biased=biased)
        errors, solutions = local_errors(damped(rows, amount, matrix), matrix)
        places = {
            LEVELS.index(level): _effect(effects, [(layer, rows.mean, matrix, new)]) for level, new in solutions.items()
        }
        curve = bent(errors, places)
        middle = LEVELS.index(MEASURED[0])
        importance = curve[middle] / errors[middle] if errors[middle] > 0 else 0.0
        problems.extend(_problems(coupling, Reading(layer, rows.mean, matrix, float(importance)), rows.damped(amount)))
        curves.append(ZeroCurve(layer.weight, int(np.count_nonzero(matrix)), curve))
    start = Effects(Track(proto, list(judging), custom_ops))
    known = {curve.weight for curve in curves}
    curves.extend(
        _by_magnitude(start, name) for name in sparsify.zeroable(graph, coupling.contractions) if name not in known
    )
    return Predictor(problems, curves, start)


def _by_magnitude(effects: Effects, name: str) -> ZeroCurve:
    """The curve of a weight that is no layer's: its smallest entries go, and nothing makes up for them."""
    proto = effects.track.proto
    magnitudes = np.sort(sparsify.magnitudes(proto, name)).astype(np.float64)
    magnitudes = magnitudes[magnitudes > 0]
    energy = np.concatenate([[0.0], np.cumsum(magnitudes**2)])
    counts = [round(level * len(magnitudes)) for level in LEVELS]
    shape = energy[counts] / max(energy[-1], np.finfo(np.float64).tiny)

    def effect(level: float) -> float:
        kept = {name: round((1 - level) * len(magnitudes))}
        return effects.of([name], lambda: sparsify.apply(proto, sparsify.smallest(proto, kept)))

    places = {LEVELS.index(level): effect(level) for level in MEASURED}
    return ZeroCurve(name, len(magnitudes), bent(shape, places))


def _effect(effects: Effects, changes: Sequence[tuple[Layer, FloatArray, FloatArray, FloatArray]]) -> float:
    """Effect of other matrices of layers, each given as layer, mean row, old and new, with the mean put right."""

    def change() -> None:
        for layer, mean, old, new in changes:
            write(layer, effects.stored, new, (mean[:, None] @ (old - new))[:, 0])

    return effects.of([name for layer, *_ in changes for name in (layer.weight, layer.bias)], change)


def price(found: Predictor, queue: Queue, others: Mapping[str, FloatArray], *, ordered: bool) -> Queue:
    """Predict what the steps of a queue cost.

    Parameters
    ----------
    found : Predictor
    queue : Queue
    others : mapping of str to ndarray, shape (units,)
        Scores by other criteria: where the first units by one of them are predicted to cost less than those that are
        found by cost, its order is taken.
    ordered : bool
        Whether the steps keep their order, instead of going by what they cost.

    Returns
    -------
    Queue
        With costs. Where no layer whose moments are known reads the units, every step costs the same part of the whole
        output.
    """
    units = {int(unit) for step in queue.steps for unit in step.units}
    own = [part for part in found.problems if units & part[2].columns.keys()]
    most = len(queue.steps) - 1
    if not own or most < 1:
        return replace(queue, costs=tuple(_shares(queue)))
    problems, looks = [problem for _, _, problem in own], sorted({max(round(part * most), 1) for part in LOOKS})
    result = eliminate(problems, [step.units for step in queue.steps], ordered=ordered, looks=looks)
    criterion = queue.criterion if ordered else "obs"
    better = _cheaper(problems, queue, others, looks[0], float(result.costs[: looks[0]].sum()))
    if better:
        criterion, queue = better, _by_score(queue, others[better])
        result = eliminate(problems, [step.units for step in queue.steps], ordered=True, looks=looks)
    total = np.concatenate([[0.0], np.cumsum(result.costs)])
    effects = {count: _effect_of(found.effects, own, result, count) for count in looks}
    costs = np.diff(bent(total, effects))
    steps = tuple(queue.steps[index] for index in result.order)
    return replace(queue, steps=steps, costs=tuple(costs.tolist()), criterion=criterion)


def _cheaper(
    problems: Sequence[Problem], queue: Queue, others: Mapping[str, FloatArray], count: int, error: float
) -> str:
    """The criterion whose first steps cost least together, if less than an error; an empty name otherwise."""
    found = {"": error * CHEAPER}
    for name, scores in others.items():
        units = np.concatenate([step.units for step in _by_score(queue, scores).steps[:count]])
        found[name] = sum(cost_of(problem, units) for problem in problems)
    return min(found, key=lambda name: found[name])


def _by_score(queue: Queue, scores: FloatArray) -> Queue:
    steps = sorted(queue.steps, key=lambda step: -float(scores[step.units].mean()))
    return replace(queue, steps=tuple(steps))


def _shares(queue: Queue) -> FloatArray:
    """Every step its share of the whole output, where nothing better is known."""
    return np.full(max(len(queue.steps) - 1, 0), 1.0 / max(len(queue.steps), 1))


def _problems(coupling: Coupling, reading: Reading, gram: FloatArray) -> list[tuple[Reading, int, Problem]]:
    """A layer as problems of elimination: one for every group of a grouped convolution and every array of units."""
    layer, matrix = reading.layer, reading.matrix
    groups, width, _ = matrix.shape
    axis = 1 if layer.form.channel_axis == 1 else len(coupling.graph.shape(layer.data) or ()) - 1
    result = []
    for units in coupling.along(layer.data, axis):
        if 1 < groups == len(units):  # each channel is read for itself alone, and goes with what is made of it
            continue
        kernel = width * groups // len(units)
        for group, part in enumerate(np.split(units, groups)):
            small, weight = gram[group], matrix[group]
            if width > WIDEST and kernel > 1:
                small, weight = _by_channel(small, weight, kernel)
            columns = _columns(np.repeat(part, len(small) // len(part)))
            if columns:
                result.append((reading, group, Problem(small, weight, columns, reading.importance)))
    return result


def _by_channel(gram: FloatArray, matrix: FloatArray, kernel: int) -> tuple[FloatArray, FloatArray]:
    """Leave out correlations between places of the kernel: each is then as if it had outputs of its own."""
    channels = len(gram) // kernel
    mean = np.einsum("ikjk->ij", gram.reshape(channels, kernel, channels, kernel)) / kernel
    return mean, matrix.reshape(channels, -1)


def _columns(units: npt.NDArray[np.int64]) -> dict[int, npt.NDArray[np.int64]]:
    return {int(unit): np.flatnonzero(units == unit) for unit in np.unique(units) if unit != FROZEN}


def _effect_of(
    effects: Effects, own: Collection[tuple[Reading, int, Problem]], result: Elimination, count: int
) -> float:
    """Run the original with the layers' matrices as they are after some steps."""
    matrices: dict[str, tuple[Reading, FloatArray]] = {}
    for (reading, group, _), solved in zip(own, result.matrices[count], strict=True):
        _, matrix = matrices.setdefault(reading.layer.weight, (reading, reading.matrix.copy()))
        matrix[group] = solved.reshape(matrix[group].shape)
    return _effect(effects, [(reading.layer, reading.mean, reading.matrix, new) for reading, new in matrices.values()])
