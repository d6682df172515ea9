"""The Python interface: what prune, inspect and compare promise."""

from __future__ import annotations

import copy
import hashlib
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

import graphprune
from graphprune import CalibrationError, Ledger, ModelError, Recipe, RecipeError, TargetError, prune
from graphprune.api import as_model, inspect
from graphprune.comparison import compare
from graphprune.ir.cost import count_nonzero, count_weights
from graphprune.ir.model import load
from graphprune.ir.surgery import Kept
from graphprune.output import check_output, write
from tests import small
from tests.commands import BY_RULE
from tests.measure import editable, materialise
from tests.nets import Net
from tests.oracles import assert_close, assert_reproduces, masked_by_kept, run

MODEL = small.network()
CALIB = small.calibration(MODEL)


def recipe(**given: Any) -> Recipe:
    return Recipe(**{"runs": 2, **BY_RULE, **given})


def attempt(model: onnx.ModelProto, asked: Recipe) -> tuple[onnx.ModelProto, Ledger] | TargetError:
    try:
        return prune(model, asked, CALIB)
    except TargetError as error:
        return error


def kept_of(ledger: Ledger) -> Kept:
    return {name: {int(axis): kept for axis, kept in axes.items()} for name, axes in ledger.kept.items()}


def counted(model: onnx.ModelProto) -> tuple[int, int]:
    """All float elements of the file's initializers, and those that are not 0."""
    arrays = [value for value in editable(model).values() if value.dtype.kind == "f"]
    return sum(value.size for value in arrays), sum(int(np.count_nonzero(value)) for value in arrays)


# -- prune -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"target": 0.5},
        {"target": 0.9},
        {"target": 0.9, "recover": False},
        {"target": 0.7, "structural": 0},
        {"target": 0.7, "structural": 1},
        {"target": 0.8, "structural": 0.5},
        {"target": 0.8, "structural": 0.5, "recover": False},
        {"target": 0.8, "channels": 0.25},
        {"target": 0.6, "criterion": "activation"},
        {"channels": 0.5},
        {"channels": 0.5, "recover": False},
    ],
    ids=str,
)
def test_the_result_is_what_the_ledger_says(given: dict[str, Any]) -> None:
    model, ledger = prune(MODEL, recipe(**given), CALIB)
    assert isinstance(model, onnx.ModelProto)
    assert isinstance(ledger, Ledger)
    onnx.checker.check_model(model, full_check=True)
    assert list(model.graph.input) == list(MODEL.graph.input)
    assert list(model.graph.output) == list(MODEL.graph.output)
    before, _ = counted(MODEL)
    after, nonzero = counted(model)
    weights = ledger.weights
    assert (weights.before, weights.after, weights.removed, weights.nonzero) == (before, after, before - after, nonzero)
    assert weights.sparsity == 1 - nonzero / before
    assert ledger.recipe == asdict(recipe(**given))
    assert ledger.output.sha256 == hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    assert ledger.calibration.samples == 32
    assert ledger.calibration.real
    assert not any("calibration" in note for note in ledger.notes)
    for name, count in ledger.zeroed.items():
        assert int((editable(model)[name] == 0).sum()) == count, "nothing was 0 before"
    assert weights.zeroed == sum(ledger.zeroed.values())


@settings(max_examples=12)
@given(
    target=st.floats(0, 0.97),
    structural=st.sampled_from(["auto", 0, 0.3, 1]),
    recover=st.booleans(),
    seed=st.integers(0, 3),
)
def test_the_target_is_reached_and_not_passed(target: float, structural: Any, recover: bool, seed: int) -> None:
    source = small.network(seed)
    result = attempt(source, recipe(target=target, structural=structural, recover=recover))
    if isinstance(result, TargetError):
        assert result.reachable < target
        return
    model, ledger = result
    before, nonzero = count_weights(source), count_nonzero(model)
    assert 1 - nonzero / before >= target
    assert ledger.ok
    if ledger.zeroed:  # one zero less would not do
        assert 1 - (nonzero + 1) / before < target


