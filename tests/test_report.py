"""What people are shown: every figure of the record, at any width of the terminal."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from graphprune import Ledger, Recipe, prune
from graphprune.api import Inspection, as_model, inspect
from graphprune.comparison import Comparison, compare
from graphprune.entries import DeclinedRecord, FileRecord, ReasonRecord
from graphprune.report import print_comparison, print_inspection, print_ledger, to_json
from graphprune.verify.gate import Gate
from tests import small
from tests.nets import Net
from tests.oracles import feeds

MODEL = small.network()
CALIB = small.calibration(MODEL)
RECIPE = Recipe(target=0.8, channels=0.5, runs=2, max_drop=1.0)


@pytest.fixture(name="ledger", scope="module")
def _ledger() -> Ledger:
    return prune(MODEL, RECIPE, CALIB)[1]


@pytest.fixture(name="inspection", scope="module")
def _inspection() -> Inspection:
    return inspect(MODEL, Recipe(target=0.0, recover=False), CALIB)


@pytest.fixture(name="comparison", scope="module")
def _comparison() -> Comparison:
    pruned, _ = prune(MODEL, RECIPE, CALIB)
    return compare(as_model(MODEL), as_model(pruned), Recipe(target=0.0, runs=2, max_drop=0.0), CALIB)


def console(width: int = 200) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=width), text


def printed(ledger: Ledger, *, verbose: bool = False, width: int = 200) -> str:
    out, text = console(width)
    print_ledger(ledger, out, verbose=verbose)
    return text.getvalue()


def test_the_table_holds_the_ledgers_figures(ledger: Ledger) -> None:
    lines = printed(ledger).splitlines()
    rows = {line.split("  ")[0].strip(): line for line in lines}
    weights = ledger.weights
    assert f"{weights.before:,}" in rows["weights"]
    assert f"{weights.after:,}" in rows["weights"]
    assert f"{weights.after / weights.before - 1:+.1%}" in rows["weights"]
    assert f"{weights.nonzero:,}" in rows["nonzero weights"]
    assert f"{ledger.macs.before:,}" in rows["MACs"]
    assert f"{ledger.macs.after:,}" in rows["MACs"]
    assert f"{ledger.bytes.after:,}" in rows["bytes"]
    latency = next(line for line in lines if line.startswith("latency, 1 thread "))
    assert f"x{ledger.latency.ratio:.2f}" in latency
    assert ledger.latency.verdict in latency
    assert f"removed 18 of 36 units in 3 groups, zeroed {weights.zeroed:,} weights" in "\n".join(lines)


def test_gates_notes_and_the_file_are_named(ledger: Ledger) -> None:
    text = printed(replace(ledger, notes=["look at [this]"], output=FileRecord("a[0].onnx", "")))
    assert "gate target" in text
    assert "held" in text
    assert "look at [this]" in text
    assert "wrote a[0].onnx" in text
    missed = printed(replace(ledger, gates=[Gate("max-drop", 0.1, 0.25, ok=False)]))
    assert "gate max-drop: 0.25 <= 0.1: MISSED" in missed


def test_verbose_adds_groups_and_reasons(ledger: Ledger) -> None:
    assert "apoz" not in printed(ledger)
    text = printed(ledger, verbose=True)
    for group in ledger.groups:
        assert group.name in text
    for declined in ledger.declined:
        assert declined.reason in text


def test_a_narrow_terminal_loses_no_sentence(ledger: Ledger) -> None:
    noted = replace(ledger, notes=["a long note " * 20])
    assert ("a long note " * 20).strip() in printed(noted, width=40)


def test_figures_that_are_not_numbers_can_be_shown(ledger: Ledger) -> None:
    empty = replace(ledger, groups=[], macs=replace(ledger.macs, before=0, after=0))
    assert "removed 0 of 0 units" in printed(empty, verbose=True)
    bad = replace(ledger, fidelity=replace(ledger.fidelity, nonfinite=3, top1_agreement=None))
    assert "3 output values are NaN or infinite" in printed(bad)


def test_inspection_in_text_and_json(inspection: Inspection) -> None:
    out, text = console()
    print_inspection(inspection, out, verbose=True)
    for word in ("3,461 weights", "3 groups of 36 units", "w_0 axis 0", "graph input 'image' keeps its shape"):
        assert word in text.getvalue()
    values = json.loads(to_json(inspection))
    assert [group["name"] for group in values["groups"]] == [group.name for group in inspection.groups]
    assert values["declined"][0]["reason"] == inspection.declined[0].reason


def test_a_model_without_groups_has_no_table_of_them(inspection: Inspection) -> None:
    out, text = console()
    print_inspection(replace(inspection, groups=[]), out)
    assert "0 groups of 0 units" in text.getvalue()
    assert "criterion" not in text.getvalue()


@pytest.mark.parametrize("verbose", [False, True])
def test_five_hundred_axes_are_a_few_lines_a_reason(inspection: Inspection, *, verbose: bool) -> None:
    axes = [
        DeclinedRecord(f"w[{index}]", 0, 1 + index % 2, 0.001, f"node_{index % 5}", "Op", "no rule for it")
        for index in range(500)
    ]
    axes.append(DeclinedRecord("w[0]", 1, 3, 0.25, "", "", "graph input 'x' keeps its shape"))
    reasons = [
        ReasonRecord("Op", "no rule for it", [f"node_{index}" for index in range(5)], 500, 0.5),
        ReasonRecord("", "graph input 'x' keeps its shape", [], 1, 0.25),
    ]
    out, text = console(width=40)
    print_inspection(replace(inspection, declined=axes, reasons=reasons), out, verbose=verbose)
    printed = text.getvalue().splitlines()
    lines = printed[next(place for place, line in enumerate(printed) if line.startswith("left alone")) + 1 :]
    cut = [
        " 50.0%  no rule for it (Op node_0, node_1, node_2 and 2 more)",
        "        w[0] axis 0: 1 position, 0.1%, node_0",
        "        w[1] axis 0: 2 positions, 0.1%, node_1",
        "        w[2] axis 0: 1 position, 0.1%, node_2",
        "        and 497 more axes",
        " 25.0%  graph input 'x' keeps its shape",
        "        w[0] axis 1: 3 positions, 25.0%",
    ]
    if verbose:
        assert [line for line in cut if "more axes" not in line] == [*lines[:4], *lines[501:503]]
        assert lines[500] == "        w[499] axis 0: 2 positions, 0.1%, node_4"
    else:
        assert lines[:7] == cut


def test_comparison_in_text_and_json(comparison: Comparison) -> None:
    out, text = console()
    print_comparison(comparison, out, verbose=True)
    assert f"{comparison.weights.after:,}" in text.getvalue()
    assert f"{comparison.fidelity.relative_l2:.4f}" in text.getvalue()
    assert "gemm_1" in text.getvalue()
    values = json.loads(to_json(comparison))
    assert values["weights"] == {"before": 3461, "after": comparison.weights.after}
    assert values["latency"]["ratio"] == comparison.latency.ratio


def test_a_proof_that_shows_nothing_says_so() -> None:
    net = Net()
    hidden = net.conv(net.relu(net.conv(net.input(["N", 3, 4, 4]), 8)), 3)
    silent = net.relu(net.add(hidden, net.initializer(np.array([-1e3]), "shift")))
    for model, proof in (
        (net.build(silent), "proof: none, as every output is constant"),
        (net.build(hidden), ", 1 of 2 outputs aside, which are constant"),
    ):
        asked = Recipe(channels=0.5, recover=False, runs=2, max_latency_ratio=1e3)
        _, ledger = prune(model, asked, feeds(model, batch=4))
        text = printed(ledger)
        assert proof in text
        assert f"the proof says nothing of output '{silent}'" in text
        assert json.loads(ledger.to_json())["equivalence"]["constant"] == [silent]
        _, untouched = prune(model, Recipe(channels=0.0, runs=2), feeds(model, batch=4))
        assert not [note for note in untouched.notes if "proof" in note]


def test_groups_have_their_whole_names_and_what_became_of_their_units(ledger: Ledger, inspection: Inspection) -> None:
    name = "/".join(f"part_{index}" for index in range(12))
    assert "removed" in next(line for line in printed(ledger, verbose=True).splitlines() if "criterion" in line)
    out, text = console(width=60)
    print_inspection(replace(inspection, groups=[replace(inspection.groups[0], name=name)]), out)
    lines = text.getvalue().splitlines()
    start, end = (next(i for i, line in enumerate(lines) if word in line) for word in ("part_0", "left alone"))
    assert "".join(line.split("  ")[0].strip() for line in lines[start:end]) == name
