"""``--allow-resize``: smaller inputs and outputs, from the request to a ledger that proves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphprune import Ledger, ModelError, Recipe, RecipeError, prune
from graphprune.analysis import analyse
from graphprune.api import as_model, inspect
from graphprune.calib.sources import input_specs, open_source
from graphprune.comparison import compare
from graphprune.watch import Stopwatch
from tests.commands import QUICK, command
from tests.nets import Net
from tests.oracles import assert_close, feeds, masked_by_kept, run, sliced

TIED = "state=tanh_0"


def cell() -> onnx.ModelProto:
    """A recurrent cell of matrix products."""
    net = Net()
    data, state = net.input([1, 4], "x"), net.input([1, 8], "state")
    new = net.node("Tanh", [net.add(net.linear(net.relu(net.linear(data, 6)), 8), net.linear(state, 8, bias=False))])
    return net.build(net.linear(new, 3), new)


MODEL = cell()
OUTPUT = MODEL.graph.output[0].name
CALIB = {name: np.concatenate([feeds(MODEL, seed)[name] for seed in range(8)])[:, None] for name in ("x", "state")}


def attempt(*asked: str, **given: Any) -> tuple[onnx.ModelProto, Ledger]:
    return prune(MODEL, Recipe(**{"runs": 2, "channels": 0.5, "recover": False, "allow_resize": asked, **given}), CALIB)


def indices(by_axis: dict[str, Any]) -> dict[int, Any]:
    return {int(axis): kept for axis, kept in by_axis.items()}


def shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    values = (*model.graph.input, *model.graph.output)
    return {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}


@pytest.mark.parametrize("asked", [("state", "tanh_0"), (TIED,), ("x",), (OUTPUT,), ("x", OUTPUT, TIED)], ids=str)
def test_the_ledger_and_the_two_models_alone_prove_the_run(asked: tuple[str, ...]) -> None:
    pruned, ledger = attempt(*asked)
    onnx.checker.check_model(pruned, full_check=True)
    values = json.loads(ledger.to_json())
    named = {name for text in asked for name in text.split("=")}
    assert values["recipe"]["allow_resize"] == list(asked)
    assert set(values["resized"]) == named
    for name, record in values["resized"].items():
        assert record["before"] == shapes(MODEL)[name]
        assert record["after"] == shapes(pruned)[name] == [1, record["before"][1] // 2 + record["before"][1] % 2]
        assert [len(record["kept"]["1"])] == record["after"][1:]
    assert {name: shapes(pruned)[name] for name in shapes(MODEL) if name not in named} == {
        name: shape for name, shape in shapes(MODEL).items() if name not in named
    }
    kept = {name: indices(record["kept"]) for name, record in values["resized"].items()}
    inputs = feeds(MODEL, 9)
    reference = run(masked_by_kept(MODEL, {name: indices(axes) for name, axes in values["kept"].items()}), inputs)
    got = run(pruned, {name: sliced(value, kept.get(name, {})) for name, value in inputs.items()})
    assert_close({name: sliced(value, kept.get(name, {})) for name, value in reference.items()}, got)


def test_without_it_every_shape_stays() -> None:
    pruned, ledger = attempt()
    assert ledger.resized == {}
    assert shapes(pruned) == shapes(MODEL)


def test_macs_are_counted_with_the_inputs_that_are_left() -> None:
    _, ledger = attempt(TIED, "x", channels=None, macs=0.5)
    assert ledger.resized
    assert 0.3 * ledger.macs.before < ledger.macs.after <= 0.5 * ledger.macs.before


def test_what_may_be_resized_and_loses_nothing_is_not_listed() -> None:
    pruned, ledger = attempt("x", OUTPUT, TIED, channels=0.0)
    assert ledger.resized == {}
    assert shapes(pruned) == shapes(MODEL)


@pytest.mark.parametrize("given", [{"target": 0.8, "channels": None}, {"target": 0.8}, {"channels": 0.4}], ids=str)
def test_recovery_zeros_and_figures_work_on_smaller_inputs_and_outputs(given: dict[str, Any]) -> None:
    pruned, ledger = attempt("x", OUTPUT, TIED, recover=True, max_drop=1.0, **given)
    onnx.checker.check_model(pruned, full_check=True)
    assert ledger.ok
    assert ledger.equivalence.max_rel < 1e-5
    if ledger.recipe["channels"]:
        assert ledger.macs.after < ledger.macs.before
        assert set(ledger.resized) == {"x", OUTPUT, "state", "tanh_0"}
    assert np.isfinite(ledger.fidelity.relative_l2)


def test_states_that_nothing_ties_are_noted() -> None:
    def told(*asked: str) -> bool:
        _, ledger = attempt(*asked)
        return any("--allow-resize state=tanh_0" in note for note in ledger.notes)

    assert told("state", "tanh_0")
    assert not told(TIED)
    assert not told("state", OUTPUT)


def test_inspect_shows_what_could_go() -> None:
    def units(*asked: str) -> int:
        found = inspect(MODEL, Recipe(target=0.0, recover=False, allow_resize=asked), CALIB)
        return sum(group.size for group in found.groups)

    assert (units(), units("x"), units("state", "tanh_0"), units(TIED)) == (6, 10, 22, 14)


def test_a_unit_that_the_caller_feeds_is_not_dead() -> None:
    net = Net()
    constant = net.gemm(net.input([1, 4], "x"), 8)
    net.initializers[0].CopyFrom(numpy_helper.from_array(np.zeros((8, 4), np.float32), net.initializers[0].name))
    model = net.build(net.gemm(net.add(constant, net.input([1, 8], "skip")), 3))
    recipe = Recipe(channels=0.5, recover=False, runs=2, allow_resize=("skip",))
    source = open_source(None, input_specs(model))
    found = analyse(as_model(model), recipe, source, Stopwatch())
    assert found.coupling.units == 8
    assert not found.scores.dead.any()


def test_models_of_other_shapes_are_still_not_compared() -> None:
    pruned, _ = attempt("x")
    with pytest.raises(ModelError, match="inputs of the two models differ"):
        compare(as_model(MODEL), as_model(pruned), Recipe(target=0.0, runs=2), CALIB)
    pruned, _ = attempt(OUTPUT)
    with pytest.raises(ModelError, match="outputs differ in shape"):
        compare(as_model(MODEL), as_model(pruned), Recipe(target=0.0, runs=2), CALIB)


def test_a_wrong_name_is_refused_from_python() -> None:
    with pytest.raises(RecipeError, match="'h'"):
        attempt("h")
    with pytest.raises(RecipeError, match="'h'"):
        inspect(MODEL, Recipe(target=0.0, allow_resize=("h",)), CALIB)


# -- the command -------------------------------------------------------------------------------------------------


@pytest.fixture(name="files")
def _files(tmp_path: Path) -> tuple[Path, Path]:
    path, data = tmp_path / "cell.onnx", tmp_path / "calib.npz"
    onnx.save(MODEL, path)
    np.savez(data, **CALIB)
    return path, data


def test_the_option_can_be_repeated_and_prints_the_new_shapes(
    files: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    path, data = files
    resize = ("--allow-resize", TIED, "--allow-resize", "x")
    found = command(capfd, path, "--channels", "0.5", "--no-recover", "--calib", data, *resize, *QUICK)
    assert (found.code, found.out) == (0, "")
    for text in ("resized x: [1, 4] -> [1, 2]", "resized state: [1, 8] -> [1, 4]", "resized tanh_0: [1, 8] -> [1, 4]"):
        assert text in found.err
    expected, _ = attempt(TIED, "x")
    assert shapes(onnx.load(path.with_name("cell.pruned.onnx"))) == shapes(expected)


def test_a_recipe_file_can_name_them(files: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    path, data = files
    toml = path.with_name("recipe.toml")
    toml.write_text(f'channels = 0.5\nrecover = false\nallow_resize = ["{TIED}", "x"]\n')
    found = command(capfd, path, "--recipe", toml, "--calib", data, "--json", "-q", *QUICK)
    assert (found.code, found.err) == (0, "")
    assert list(json.loads(found.out)["resized"]) == ["x", "state", "tanh_0"]
    toml.write_text('channels = 0.5\nallow_resize = "x"\n')
    found = command(capfd, path, "--recipe", toml, "--calib", data, *QUICK)
    assert found.code == 2
    assert "--allow-resize must be a list of names" in found.err


@pytest.mark.parametrize("first", [("--channels", "0.5"), ("inspect",)], ids=str)
def test_a_wrong_name_is_a_usage_error_that_lists_the_right_ones(
    first: tuple[str, ...], files: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    path, data = files
    found = command(capfd, *first, path, "--calib", data, "--allow-resize", "hidden")
    assert (found.code, found.out) == (2, "")
    for text in ("'hidden'", "x, state", f"{OUTPUT}, tanh_0"):
        assert text in found.err
    assert {file.name for file in path.parent.iterdir()} == {"cell.onnx", "calib.npz"}


def test_inspect_takes_the_option(files: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    path, data = files
    found = command(capfd, "inspect", path, "--calib", data, "--allow-resize", TIED, "--json", "-q")
    assert found.code == 0
    assert sum(group["size"] for group in json.loads(found.out)["groups"]) == 14
