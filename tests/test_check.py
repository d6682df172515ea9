"""``graphprune check``, and what prune, compare and check share: gates, metric, batch, provider, JUnit XML, summary."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from graphprune import Recipe, RecipeError, prune
from graphprune.api import as_model
from graphprune.ci import Files, Outcome, error_markdown, junit, markdown
from graphprune.comparison import check
from graphprune.verify import pinning
from graphprune.verify.gate import at_least, at_most
from tests import small
from tests.commands import QUICK, command

METRICS = """
import os
import numpy as np

def parameters(session):
    return -float(os.path.getsize(session._model_path)) if session._model_path else 0.5

def answer(session):
    value = session.run(None, {"image": np.ones((1, 2, 6, 6), np.float32)})[0]
    return np.float32(np.abs(value).sum() * 0 + 0.25)

def worse(session, seen=[]):
    seen.append(0)
    return 93.5 if len(seen) % 2 else 90.0

def broken(session):
    raise KeyError("labels")

def leaves(session):
    raise SystemExit(0)

def text(session):
    return "good"

def truth(session):
    return True

def nan(session):
    return float("nan")

number = 3
"""


@pytest.fixture(name="net")
def _net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return small.write(tmp_path)


@pytest.fixture(name="metrics")
def _metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "the_metrics.py").write_text(METRICS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "the_metrics", raising=False)
    return "the_metrics"


# -- check -------------------------------------------------------------------------------------------------------


def test_without_limits_it_gates_on_not_being_slower(net: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    path, data = net
    found = command(capfd, "check", path, path, "--calib", data, "--json")
    (gate,) = json.loads(found.out)["gates"]
    assert (gate["name"], gate["limit"], gate["relation"]) == ("not-slower", 1.0, "<=")
    assert gate["ok"] == (gate["value"] <= 1) == (found.code == 0)
    assert "gate not-slower" in found.err


def test_limits_given_are_the_gates(net: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    path, data = net
    limits = ("--max-latency-ratio", "50", "--min-speedup", "0.02", "--max-drop", "0")
    found = command(capfd, "check", path, path, "--calib", data, "--json", "-q", *limits, *QUICK)
    values = json.loads(found.out)
    assert (found.code, found.err) == (0, "")
    names = [(gate["name"], gate["relation"], gate["ok"]) for gate in values["gates"]]
    assert names == [("max-latency-ratio", "<=", True), ("min-speedup", ">=", True), ("max-drop", "<=", True)]
    assert values["gates"][1]["value"] == 1 / values["latency"]["ratio"]
    missed = command(capfd, "check", path, path, "--calib", data, "-q", "--min-speedup", "50", *QUICK)
    assert missed.code == 1
    assert "error: gate min-speedup was missed" in missed.err
    assert ">= 50 does not hold" in missed.err


def test_values_that_are_not_finite_miss_a_gate_of_their_own(tmp_path: Path) -> None:
    model = small.network()
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    bias = next(t for t in broken.graph.initializer if list(t.dims) == [5])
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(5, np.nan, np.float32), bias.name))
    recipe = Recipe(target=0.0, runs=2, max_latency_ratio=50.0)
    found = check(as_model(model), as_model(broken), recipe, small.calibration(model))
    assert [(gate.name, gate.ok) for gate in found.gates] == [("max-latency-ratio", True), ("nonfinite-outputs", False)]


# -- metric ------------------------------------------------------------------------------------------------------


def test_the_drop_is_the_metrics(net: tuple[Path, Path], metrics: str, capfd: pytest.CaptureFixture[str]) -> None:
    path, data = net
    given = ("--calib", data, "--json", "--metric", f"{metrics}:worse", *QUICK)
    found = command(capfd, "check", path, path, "--max-drop", "3.4", *given)
    assert found.code == 1
    values = json.loads(found.out)
    assert values["metric"] == {"name": f"{metrics}:worse", "before": 93.5, "after": 90.0, "drop": 3.5}
    assert [(gate["value"], gate["limit"]) for gate in values["gates"]] == [(3.5, 3.4)]
    assert f"{metrics}:worse" in found.err
    assert command(capfd, "compare", path, path, "--max-drop", "3.5", *given).code == 0
    alone = command(capfd, "check", path, path, "--max-latency-ratio", "50", *given)
    assert (alone.code, json.loads(alone.out)["metric"]["drop"]) == (0, 3.5)


def test_prune_gates_the_result_on_the_metric(
    net: tuple[Path, Path], metrics: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, data = net
    given = ("--calib", data, "--metric", f"{metrics}:answer", "--max-drop", "0", "--no-recover", *QUICK)
    assert command(capfd, path, "--target", "0.9", *given).code == 0
    ledger = json.loads((tmp_path / "net.pruned.json").read_text())
    assert ledger["metric"] == {"name": f"{metrics}:answer", "before": 0.25, "after": 0.25, "drop": 0.0}
    assert [gate["name"] for gate in ledger["gates"]] == ["target", "max-drop"]
    assert ledger["fidelity"]["relative_l2"] > 0
    searched = command(
        capfd, path, "--calib", data, "--metric", f"{metrics}:answer", "--max-drop", "0.1", "--json", *QUICK
    )
    assert searched.code == 0
    # The metric says that nothing is ever lost, so the most goes that was tried.
    assert json.loads(searched.out)["weights"]["sparsity"] > 0.9


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("broken", "KeyError: 'labels'"),
        ("leaves", "SystemExit: 0"),
        ("text", "it is a str"),
        ("truth", "it is a bool"),
        ("nan", "no finite number"),
        ("number", "it is a int"),
        ("missing", "has no attribute 'missing'"),
    ],
)
def test_a_metric_that_cannot_be_used_is_exit_2(
    function: str, words: str, net: tuple[Path, Path], metrics: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path, data = net
    found = command(capfd, "check", path, path, "--calib", data, "--metric", f"{metrics}:{function}", *QUICK)
    assert found.code == 2, found.err
    assert words in found.err
    assert f"{metrics}:{function}" in found.err
    assert "what to do" in found.err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"metric": "accuracy"}, "module:function"),
        ({"metric": ""}, "module:function"),
        ({"max_drop": 1.5}, "--metric"),
        ({"max_drop": float("nan"), "metric": "a:b"}, "--max-drop"),
        ({"min_speedup": 0}, "--min-speedup"),
        ({"batch": 0}, "--batch"),
        ({"batch": 2.0}, "--batch"),
        ({"provider": ""}, "--provider"),
    ],
)
def test_bad_values_are_named(given: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Recipe(target=0.5, **given)  # type: ignore[arg-type]


def test_a_drop_above_1_is_one_of_a_metric() -> None:
    assert Recipe(max_drop=2.5, metric="a:b").searches
    with pytest.raises(RecipeError, match="--metric"):
        Recipe(max_drop=2.5)


# -- batch, provider, memory and load time -----------------------------------------------------------------------


def test_latency_is_measured_at_the_batch_asked_for(net: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    path, data = net
    found = command(capfd, "compare", path, path, "--calib", data, "--json", "--batch", "64", *QUICK)
    assert found.code == 0
    assert "latency, 1 thread, batch 64" in found.err
    latency = json.loads(found.out)["latency"]
    assert (latency["batch"], latency["provider"]) == (64, "CPUExecutionProvider")
    for side in ("before", "after"):
        assert latency[side]["load_ms"] > 0
    _, ledger = prune(path, Recipe(channels=0.25, runs=2, batch=4), data)
    assert ledger.latency.batch == 4
    assert ledger.latency.before is not None


def test_a_batch_that_the_model_does_not_take_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, data = small.write(tmp_path, small.network(batch=1))
    for given in ((path, "--target", "0.5"), ("check", path, path)):
        found = command(capfd, *given, "--calib", data, "--batch", "8", *QUICK)
        assert found.code == 2
        assert "--batch 8, input 'image' float32 [1, 2, 6, 6]" in found.err
    assert command(capfd, "check", path, path, "--calib", data, "--batch", "1", "--max-drop", "0", *QUICK).code == 0


def test_a_provider_is_one_that_is_installed(net: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    path, data = net
    found = command(capfd, "check", path, path, "--calib", data, "--provider", "NoSuchExecutionProvider", *QUICK)
    assert found.code == 2
    assert "CPUExecutionProvider" in found.err
    others = [name for name in ort.get_available_providers() if name == "AzureExecutionProvider"]
    for name in others:  # it takes no node, and so all of them fall to the CPU
        found = command(capfd, "compare", path, path, "--calib", data, "--provider", name, "--json", *QUICK)
        assert found.code == 0, found.err
        assert json.loads(found.out)["latency"]["provider"] == name


def test_threads_are_pinned_to_different_cores_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pinning.cores_for(1) == ()
    assert pinning.cores_for(10**6) == ()
    monkeypatch.setattr(pinning.sys, "platform", "linux")
    monkeypatch.setattr(pinning.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(pinning, "_siblings", lambda core: frozenset({core, core ^ 1}))
    assert pinning.cores_for(2) == (0, 2)
    assert pinning.cores_for(3) == (0, 2, 1)
    assert pinning.cores_for(5) == ()
    monkeypatch.undo()
    if not hasattr(pinning.os, "sched_getaffinity"):
        return
    before = pinning.os.sched_getaffinity(0)
    with pinning.pinned((min(before),)):
        assert pinning.os.sched_getaffinity(0) == {min(before)}
    assert pinning.os.sched_getaffinity(0) == before


# -- JUnit XML and summary ---------------------------------------------------------------------------------------

GATES = (at_most("max-drop", 0.1, 0.25), at_least("min-speedup", 1.2, 1.5))


def test_junit_has_a_case_for_each_gate() -> None:
    root = ET.fromstring(junit('a "suite" <of> \x00 & more', GATES, 1.5))
    (suite,) = root
    for element in (root, suite):
        assert {name: element.get(name) for name in ("tests", "failures", "errors", "time")} == {
            "tests": "2",
            "failures": "1",
            "errors": "0",
            "time": "1.500",
        }
    assert suite.get("name") == 'a "suite" <of> � & more'
    assert [(case.tag, case.get("classname"), case.get("name"), len(case)) for case in suite] == [
        ("testcase", "graphprune", "max-drop", 1),
        ("testcase", "graphprune", "min-speedup", 0),
    ]
    assert suite[0][0].get("message") == "gate max-drop was missed: 0.25 <= 0.1 does not hold"


def test_junit_and_summary_tell_of_an_error() -> None:
    error = RecipeError("it is <wrong>", where="a\x1bb", hint="do | this")
    (suite,) = ET.fromstring(junit("suite", (), 0.5, error))
    assert (suite.get("tests"), suite.get("errors"), suite.get("failures")) == ("1", "1", "0")
    assert (suite[0][0].tag, suite[0][0].get("message")) == ("error", "it is <wrong>")
    assert "do | this" in (suite[0][0].text or "")
    assert error_markdown("a|b", error).splitlines()[:3] == ["### a\\|b: error", "", "    it is <wrong>"]


def test_a_summary_is_a_table_of_gates_and_one_of_figures() -> None:
    text = markdown("graphprune check a_b.onnx", Outcome(GATES, [("weights", "10", "5", "-50.0%")], ["a | note"]))
    assert text.splitlines() == [
        "### graphprune check a\\_b.onnx: failed",
        "",
        "| gate | value | limit |  |",
        "| --- | ---: | ---: | ---: |",
        "| max-drop | 0.25 | \\<= 0.1 | **MISSED** |",
        "| min-speedup | 1.5 | \\>= 1.2 | held |",
        "",
        "|  | before | after | change |",
        "| --- | ---: | ---: | ---: |",
        "| weights | 10 | 5 | -50.0% |",
        "",
        "- a \\| note",
        "",
    ]


def test_files_are_written_whatever_comes_out(
    net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = net
    xml, summary = tmp_path / "gates.xml", tmp_path / "summary.md"
    given = ("--calib", data, "--junit", xml, "-q", *QUICK)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    assert command(capfd, "check", path, path, "--min-speedup", "50", *given).code == 1
    assert ET.parse(xml).getroot().get("failures") == "1"
    assert "**MISSED**" in summary.read_text(encoding="utf-8")
    assert command(capfd, "check", path, path, "--batch", "2", "--metric", "no_such:thing", *given).code == 2
    assert ET.parse(xml).getroot().get("errors") == "1"
    assert "no_such" in summary.read_text(encoding="utf-8")
    named = tmp_path / "named.md"
    assert command(capfd, path, "--channels", "0.25", *given).code == 0
    assert not named.exists()
    before = summary.read_text(encoding="utf-8")
    assert command(capfd, path, "--target", "0.5", "--summary", named, *given).code == 0
    assert (ET.parse(xml).getroot().get("tests"), ET.parse(xml).getroot().get("failures")) == ("1", "0")
    assert ": passed" in named.read_text(encoding="utf-8")
    assert summary.read_text(encoding="utf-8") == before, "prune writes no summary that nobody asked for"
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    assert command(capfd, "check", path, tmp_path / "bad.onnx", *given).code == 3
    assert ET.parse(xml).getroot().get("errors") == "1"


def test_files_over_others_are_refused(
    net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, data = net
    kept = path.read_bytes()
    for option in ("--junit", "--summary"):
        found = command(capfd, "check", path, path, "--calib", data, option, path, *QUICK)
        assert (found.code, path.read_bytes() == kept) == (2, True)
        found = command(capfd, path, "--target", "0.5", option, tmp_path / "net.pruned.json", *QUICK)
        assert found.code == 2
        assert "net.pruned.json" in found.err
        found = command(capfd, "check", path, path, option, tmp_path / "no" / "folder", *QUICK)
        assert found.code == 2
        assert "folder does not exist" in found.err
    with pytest.raises(RecipeError, match="another file"):
        Files("title", tmp_path / "one", tmp_path / "one")
