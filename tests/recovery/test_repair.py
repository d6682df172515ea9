"""A repair is worth it on data that it has not seen, for layers of every form, and leaves alone what it must."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from graphprune import Recipe, prune
from graphprune.calib.pairs import Pair
from graphprune.ir.coupling.walk import couple
from graphprune.ir.graph import Graph
from graphprune.ir.layers.layer import find_layers
from graphprune.ir.surgery import remove
from graphprune.passes.canonicalize import canonicalize
from graphprune.passes.patterns import largest
from graphprune.recovery.repair import Zeroing, kept_outputs, repair
from tests import small
from tests.commands import BY_RULE
from tests.measure import editable, replaced
from tests.nets import Net
from tests.oracles import coupled, feeds, removal, run, sliced, units_on

MODELS = Path(__file__).resolve().parents[2] / "models"


def chain(middle: Callable[[Net, str], str]) -> onnx.ModelProto:
    """A layer of some form between two convolutions, and classes."""
    net = Net()
    data = middle(net, net.relu(net.conv(net.input(["N", 3, 8, 8]), 12, 3)))
    data = net.relu(net.conv(net.relu(data), 10, 1))
    return net.build(net.gemm(net.flatten(net.pool(data)), 4))


def transposed(net: Net, data: str) -> str:
    weight, bias = net.weight([12, 12, 2, 2], fan_in=12), net.vector(12)
    return net.node("ConvTranspose", [data, weight, bias], ["N", 12, 16, 16], kernel_shape=[2, 2], strides=[2, 2])


def dense(*, matmul: bool) -> onnx.ModelProto:
    net = Net()
    data = net.input(["N", 5, 12] if matmul else ["N", 12])
    for units in (24, 24):
        data = net.relu(net.linear(data, units) if matmul else net.gemm(data, units))
    return net.build(net.linear(data, 4) if matmul else net.gemm(data, 4))


def recurrent() -> onnx.ModelProto:
    net = Net()
    data = net.relu(net.linear(net.input([6, "N", 8]), 16))
    names = [net.weight([1, 48, 16], fan_in=16), net.weight([1, 48, 12], fan_in=12), net.vector(96)]
    bias = net.node("Unsqueeze", [names[2], net.constant(np.array([0]))], [1, 96])
    states = net.node("LSTM", [data, *names[:2], bias], [6, 1, "N", 12], hidden_size=12)
    return net.build(net.linear(net.squeeze(states, [1]), 4))


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "Conv": lambda: chain(lambda net, data: net.conv(data, 12, 3, stride=2)),
    "grouped Conv": lambda: chain(lambda net, data: net.conv(data, 12, 3, group=3)),
    "depthwise Conv": lambda: chain(lambda net, data: net.depthwise(data)),
    "ConvTranspose": lambda: chain(transposed),
    "Conv without bias": lambda: chain(lambda net, data: net.conv(data, 12, 3, bias=False)),
    "residual": lambda: chain(lambda net, data: net.add(data, net.conv(net.relu(net.conv(data, 8, 3)), 12))),
    "concatenation": lambda: chain(lambda net, data: net.concat(net.conv(data, 6, 3), net.conv(data, 6))),
    "gate": lambda: chain(lambda net, data: net.gate(data, 6)),
    "Gemm": lambda: dense(matmul=False),
    "MatMul": lambda: dense(matmul=True),
    "LSTM": recurrent,
    "normalised": small.network,
}


def samples(model: onnx.ModelProto, seed: int, count: int = 96) -> dict[str, npt.NDArray[Any]]:
    """Inputs with structure, as real ones have: a few directions carry most of their energy."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(0)
    found = {}
    for name, value in feeds(model, seed, count).items():
        axis = next(place for place, size in enumerate(value.shape) if size == count)
        inner = np.moveaxis(value, axis, 0)
        width = inner[0].size
        causes = random.normal(size=(count, max(width // 4, 2))) @ mixing.normal(size=(max(width // 4, 2), width))
        mixed = causes / np.sqrt(width // 4) + 0.1 * random.normal(size=(count, width))
        found[name] = np.moveaxis(mixed.reshape(inner.shape), 0, axis).astype(np.float32)
    return found


def error(model: onnx.ModelProto, other: onnx.ModelProto, seed: int = 99) -> float:
    """Relative error of the outputs on samples that nobody else sees."""
    inputs = samples(model, seed)
    (expected,), (got,) = (run(proto, inputs).values() for proto in (model, other))
    return float(np.linalg.norm(expected - got) / np.linalg.norm(expected - expected.mean()))


def pruned(model: onnx.ModelProto, **given: Any) -> onnx.ModelProto:
    return prune(model, Recipe(**{"runs": 2, **BY_RULE, **given}), samples(model, 1))[0]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    "given", [{"channels": 0.34}, {"target": 0.6, "structural": 0}, {"target": 0.5}], ids=["units", "zeros", "both"]
)
def test_a_repair_lowers_the_error_on_data_not_seen(name: str, given: dict[str, Any]) -> None:
    model = NETWORKS[name]()
    repaired, plain = (error(model, pruned(model, recover=recover, **given)) for recover in (True, False))
    assert repaired < 0.9 * plain


@pytest.mark.parametrize(
    "given", [{"channels": 0.6}, {"target": 0.97, "structural": 0, "sparsifier": "wanda"}], ids=str
)
def test_a_trained_network_keeps_more_of_its_accuracy(given: dict[str, Any]) -> None:
    path, calib = MODELS / "digits.onnx", MODELS / "digits_calib.npz"
    with np.load(MODELS / "digits_test.npz") as file:
        images, labels = file["image"], file["label"]

    def accuracy(recover: bool) -> float:
        model, _ = prune(path, Recipe(**given, recover=recover, runs=2), calib)
        (logits,) = run(model, {model.graph.input[0].name: images}).values()
        return float((logits.argmax(axis=1) == labels).mean())

    repaired, plain = accuracy(recover=True), accuracy(recover=False)
    assert repaired > 0.95
    assert repaired > plain + 0.02


@pytest.mark.parametrize("given", [{"channels": 0.25}, {"target": 0.6, "structural": 0}, {"target": 0.7}], ids=str)
def test_zeros_that_are_there_already_stay(given: dict[str, Any]) -> None:
    model = dense(matmul=False)
    arrays, random = editable(model), np.random.default_rng(5)
    holes = {name: random.random(value.shape) < 0.3 for name, value in arrays.items() if value.ndim == 2}
    model = replaced(model, **{name: np.where(mask, 0, arrays[name]) for name, mask in holes.items()})
    result, ledger = prune(model, Recipe(runs=2, **given), samples(model, 1))
    after = editable(result)
    for name, mask in holes.items():
        kept = {int(axis): indices for axis, indices in ledger.kept.get(name, {}).items()}
        assert not after[name][sliced(mask, kept)].any()
        assert after[name].any()


def test_layers_get_no_bias_and_lose_none() -> None:
    for name in ("Conv", "Conv without bias"):
        model = NETWORKS[name]()
        result = pruned(model, target=0.5, structural=0)
        count = [
            [len([entry for entry in node.input if entry]) for node in proto.graph.node if node.op_type == "Conv"]
            for proto in (model, result)
        ]
        assert count[0] == [3, 3 if name == "Conv" else 2, 3]
        assert count[1][0] == count[1][2] == 3


@pytest.mark.parametrize("given", [{"channels": 0.0}, {"target": 0.0, "structural": 0}, {"target": 0.0}], ids=str)
def test_where_nothing_goes_the_model_stays_byte_for_byte(given: dict[str, Any]) -> None:
    for model in (small.network(), recurrent()):
        result, ledger = prune(model, Recipe(runs=2, **given), samples(model, 1))
        assert result.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)
        assert (ledger.recovery, ledger.repairs) == (None, [])


def prepared(fraction: list[int]) -> tuple[Any, npt.NDArray[np.bool_], onnx.ModelProto, Callable[..., Pair]]:
    model = dense(matmul=False)
    coupling = couple(Graph(canonicalize(model)))
    removed = removal(coupling, [units_on(coupling, "w_0", 0)[unit] for unit in fraction])
    draft, _ = remove(coupling, removed)
    inputs = samples(model, 1)["x_0"]
    batches = [{"x_0": inputs[start : start + 8]} for start in range(0, len(inputs), 8)]
    return coupling, removed, draft, lambda one, other: Pair(one, other, batches)


def test_only_what_reads_a_removed_unit_changes_and_what_comes_before_it_does_not() -> None:
    coupling, removed, draft, pair = prepared([3, 7, 11])
    before = editable(draft)
    records = repair(coupling, removed, draft, pair, Zeroing())
    after = editable(draft)
    assert [record.layer for record in records] == ["w_0", "w_1", "w_2"]
    np.testing.assert_array_equal(after["w_0"], before["w_0"])
    np.testing.assert_array_equal(after["b_0"], before["b_0"])
    assert (after["w_1"] != before["w_1"]).all()
    assert records[0].before == pytest.approx(0, abs=1e-9)
    assert records[1].after < records[1].before


def test_as_many_weights_stay_as_may_by_every_method() -> None:
    for method in ("admm", "obs", "wanda", "magnitude"):
        coupling, removed, draft, pair = prepared([])
        repair(coupling, removed, draft, pair, Zeroing({"w_1": largest(100)}, method))
        after = editable(draft)
        assert np.count_nonzero(after["w_1"]) == 100
        assert np.count_nonzero(after["w_2"]) == after["w_2"].size


def test_the_outputs_that_stay_are_known_whatever_axis_they_are_on() -> None:
    for name, axis in (("Gemm", 0), ("MatMul", 1), ("Conv", 0), ("LSTM", 1)):
        coupling = coupled(NETWORKS[name]())
        layer = find_layers(coupling.graph)[0]
        assert kept_outputs(coupling, removal(coupling, []), layer) is None
        units = units_on(coupling, layer.weight, axis)
        kept = kept_outputs(coupling, removal(coupling, [units[1]]), layer)
        assert kept is not None
        assert np.flatnonzero(~kept).tolist() == [1]


@pytest.mark.parametrize("recover", [True, False])
def test_a_layer_too_wide_to_be_solved_is_zeroed_all_the_same_when_it_gets_narrower(
    recover: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graphprune.ir.layers.layer.WIDEST", 20)
    model = dense(matmul=False)
    result, ledger = prune(model, Recipe(channels=0.5, target=0.7, recover=recover, runs=2), samples(model, 1))
    after = editable(result)
    assert [after[name].shape for name in ("w_1", "w_2")] == [(12, 12), (4, 12)]
    assert [record.layer for record in ledger.repairs] == (["w_0"] if recover else [])
    assert not after["w_1"].all()
    assert sum(np.count_nonzero(value) for value in after.values()) <= 0.3 * sum(
        value.size for value in editable(model).values()
    )
