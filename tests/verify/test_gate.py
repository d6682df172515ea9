from __future__ import annotations

import pytest

from graphprune.verify.fidelity import Fidelity
from graphprune.verify.gate import Gate, check_gates, drop
from graphprune.verify.latency import Latency


def latency(ratio: float) -> Latency:
    return Latency(1, 50, 1.0, ratio, ratio, (ratio - 0.1, ratio + 0.1), 0.99, "same")


def fidelity(relative_l2: float = 0.25, agreement: float | None = None, nonfinite: int = 0) -> Fidelity:
    return Fidelity((), 1, relative_l2, agreement, nonfinite)


@pytest.mark.parametrize(("ratio", "ok"), [(0.79, True), (0.8, True), (0.81, False)])
def test_latency_gate(ratio: float, ok: bool) -> None:
    assert check_gates(max_latency_ratio=0.8, latency=latency(ratio)) == (Gate("max-latency-ratio", 0.8, ratio, ok),)


def test_drop_is_lost_agreement_else_relative_error() -> None:
    assert drop(fidelity(agreement=0.75)) == 0.25
    assert drop(fidelity(relative_l2=0.5)) == 0.5
    assert drop(fidelity(agreement=1.0, nonfinite=1)) == 1.0
    assert drop(fidelity(relative_l2=3.0, nonfinite=1)) == 3.0


@pytest.mark.parametrize(("limit", "ok"), [(0.25, True), (0.2, False)])
def test_drop_gate(limit: float, ok: bool) -> None:
    assert check_gates(max_drop=limit, fidelity=fidelity()) == (Gate("max-drop", limit, 0.25, ok),)


def test_a_nan_never_passes() -> None:
    (gate,) = check_gates(max_drop=0.5, fidelity=fidelity(relative_l2=float("nan")))
    assert not gate.ok


def test_only_what_was_asked_for_is_decided() -> None:
    assert check_gates(latency=latency(2.0), fidelity=fidelity()) == ()
    both = check_gates(max_latency_ratio=1.0, latency=latency(2.0), max_drop=1.0, fidelity=fidelity())
    assert [(gate.name, gate.ok) for gate in both] == [("max-latency-ratio", False), ("max-drop", True)]


def test_a_limit_needs_its_measurement() -> None:
    with pytest.raises(ValueError, match="max_latency_ratio"):
        check_gates(max_latency_ratio=1.0)
    with pytest.raises(ValueError, match="max_drop"):
        check_gates(max_drop=1.0)