def test_zeros_alone_are_the_smallest_weights_of_the_model() -> None:
    model, ledger = prune(MODEL, recipe(target=0.6, structural=0, recover=False), CALIB)
    assert ledger.kept == {}
    before, after = editable(MODEL), editable(model)
    weights = [name for name, value in before.items() if value.ndim > 1]
    flat, now = (np.concatenate([of[name].ravel() for name in weights]) for of in (before, after))
    zeroed = now != flat
    assert np.abs(flat[zeroed]).max() <= np.abs(flat[~zeroed]).min()
    for name, value in before.items():
        assert name in weights or after[name].tobytes() == value.tobytes()


def test_removal_alone_zeroes_nothing() -> None:
    _, ledger = prune(MODEL, recipe(target=0.6, structural=1), CALIB)
    assert ledger.zeroed == {}
    assert ledger.weights.removed >= 0.6 * ledger.weights.before


@pytest.mark.parametrize("given", [{"channels": 0.5}, {"target": 0.8, "channels": 0.3}, {"target": 0.8}], ids=str)
def test_without_recovery_kept_weights_are_bit_identical(given: dict[str, Any]) -> None:
    model, ledger = prune(MODEL, recipe(recover=False, **given), CALIB)
    kept = kept_of(ledger)
    if "target" not in given:
        assert kept
        assert_reproduces(MODEL, model, kept)
        assert_close(run(masked_by_kept(MODEL, kept), CALIB), run(model, CALIB))
    before, after = editable(MODEL), editable(model)
    for name, value in before.items():
        expected = value
        for axis, indices in kept.get(name, {}).items():
            expected = expected.take(indices, axis=axis)
        now = after[name]
        assert ((now == expected) | (now == 0)).all(), name
        assert int((now != expected).sum()) == ledger.zeroed.get(name, 0)


def test_with_recovery_removed_means_are_folded_into_biases() -> None:
    model, _ = prune(MODEL, recipe(channels=0.5), CALIB)
    plain, _ = prune(MODEL, recipe(channels=0.5, recover=False), CALIB)
    expected = run(MODEL, CALIB)["gemm_1"]
    repaired, without = (float(np.linalg.norm(run(m, CALIB)["gemm_1"] - expected)) for m in (model, plain))
    assert repaired < 0.9 * without
    assert [node.op_type for node in model.graph.node].count("BatchNormalization") == 0
    assert [node.op_type for node in plain.graph.node].count("BatchNormalization") == 1


@pytest.mark.parametrize("given", [{"target": 0.9}, {"channels": 0.5, "recover": False}], ids=str)
def test_the_input_is_never_changed(given: dict[str, Any]) -> None:
    model = small.network()
    before = model.SerializeToString(deterministic=True)
    calib = copy.deepcopy(CALIB)
    loaded = as_model(model)
    prune(loaded, recipe(**given), calib)
    prune(model, recipe(**given), calib)
    assert model.SerializeToString(deterministic=True) == before
    assert all(calib[name].tobytes() == value.tobytes() for name, value in CALIB.items())


@pytest.mark.parametrize("calib", [CALIB, None])
def test_the_same_seed_gives_the_same_model_and_ledger(calib: Any) -> None:
    def once(seed: int) -> tuple[bytes, dict[str, Any]]:
        # How fast the result is, and what is done where it is not, is no matter of seeds.
        asked = recipe(target=0.8, channels=0.25, seed=seed, max_latency_ratio=1e3)
        model, ledger = prune(MODEL, asked, calib)
        values = ledger.as_dict()
        for timing in ("latency", "seconds", "gates"):
            values.pop(timing)
        return model.SerializeToString(deterministic=True), values

    assert once(5) == once(5)
    if calib is None:
        assert once(5)[1]["groups"] != once(6)[1]["groups"]


@pytest.mark.parametrize("recover", [True, False])
@pytest.mark.parametrize("given", [{"target": 0.0, "structural": 0}, {"channels": 0.0}, {"channels": 0.01}], ids=str)
def test_nothing_to_do_gives_the_very_original(given: dict[str, Any], recover: bool, tmp_path: Path) -> None:
    path, data = small.write(tmp_path)
    model, ledger = prune(path, recipe(recover=recover, **given), data)
    assert (ledger.kept, ledger.zeroed, ledger.weights.removed) == ({}, {}, 0)
    assert ledger.output.sha256 == ledger.model.sha256
    write(model, ledger, load(path), tmp_path / "out.onnx", tmp_path / "out.json")
    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()
    assert ledger.fidelity.relative_l2 == 0


