"""The Markdown table, and the notes under it."""

from __future__ import annotations

from engine import Run
from peers import PEERS, Answer
from rows import Row

HEAD = ("model", "kind", "amount", "original", "graphprune")
TAIL = ("asked", "go for", "verdict", "weights gone", "MACs gone", "seconds", "peak MB", "latency")

SLACK = 0.002  # graphprune counts the weights that take part; here all that a node reads are counted


def heading(peers: bool) -> str:
    columns = [*HEAD, *(PEERS if peers else ()), *TAIL]
    return _line(columns) + "\n" + _line(["---"] * len(columns))


def line(row: Row, original: float, run: Run, answers: dict[str, Answer] | None, asked: float | None) -> str:
    """One row of the table; `asked` is the better single kind's top-1 where the row names no figure of its own."""
    asked = row.asked if row.asked is not None else asked
    others = [] if answers is None else [_number(answers[peer].top1) if peer in answers else "-" for peer in PEERS]
    tail = [_number(asked), _number(row.goal), _verdict(run, asked, row), f"{run.gone:.1%}", f"{run.macs_gone:.1%}"]
    latency = f"{run.latency:.2f}" if row.kind == "both" and run.latency is not None else ""
    cost = [f"{run.seconds:.0f}", f"{run.peak:.0f}", latency]
    return _line(
        [row.model, row.kind, f"{row.amount:.0%}", _number(original), _number(run.top1), *others, *tail, *cost]
    )


def note(model: str, tool: str, said: dict[str, str]) -> str:
    """What a tool said on each setting of one model, as one line: once where it is the same on all of them."""
    texts = list(said.values())
    if len(set(texts)) > 1:
        texts = [f"{setting}: {text}" for setting, text in said.items()]
    return f"- {model}, {tool}: " + "; ".join(dict.fromkeys(texts))


def said(answer: Answer) -> str:
    """The reason why there is no number, or the variant that the number is of."""
    return answer.reason or f"{answer.variant} ({answer.gone:.1%} of weights gone)"


def _verdict(run: Run, asked: float | None, row: Row) -> str:
    """What is met; a row of both kinds must be faster than the original too."""
    if run.top1 is None or asked is None:
        return "-"
    if run.gone < row.amount - SLACK:
        return "target missed"
    if row.goal is not None and run.top1 >= row.goal:
        return "go for"
    if run.top1 < asked:
        return f"short by {asked - run.top1:.1f}"
    if row.kind == "both" and (run.latency is None or run.latency >= 1):
        return "no faster"
    return "asked"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
