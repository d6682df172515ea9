"""Gates: limits that a pruned model must keep, decided from figures alone."""

from __future__ import annotations

from dataclasses import dataclass

from graphprune.verify.fidelity import Fidelity
from graphprune.verify.latency import Latency


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
        Whether `value` is at most `limit`.
    """

    name: str
    limit: float
    value: float
    ok: bool


def check_gates(
    *,
    max_latency_ratio: float | None = None,
    latency: Latency | None = None,
    max_drop: float | None = None,
    fidelity: Fidelity | None = None,
    held_out: float | None = None,
) -> tuple[Gate, ...]:
    """Decide the gates that were asked for.

    Every gate holds when its value is at most its limit, so that anyone can check it from the two numbers. The
    latency gate takes the measured ratio itself, not its interval: on a noisy machine leave it room above 1.

    Parameters
    ----------
    max_latency_ratio : float, optional
        The most that latency after over before may be.
    latency : Latency, optional
        Needed for `max_latency_ratio`.
    max_drop : float, optional
        The most that `drop` may be, in [0, 1].
    fidelity : Fidelity, optional
        Needed for `max_drop`.
    held_out : float, optional
        The drop on data that the model was not made from; it counts instead.

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
        gates.append(_gate("max-latency-ratio", max_latency_ratio, latency.ratio))
    if max_drop is not None:
        if fidelity is None:
            raise ValueError("max_drop needs the measured fidelity")
        gates.append(
            _gate("max-drop", max_drop, drop(fidelity) if held_out is None or fidelity.nonfinite else held_out)
        )
    return tuple(gates)


def drop(fidelity: Fidelity) -> float:
    """Return how much a model lost, without labels: 0 for nothing.

    The share of samples whose largest class changed; where no output holds classes, the outputs' relative L2
    error. At least 1 when the pruned outputs hold NaN or infinity where the original's do not.
    """
    agreement = fidelity.top1_agreement
    lost = fidelity.relative_l2 if agreement is None else 1 - agreement
    return max(1.0, lost) if fidelity.nonfinite else lost


def _gate(name: str, limit: float, value: float) -> Gate:
    return Gate(name, limit, value, value <= limit)
