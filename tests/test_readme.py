"""Every command and example of README.md runs, and prints what README.md says it prints."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from graphprune.cli import prune_command
from graphprune.ir.kernels import preferred_widths

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
INSTALL = "pip install . && "
SHOWN_BLOCK = 16
"""Channels in a block of the kernels (AVX-512) of the machine whose output README.md shows."""
TEST_COMMAND = 'pip install torch==2.13.0 -e ".[dev]" && python -m pytest -n auto'


def blocks(language: str) -> list[str]:
    """Fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the shipped models, where commands may write."""
    shutil.copytree(ROOT / "models", tmp_path / "models")
    return tmp_path


def run(command: str, folder: Path) -> str:
    """Run one command of README.md with this interpreter's graphprune; return what it prints to stderr."""
    arguments = command.split()
    assert arguments[0] == "graphprune", command
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stderr


def stable(text: str) -> list[str]:
    """Words that are the same on every machine: without timings, and rounding errors of the proof."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(("latency", "load", "memory", "proof"))]
    return " ".join(lines).split()


def alike(one: str, other: str) -> bool:
    """Whether two words are the same, as far as processors allow.

    Errors are 1 % off between them, whose kernels round in other ways. With other blocks of channels other units go:
    only what is no figure is the same there.
    """
    if preferred_widths().block != SHOWN_BLOCK and all(re.search(r"\d", word) for word in (one, other)):
        return True
    errors = [re.fullmatch(r"(0\.\d{4}),?", word) for word in (one, other)]
    if all(errors):
        return float(one.rstrip(",")) == pytest.approx(float(other.rstrip(",")), rel=0.03)
    return one == other


def test_the_commands_run_in_order_and_the_first_prints_what_is_shown(checkout: Path) -> None:
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert commands.pop(1) == TEST_COMMAND  # run by .ci/run: it is what runs this test
    assert commands[0].startswith(INSTALL)
    printed = [run(command.removeprefix(INSTALL), checkout) for command in commands]
    (shown,) = blocks("text")
    words = list(zip(stable(printed[0]), stable(shown), strict=True))
    assert [pair for pair in words if not alike(*pair)] == []


def test_continuous_integration_runs_the_test_command_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "<!-- test command -->" in script
    assert README.count("<!-- test command -->") == 1
    assert README.split("<!-- test command -->")[1].splitlines()[2] == TEST_COMMAND


def test_the_python_examples_run(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(checkout)
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert (checkout / "tuned.onnx").is_file()


def test_the_options_listed_are_the_options_there_are() -> None:
    there = {name for parameter in prune_command.params for name in parameter.opts if name.startswith("--")}
    listed = set(re.findall(r"`(--[a-z-]+)", README)) | {"--output", "--quiet", "--verbose"}
    assert there <= listed
    assert listed <= there | {"--version"}
