"""Tables for people and JSON for programs, from records alone."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from graphprune.api import Inspection
from graphprune.comparison import Comparison
from graphprune.entries import (
    DeclinedRecord,
    EncodingRecord,
    GroupRecord,
    ReasonRecord,
    RecoveryRecord,
    RoundRecord,
    SpeedRecord,
)
from graphprune.figures import comparison_rows, gate_text, ledger_rows
from graphprune.ledger import Ledger, finite
from graphprune.verify.fidelity import Fidelity
from graphprune.verify.gate import Gate

SHOWN = 3
"""How many names of a long list are printed."""


def to_json(record: Inspection | Comparison) -> str:
    """Return a record as JSON text."""
    return json.dumps(finite(asdict(record)), indent=1, allow_nan=False) + "\n"


def print_ledger(ledger: Ledger, console: Console, *, verbose: bool = False) -> None:
    """Print one table before and after, the gates, and where the files are."""
    weights = ledger.weights
    table = _table("", "before", "after", "change")
    for row in ledger_rows(ledger):
        table.add_row(*map(escape, row))
    console.print(table)
    units = sum(group.size for group in ledger.groups)
    removed = sum(len(group.removed) for group in ledger.groups)
    _say(
        console,
        f"removed {removed:,} of {units:,} units in {len(ledger.groups)} groups, zeroed {weights.zeroed:,} weights: "
        f"sparsity {weights.sparsity:.4f}",
    )
    if ledger.speed is not None:
        _say(console, escape(_speed(ledger.speed)))
    for number, found in enumerate(ledger.rounds, 1):
        _say(console, _round(number, found))
    _say(console, _proof(ledger))
    for name, change in ledger.resized.items():
        _say(console, escape(f"resized {name}: {_shape(change.before)} -> {_shape(change.after)}"))
    _print_packed(ledger, console)
    _print_encodings(ledger.encodings, console)
    _print_fidelity(ledger.fidelity, ledger.calibration.source, console)
    _print_recovery(ledger.recovery, console)
    _print_gates(ledger.gates, ledger.notes, console)
    if verbose:
        _print_groups(ledger.groups, console, "removed")
        _print_declined(ledger.reasons, ledger.declined, console, shown=sys.maxsize)
    if ledger.output.path:
        _say(console, f"wrote {escape(ledger.output.path)}")


def _speed(speed: SpeedRecord) -> str:
    cut = f", {len(speed.branches)} residual branches cut off" if speed.branches else ""
    return f"chosen for {speed.asked:g} times the speed: predicted {speed.predicted:.2f}{cut}"


def _round(number: int, found: RoundRecord) -> str:
    text = f"round {number}: trained {found.nonzero:,} weights for {found.seconds:.0f} s"
    if found.distillation is not None:
        learnt = found.distillation
        text += f" ({learnt['epochs']} epochs, best after {learnt['best']}, learning rate {learnt['learning_rate']:g})"
    if found.before is not None and found.after is not None:
        text += f", drop {found.before:.4f} -> {found.after:.4f}"
    return text


def print_inspection(inspection: Inspection, console: Console, *, verbose: bool = False) -> None:
    """Print the groups, and what is frozen, by reason."""
    _say(
        console,
        f"{inspection.weights:,} weights, {inspection.macs:,} MACs, {len(inspection.groups)} groups of "
        f"{sum(group.size for group in inspection.groups):,} units",
    )
    _print_groups(inspection.groups, console, "over the rule", axes=verbose)
    _print_declined(inspection.reasons, inspection.declined, console, shown=sys.maxsize if verbose else SHOWN)
    if any(reason.reason.startswith(("graph input", "graph output")) for reason in inspection.reasons):
        _say(
            console, "--allow-resize NAME lets a graph input or output lose positions, IN=OUT a state that is fed back"
        )
    _print_gates([], inspection.notes, console)


def print_comparison(comparison: Comparison, console: Console, *, verbose: bool = False) -> None:
    """Print both models beside each other."""
    table = _table("", "before", "after", "change")
    for row in comparison_rows(comparison):
        table.add_row(*map(escape, row))
    console.print(table)
    _print_fidelity(comparison.fidelity, "the inputs", console)
    if verbose:
        for output in comparison.fidelity.outputs:
            _say(
                console, f"  {escape(output.name)}: relative L2 {output.relative_l2:.4g}, max abs {output.max_abs:.4g}"
            )
    _print_gates(comparison.gates, comparison.notes, console)


def _say(console: Console, text: str) -> None:
    """Print a line as it is, however narrow the terminal."""
    console.print(text, highlight=False, soft_wrap=True)


def _proof(ledger: Ledger) -> str:
    constant, outputs = len(ledger.equivalence.constant), len(ledger.fidelity.outputs)
    if constant and constant == outputs:
        return "proof: none, as every output is constant on the calibration data"
    aside = f", {constant} of {outputs} outputs aside, which are constant" if constant else ""
    return f"proof: relative error {ledger.equivalence.max_rel:.1e} against the masked original{aside}"


def _shape(extents: Iterable[int | str | None]) -> str:
    return f"[{', '.join('?' if extent is None else str(extent) for extent in extents)}]"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place == 0 else "right", overflow="fold")
    return table


def _print_recovery(recovery: RecoveryRecord | None, console: Console) -> None:
    """Tell what a trial showed on data that it was not computed from."""
    if recovery is None:
        return
    agreement = "" if recovery.agreement is None else f", {recovery.agreement:.2%} of answers the same"
    where = (
        "on held-out samples" if recovery.held_out else "on the samples it was computed from (too few to hold any out)"
    )
    _say(console, f"{where}: error {recovery.measured_l2:.4f}, predicted {recovery.predicted_l2:.4f}{agreement}")


def _print_packed(ledger: Ledger, console: Console) -> None:
    """Tell which weights are packed, and what the whole model gains."""
    if ledger.packed_latency is None:
        return
    low, high = ledger.packed_latency.ratio_ci
    names = _some([record.weight for record in ledger.packed])
    count = len(ledger.packed)
    _say(
        console,
        escape(
            f"packed {count} weight{'s' * (count > 1)} ({names}): latency x{ledger.packed_latency.ratio:.2f} "
            f"[{low:.2f}, {high:.2f}] of the same unpacked"
        ),
    )


def _print_encodings(encodings: Sequence[EncodingRecord], console: Console) -> None:
    """Tell how weights are stored, and why some are not smaller."""
    if not encodings:
        return
    counts = Counter(record.form for record in encodings)
    rounded = sum(record.values == "float16" and record.after < record.before for record in encodings)
    before, after = (sum(getattr(record, side) for record in encodings) for side in ("before", "after"))
    _say(
        console,
        f"stored {counts['gaps']} weights as gaps, {counts['bitmap']} as bitmaps, {counts['dense']} dense"
        f"{f', {rounded} as float16' if rounded else ''}: {before:,} bytes -> {after:,}",
    )
    for reason, count in Counter(record.reason for record in encodings if record.reason).items():
        _say(console, escape(f"left dense: {count} weight{'s' * (count > 1)}: {reason}"))


def _print_fidelity(fidelity: Fidelity, source: str, console: Console) -> None:
    agreement = "" if fidelity.top1_agreement is None else f", {fidelity.top1_agreement:.2%} of answers the same"
    _say(console, f"outputs on {escape(source)}: relative L2 error {fidelity.relative_l2:.4f}{agreement}")
    if fidelity.nonfinite:
        _say(console, f"[red]{fidelity.nonfinite} output values are NaN or infinite[/red]")


def _print_gates(gates: Iterable[Gate], notes: Iterable[str], console: Console) -> None:
    for gate in gates:
        word = "[green]held[/green]" if gate.ok else "[red]MISSED[/red]"
        _say(console, f"gate {gate.name}: {gate_text(gate)}: {word}")
    for note in notes:
        _say(console, escape(note))


def _print_groups(groups: Iterable[GroupRecord], console: Console, named: str, *, axes: bool = False) -> None:
    """Print a line a group; ``named`` says what became of the units that its record calls removed."""
    table = _table("group", "units", "criterion", "mean", "max", named)
    for group in groups:
        scores = np.array(group.score)
        table.add_row(
            escape(group.name),
            str(group.size),
            group.criterion,
            f"{scores.mean():.3g}",
            f"{scores.max():.3g}",
            str(len(group.removed)),
        )
    if table.row_count:
        console.print(table)
    if axes:
        for group in groups:
            _say(console, escape(f"{group.name}: " + ", ".join(f"{name} axis {axis}" for name, axis in group.axes)))


def _print_declined(
    reasons: Iterable[ReasonRecord], declined: Iterable[DeclinedRecord], console: Console, *, shown: int = SHOWN
) -> None:
    """Print why axes were left alone: each reason, who asks for it, and the first of its axes."""
    axes: dict[tuple[str, str], list[DeclinedRecord]] = {}
    for record in declined:
        axes.setdefault((record.op, record.reason), []).append(record)
    if axes:
        _say(console, "left alone, with the share of all weights (a weight counts for every reason that holds it):")
    for reason in reasons:
        found = axes[reason.op, reason.reason]
        asker = f" ({reason.op} {_some(reason.nodes)})" if reason.nodes else ""
        _say(console, escape(f"{reason.share:6.1%}  {reason.reason}{asker}"))
        for record in found[:shown]:
            asker = f", {record.node}" if len(reason.nodes) > 1 else ""
            place = f"{record.tensor} axis {record.axis}: {record.positions} position{'s' * (record.positions > 1)}"
            _say(console, escape(f"        {place}, {record.share:.1%}{asker}"))
        if len(found) > shown:
            _say(console, f"        and {len(found) - shown} more axes")


def _some(names: Sequence[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