def test_what_is_given_as_model_does_not_matter(tmp_path: Path) -> None:
    path, data = small.write(tmp_path)
    forms = [path, str(path), load(path), MODEL]
    results = [prune(form, recipe(target=0.8), data)[0].SerializeToString(deterministic=True) for form in forms]
    assert len(set(results)) == 1


def test_what_is_given_as_calibration_does_not_matter(tmp_path: Path) -> None:
    path, data = small.write(tmp_path)
    rows = CALIB["image"]
    forms: list[Any] = [data, str(data), CALIB, rows, [{"image": rows[:8]}, {"image": rows[8:]}]]
    results = [prune(path, recipe(target=0.8), form)[0].SerializeToString(deterministic=True) for form in forms]
    assert len(set(results)) == 1


def test_a_fixed_batch_is_pruned_too() -> None:
    model = small.network(batch=4)
    pruned, ledger = prune(model, recipe(channels=0.5, recover=False), CALIB)
    batch = {"image": CALIB["image"][:4]}
    assert_close(run(masked_by_kept(model, kept_of(ledger)), batch), run(pruned, batch))


def test_random_inputs_are_noted_and_real_ones_are_not() -> None:
    _, ledger = prune(MODEL, recipe(channels=0.25))
    assert not ledger.calibration.real
    assert ["no calibration data was given" in note and "--calib" in note for note in ledger.notes] == [True]


def test_progress_counts_the_samples() -> None:
    told: list[int] = []
    prune(MODEL, recipe(target=0.5), CALIB, progress=told.append)
    assert sum(told) == 32


def test_the_groups_name_what_went_and_why() -> None:
    _, ledger = prune(MODEL, recipe(channels=0.5, recover=False), CALIB)
    assert [(group.name, group.size, len(group.removed), group.criterion) for group in ledger.groups] == [
        ("w_0", 16, 8, "apoz"),
        ("w_1", 8, 4, "apoz"),
        ("w_3", 12, 6, "apoz"),
    ]
    kept = kept_of(ledger)
    for group in ledger.groups:
        assert kept[group.name][0] == [place for place in range(group.size) if place not in group.removed]
        scores = np.array(group.score)
        left = np.delete(scores, group.removed)
        assert scores[group.removed].min() >= left.max()
        assert group.exact
    maps = materialise(MODEL, ["relu_0"], CALIB)["relu_0"]
    pooled = materialise(MODEL, ["maxpool_0"], CALIB)["maxpool_0"]
    zeros = (maps <= 0).sum(axis=(0, 2, 3)) + (pooled <= 0).sum(axis=(0, 2, 3))
    assert ledger.groups[0].score == pytest.approx(zeros / (32 * (36 + 9)), rel=1e-5)
    assert ["w_0", 0] in [list(axis) for axis in ledger.groups[0].axes]


def test_what_is_left_alone_is_declined_with_a_reason() -> None:
    _, ledger = prune(MODEL, recipe(channels=0.0, recover=False), CALIB)
    found = {(d.tensor, d.axis): (d.positions, d.reason) for d in ledger.declined}
    assert found == {
        ("w_0", 1): (2, "graph input 'image' keeps its shape"),
        ("w_4", 0): (5, "graph output 'gemm_1' keeps its shape"),
    }
    assert [d.share for d in ledger.declined] == pytest.approx([16 * 2 * 9 / 3461, 12 * 5 / 3461], rel=1e-9)


def test_proof_and_figures() -> None:
    model, ledger = prune(MODEL, recipe(channels=0.5, recover=False), CALIB)
    assert ledger.equivalence.relative_l2 < 1e-6
    expected, got = run(MODEL, CALIB)["gemm_1"], run(model, CALIB)["gemm_1"]
    error = float(np.linalg.norm(expected - got) / np.linalg.norm(expected))
    assert ledger.fidelity.relative_l2 == pytest.approx(error, rel=1e-4)
    agreement = float((expected.argmax(1) == got.argmax(1)).mean())
    assert ledger.fidelity.top1_agreement == pytest.approx(agreement)
    assert ledger.latency.threads == 1
    assert ledger.latency.before_ms > 0
    # Convolutions 2x16x9, 16x8x9 and 8x16 at 36 positions, dense layers 144x12 and 12x5; half of each axis stays.
    assert ledger.macs.before == 36 * (288 + 1152 + 128) + 1728 + 60
    assert ledger.macs.after == 36 * (144 + 288 + 32) + 432 + 30


