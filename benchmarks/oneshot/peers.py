"""The peers, each on each model in a process of its own (worker.py), with the interpreter that has them installed."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judge import calibration
from rows import Row

PEERS = ("onnxsim", "Torch-Pruning", "SparseGPT", "magnitude")
WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True)
class Answer:
    """What a peer reached on a row: top-1 in percent by its best variant, or the reason why there is nothing."""

    top1: float | None = None
    variant: str = ""
    gone: float = 0.0
    reason: str = ""


def ask(peer: str, rows: list[Row], python: str, folder: Path, limit: int) -> dict[Row, Answer]:
    """The peer's answers on the single-kind rows of one model."""
    rows = [row for row in rows if row.kind != "both"]
    model = rows[0].model
    command = [python, str(WORKER), peer, model, "--calib", str(calibration(model, folder)), "--limit", str(limit)]
    done = subprocess.run([*command, *map(_key, rows)], check=False, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"row"')]
    found = {line["row"]: _answer(line) for line in lines}
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    broken = Answer(reason=f"exit code {done.returncode}: {last}")
    return {row: found.get(_key(row), broken) for row in rows}


def _answer(line: dict[str, Any]) -> Answer:
    if "reason" in line:
        return Answer(reason=line["reason"])
    return Answer(line["top1"], line["variant"], line["gone"])


def _key(row: Row) -> str:
    return f"{row.kind}:{row.amount}"
