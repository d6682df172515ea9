"""The figures of two models beside each other, as texts: what every table of them shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from graphprune.comparison import Comparison
from graphprune.entries import Change
from graphprune.ledger import Ledger
from graphprune.verify.gate import Gate
from graphprune.verify.latency import Latency
from graphprune.verify.metric import Metric

Row: TypeAlias = "tuple[str, str, str, str]"
"""What it is, before, after, and the change."""


def ledger_rows(ledger: Ledger) -> list[Row]:
    """Return the rows of a run's table."""
    weights = ledger.weights
    return [
        _counts("weights", Change(weights.before, weights.after)),
        _counts("nonzero weights", Change(weights.nonzero_before, weights.nonzero)),
        _counts("MACs", ledger.macs),
        _counts("bytes", ledger.bytes),
        *_latency(ledger.latency),
        *_metric(ledger.metric),
    ]


def comparison_rows(comparison: Comparison) -> list[Row]:
    """Return the rows of a comparison's table."""
    return [
        _counts("weights", comparison.weights),
        _counts("nonzero weights", comparison.nonzero),
        _counts("MACs", comparison.macs),
        _counts("bytes", comparison.bytes),
        *_latency(comparison.latency),
        *_metric(comparison.metric),
    ]


def gate_text(gate: Gate) -> str:
    """Return what a gate asks for and what was found, such as ``1.2 <= 1.1``, which a reader sees is wrong."""
    return f"{gate.value:.6g} {gate.relation} {gate.limit:g}"


def _counts(name: str, change: Change) -> Row:
    percent = f"{change.after / change.before - 1:+.1%}" if change.before else "-"
    return name, f"{change.before:,}", f"{change.after:,}", percent


def _latency(latency: Latency) -> Iterator[Row]:
    low, high = latency.ratio_ci
    how = f"{latency.threads} thread{'s' * (latency.threads > 1)}"
    how += "" if latency.batch is None else f", batch {latency.batch}"
    how += "" if latency.provider == "CPUExecutionProvider" else f", {latency.provider}"
    change = f"x{latency.ratio:.2f} [{low:.2f}, {high:.2f}] {latency.verdict}"
    yield f"latency, {how}", f"{latency.before_ms:.3f} ms", f"{latency.after_ms:.3f} ms", change
    if latency.before is None or latency.after is None:
        return
    before, after = latency.before, latency.after
    change = f"x{after.load_ms / before.load_ms:.2f}" if before.load_ms else "-"
    yield "load", f"{before.load_ms:.1f} ms", f"{after.load_ms:.1f} ms", change
    if before.memory_bytes is not None and after.memory_bytes is not None:
        change = f"x{after.memory_bytes / before.memory_bytes:.2f}" if before.memory_bytes else "-"
        yield "memory", f"{before.memory_bytes / 1e6:.1f} MB", f"{after.memory_bytes / 1e6:.1f} MB", change


def _metric(metric: Metric | None) -> Iterator[Row]:
    if metric is not None:
        yield metric.name, f"{metric.before:.6g}", f"{metric.after:.6g}", f"{-metric.drop:+.6g}"