def test_gates_are_recorded_and_raise_nothing() -> None:
    _, ledger = prune(MODEL, recipe(target=0.9, recover=False, max_drop=0.0, max_latency_ratio=1e-9), CALIB)
    assert [(gate.name, gate.ok) for gate in ledger.gates] == [
        ("target", True),
        ("max-latency-ratio", False),
        ("max-drop", False),
    ]
    assert not ledger.ok
    _, ledger = prune(MODEL, recipe(channels=0.25, max_drop=1.0, max_latency_ratio=1e9), CALIB)
    assert [(gate.name, gate.ok) for gate in ledger.gates] == [("max-latency-ratio", True), ("max-drop", True)]
    assert ledger.ok


@pytest.mark.parametrize(
    "given", [{"structural": 0}, {"structural": 1}, {"structural": 0.5}, {"channels": 0.25}], ids=str
)
@pytest.mark.parametrize("recover", [True, False])
def test_an_unreachable_target_names_one_that_is(given: dict[str, Any], recover: bool) -> None:
    with pytest.raises(TargetError) as caught:
        prune(MODEL, recipe(target=0.9999, recover=recover, **given), CALIB)
    assert caught.value.exit_code == 1
    word = next(
        word for word in str(caught.value).replace(";", " ").split() if word.startswith("0.") and word != "0.9999"
    )
    named = float(word)
    _, ledger = prune(MODEL, recipe(target=named, recover=recover, **given), CALIB)
    assert ledger.weights.sparsity >= named
    with pytest.raises(TargetError):  # and it is the best, to four digits
        prune(MODEL, recipe(target=named + 1.01e-4, recover=recover, **given), CALIB)


def test_the_public_names() -> None:
    assert set(graphprune.__all__) <= set(dir(graphprune))
    assert graphprune.__version__.count(".") == 2


# -- inspect and compare -----------------------------------------------------------------------------------------


