"""--pack: what commands and the Python interface make of zeros in blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import numpy_helper

from graphprune import Ledger, Recipe, attempts, pipeline, prune
from graphprune.api import inspect
from graphprune.comparison import compare
from graphprune.finetune import Masks, to_onnx, to_torch
from graphprune.ir.graph import Graph
from graphprune.ir.layers import layer
from graphprune.ir.model import load
from graphprune.ir.packing import Site
from graphprune.passes import pack
from graphprune.verify.latency import Latency
from graphprune.verify.packing_times import PackingTimes
from tests import small
from tests.commands import BY_RULE, BY_RULE_OPTIONS, QUICK, command
from tests.nets import Net
from tests.oracles import assert_close, feeds, run, values

WIDE = 128
QUICKLY: dict[str, Any] = {"structural": 0.0, "runs": 2, "recover": False, **BY_RULE}


def network(width: int = WIDE) -> onnx.ModelProto:
    """A convolution with a kernel of 1 and two dense layers that are wide enough, and a small one."""
    net = Net(seed=3)
    pooled = net.pool(net.relu(net.conv(net.input(["N", width, 2, 2], "image"), width, 1)))
    hidden = net.relu(net.gemm(net.flatten(pooled), width))
    return net.build(net.gemm(net.relu(net.linear(hidden, width)), 5))


@pytest.fixture(autouse=True)
def _times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Say that packed products take half of the time, and models with them, too: time cannot be made to repeat."""

    def measure(_: PackingTimes, __: Graph, ___: Site, groups: int, count: int) -> tuple[float, float]:
        return 2.0, 1.0

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(PackingTimes, "_measure", measure)
    monkeypatch.setattr(attempts, "time_packed", lambda *_: timed(0.5))
    monkeypatch.setattr(pipeline, "compare_latency", lambda *_, **__: timed(0.5))
    monkeypatch.setattr(pack, "SMALLEST", 1024)


def timed(ratio: float) -> Latency:
    word = "slower" if ratio > 1.03 else "faster" if ratio < 0.97 else "same"
    return Latency(1, 10, 1.0, ratio, ratio, (ratio, ratio), 0.99, word)  # type: ignore[arg-type]


