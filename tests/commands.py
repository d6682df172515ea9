"""The command line, run in this process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from graphprune.cli import main

QUICK = ("--runs", "2")
"""Timings enough for tests."""
BY_RULE = {"align": "off", "max_latency_ratio": 1e3}
"""Settings of recipes with which nothing of the machine counts: neither the widths its kernels like nor timings."""
BY_RULE_OPTIONS = ("--align", "off", "--max-latency-ratio", "1000")
"""The same for the command."""


@dataclass(frozen=True)
class Result:
    """What a command gave back."""

    code: int
    out: str
    err: str


def command(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> Result:
    """Run the command, and return its exit code and all that was written, ONNX Runtime's own messages included."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    code = caught.value.code
    assert code is None or isinstance(code, int)
    return Result(code or 0, out, err)
