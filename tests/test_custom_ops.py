"""Operators of other domains: a library of custom operators is registered wherever the model runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from graphprune import ModelError, Recipe, RecipeError, prune
from graphprune.api import as_model, inspect
from graphprune.comparison import compare
from graphprune.ir.coupling.walk import couple
from graphprune.ir.graph import Graph
from graphprune.ir.session import open_session, run_session
from graphprune.passes.canonicalize import canonicalize
from tests.commands import BY_RULE, BY_RULE_OPTIONS, QUICK, command
from tests.nets import Net
from tests.oracles import feeds, units_on

extensions = pytest.importorskip("onnxruntime_extensions", reason="needs onnxruntime-extensions' custom operators")
LIBRARY = extensions.get_library_path()
DOMAIN = "ai.onnx.contrib"
NO_RULE = f"no rule for operator {DOMAIN}.NegPos"
RECIPE = Recipe(channels=0.5, recover=False, runs=2, custom_ops=(LIBRARY,), **BY_RULE)


def network(*, noted: bool) -> onnx.ModelProto:
    """Two hidden layers with NegPos (x -> min(x, 0), max(x, 0)) between them, its shapes noted or not."""
    net = Net()
    net.imports[DOMAIN] = 1
    first = net.conv(net.relu(net.conv(net.input(["N", 3, 6, 6], "image"), 8, 3)), 6, 3)
    negative, positive = net.nodes_of("NegPos", [first], [net.shapes[first]] * 2, domain=DOMAIN, name="halves")
    second = net.relu(net.conv(net.add(negative, positive, op="Sub"), 10, 3))
    model = net.build(net.conv(second, 4, 3))
    if noted:
        for name in (negative, positive):
            model.graph.value_info.append(helper.make_tensor_value_info(name, net.kinds[name], net.shapes[name]))
    return model


@pytest.fixture(name="saved")
def _saved(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(network(noted=True), path)
    return path


@pytest.mark.parametrize("noted", [True, False], ids=["shapes noted", "shapes unknown"])
def test_both_sides_are_pruned_the_operator_runs_and_is_named(*, noted: bool) -> None:
    model = network(noted=noted)
    pruned, ledger = prune(model, RECIPE, feeds(model, batch=8))
    assert ledger.kept["w_0"]["0"] == ledger.kept["w_1"]["1"]
    assert ledger.kept["w_2"]["0"] == ledger.kept["w_3"]["1"]
    assert [len(ledger.kept[name]["0"]) for name in ("w_0", "w_2")] == [4, 5]
    named = [d for d in ledger.declined if d.reason == NO_RULE]
    assert {(d.tensor, d.axis) for d in named} == {("w_1", 0), ("w_2", 1)} if noted else {("w_1", 0)}
    assert {(d.node, d.op) for d in named} == {("halves", f"{DOMAIN}.NegPos")}
    assert ("w_2", 1) in {(d.tensor, d.axis) for d in ledger.declined}
    assert ledger.equivalence.max_rel < 1e-4
    onnx.checker.check_model(pruned, full_check=True)
    assert pruned.opset_import == model.opset_import
    options = ort.SessionOptions()
    options.register_custom_ops_library(LIBRARY)
    session = ort.InferenceSession(pruned.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, feeds(model))
    assert found.shape == (2, 4, 6, 6)


def test_the_command_takes_the_library_as_option_and_in_a_recipe(
    saved: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = [saved, "--channels", "0.5", "--no-recover", *BY_RULE_OPTIONS, *QUICK]
    assert command(capfd, *given, "--custom-ops", LIBRARY).code == 0
    by_option = (tmp_path / "net.pruned.onnx").read_bytes()
    assert json.loads((tmp_path / "net.pruned.json").read_text())["recipe"]["custom_ops"] == [LIBRARY]
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f"custom_ops = [{json.dumps(LIBRARY)}]\n")
    assert command(capfd, *given, "--recipe", recipe).code == 0
    assert (tmp_path / "net.pruned.onnx").read_bytes() == by_option
    for arguments in (["inspect", saved], ["compare", saved, tmp_path / "net.pruned.onnx", *QUICK]):
        assert command(capfd, *arguments, "--custom-ops", LIBRARY).code == 0
        assert command(capfd, *arguments).code == 3


def test_the_python_interface_takes_it_in_the_recipe(saved: Path) -> None:
    model = as_model(saved)
    assert NO_RULE in {declined.reason for declined in inspect(model, RECIPE).declined}
    pruned, _ = prune(model, RECIPE)
    assert compare(model, as_model(pruned), RECIPE).weights.after < 900


# -- without it --------------------------------------------------------------------------------------------------


def test_the_error_names_the_operator_its_node_and_the_option(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = command(capfd, saved, "--channels", "0.5", *QUICK)
    assert found.code == 3
    assert "ONNX Runtime has no operator ai.onnx.contrib.NegPos" in found.err
    assert f"where: {saved}, node 'halves'\n" in found.err
    assert "what to do: name the shared library that holds the operator: --custom-ops LIBRARY" in found.err


def test_the_error_finds_nodes_in_subgraphs_and_counts_them() -> None:
    net = Net()
    net.imports[DOMAIN] = 1
    flag = net.input([], "flag")
    net.kinds[flag] = onnx.TensorProto.BOOL
    data = net.input(["N", 3], "data")

    def branch(name: str) -> onnx.GraphProto:
        node = helper.make_node("NegPos", [data], [f"{name}_less", name], domain=DOMAIN)
        output = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 3])
        return helper.make_graph([node], name, [], [output])

    made = net.node(
        "If", [flag], ["N", 3], kind=onnx.TensorProto.FLOAT, then_branch=branch("a"), else_branch=branch("b")
    )
    with pytest.raises(ModelError, match=r"the model in memory, node 'b_less' and 1 more"):
        open_session(net.build(made))


@pytest.mark.parametrize("kind", ["missing", "text", "another library"])
def test_a_library_that_cannot_be_loaded_is_refused(kind: str, tmp_path: Path) -> None:
    library = Path(onnx.onnx_cpp2py_export.__file__) if kind == "another library" else tmp_path / "library.so"
    if kind == "text":
        library.write_text("no library")
    with pytest.raises(RecipeError, match="does not exist" if kind == "missing" else "cannot be loaded") as caught:
        open_session(network(noted=True), custom_ops=[str(library)])
    assert f"--custom-ops {library}" in str(caught.value)


def test_a_library_is_found_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: Path
) -> None:
    shutil.copy(LIBRARY, tmp_path / "operators.so")
    monkeypatch.chdir(tmp_path)
    model = onnx.load(saved)
    (found,) = run_session(open_session(model, custom_ops=["operators.so"]), feeds(model))
    assert found.shape == (2, 4, 6, 6)


# -- canonical form and shapes -----------------------------------------------------------------------------------


def test_what_an_unknown_operator_makes_of_constants_is_not_computed() -> None:
    net = Net()
    net.imports[DOMAIN] = 1
    weight = net.weight([5, 6])
    negative, positive = net.nodes_of("NegPos", [weight], [[5, 6]] * 2, domain=DOMAIN)
    data = net.relu(net.gemm(net.input(["N", 4]), 5, transposed=False))
    hidden = net.relu(net.node("MatMul", [data, net.add(negative, positive)], ["N", 6]))
    model = net.build(net.gemm(net.relu(net.gemm(hidden, 8)), 2))
    canonical = canonicalize(model)
    assert "NegPos" in {node.op_type for node in canonical.graph.node}
    feed = feeds(model, batch=4)
    results = [run_session(open_session(m, custom_ops=[LIBRARY]), feed)[0] for m in (model, canonical)]
    np.testing.assert_array_equal(*results)
    _, ledger = prune(model, RECIPE, feed)
    assert len(ledger.kept["w_2"]["0"]) == 4
    assert {d.tensor for d in ledger.declined if d.reason == NO_RULE} == {weight}


def test_shapes_are_known_again_from_the_first_convolution_on() -> None:
    graph = Graph(canonicalize(network(noted=False)))
    assert graph.shape("negpos_0") is None
    assert graph.shape("sub_0") == (None, 6, None, None)
    assert [len(graph.shape(name) or ()) for name in ("conv_2", "relu_1")] == [4, 4]
    assert units_on(couple(graph), "w_2", 1) == [-1] * 6
