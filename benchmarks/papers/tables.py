"""Markdown tables, printed as the rows come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def heading(title: str, columns: Sequence[str]) -> None:
    """Print a title and the head of a table."""
    print(f"\n### {title}\n")
    row(columns)
    row(["---"] * len(columns))


def row(cells: Iterable[object]) -> None:
    """Print one line of a table."""
    print(f"| {' | '.join(str(cell) for cell in cells)} |", flush=True)


def percent(value: float | None, digits: int = 2) -> str:
    """A number of percent; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f} %"


def share(value: float | None) -> str:
    """A fraction as percent."""
    return "-" if value is None else percent(100 * value, 1)


def times(value: float | None, digits: int = 1) -> str:
    """A compression."""
    return "-" if value is None else f"{value:.{digits}f}x"
