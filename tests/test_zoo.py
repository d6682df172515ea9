"""The acceptance figures on real networks and real data."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper

from graphprune import Recipe, prune
from graphprune.ledger import Ledger
from tests.commands import QUICK, command
from tests.measure import editable
from tests.oracles import run

pytestmark = pytest.mark.zoo

Array = npt.NDArray[Any]
SAMPLES = 64

TEN = """lenet300_mnist lenet5_mnist mnist_cntk resnet20_cifar10 resnet20_cifar10_bn squeezenet11_imagenet
mobilenet_v2_imagenet mobilenet_v1_025_imagenet dscnn_kws autoencoder_ad""".split()


@pytest.fixture(name="judge", scope="session")
def _judge(zoo: Path) -> ModuleType:
    """The zoo's own module of data and accuracy."""
    spec = importlib.util.spec_from_file_location("zoo_judge", zoo / "zoo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def calibration(judge: ModuleType, name: str, samples: int = SAMPLES) -> dict[str, Array]:
    """What ``zoo.py calib`` writes."""
    if name in judge.LABELLED:
        entry, data, *_ = judge.LABELLED[name]
        return {entry: data(True, samples)[0]}
    rows = judge.synthetic(name, samples)
    return {entry: np.stack([row[entry] for row in rows]) for entry in rows[0]}


# -- the target --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "target", "least", "images"),
    [
        ("lenet5_mnist", 0.9, 0.98, 10_000),
        ("lenet300_mnist", 0.9, 0.97, 10_000),
        ("resnet20_cifar10", 0.3, 0.77, 2_000),
    ],
)
def test_accuracy_at_the_target_without_any_training(
    name: str,
    target: float,
    least: float,
    images: int,
    judge: ModuleType,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path, data, out = judge.HERE / f"models/{name}.onnx", tmp_path / "calib.npz", tmp_path / "out.onnx"
    np.savez(data, **calibration(judge, name, 128))
    found = command(capfd, path, "--target", str(target), "--calib", data, "-o", out, "-q", *QUICK)
    assert (found.code, found.out, found.err) == (0, "", "")
    before = sum(value.size for value in editable(onnx.load(path)).values() if value.dtype.kind == "f")
    nonzero = sum(int(np.count_nonzero(v)) for v in editable(onnx.load(out)).values() if v.dtype.kind == "f")
    ledger = json.loads((tmp_path / "out.json").read_text())
    assert 1 - nonzero / before >= target
    assert ledger["weights"]["sparsity"] == 1 - nonzero / before
    accuracy = judge.evaluate(out, name, images)
    with capfd.disabled():
        print(f"\n{name} --target {target}: top-1 {accuracy['top1']:.4f} of {accuracy['n']}, asked for {least}")
    assert accuracy["n"] == images
    assert accuracy["top1"] >= least


# -- half of every group -----------------------------------------------------------------------------------------


def moved(value: Array, node: onnx.NodeProto, tensors: Mapping[str, Array]) -> Array:
    """What a node of data movement makes of its first input."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Transpose":
        return value.transpose(attributes.get("perm"))
    assert node.op_type == "Reshape", node.op_type
    return value.reshape(attributes.get("shape") or tensors[node.input[1]])


def masked(model: onnx.ModelProto, kept: Mapping[str, Mapping[str, Sequence[int]]]) -> tuple[onnx.ModelProto, int]:
    """Return the model with zeros in all weights that read removed channels, and how many axes that were.

    From the ledger's ``kept`` alone: where an axis of a weight that lost positions meets the axis that a Conv, Gemm,
    MatMul or LSTM sums over, its lost positions are zeroed. Nothing is asked of the coupling.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    arrays = editable(model)
    producer = {output: node for node in model.graph.node for output in node.output}
    axes = 0
    for read, summed in (weight for node in model.graph.node for weight in weights_of(node)):
        name, chain = read, list[onnx.NodeProto]()
        while name not in arrays and name in producer:
            chain.insert(0, producer[name])
            name = producer[name].input[0]
        for axis, indices in kept.get(name, {}).items():
            mask = np.zeros(arrays[name].shape[int(axis)], dtype=arrays[name].dtype)
            mask[list(indices)] = 1
            shaped = mask.reshape([-1 if place == int(axis) else 1 for place in range(arrays[name].ndim)])
            seen = np.array(np.broadcast_to(shaped, arrays[name].shape))
            for step in chain:
                seen = moved(seen, step, arrays)
            others = tuple(place for place in range(seen.ndim) if place != summed)
            if (seen.min(axis=others) == seen.max(axis=others)).all():  # it varies along the summed axis alone
                arrays[name] = arrays[name] * shaped
                axes += 1
    for tensor in result.graph.initializer:
        if tensor.name in kept:
            tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    return result, axes


def weights_of(node: onnx.NodeProto) -> list[tuple[str, int]]:
    """The weights that a node multiplies its data by, and the axis of each that it sums over."""
    summed = {"Conv": 1, "Gemm": int(bool(attribute(node, "transB"))), "MatMul": 0, "LSTM": 2}.get(node.op_type)
    names = node.input[1:3] if node.op_type == "LSTM" else node.input[1:2]
    return [] if summed is None else [(name, summed) for name in names]


def attribute(node: onnx.NodeProto, name: str) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), 0)


def relative_l2(expected: Mapping[str, Array], got: Mapping[str, Array]) -> float:
    flat = [np.concatenate([of[name].ravel() for name in expected]).astype(np.float64) for of in (expected, got)]
    return float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[0]))


def signature(model: onnx.ModelProto) -> list[Any]:
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    return [(value.name, value.type.SerializeToString()) for value in (*inputs, *model.graph.output)]


