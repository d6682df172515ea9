"""What cannot be used: the exit code, and a message that says what, where and what to do, without a traceback."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests import small
from tests.commands import QUICK, Result, command

Array = np.ndarray[Any, Any]

USAGE, UNUSABLE = 2, 3


@pytest.fixture(name="net")
def _net(tmp_path: Path) -> tuple[Path, Path]:
    return small.write(tmp_path)


def assert_told(found: Result, code: int, *texts: str | Path, folder: Path) -> None:
    """Demand an exit code and a message with these words; nothing on stdout, no traceback, nothing written."""
    assert found.code == code, found.err
    assert found.out == ""
    assert "Traceback" not in found.err
    for text in texts:
        assert str(text) in found.err, found.err
    assert not [path.name for path in folder.rglob("*") if "pruned" in path.name or path.name.startswith(".")]


def assert_error(found: Result, code: int, *texts: str | Path, folder: Path) -> None:
    """`assert_told`, in the form of graphprune's own errors: what, where, what to do."""
    assert_told(found, code, *texts, folder=folder)
    lines = found.err.splitlines()
    assert lines[0].startswith("error: ")
    assert len(lines[0]) > len("error: ") + 10
    assert any(line.startswith("  where: ") for line in lines), found.err
    assert any(line.startswith("  what to do: ") for line in lines), found.err


# -- the model ---------------------------------------------------------------------------------------------------


def test_a_missing_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        [tmp_path / "none.onnx", "--target", "0.5"],
        ["inspect", tmp_path / "none.onnx"],
        ["compare", tmp_path / "none.onnx", tmp_path / "none.onnx"],
    ):
        assert_told(command(capfd, *arguments), USAGE, "none.onnx", "does not exist", "Usage:", folder=tmp_path)


def test_a_folder_for_a_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert_told(command(capfd, tmp_path, "--target", "0.5"), USAGE, tmp_path, "is a directory", folder=tmp_path)