def test_inspect_shows_what_the_rule_names_and_changes_nothing(tmp_path: Path) -> None:
    path, data = small.write(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    found = inspect(path, recipe(target=0.0, recover=False), data)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert (found.weights, found.macs) == (3461, 36 * (288 + 1152 + 128) + 1728 + 60)
    for group in found.groups:
        scores = np.array(group.score)
        over = np.flatnonzero(scores > scores.mean() + scores.std())
        assert group.removed == over.tolist()
    assert [d.tensor for d in found.declined] == ["w_0", "w_4"]
    assert found.model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert inspect(path, recipe(target=0.0)).notes != []


def test_compare_counts_both_models() -> None:
    after, _ = prune(MODEL, recipe(target=0.9, channels=0.5), CALIB)
    found = compare(as_model(MODEL), as_model(after), recipe(target=0.0, max_drop=0.0), CALIB)
    assert (found.weights.before, found.nonzero.before) == counted(MODEL)
    assert (found.weights.after, found.nonzero.after) == counted(after)
    assert (found.macs.before, found.macs.after) == (
        36 * (288 + 1152 + 128) + 1728 + 60,
        36 * (144 + 288 + 32) + 432 + 30,
    )
    assert found.bytes.after == len(after.SerializeToString())
    assert found.fidelity.relative_l2 > 0
    assert not found.ok
    same = compare(as_model(MODEL), as_model(MODEL), recipe(target=0.0, max_drop=0.0), CALIB)
    assert same.fidelity.relative_l2 == 0
    assert same.ok


def test_models_of_other_inputs_cannot_be_compared() -> None:
    net = Net()
    other = net.build(net.gemm(net.input(["N", 7], "other"), 5))
    resized = copy.deepcopy(MODEL)
    resized.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 7
    for after, text in ((other, r"'other' float32 \[N, 7\]"), (resized, r"'image' float32 .*7, 6\]")):
        with pytest.raises(ModelError, match=rf"inputs of the two models differ[\s\S]*'image'[\s\S]*{text}"):
            compare(as_model(MODEL), replace(as_model(MODEL), proto=after), recipe(target=0.0), CALIB)


# -- files -------------------------------------------------------------------------------------------------------


def test_default_paths_lie_beside_the_model(tmp_path: Path) -> None:
    model = tmp_path / "net.v2.onnx"
    assert check_output(model, None, None) == (tmp_path / "net.v2.pruned.onnx", tmp_path / "net.v2.pruned.json")
    for name in ("model.v1", "model"):
        expected = tmp_path / f"{name}.pruned.onnx", tmp_path / f"{name}.pruned.json"
        assert check_output(tmp_path / name, None, None) == expected
    assert check_output(model, tmp_path / "out.v1", None)[1] == tmp_path / "out.v1.json"
    out = tmp_path / "small.onnx"
    assert check_output(model, out, None) == (out, tmp_path / "small.json")
    assert check_output(model, str(out), tmp_path / "why.txt") == (out, tmp_path / "why.txt")


def test_paths_that_cannot_be_are_refused_before_any_work(tmp_path: Path) -> None:
    model, _ = small.write(tmp_path)
    link = tmp_path / "link.onnx"
    link.symlink_to(model)
    nowhere = tmp_path / "none" / "out.onnx"
    for output, report, text in (
        (model, None, "over the input"),
        (tmp_path / "." / "net.onnx", None, "over the input"),
        (link, None, "over the input"),
        (None, model, "over the input"),
        (nowhere, None, "folder does not exist"),
        (None, nowhere, "folder does not exist"),
        (tmp_path, None, "is a folder"),
        (tmp_path / "a.onnx", tmp_path / "a.onnx", "one file"),
        ("", None, "no name"),
        (None, "", "no name"),
        (tmp_path / "a.onnx", tmp_path / "a.onnx.data", "one file"),
    ):
        with pytest.raises(RecipeError, match=text) as caught:
            check_output(model, output, report)
        assert caught.value.hint


def test_other_inputs_are_not_written_over_either(tmp_path: Path) -> None:
    model, data = small.write(tmp_path)
    toml = tmp_path / "recipe.toml"
    toml.write_text("target = 0.5")
    for source in (model, data, toml):
        linked = tmp_path / f"hard_{source.name}"
        os.link(source, linked)
        for path in (source, linked):
            for output, report in ((path, None), (None, path)):
                with pytest.raises(RecipeError, match="over the input"):
                    check_output(model, output, report, [str(data), toml])
    out = tmp_path / "out.onnx"
    assert check_output(model, out, None, ["module:function", tmp_path])[0] == out  # no file, and a folder


def test_what_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    model, _ = small.write(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = sorted(tmp_path.iterdir())
    for path, text in (
        (tmp_path / "pipe", "no regular file"),
        (tmp_path / "loop", "no regular file"),
        (Path("/dev/null"), "no regular file"),
        (Path("/proc/out"), "cannot be written"),
        (tmp_path / ("x" * 300), "cannot be written"),
    ):
        for output, report in ((path, None), (None, path)):
            with pytest.raises(RecipeError, match=text):
                check_output(model, output, report)
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(RecipeError, match="no name"):
        check_output(as_model(MODEL), None, None)


def test_a_report_that_cannot_be_written_leaves_no_model_either(tmp_path: Path) -> None:
    path, data = small.write(tmp_path)
    loaded = load(path)
    pruned, ledger = prune(loaded, recipe(target=0.5), data)
    before = sorted(tmp_path.iterdir())
    for report in (tmp_path, Path("/proc/a.json")):
        with pytest.raises(RecipeError, match="cannot be written"):
            write(pruned, ledger, loaded, tmp_path / "a.onnx", report)
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("recover", [True, False])
def test_external_data_in_is_external_data_out(recover: bool, tmp_path: Path) -> None:
    model = small.network()
    path, data = tmp_path / "net.onnx", tmp_path / "calib.npz"
    onnx.save(model, path, save_as_external_data=True, location="net.weights", size_threshold=128)
    np.savez(data, **CALIB)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    loaded = load(path)
    pruned, ledger = prune(loaded, recipe(channels=0.25, recover=recover), data)
    out = tmp_path / "out" / "small.onnx"
    out.parent.mkdir()
    ledger = write(pruned, ledger, loaded, out, out.with_suffix(".json"))
    assert {file.name for file in out.parent.iterdir()} == {"small.onnx", "small.onnx.data", "small.json"}
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    stored = onnx.load(out, load_external_data=False)
    assert any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in stored.graph.initializer)
    onnx.checker.check_model(str(out), full_check=True)
    whole = onnx.load(out)
    assert_close(run(pruned, CALIB), run(whole, CALIB), 1e-12)
    assert ledger.bytes.after == out.stat().st_size + (out.parent / "small.onnx.data").stat().st_size
    assert ledger.bytes.before == path.stat().st_size + (tmp_path / "net.weights").stat().st_size
    assert ledger.output.sha256 == hashlib.sha256(out.read_bytes()).hexdigest()


def test_writing_leaves_the_two_files_and_nothing_else(tmp_path: Path) -> None:
    path, data = small.write(tmp_path)
    loaded = load(path)
    pruned, ledger = prune(loaded, recipe(target=0.5), data)
    out = tmp_path / "out"
    out.mkdir()
    ledger = write(pruned, ledger, loaded, out / "a.onnx", out / "a.json")
    assert sorted(file.name for file in out.iterdir()) == ["a.json", "a.onnx"]
    assert (out / "a.onnx").read_bytes() == pruned.SerializeToString(deterministic=True)
    assert (out / "a.json").read_text() == ledger.to_json()
    assert ledger.bytes.after == (out / "a.onnx").stat().st_size
    assert ledger.output.path == str(out / "a.onnx")


def test_who_reads_the_old_file_is_not_disturbed(tmp_path: Path) -> None:
    path, data = small.write(tmp_path)
    loaded = load(path)
    pruned, ledger = prune(loaded, recipe(target=0.5), data)
    for name in ("a.onnx", "a.json"):
        (tmp_path / name).write_bytes(b"old")
    with (tmp_path / "a.onnx").open("rb") as model, (tmp_path / "a.json").open("rb") as report:
        write(pruned, ledger, loaded, tmp_path / "a.onnx", tmp_path / "a.json")
        assert (model.read(), report.read()) == (b"old", b"old"), "written in place"
    assert (tmp_path / "a.onnx").stat().st_size > 3


def test_errors_are_the_named_ones(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="does not exist"):
        prune(tmp_path / "none.onnx", recipe(target=0.5))
    for wrong in (0.5, {"target": 0.5}, None):
        for use in (prune, inspect):
            with pytest.raises(RecipeError, match=rf"must be a graphprune\.Recipe, not a {type(wrong).__name__}"):
                use(MODEL, wrong, CALIB)  # type: ignore[operator]
    for model in (MODEL.SerializeToString(), None, 5):
        with pytest.raises(ModelError, match=rf"unknown kind[\s\S]*it is a {type(model).__name__}"):
            prune(model, recipe(target=0.5), CALIB)  # type: ignore[arg-type]
    with pytest.raises(CalibrationError):
        prune(MODEL, recipe(target=0.5), {"wrong": CALIB["image"]})
    broken = small.network()
    broken.graph.node[0].op_type = "Convolution"
    with pytest.raises(ModelError, match="Convolution"):
        prune(broken, recipe(target=0.5), CALIB)


def test_a_model_with_nothing_to_remove_still_reaches_its_target() -> None:
    net = Net()
    model = net.build(net.gemm(net.input(["N", 6], "x"), 5))
    pruned, ledger = prune(model, recipe(target=0.5), {"x": np.ones((3, 6), np.float32)})
    assert (ledger.groups, ledger.kept) == ([], {})
    assert ledger.weights.sparsity >= 0.5
    weight = numpy_helper.to_array(pruned.graph.initializer[0])
    assert int((weight == 0).sum()) == 18  # of 35 weights, the fewest that make half


def test_a_model_without_weights() -> None:
    net = Net()
    model = net.build(net.relu(net.input(["N", 6], "x")))
    calib = {"x": np.ones((3, 6), np.float32)}
    pruned, ledger = prune(model, recipe(channels=0.5), calib)
    assert pruned == model
    assert ledger.weights.before == 0
    with pytest.raises(TargetError, match="no weights"):
        prune(model, recipe(target=0.5), calib)