def width(ledger: Ledger, name: str) -> tuple[int, int]:
    """Size of the group that the output channels of a weight are in, and how many went."""
    (group,) = (group for group in ledger.groups if [name, 0] in [list(axis) for axis in group.axes])
    return group.size, len(group.removed)


@pytest.mark.parametrize("name", TEN)
def test_half_of_every_group(name: str, judge: ModuleType) -> None:
    path = judge.HERE / f"models/{name}.onnx"
    original = onnx.load(path)
    calib = calibration(judge, name)
    pruned, ledger = prune(path, Recipe(channels=0.5, recover=False, runs=2), calib)
    lost = ledger.weights.removed / ledger.weights.before
    assert lost >= 0.3, f"only {lost:.1%} of the weights went"
    onnx.checker.check_model(pruned, full_check=True)
    assert signature(pruned) == signature(original)

    # The kept indices reproduce every initializer, bit for bit.
    before, after = editable(original), editable(pruned)
    kept = json.loads(ledger.to_json())["kept"]
    assert set(kept) <= set(before)
    for tensor, value in after.items():
        if tensor not in before:
            assert value.dtype == np.int64, f"{tensor} is new, and no shape constant"
            continue
        expected = before[tensor]
        for axis, indices in kept.get(tensor, {}).items():
            expected = expected.take(indices, axis=int(axis))
        assert value.tobytes() == np.ascontiguousarray(expected).tobytes(), tensor
        assert value.shape == expected.shape
    gone = [tensor for tensor in set(before) - set(after) if before[tensor].dtype.kind == "f"]
    assert gone == []

    # The pruned model equals the original masked where the channels are consumed.
    reference, axes = masked(original, kept)
    assert axes, "nothing was masked"
    (entry,) = calib
    feeds = {entry: calib[entry][:1] if name in judge.LABELLED else calib[entry][0]}
    expected_outputs, outputs = run(reference, feeds), run(pruned, feeds)
    assert {key: value.shape for key, value in outputs.items()} == {
        key: value.shape for key, value in expected_outputs.items()
    }
    assert relative_l2(expected_outputs, outputs) <= 1e-4
    assert relative_l2(run(original, feeds), outputs) > 1e-3, "nothing was pruned"


@pytest.mark.parametrize("name", ["resnet20_cifar10", "resnet20_cifar10_bn"])
def test_the_residual_stages_of_resnet20_lose_width(name: str, judge: ModuleType) -> None:
    path = judge.HERE / f"models/{name}.onnx"
    original = onnx.load(path)
    pruned, _ = prune(path, Recipe(channels=0.5, recover=False, runs=2), calibration(judge, name, 16))
    widths = []
    for model in (original, pruned):
        arrays = editable(model)
        convs = [node for node in model.graph.node if node.op_type == "Conv"]
        adds = {read for node in model.graph.node if node.op_type == "Add" for read in node.input}
        producer = {output: node for node in model.graph.node for output in node.output}
        ends = []
        for tensor in adds:  # the convolutions that end in an Add: the stages' own channels
            node = producer.get(tensor)
            while node is not None and node.op_type in ("BatchNormalization", "Identity"):
                node = producer.get(node.input[0])
            if node in convs and node is not None:
                ends.append((convs.index(node), arrays[node.input[1]].shape[0]))
        widths.append([extent for _, extent in sorted(ends)])
    assert widths[0] == [16] * 3 + [32] * 3 + [64] * 3
    assert all(now < then for then, now in zip(*widths, strict=True)), widths
    assert len({*widths[1][:3]}) == len({*widths[1][3:6]}) == len({*widths[1][6:]}) == 1


@pytest.mark.parametrize(
    ("name", "state", "result", "least"),
    [
        ("dtln_1", "input_3", "tf_op_layer_stack_2", 0.6),
        ("dtln_2", "input_5", "tf_op_layer_stack_5", 0.35),
    ],
)
def test_a_streaming_model_keeps_half_of_its_state_and_feeds_it_back(
    name: str, state: str, result: str, least: float, judge: ModuleType
) -> None:
    path = judge.HERE / f"models/{name}.onnx"
    original = onnx.load(path)
    asked = Recipe(channels=0.5, recover=False, runs=2, allow_resize=(state, result))
    pruned, ledger = prune(path, asked, calibration(judge, name, 16))
    lost = ledger.weights.removed / ledger.weights.before
    assert lost >= least, f"only {lost:.1%} of the weights went"
    onnx.checker.check_model(pruned, full_check=True)
    values = json.loads(ledger.to_json())
    assert values["resized"][state] == values["resized"][result]
    assert (values["resized"][state]["before"], values["resized"][state]["after"]) == ([1, 2, 128, 2], [1, 2, 64, 2])
    kept = values["resized"][state]["kept"]["2"]

    reference, axes = masked(original, values["kept"])
    assert axes, "nothing was masked"
    states = [np.zeros((1, 2, extent, 2), np.float32) for extent in (128, 64)]
    for row in judge.synthetic(name, 16):
        before, after = (
            run(model, {**row, state: fed}) for model, fed in zip((reference, pruned), states, strict=True)
        )
        states = [before[result], after[result]]
        assert relative_l2({**before, result: before[result].take(kept, axis=2)}, after) <= 1e-4


def test_nothing_is_printed_when_quiet(judge: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, data = judge.HERE / "models/resnet20_cifar10.onnx", tmp_path / "calib.npz"
    np.savez(data, **calibration(judge, "resnet20_cifar10", 4))
    found = command(capfd, path, "--channels", "0.1", "--calib", data, "-q", "-o", tmp_path / "out.onnx", *QUICK)
    assert (found.code, found.out, found.err) == (0, "", "")
