"""The largest sparsity that holds ``--max-drop``: of the answers, or of the user's metric."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphprune import Recipe, RecipeError, prune
from graphprune.analysis import analyse
from graphprune.api import as_model
from graphprune.building import build
from graphprune.calib.sources import input_specs, open_source
from graphprune.ir.cost import count_nonzero
from graphprune.pipeline import Trials
from graphprune.search import drop_of, search
from graphprune.watch import Stopwatch
from tests.nets import Net
from tests.oracles import feeds

METRIC = """
import numpy as np

calls = []
inputs = np.random.default_rng(0).standard_normal((64, 12)).astype(np.float32)


def minus_change(session):
    (output,) = session.run(None, {session.get_inputs()[0].name: inputs})
    calls.append(output)
    return -100 * float(np.linalg.norm(output - calls[0]) / np.linalg.norm(calls[0]))
"""


def test_the_largest_target_that_holds_a_drop_is_searched_for() -> None:
    net = Net()
    hidden = net.relu(net.gemm(net.relu(net.gemm(net.input(["N", 12]), 24)), 24))
    model = as_model(net.build(net.gemm(hidden, 1)))  # no classes: what drops is the relative error
    source = open_source(feeds(model.proto, 1, 128), input_specs(model.proto))
    found = {}
    for allowed in (0.05, 0.2, 0.8):
        recipe = Recipe(max_drop=allowed, runs=2)
        analysis = analyse(model, recipe, source, Stopwatch())
        trials = Trials(analysis, recipe)
        plan = search(analysis, recipe, trials.of, drop_of(model, analysis, recipe, trials.of))
        assert plan.kept or plan.removed.any()
        assert trials.of(plan).drop <= allowed
        found[allowed] = count_nonzero(build(analysis, plan, recipe, Stopwatch()).model)
    assert found[0.05] > found[0.2] > found[0.8]


def test_with_a_metric_its_drop_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_search_metric.py").write_text(METRIC)
    monkeypatch.syspath_prepend(str(tmp_path))
    net = Net()
    hidden = net.relu(net.gemm(net.relu(net.gemm(net.input(["N", 12]), 24)), 24))
    proto = net.build(net.gemm(hidden, 1))
    sparsity = {}
    for allowed in (5.0, 60.0):  # above 1: in the metric's own units
        recipe = Recipe(max_drop=allowed, metric="own_search_metric:minus_change", runs=2)
        _, ledger = prune(proto, recipe, feeds(proto, 1, 128))
        (gate,) = [gate for gate in ledger.gates if gate.name == "max-drop"]
        assert gate.ok
        assert gate.value <= allowed
        sparsity[allowed] = ledger.weights.sparsity
    assert 0.1 < sparsity[5.0] < sparsity[60.0]


def test_a_metric_that_fails_in_the_search_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_failing_metric.py").write_text("def fails(session):\n    raise ValueError('no data')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    proto = (net := Net()).build(net.gemm(net.relu(net.gemm(net.input(["N", 12]), 24)), 1))
    with pytest.raises(RecipeError, match="the metric failed") as caught:
        prune(proto, Recipe(max_drop=5.0, metric="own_failing_metric:fails", runs=2), feeds(proto, 1, 128))
    assert caught.value.where == "own_failing_metric:fails, model before"
