"""What continuous integration reads: gates as JUnit XML, and as a Markdown summary."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from graphprune.comparison import Comparison
from graphprune.errors import GraphPruneError, RecipeError
from graphprune.figures import Row, comparison_rows, gate_text, ledger_rows
from graphprune.ir.publication import write_text
from graphprune.ledger import Ledger
from graphprune.output import check_target
from graphprune.verify.gate import Gate

STEP_SUMMARY = "GITHUB_STEP_SUMMARY"
"""The environment variable in which GitHub names the file of a step's summary."""

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold in any form."""


@dataclass(frozen=True)
class Outcome:
    """What came out of a run: its gates, its figures, and what the user must be told."""

    gates: Sequence[Gate]
    rows: Sequence[Row]
    notes: Sequence[str]


def outcome(found: Ledger | Comparison) -> Outcome:
    """Return what came out of a run or a comparison."""
    rows = ledger_rows(found) if isinstance(found, Ledger) else comparison_rows(found)
    return Outcome(found.gates, rows, found.notes)


def junit(title: str, gates: Sequence[Gate], seconds: float = 0.0, error: Exception | None = None) -> str:
    """Return JUnit XML with a test case for each gate, or with one that holds an error.

    Parameters
    ----------
    title : str
        Name of the test suite.
    gates : sequence of Gate
    seconds : float, default 0
        How long it took, at least 0.
    error : Exception, optional
        What ended the run before there were gates.

    Returns
    -------
    str
    """
    failed = sum(not gate.ok for gate in gates)
    counts = {"tests": len(gates) + (error is not None), "failures": failed, "errors": int(error is not None)}
    totals = {**{name: str(count) for name, count in counts.items()}, "time": f"{seconds:.3f}"}
    root = ET.Element("testsuites", {"name": "graphprune", **totals})
    suite = ET.SubElement(root, "testsuite", {"name": _legal(title), **totals, "skipped": "0"})
    for gate in gates:
        case = ET.SubElement(suite, "testcase", classname="graphprune", name=gate.name, time="0.000")
        if not gate.ok:
            message = f"gate {gate.name} was missed: {gate_text(gate)} does not hold"
            ET.SubElement(case, "failure", message=message, type="gate").text = message
    if error is not None:
        case = ET.SubElement(suite, "testcase", classname="graphprune", name="run", time=totals["time"])
        text = _legal(str(error))
        what = text.splitlines()[0] if text else type(error).__name__
        ET.SubElement(case, "error", message=what, type=type(error).__name__).text = text
    ET.indent(root, " ")
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def markdown(title: str, found: Outcome) -> str:
    """Return a summary in Markdown: the gates, then the figures."""
    ok = all(gate.ok for gate in found.gates)
    gates = [
        (gate.name, f"{gate.value:.6g}", f"{gate.relation} {gate.limit:g}", "held" if gate.ok else "**MISSED**")
        for gate in found.gates
    ]
    parts = [f"### {_inline(title)}: {'passed' if ok else 'failed'}"]
    parts += [_table(("gate", "value", "limit", ""), gates)] if gates else []
    parts += [_table(("", "before", "after", "change"), found.rows)]
    parts += ["\n".join(f"- {_inline(note)}" for note in found.notes)] if found.notes else []
    return "\n\n".join(parts) + "\n\n"


def error_markdown(title: str, error: Exception) -> str:
    """Return a summary in Markdown of a run that an error ended."""
    # An indented block holds any text: a fence could be closed by what is in it.
    return f"### {_inline(title)}: error\n\n" + "".join(f"    {line}\n" for line in str(error).splitlines()) + "\n"


class Files:
    """The files for continuous integration that a command was asked for, checked before any work is done.

    Parameters
    ----------
    title : str
        What was run.
    junit : path-like, optional
        Where the JUnit XML goes; written atomically.
    summary : path-like, optional
        The file that the Markdown summary is appended to, as GitHub wants it.
    taken : sequence of path-like, optional
        Inputs and other outputs, which must not be written over.

    Raises
    ------
    RecipeError
        When a file cannot be written, or is one of those taken.
    """

    def __init__(
        self,
        title: str,
        junit: str | os.PathLike[str] | None,
        summary: str | os.PathLike[str] | None,
        taken: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        self.title = title
        self.junit = junit
        self.summary = summary
        self.start = time.perf_counter()
        used = {os.path.realpath(path): path for path in taken}
        for option, path in (("--junit", junit), ("--summary", summary)):
            if path is None:
                continue
            if not os.fspath(path):
                raise RecipeError("the output has no name", where=option, hint="name a file")
            if os.path.realpath(path) in used:
                raise RecipeError(
                    "the output would be written over another file of the run",
                    where=f"{option} {os.fspath(path)}",
                    hint="name another file",
                )
            check_target(Path(path), [other for other in taken if os.path.isfile(other)])
            used[os.path.realpath(path)] = path

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Tell of an error that ends the block, and raise it again."""
        try:
            yield
        except Exception as error:
            with suppress(GraphPruneError):  # the first error is the one to know of
                self._write(junit(self.title, (), self._seconds, error), error_markdown(self.title, error))
            raise

    def write(self, found: Ledger | Comparison) -> None:
        """Write what came out.

        Raises
        ------
        RecipeError
            When a file cannot be written.
        """
        come_out = outcome(found)
        self._write(junit(self.title, come_out.gates, self._seconds), markdown(self.title, come_out))

    @property
    def _seconds(self) -> float:
        return time.perf_counter() - self.start

    def _write(self, xml: str, summary: str) -> None:
        if self.junit is not None:
            write_text(xml, self.junit)
        if self.summary is None:
            return
        try:
            with open(self.summary, "a", encoding="utf-8") as file:
                file.write(summary)
        except OSError as error:
            raise RecipeError("the summary cannot be written", where=str(self.summary), why=str(error)) from error


def _legal(text: str) -> str:
    return _NOT_XML.sub("�", text)


def _inline(text: str) -> str:
    """Return a text as one line of Markdown that shows it as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", " ".join(text.split()))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for row in rows:
        lines.append("| " + " | ".join(cell if cell == "**MISSED**" else _inline(cell) for cell in row) + " |")
    return "\n".join(lines)
