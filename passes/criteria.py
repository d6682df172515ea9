"""Scores of units: the higher, the sooner a unit goes. One function a criterion; the table is `CRITERIA`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from graphprune.ir.coupling.units import FROZEN, BoolArray, Contraction, Coupling, Group
from graphprune.ir.weights import consumed_units, contracted_norms, produced_norms

FloatArray = npt.NDArray[np.float64]


class Moments(Protocol):
    """What has been measured along one axis of one tensor; arrays of shape (channels,)."""

    @property
    def count(self) -> int:
        """Values per channel."""

    @property
    def mean(self) -> FloatArray:
        """Mean value."""

    @property
    def zeros(self) -> FloatArray | None:
        """Number of values <= 0."""

    @property
    def squares(self) -> FloatArray | None:
        """Sum of squares."""

    @property
    def sampled(self) -> bool:
        """Whether only a part of the positions was looked at."""


Statistics = Mapping[tuple[str, int], Moments]
"""By tensor name and axis."""


@dataclass(frozen=True)
class Scores:
    """Scores of all units.

    Attributes
    ----------
    values : ndarray of float64, shape (units,)
        The higher, the sooner the unit goes; comparable within a group.
    criteria : tuple of str
        For every group the criterion that its units were scored by.
    dead : ndarray of bool, shape (units,)
        Units that do nothing: inactive at every position of the calibration data, or with no weight going in or out.
    """

    values: FloatArray
    criteria: tuple[str, ...]
    dead: BoolArray


def score(
    coupling: Coupling,
    statistics: Statistics,
    criterion: str,
    *,
    seed: int = 0,
    measured: Mapping[str, FloatArray] | None = None,
) -> Scores:
    """Score every unit.

    Parameters
    ----------
    coupling : Coupling
    statistics : mapping of (tensor, axis) to Moments
    criterion : str
        A key of `CRITERIA` or of ``measured``. Where it says nothing of a unit, the unit's whole group is scored by
        ``activation``.
    seed : int, default 0
        Of the criterion ``random``.
    measured : mapping of str to ndarray of float64, shape (units,), optional
        By name the values of criteria that are computed elsewhere, such as ``taylor``; NaN for units that they say
        nothing of. They win over `CRITERIA`.

    Returns
    -------
    Scores

    Raises
    ------
    KeyError
        When neither table has the criterion.
    """
    if measured is not None and criterion in measured:
        values = measured[criterion].copy()
    else:
        values = CRITERIA[criterion](coupling, statistics, seed)
    fallback = activation(coupling, statistics)
    known = ~np.isnan(values)
    names = []
    for group in coupling.groups:
        whole = bool(known[group.units].all())
        names.append(criterion if whole else "activation")
        if not whole:
            values[group.units] = fallback[group.units]
    return Scores(values, tuple(names), _dead(coupling, statistics))


def apoz(coupling: Coupling, statistics: Statistics) -> FloatArray:
    """Average percentage of zeros (Hu et al. 2016, Network Trimming, equation 1), as a fraction in [0, 1].

    Over all samples and all positions that carry the unit in the tensors that its consumers read, where these come
    from a ReLU-like operator; NaN for a unit that is read from another, or not at all.
    """
    zeros, count = np.zeros(coupling.units), np.zeros(coupling.units)
    for units, moments in _readings(coupling, statistics):
        free = units != FROZEN
        # A unit that is read elsewhere without a rectifier can be at work there while it is zero here.
        counted = np.full(len(units), np.nan) if moments.zeros is None else moments.zeros
        np.add.at(zeros, units[free], counted[free])
        np.add.at(count, units[free], float(moments.count))
    return np.asarray(np.divide(zeros, count, out=np.full(coupling.units, np.nan), where=count > 0))


def activation(coupling: Coupling, statistics: Statistics) -> FloatArray:
    """Minus the mean energy that a unit adds to its consumers: E[x^2] * |w|^2, as in Wanda (Sun et al. 2023).

    For a unit that is measured nowhere E[x^2] is taken as 1.
    """
    energy, norms = np.zeros(coupling.units), np.zeros(coupling.units)
    known = np.zeros(coupling.units, dtype=np.bool_)
    for contraction in coupling.contractions:
        moments = _of(contraction, statistics)
        for units in consumed_units(coupling, contraction):
            norm = contracted_norms(coupling.graph, contraction)
            if moments is None:
                _note(units, norm, norms)
                continue
            # After a ReLU-like operator only the mean is measured; its square stands in for the mean square.
            square = moments.mean**2 if moments.squares is None else moments.squares / max(moments.count, 1)
            _note(units, square * norm, energy, known)
    return -np.where(known, energy, norms)


def weight_norm(coupling: Coupling, order: int) -> FloatArray:
    """Minus the norm of the weights that make a unit: its filter (Li et al. 2017, Pruning Filters, section 3.1).

    A unit that several layers make, as in a residual stage or in front of a depthwise convolution, is taken with the
    filters of all of them, as one vector. Biases and tables do not count. NaN for a unit that no known weight makes.

    Parameters
    ----------
    coupling : Coupling
    order : {1, 2}
        Sum of absolute values, or square root of the sum of squares.
    """
    powers, made = _making(coupling, order)
    return np.where(made, -(powers ** (1 / order)), np.nan)


def random(coupling: Coupling, seed: int) -> FloatArray:
    """Draw scores uniformly from [0, 1): what a criterion has to beat."""
    return np.random.default_rng(seed).random(coupling.units)


CRITERIA: dict[str, Callable[[Coupling, Statistics, int], FloatArray]] = {
    "apoz": lambda coupling, statistics, seed: apoz(coupling, statistics),
    "activation": lambda coupling, statistics, seed: activation(coupling, statistics),
    "l1": lambda coupling, statistics, seed: weight_norm(coupling, 1),
    "l2": lambda coupling, statistics, seed: weight_norm(coupling, 2),
    "random": lambda coupling, statistics, seed: random(coupling, seed),
}
"""By name, from coupling, statistics and seed to values of shape (units,); NaN where a criterion says nothing."""


def _readings(coupling: Coupling, statistics: Statistics) -> Iterator[tuple[npt.NDArray[np.int64], Moments]]:
    """Unit numbers and moments of every activation that a contraction reads, each tensor once."""
    seen = set()
    for contraction in coupling.contractions:
        moments = _of(contraction, statistics)
        key = (contraction.node.input(contraction.data), contraction.data_axis)
        if moments is not None and key not in seen:
            seen.add(key)
            for units in consumed_units(coupling, contraction):
                yield units, moments


def normalised(group: Group, scores: Scores) -> FloatArray:
    """Return a group's scores in standard deviations above its mean, comparable between groups."""
    values = scores.values[group.units]
    if (values < 0).any():  # energies spread over orders of magnitude
        values = -np.log(np.clip(-values, 1e-30, np.finfo(np.float64).max))  # one that overflowed is the largest
    spread = float(values.std())
    return (values - values.mean()) / spread if spread > 0 else np.zeros_like(values)