@pytest.mark.parametrize("first", [["prune"], ["inspect"], ["compare"]])
@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "empty"),
        (b"this is a text file, and no model\n" * 20, "not an ONNX model"),
        (b"\x00" * 400, "ONNX"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "ONNX"),
        (b"PK\x03\x04" + bytes(100), "ONNX"),
    ],
    ids=["empty", "text", "zeros", "png", "zip"],
)
def test_empty_and_foreign_files(
    content: bytes, text: str, first: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    options = ["--target", "0.5"] if first == ["prune"] else [path] if first == ["compare"] else []
    assert_error(command(capfd, *first, path, *options), UNUSABLE, path, text, folder=tmp_path)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_truncated_models(
    share: float, net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = net[0].read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(whole[: max(1, int(share * len(whole)))])
    assert_error(command(capfd, path, "--target", "0.5"), UNUSABLE, path, folder=tmp_path)


def _unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Convolution"


def _missing_tensor(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[1] = "nowhere"


def _cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


def _no_opset(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


def _two_of_a_name(model: onnx.ModelProto) -> None:
    model.graph.node[1].output[0] = model.graph.node[0].output[0]


def _wrong_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("colour", 3))


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (_unknown_operator, "Convolution"),
        (_missing_tensor, "nowhere"),
        (_cycle, "topologically sorted"),
        (_no_opset, "opset"),
        (_two_of_a_name, "SSA"),
        (_wrong_attribute, "colour"),
    ],
)
def test_a_model_that_fails_the_checker(
    spoil: Callable[[onnx.ModelProto], None], text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = small.network()
    spoil(model)
    path = tmp_path / "broken.onnx"
    onnx.save(model, path)
    for arguments in ([path, "--target", "0.5"], ["inspect", path], ["compare", path, path]):
        found = command(capfd, *arguments)
        assert_error(found, UNUSABLE, path, "onnx.checker refuses the model", text, folder=tmp_path)


def test_shapes_that_contradict_each_other(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = small.network()
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "w_1")
    weight.CopyFrom(onnx.numpy_helper.from_array(np.ones((8, 7, 3, 3), np.float32), "w_1"))
    path = tmp_path / "broken.onnx"
    onnx.save(model, path)
    found = command(capfd, path, "--target", "0.5", *QUICK)
    assert_told(found, UNUSABLE, "error: ", "what to do: ", folder=tmp_path)


def test_missing_external_data(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(small.network(), path, save_as_external_data=True, location="net.weights", size_threshold=0)
    (tmp_path / "net.weights").unlink()
    found = command(capfd, path, "--target", "0.5")
    assert_error(found, UNUSABLE, tmp_path / "net.weights", "external data", folder=tmp_path)


def test_truncated_external_data(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(small.network(), path, save_as_external_data=True, location="net.weights", size_threshold=0)
    weights = tmp_path / "net.weights"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert_error(command(capfd, path, "--target", "0.5"), UNUSABLE, path, folder=tmp_path)


# -- the calibration data ----------------------------------------------------------------------------------------

GOOD: Array = np.ones((4, 2, 6, 6), np.float32)


def _nan() -> Array:
    value = GOOD.copy()
    value[2, 1, 3, 3] = np.nan
    return value


def _infinite() -> Array:
    value = GOOD.copy()
    value[2, 1, 3, 3] = np.inf
    return value


@pytest.mark.parametrize(
    ("arrays", "texts"),
    [
        ({"picture": GOOD, "other": GOOD}, ["picture", "other", "'image'"]),
        ({}, ["'image'"]),
        ({"image": GOOD, "extra": GOOD}, ["extra"]),
        ({"image": GOOD[:, :1]}, ["'image'", "[4, 1, 6, 6]", "6, 6]"]),
        ({"image": GOOD[0, 0]}, ["'image'", "[6, 6]"]),
        ({"image": GOOD[:, :, :5]}, ["'image'", "[4, 2, 5, 6]"]),
        ({"image": GOOD.astype(np.complex64)}, ["'image'", "complex64"]),
        ({"image": GOOD.astype("U3")}, ["'image'", "U3"]),
        ({"image": _nan()}, ["'image'", "NaN"]),
        ({"image": _infinite()}, ["'image'", "inf"]),
        ({"image": GOOD[:0]}, ["no sample"]),
    ],
    ids=["name", "nothing", "one too many", "channels", "rank", "height", "complex", "text", "nan", "inf", "no sample"],
)
def test_unusable_arrays(
    arrays: dict[str, Array],
    texts: list[str],
    net: tuple[Path, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path, _ = net
    data = tmp_path / "bad.npz"
    np.savez(data, **arrays)  # type: ignore[arg-type]
    for arguments in ([path, "--target", "0.5"], ["inspect", path], ["compare", path, path]):
        found = command(capfd, *arguments, "--calib", data)
        assert_error(found, UNUSABLE, data, folder=tmp_path)
        assert all(text.lower() in found.err.lower() for text in texts), found.err


def test_pickles_are_refused_and_not_run(
    net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, _ = net

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    for name in ("bad.npz", "bad.npy", "bad.pkl"):
        data = tmp_path / name
        if name == "bad.npz":
            np.savez(data, image=np.array([Trap()], dtype=object))
        elif name == "bad.npy":
            np.save(data, np.array([Trap()], dtype=object))
        else:
            data.write_bytes(pickle.dumps(Trap()))
        found = command(capfd, path, "--target", "0.5", "--calib", data)
        assert_error(found, UNUSABLE, data, folder=tmp_path)
        assert "pickle" in found.err or name == "bad.pkl"
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 and no more"])
def test_files_that_hold_no_arrays(
    content: bytes, net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, _ = net
    for name in ("bad.npz", "bad.npy"):
        (tmp_path / name).write_bytes(content)
        found = command(capfd, path, "--target", "0.5", "--calib", tmp_path / name)
        assert_error(found, UNUSABLE, tmp_path / name, folder=tmp_path)


def test_missing_calibration_data(net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, _ = net
    for name in ("none.npz", "none", "none/calib.npz"):
        found = command(capfd, path, "--target", "0.5", "--calib", tmp_path / name)
        assert_error(found, USAGE, tmp_path / name, "does not exist", folder=tmp_path)


def test_a_function_that_is_not_there(
    net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, _ = net
    for reference in ("no_such_module:batches", "json:no_such_function", "json:__name__"):
        found = command(capfd, path, "--target", "0.5", "--calib", reference)
        assert_error(found, UNUSABLE, reference, folder=tmp_path)


def test_an_empty_folder(net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_error(command(capfd, net[0], "--target", "0.5", "--calib", empty), UNUSABLE, empty, folder=tmp_path)


def test_fewer_samples_than_the_model_takes_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, data = small.write(tmp_path, small.network(batch=8))
    np.savez(data, image=GOOD[:3])
    found = command(capfd, path, "--target", "0.5", "--calib", data)
    assert_error(found, UNUSABLE, data, "8", folder=tmp_path)


# -- what is asked for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["1", "1.0", "1.5", "-0.1", "nan", "inf", "-inf"])
def test_a_target_outside_its_range(
    target: str, net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = command(capfd, net[0], f"--target={target}", "--calib", net[1])
    assert_told(found, USAGE, "--target must be at least 0 and below 1", "where: --target", folder=tmp_path)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "nothing is asked for"),
        (["--target", "many"], "'--target'"),
        (["--target"], "--target"),
        (["--channels", "1"], "--channels"),
        (["--target", "0.5", "--structural", "2"], "--structural"),
        (["--target", "0.5", "--structural", "some"], "--structural"),
        (["--channels", "0.5", "--structural", "0.5"], "--structural"),
        (["--target", "0.5", "--criterion", "taste"], "--criterion"),
        (["--target", "0.5", "--encode", "zip"], "--encode must be one of off, auto, fp16"),
        (["--target", "0.5", "--encode", "fp16", "--no-recover"], "--encode auto"),
        (["--target", "0.5", "--runs", "1"], "--runs"),
        (["--target", "0.5", "--runs", "2.5"], "'--runs'"),
        (["--target", "0.5", "--threads", "0"], "--threads"),
        (["--target", "0.5", "--threads", "99999999999"], "--threads"),
        (["--target", "0.5", "--runs", "99999999999"], "--runs"),
        (["--target", "0.5", "-o", ""], "the output has no name"),
        (["--target", "0.5", "--report", ""], "the output has no name"),
        (["--target", "0.5", "--seed", "-1"], "--seed"),
        (["--target", "0.5", "--max-drop", "2"], "--max-drop"),
        (["--target", "0.5", "--max-latency-ratio", "0"], "--max-latency-ratio"),
        (["--goal", "0.5"], "--goal"),
        (["--target", "0.5", "--recipe", "none.toml"], "none.toml"),
        (["--target", "0.5", "another.onnx"], "another.onnx"),
    ],
    ids=str,
)
def test_wrong_values_and_unknown_options(
    options: list[str], text: str, net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert_told(command(capfd, net[0], "--calib", net[1], *options), USAGE, text, folder=tmp_path)


@pytest.mark.parametrize("options", [["--structural", "0"], ["--structural", "1"], ["--channels", "0.5"], []], ids=str)
def test_an_unreachable_target_says_what_is_reachable(
    options: list[str], net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = command(capfd, net[0], "--target", "0.9999", *options, "--calib", net[1])
    assert_told(found, 1, "error: ", "reach", "what to do: the most that", "--target 0.9", folder=tmp_path)


# -- where the output goes ---------------------------------------------------------------------------------------


def test_the_output_over_the_input(net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, data = net
    before = path.read_bytes()
    (tmp_path / "link.onnx").symlink_to(path)
    for option in ("-o", "--report"):
        for output in (path, tmp_path / "link.onnx", tmp_path / "." / "net.onnx"):
            found = command(capfd, path, "--target", "0.5", "--calib", data, option, output)
            assert_error(found, USAGE, "over the input", output, folder=tmp_path)
    assert path.read_bytes() == before


def test_the_output_over_the_data_or_the_recipe(
    net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, data = net
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("target = 0.5")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for option in ("-o", "--report"):
        for output in (data, recipe):
            found = command(capfd, path, "--recipe", recipe, "--calib", data, option, output)
            assert_error(found, USAGE, "over the input", output, folder=tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_an_output_that_cannot_be_written(
    net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for option in ("-o", "--report"):
        for output, text in (("/dev/null", "no regular file"), ("/proc/out.onnx", "cannot be written")):
            found = command(capfd, net[0], "--target", "0.5", "--calib", "not:looked_at", option, output)
            assert_error(found, USAGE, text, output, folder=tmp_path)


def test_an_output_folder_that_does_not_exist(
    net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, data = net
    for option in ("-o", "--report"):
        found = command(capfd, path, "--target", "0.5", "--calib", data, option, tmp_path / "none" / "out.onnx")
        assert_error(found, USAGE, "folder does not exist", tmp_path / "none", folder=tmp_path)
    assert not (tmp_path / "none").exists()


def test_an_output_that_is_a_folder(net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, data = net
    found = command(capfd, path, "--target", "0.5", "--calib", data, "-o", tmp_path)
    assert_told(found, USAGE, tmp_path, folder=tmp_path)


def test_the_output_over_the_inputs_weights(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(small.network(), path, save_as_external_data=True, location="small.onnx.data", size_threshold=0)
    weights = tmp_path / "small.onnx.data"
    before = weights.read_bytes()
    for options in (["-o", tmp_path / "small.onnx"], ["-o", weights], ["--report", weights]):
        found = command(capfd, path, "--target", "0.5", *options)
        assert_error(found, USAGE, "over the input", weights, folder=tmp_path)
        assert weights.read_bytes() == before


def test_text_inputs_need_data(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["t"], ["u"])],
        "text",
        [value("t", TensorProto.STRING, ["N"])],
        [value("u", TensorProto.STRING, ["N"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "text.onnx"
    onnx.save(model, path)
    assert_error(command(capfd, path, "--target", "0.5"), UNUSABLE, "'t'", "text", folder=tmp_path)
