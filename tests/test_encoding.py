"""--encode and decode: what commands and the Python interface make of encoded models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphprune import Recipe, RecipeError, prune
from graphprune.api import as_model, inspect
from graphprune.comparison import compare
from graphprune.ir.encoding.decode import decode, is_encoded
from graphprune.ir.model import load, save
from tests import small
from tests.commands import QUICK, command
from tests.nets import Net
from tests.oracles import feeds


def network() -> onnx.ModelProto:
    """Wide enough that sparse weights are smaller as gaps, or as bitmaps."""
    net = Net(seed=3)
    stem = net.relu(net.conv(net.input(["N", 2, 6, 6], "image"), 32, 3))
    hidden = net.relu(net.gemm(net.flatten(net.relu(net.conv(stem, 32, 3))), 24))
    return net.build(net.gemm(hidden, 5))


@pytest.fixture(name="net")
def _net(tmp_path: Path) -> tuple[Path, Path]:
    return small.write(tmp_path, network())


def text(proto: onnx.ModelProto) -> bytes:
    return proto.SerializeToString(deterministic=True)


def encoded(
    net: tuple[Path, Path], folder: Path, capfd: pytest.CaptureFixture[str], *options: str, recover: bool = False
) -> Path:
    path = folder / "small.onnx"
    options = (*options, "--encode", "auto", *(() if recover else ("--no-recover",)))
    given = ["--target", "0.9", "--structural", "0", "--calib", net[1], "-o", path, "-q", *QUICK, *options]
    found = command(capfd, net[0], *given)
    assert (found.code, found.out, found.err) == (0, "", "")
    return path


# -- prune --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recover", [True, False])
def test_encoding_changes_bytes_and_nothing_else(
    recover: bool, net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = encoded(net, tmp_path, capfd, recover=recover)
    dense, plain = prune(net[0], Recipe(target=0.9, structural=0, recover=recover, runs=2), net[1])
    assert is_encoded(onnx.load(path))
    assert text(load(path).proto) == text(dense)
    onnx.checker.check_model(str(path), full_check=True)
    ledger = json.loads((tmp_path / "small.json").read_text())
    assert ledger["weights"] == json.loads(plain.to_json())["weights"]
    assert ledger["macs"] == json.loads(plain.to_json())["macs"]
    assert ledger["bytes"]["after"] == path.stat().st_size < 0.3 * plain.bytes.after
    assert ledger["recipe"]["encode"] == "auto"
    assert ledger["fidelity"]["relative_l2"] == pytest.approx(plain.fidelity.relative_l2, abs=1e-6)
    stored = {record["tensor"]: record for record in ledger["encodings"]}
    assert set(stored) == {tensor.name for tensor in dense.graph.initializer if tensor.data_type == 1}
    assert any(record["form"] == "gaps" for record in stored.values())
    assert all(record["after"] <= record["before"] for record in stored.values())
    assert plain.encodings == []
    assert "encode" in ledger["seconds"]


def test_fp16_is_counted_as_it_is_rounded(net: tuple[Path, Path]) -> None:
    result, ledger = prune(net[0], Recipe(target=0.9, structural=0, encode="fp16", runs=2), net[1])
    assert any(record.values == "float16" for record in ledger.encodings)
    restored = decode(result)
    assert ledger.weights.nonzero == sum(
        int(np.count_nonzero(numpy_helper.to_array(tensor)))
        for tensor in restored.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    )
    with pytest.raises(RecipeError, match="--encode fp16 rounds them"):
        Recipe(target=0.9, encode="fp16", recover=False)


def test_the_table_says_how_weights_are_stored(net: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    given = ["--target", "0.9", "--structural", "0", "--calib", net[1], *QUICK]
    found = command(capfd, net[0], *given, "--encode", "fp16")
    assert found.code == 0
    (line,) = [line for line in found.err.splitlines() if line.startswith("stored ")]
    assert "as gaps" in line
    assert "as float16" in line
    assert "stored " not in command(capfd, net[0], *given, "--no-recover").err


def test_a_model_that_cannot_be_encoded_says_why(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    net = Net(8, seed=3)
    old = net.build(net.gemm(net.relu(net.gemm(net.input(["N", 40], "image"), 60)), 5))
    path, data = small.write(tmp_path, old)
    found = command(capfd, path, "--target", "0.9", "--structural", "0", "--calib", data, "--encode", "auto", *QUICK)
    assert found.code == 0
    assert "left dense: 2 weights: operator set 8 has no operators that rebuild it" in found.err


# -- what is done with encoded models -----------------------------------------------------------------------------


def test_encoded_models_are_pruned_inspected_and_compared_as_dense_ones(
    net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = encoded(net, tmp_path, capfd)
    dense = tmp_path / "dense.onnx"
    save(load(path).proto, dense)
    comparison = compare(as_model(path), as_model(dense), Recipe(target=0.0, runs=2), str(net[1]))
    assert comparison.weights.before == comparison.weights.after
    assert comparison.nonzero.before == comparison.nonzero.after
    assert comparison.macs.before == comparison.macs.after
    assert comparison.bytes.before == path.stat().st_size < comparison.bytes.after
    assert comparison.fidelity.relative_l2 == 0
    wanted = Recipe(target=0.0, recover=False)
    one, other = (inspect(model, wanted, str(net[1])) for model in (path, dense))
    assert (one.weights, one.macs, one.groups, one.reasons) == (other.weights, other.macs, other.groups, other.reasons)
    recipe = Recipe(target=0.95, structural=0, recover=False, runs=2)
    assert text(prune(path, recipe, net[1])[0]) == text(prune(dense, recipe, net[1])[0])
    assert text(prune(onnx.load(path), recipe, net[1])[0]) == text(prune(dense, recipe, net[1])[0])


def test_encoded_models_are_fine_tuned_as_dense_ones(
    net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    from graphprune.finetune import to_torch  # noqa: PLC0415

    path = encoded(net, tmp_path, capfd)
    module, dense = to_torch(path), load(path).proto
    assert set(module.initializer_names.values()) >= {t.name for t in dense.graph.initializer if len(t.dims) > 1}
    image = torch.from_numpy(feeds(dense)["image"])
    assert module(image).shape == (2, 5)


# -- decode -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("external", [False, True])
def test_decode_gives_the_dense_file_back(
    external: bool, net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plain, data = tmp_path / "plain.onnx", net[1]
    save(onnx.load(net[0]), plain, external=external)
    encoded((plain, data), tmp_path, capfd)
    dense, _ = prune(plain, Recipe(target=0.9, structural=0, recover=False, runs=2), data)
    save(dense, tmp_path / "wanted.onnx", external=external)
    found = command(capfd, "decode", tmp_path / "small.onnx")
    assert (found.code, found.out) == (0, "")
    assert f"wrote {tmp_path / 'small.decoded.onnx'}" in found.err
    assert text(load(tmp_path / "small.decoded.onnx").proto) == text(load(tmp_path / "wanted.onnx").proto)
    assert (tmp_path / "small.decoded.onnx.data").exists() == external
    again = command(capfd, "decode", tmp_path / "small.decoded.onnx", "-o", tmp_path / "again.onnx")
    assert again.code == 0
    assert "is not encoded" in again.err
    assert text(load(tmp_path / "again.onnx").proto) == text(load(tmp_path / "wanted.onnx").proto)
    assert command(capfd, "decode", tmp_path / "small.onnx", "-q", "-o", tmp_path / "quiet.onnx").err == ""


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["-o", "SMALL"], 2, "over the input"),
        (["-o", ""], 2, "has no name"),
        (["-o", "nowhere/out.onnx"], 2, "folder does not exist"),
        (["--calib", "x.npz"], 2, "--calib"),
        (["--encode", "auto"], 2, "--encode"),
    ],
    ids=str,
)
def test_decode_refuses(
    options: list[str],
    code: int,
    words: str,
    net: tuple[Path, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = encoded(net, tmp_path, capfd)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    given = [str(path) if option == "SMALL" else option for option in options]
    given = [str(tmp_path / option) if "/" in option and not option.startswith("/") else option for option in given]
    found = command(capfd, "decode", path, *given)
    assert found.code == code
    assert words in found.err
    assert "Traceback" not in found.err
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _spoil(path: Path) -> None:
    proto = onnx.load(path)
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name.endswith(".gaps"))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[..., :-1], tensor.name))
    onnx.save(proto, path)


@pytest.mark.parametrize("harm", [_cut, _spoil])
def test_a_damaged_file_is_exit_3_and_writes_nothing(
    harm: Any, net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = encoded(net, tmp_path, capfd)
    harm(path)
    names = {file.name for file in tmp_path.iterdir()}
    for given in (["decode", path], ["inspect", path], [path, "--target", "0.95"]):
        found = command(capfd, *given)
        assert found.code == 3
        assert found.err.startswith("error: ")
        assert "what to do:" in found.err
        assert "Traceback" not in found.err
    assert {file.name for file in tmp_path.iterdir()} == names