def _of(contraction: Contraction, statistics: Statistics) -> Moments | None:
    if contraction.data_axis is None:
        return None
    return statistics.get((contraction.node.input(contraction.data), contraction.data_axis))


def _dead(coupling: Coupling, statistics: Statistics) -> BoolArray:
    """Units that are inactive at every position of every sample, or have no weight going in or out."""
    outgoing, consumed = np.zeros(coupling.units), np.zeros(coupling.units, dtype=np.bool_)
    for contraction in coupling.contractions:
        for units in consumed_units(coupling, contraction):
            _note(units, contracted_norms(coupling.graph, contraction), outgoing, consumed)
    incoming, made = _making(coupling, 2)
    inactive = apoz(coupling, statistics) == 1.0
    constant = made & (incoming == 0) & ~_varies_otherwise(coupling)
    for contraction in coupling.contractions:
        moments = _of(contraction, statistics)
        for units in consumed_units(coupling, contraction):
            if moments is None or moments.sampled:  # it may be active where nobody looked
                inactive[units[units != FROZEN]] = False
            if contraction.data_axis is None:  # a hidden state moves without any input
                constant[units[units != FROZEN]] = False
    for name in coupling.graph.handed:  # so does what a loop carries
        for units in coupling.ids.get(name, ()):
            constant[units[units != FROZEN]] = False
    return np.asarray((consumed & (outgoing == 0)) | inactive | constant)


def _making(coupling: Coupling, order: int) -> tuple[FloatArray, BoolArray]:
    """By unit the sum of |w| ** order over the weights that make it, and whether any does; each weight counts once."""
    powers, made = np.zeros(coupling.units), np.zeros(coupling.units, dtype=np.bool_)
    places = {(c.node.input(c.weight), c.output_axis): c for c in coupling.contractions}
    for (weight, axis), contraction in places.items():
        norms = produced_norms(coupling.graph, contraction, order)
        if norms is not None:
            for units in coupling.along(weight, axis):
                _note(units, norms, powers, made)
    return powers, made


def _note(units: npt.NDArray[np.int64], values: FloatArray, total: FloatArray, seen: BoolArray | None = None) -> None:
    free = units != FROZEN
    np.add.at(total, units[free], values[free])
    if seen is not None:
        seen[units[free]] = True


def _varies_otherwise(coupling: Coupling) -> BoolArray:
    """Units that something else than a contraction makes: a table that Gather reads, say, or the caller."""
    weights = {contraction.node.input(contraction.weight) for contraction in coupling.contractions}
    sources = {source for name in weights for source in coupling.graph.sources(name)}
    varies = np.zeros(coupling.units, dtype=np.bool_)
    stored = coupling.graph.initializers.items()
    tables = (name for name, t in stored if name not in sources and np.prod(t.dims) > max(t.dims, default=1))
    for name in (*tables, *coupling.graph.inputs):
        for ids in coupling.ids.get(name, ()):
            varies[ids[ids != FROZEN]] = True
    return varies
