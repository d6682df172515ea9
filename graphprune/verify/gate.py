"""Gates: limits that a pruned model must keep, decided from figures alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from graphprune.verify.fidelity import Fidelity
from graphprune.verify.latency import Latency
from graphprune.verify.metric import Metric

Relation: TypeAlias = Literal["<=", ">="]


@dataclass(frozen=True)
class Gate:
    """One limit and what was found.

    Attributes
    ----------
    name : str
        The option that asked for it.
    limit : float
    value : float
        What was measured.
    ok : bool
        Whether `value` stands to `limit` as `relation` says.
    relation : {"<=", ">="}
        Whether `limit` is the most or the least that `value` may be.
    """

    name: str
    limit: float
    value: float
    ok: bool
    relation: Relation = "<="


def at_most(name: str, limit: float, value: float) -> Gate:
    """Return a gate that holds when `value` is at most `limit`; a value that is not a number never passes."""
    return Gate(name, limit, value, value <= limit, "<=")


def at_least(name: str, limit: float, value: float) -> Gate:
    """Return a gate that holds when `value` is at least `limit`; a value that is not a number never passes."""
    return Gate(name, limit, value, value >= limit, ">=")


def check_gates(
    *,
    max_latency_ratio: float | None = None,
    min_speedup: float | None = None,
    latency: Latency | None = None,
    max_drop: float | None = None,
    fidelity: Fidelity | None = None,
    held_out: float | None = None,
    metric: Metric | None = None,
) -> tuple[Gate, ...]:
    """Decide the gates that were asked for, each so that anyone can check it from its two numbers.

    The latency gates take the measured ratio itself, not its interval: on a noisy machine leave them room.

    Parameters
    ----------
    max_latency_ratio : float, optional
        The most that latency after over before may be.
    min_speedup : float, optional
        The least that latency before over after may be.
    latency : Latency, optional
        Needed for both.
    max_drop : float, optional
        The most that the metric may lose; without a metric the most that `drop` may be, in [0, 1].
    fidelity : Fidelity, optional
        Needed for `max_drop` where there is no metric.
    held_out : float, optional
        The drop on data that the model was not made from; it counts instead of that of `fidelity`.
    metric : Metric, optional
        What the user's own metric gives for both models.

    Returns
    -------
    tuple of Gate
        One for each limit given.

    Raises
    ------
    ValueError
        When a limit comes without its measurement.
    """
    gates = []
    if max_latency_ratio is not None:
        if latency is None:
            raise ValueError("max_latency_ratio needs the measured latency")
        gates.append(at_most("max-latency-ratio", max_latency_ratio, latency.ratio))
    if min_speedup is not None:
        if latency is None:
            raise ValueError("min_speedup needs the measured latency")
        gates.append(at_least("min-speedup", min_speedup, 1 / latency.ratio))
    if max_drop is not None:
        if metric is None and fidelity is None:
            raise ValueError("max_drop needs the measured fidelity, or a metric")
        gates.append(at_most("max-drop", max_drop, _lost(fidelity, held_out, metric)))
    return tuple(gates)


def not_slower(latency: Latency) -> Gate:
    """Return the gate that holds unless the verdict is slower: what is proven of the ratio must be at most 1."""
    return at_most("not-slower", 1.0, latency.proven)


def finite_outputs(fidelity: Fidelity) -> tuple[Gate, ...]:
    """Return the gate on NaN and infinity where the original has none: one that was missed, or none at all."""
    return (at_most("nonfinite-outputs", 0, fidelity.nonfinite),) if fidelity.nonfinite else ()


def drop(fidelity: Fidelity) -> float:
    """Return how much a model lost, without labels: 0 for nothing.

    The share of samples whose largest class changed; where no output holds classes, the outputs' relative L2
    error. At least 1 when the pruned outputs hold NaN or infinity where the original's do not.
    """
    agreement = fidelity.top1_agreement
    lost = fidelity.relative_l2 if agreement is None else 1 - agreement
    return max(1.0, lost) if fidelity.nonfinite else lost


def _lost(fidelity: Fidelity | None, held_out: float | None, metric: Metric | None) -> float:
    if metric is not None:
        return metric.drop
    assert fidelity is not None
    return drop(fidelity) if held_out is None or fidelity.nonfinite else held_out
