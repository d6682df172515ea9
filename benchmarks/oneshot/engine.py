"""graphprune itself, run as a command in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import onnx
from judge import ROOT, calibration, model_path, top1
from weights import gone

STRUCTURAL = {"structural": "1", "zeros": "0", "both": "auto"}
PEAK_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss
LAST_WORDS = 400  # characters of what a failed run said that are kept


@dataclass(frozen=True)
class Run:
    """One run: top-1 in percent, shares of weights and MACs gone, seconds, megabytes, latency after / before."""

    top1: float | None = None
    gone: float = 0.0
    macs_gone: float = 0.0
    seconds: float = 0.0
    peak: float = 0.0
    latency: float | None = None
    note: str = ""


def prune(model: str, kind: str, amount: float, folder: Path, limit: int) -> Run:
    """Prune a model of the zoo and judge the result; a failure is a Run with its own words as the note."""
    output, report = folder / "pruned.onnx", folder / "pruned.json"
    output.unlink(missing_ok=True)
    arguments = ["--target", str(amount), "--structural", STRUCTURAL[kind], "--calib", str(calibration(model, folder))]
    command = [sys.executable, "-m", "graphprune", "prune", str(model_path(model)), *arguments]
    code, error, seconds, peak = _measured([*command, "-o", str(output), "--report", str(report), "-q"], folder)
    note = f"exit code {code}: {error}" if code else ""
    if not output.exists():
        return Run(seconds=seconds, peak=peak, note=note)
    ledger = json.loads(report.read_text())
    return Run(
        top1(output, model, limit),
        gone(onnx.load(model_path(model)), onnx.load(output)),
        1 - ledger["macs"]["after"] / ledger["macs"]["before"],
        seconds,
        peak,
        ledger["latency"]["ratio"],
        note,
    )


def _measured(command: list[str], folder: Path) -> tuple[int, str, float, float]:
    """Exit code, what it said, seconds and peak megabytes of a command run in the project's root."""
    log = folder / "stderr.txt"
    start = time.perf_counter()
    with log.open("w") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stderr)
        _, status, usage = os.wait4(process.pid, 0)  # this child's own peak, not the largest of all children
    seconds = time.perf_counter() - start
    code = process.returncode = os.waitstatus_to_exitcode(status)
    return code, " ".join(log.read_text().split())[-LAST_WORDS:], seconds, usage.ru_maxrss * PEAK_UNIT / 1e6