@pytest.fixture(name="net", scope="module")
def _net(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return small.write(tmp_path_factory.mktemp("net"), network(), samples=32)


def unpacked(original: onnx.ModelProto, result: onnx.ModelProto, ledger: Ledger) -> onnx.ModelProto:
    """The original with the result's weights, those packed put where the ledger says."""
    stored, dense = values(result), onnx.ModelProto()
    dense.CopyFrom(original)
    records = {record.weight: record for record in ledger.packed}
    for tensor in dense.graph.initializer:
        record = records.get(tensor.name)
        new = stored.get(tensor.name)
        if record is not None:
            inputs = stored[record.indices].reshape(record.groups, record.inputs)
            blocks = stored[record.blocks].reshape(record.groups, record.columns, record.inputs)
            new = spread(inputs, blocks, tuple(tensor.dims), transposed=record.op == "MatMul")
        if new is not None:
            tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
    return dense


def spread(
    inputs: npt.NDArray[Any], blocks: npt.NDArray[Any], shape: tuple[int, ...], *, transposed: bool
) -> npt.NDArray[Any]:
    outputs, width = shape[:2][::-1] if transposed else shape[:2]
    matrix = np.zeros((blocks.shape[0] * blocks.shape[1], width), np.float32)
    for group, (read, block) in enumerate(zip(inputs, blocks, strict=True)):
        matrix[group * len(block) : (group + 1) * len(block), read] = block
    matrix = matrix[:outputs]
    return np.ascontiguousarray(matrix.T if transposed else matrix).reshape(shape)


# -- prune ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"recover": True}, {"recover": True, "structural": 0.1}])
def test_the_packed_model_equals_the_dense_one_with_its_zeros(net: tuple[Path, Path], options: dict[str, Any]) -> None:
    recipe = Recipe(target=0.8, pack="auto", **{**QUICKLY, **options})
    result, ledger = prune(net[0], recipe, net[1])
    onnx.checker.check_model(result, full_check=True)
    assert {record.op for record in ledger.packed} == {"Conv", "Gemm", "MatMul"}
    assert all((record.groups, record.columns) == (2, 64) for record in ledger.packed) or "structural" in options
    if "structural" not in options:
        dense = unpacked(onnx.load(net[0]), result, ledger)
        assert_close(run(dense, feeds(dense, 5)), run(result, feeds(dense, 5)))
    weights = ledger.weights
    assert weights.sparsity >= 0.8
    assert weights.nonzero <= 0.2 * weights.before
    stored = [tensor for tensor in result.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    assert weights.after == sum(int(np.prod(tensor.dims)) for tensor in stored)
    assert weights.removed == weights.before - weights.after
    zeros = sum(int((numpy_helper.to_array(tensor) == 0).sum()) for tensor in stored)
    assert weights.zeroed <= zeros
    assert not {record.weight for record in ledger.packed} & set(ledger.zeroed)
    assert ledger.macs.after < 0.25 * ledger.macs.before
    assert ledger.packed_latency is not None


def test_without_repair_weights_that_stay_are_bit_identical(net: tuple[Path, Path]) -> None:
    result, ledger = prune(net[0], Recipe(target=0.8, pack="auto", **QUICKLY), net[1])
    before, after = values(onnx.load(net[0])), values(unpacked(onnx.load(net[0]), result, ledger))
    for name, one in before.items():
        assert np.array_equal(after[name][after[name] != 0], one[after[name] != 0])


def test_inputs_with_the_most_energy_stay(net: tuple[Path, Path]) -> None:
    result, ledger = prune(net[0], Recipe(target=0.8, pack="auto", **QUICKLY), net[1])
    original = values(onnx.load(net[0]))
    record = next(record for record in ledger.packed if record.op == "MatMul")
    kept = values(result)[record.indices]
    energy = np.square(original[record.weight]).reshape(WIDE, record.groups, record.columns).sum(axis=2)
    for group in range(record.groups):
        assert set(kept[group]) == set(np.argsort(energy[:, group])[WIDE - record.inputs :])


def test_layers_too_wide_to_be_solved_are_packed_too(net: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "WIDEST", WIDE - 1)
    result, ledger = prune(net[0], Recipe(target=0.7, pack="auto", **{**QUICKLY, "recover": True}), net[1])
    assert [repair.layer for repair in ledger.repairs] == []
    assert len(ledger.packed) == 3
    assert ledger.weights.sparsity >= 0.7
    dense = unpacked(onnx.load(net[0]), result, ledger)
    assert_close(run(dense, feeds(dense, 5)), run(result, feeds(dense, 5)))


def test_random_inputs_do_for_zeros_by_magnitude(net: tuple[Path, Path]) -> None:
    _, ledger = prune(net[0], Recipe(target=0.8, pack="auto", **{**QUICKLY, "recover": True}))
    assert len(ledger.packed) == 3
    assert ledger.recovery is None
    assert ledger.weights.sparsity >= 0.8


def test_the_largest_sparsity_within_a_drop_is_found_with_packed_weights(tmp_path: Path) -> None:
    path, data = small.write(tmp_path, network(64))
    limits = {"recover": True, "structural": "auto", "sparsifier": "wanda"}
    _, ledger = prune(path, Recipe(max_drop=0.5, pack="auto", **{**QUICKLY, **limits}), data)
    assert ledger.packed
    assert ledger.recovery is not None
    assert ledger.recovery.drop <= 0.5


def test_off_is_the_default_and_packs_nothing(net: tuple[Path, Path]) -> None:
    result, ledger = prune(net[0], Recipe(target=0.8, **QUICKLY), net[1])
    assert (ledger.packed, ledger.packed_latency) == ([], None)
    assert not any(node.op_type == "Gather" for node in result.graph.node)


def test_what_is_not_faster_alone_is_not_packed(net: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PackingTimes, "_measure", lambda *_: (1.0, 1.0))
    plain, _ = prune(net[0], Recipe(target=0.8, **QUICKLY), net[1])
    result, ledger = prune(net[0], Recipe(target=0.8, pack="auto", **QUICKLY), net[1])
    assert ledger.packed == []
    assert result.SerializeToString(deterministic=True) == plain.SerializeToString(deterministic=True)
    (note,) = [note for note in ledger.notes if "packed" in note]
    assert note.startswith("no weight is packed: with its zeros left out, no product takes less than 70% of its time")


@pytest.mark.parametrize("ratio", [1.0, 1.5])
def test_a_model_that_is_no_faster_with_it_is_built_again_without(
    net: tuple[Path, Path], ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "time_packed", lambda *_: timed(ratio))
    plain, _ = prune(net[0], Recipe(target=0.8, **QUICKLY), net[1])
    result, ledger = prune(net[0], Recipe(target=0.8, pack="auto", **QUICKLY), net[1])
    assert (ledger.packed, ledger.packed_latency) == ([], None)
    assert result.SerializeToString(deterministic=True) == plain.SerializeToString(deterministic=True)
    (note,) = [note for note in ledger.notes if "packed" in note]
    assert f"x{ratio:.2f}" in note


def test_a_packed_model_slower_than_the_original_is_built_again_without(
    net: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ratios = [1.3, 1.2, 1.0]  # found slower, found so again, and then without
    monkeypatch.setattr(pipeline, "compare_latency", lambda *_, **__: timed(ratios.pop(0)))
    recipe = Recipe(target=0.8, pack="auto", **{**QUICKLY, "max_latency_ratio": None})
    _, ledger = prune(net[0], recipe, net[1])
    assert ratios == []
    assert (ledger.packed, ledger.packed_latency) == ([], None)
    assert "with packed weights the result was slower than the original (latency x1.20)" in " ".join(ledger.notes)
    assert [(gate.name, gate.ok) for gate in ledger.gates] == [("target", True)]
    assert ledger.recipe["pack"] == "auto"


def test_encoded_on_top_it_is_the_same_model(net: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = Recipe(target=0.8, pack="auto", encode="fp16", **{**QUICKLY, "recover": True})
    result, ledger = prune(net[0], recipe, net[1])
    onnx.save(result, tmp_path / "small.onnx")
    decoded = load(tmp_path / "small.onnx").proto
    assert len(ledger.packed) == 3
    assert {record.tensor for record in ledger.encodings if record.values == "float16"} >= {
        record.blocks for record in ledger.packed
    }
    given = feeds(decoded, 5)
    assert_close(run(decoded, given), run(result, given))
    assert ledger.weights.after == sum(v.size for v in values(decoded).values() if v.dtype == np.float32)


# -- what reads the result --------------------------------------------------------------------------------------------


def test_a_packed_model_is_fine_tuned_with_what_it_left_out_left_out(net: tuple[Path, Path], tmp_path: Path) -> None:
    result, ledger = prune(net[0], Recipe(target=0.8, pack="auto", **QUICKLY), net[1])
    module = to_torch(result)
    masks = Masks.from_ledger(module, ledger.as_dict())
    assert set(masks.zeros) == {name for name, count in ledger.zeroed.items() if count}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    given = feeds(result, 5)
    (before,) = run(result, given).values()
    out = module(torch.from_numpy(given["image"]))
    np.testing.assert_allclose(out.detach().numpy(), before, rtol=1e-4, atol=1e-5)
    out.square().sum().backward()
    optimizer.step()
    to_onnx(module, tmp_path / "tuned.onnx")
    tuned = onnx.load(tmp_path / "tuned.onnx")
    record = ledger.packed[0]
    assert values(tuned)[record.blocks].shape == values(result)[record.blocks].shape
    assert not np.array_equal(values(tuned)[record.blocks], values(result)[record.blocks])
    assert np.array_equal(values(tuned)[record.indices], values(result)[record.indices])


def test_a_packed_model_can_be_inspected_compared_and_pruned_again(net: tuple[Path, Path], tmp_path: Path) -> None:
    result, ledger = prune(net[0], Recipe(target=0.8, pack="auto", **QUICKLY), net[1])
    path = tmp_path / "packed.onnx"
    onnx.save(result, path)
    assert inspect(path, Recipe(target=0.0), net[1]).weights == ledger.weights.after
    comparison = compare(load(net[0]), load(path), Recipe(target=0.0, runs=2), net[1])
    assert comparison.weights.after == ledger.weights.after
    assert comparison.nonzero.after == ledger.weights.nonzero
    assert comparison.macs == ledger.macs
    _, again = prune(path, Recipe(target=0.5, **QUICKLY), net[1])
    assert again.weights.sparsity >= 0.5


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command_says_what_is_packed_and_what_it_gains(
    net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.onnx"
    options = ["--target", "0.8", "--structural", "0", "--pack", "auto", "--no-recover", *BY_RULE_OPTIONS, *QUICK]
    found = command(capfd, net[0], "--calib", net[1], "-o", out, "--json", *options)
    assert found.code == 0, found.err
    assert "packed 3 weights (w_0, w_1, w_2): latency x0.50 [0.50, 0.50] of the same unpacked" in found.err
    ledger = json.loads(found.out)
    assert ledger["recipe"]["pack"] == "auto"
    assert ledger["packed_latency"]["ratio"] == 0.5
    first = ledger["packed"][0]
    assert (first["weight"], first["op"], first["groups"], first["columns"]) == ("w_0", "Conv", 2, 64)
    assert (first["dense_ms"], first["packed_ms"]) == (2.0, 1.0)
    assert 0 < first["inputs"] < WIDE
    stored = {tensor.name for tensor in onnx.load(out).graph.initializer}
    assert {first["blocks"], first["indices"]} <= stored
    assert ledger["bytes"]["after"] == out.stat().st_size < 0.35 * ledger["bytes"]["before"]
