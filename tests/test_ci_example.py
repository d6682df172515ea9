"""The workflow in examples/ci fails on a slower model and passes otherwise."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
WORKFLOW = (ROOT / "examples" / "ci" / "model-gate.yml").read_text(encoding="utf-8")
CHANNELS = 64


def with_redundant_layers(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same function with three convolutions in front that give back the image and take longer than the rest."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    image, graph = result.graph.input[0].name, result.graph
    rng = np.random.default_rng(0)
    widths = [(CHANNELS, 1), (CHANNELS, CHANNELS), (1, CHANNELS)]
    names = [image, "wide", "wider", "again"]
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == image:
                node.input[place] = names[-1]
    layers = []
    for step, (outputs, inputs) in enumerate(widths):
        # The image goes through channel 0; the others are computed for nothing.
        weight = rng.normal(0, 0.1, (outputs, inputs, 3, 3)).astype(np.float32)
        weight[0] = 0
        weight[0, 0, 1, 1] = 1
        graph.initializer.append(numpy_helper.from_array(weight, f"redundant_{step}"))
        given = [names[step], f"redundant_{step}"]
        layers.append(helper.make_node("Conv", given, [names[step + 1]], pads=[1, 1, 1, 1]))
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*layers, *kept])
    onnx.checker.check_model(result)
    return result


@pytest.fixture(name="repository")
def _repository(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    shutil.copy(ROOT / "models" / "digits_calib.npz", tmp_path / "models" / "calib.npz")
    program = tmp_path / "bin" / "graphprune"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m graphprune "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    return tmp_path


def gate(repository: Path, released: onnx.ModelProto, candidate: onnx.ModelProto) -> tuple[int, str]:
    """Run the command of the workflow; return its exit code and what it wrote to stderr."""
    onnx.save(released, repository / "models" / "released.onnx")
    onnx.save(candidate, repository / "models" / "candidate.onnx")
    (block,) = re.findall(r"run: \|\n((?: {10}.*\n)+)", WORKFLOW)
    environment = {
        **os.environ,
        "PATH": f"{repository / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "GITHUB_STEP_SUMMARY": str(repository / "summary.md"),
    }
    shell = ["bash", "-e", "-o", "pipefail", "-c", textwrap.dedent(block)]
    done = subprocess.run(
        shell, cwd=repository, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    return done.returncode, done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="the commands of a workflow run in bash")
def test_the_workflow_fails_on_a_slow_down_and_passes_otherwise(repository: Path) -> None:
    fast = onnx.load(ROOT / "models" / "digits.onnx")
    slow = with_redundant_layers(fast)
    code, said = gate(repository, fast, slow)
    assert code == 1, said
    assert "error: gate max-latency-ratio was missed" in said
    suite = ET.parse(repository / "gates.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "0")
    assert [case.get("name") for case in suite if case.find("failure") is not None] == ["max-latency-ratio"]
    assert "failed" in (repository / "summary.md").read_text(encoding="utf-8")

    code, said = gate(repository, slow, fast)
    assert code == 0, said
    suite = ET.parse(repository / "gates.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("2", "0")
    summary = (repository / "summary.md").read_text(encoding="utf-8")
    assert summary.index("failed") < summary.index("passed"), "a step's summary is appended to"
