"""What goes: as much as must, in the kind and the pattern that was asked for, and where it costs least."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from graphprune import Ledger, Recipe, TargetError, prune
from graphprune.analysis import Analysis, analyse
from graphprune.api import as_model
from graphprune.calib.sources import input_specs, open_source
from graphprune.entries import RecoveryRecord
from graphprune.ir.cost import count_macs, count_nonzero, count_weights
from graphprune.ir.graph import Graph
from graphprune.ir.kernels import preferred_widths
from graphprune.ir.layers.layer import find_layers, kernel_of
from graphprune.passes.canonicalize import canonicalize
from graphprune.passes.fold import fold
from graphprune.pipeline import Trials
from graphprune.planning import Plan, plan
from graphprune.watch import Stopwatch
from tests import small
from tests.measure import editable, replaced
from tests.nets import Net
from tests.oracles import feeds


@cache
def convolutional() -> onnx.ModelProto:
    """Convolutions of 32 channels, that go by whole blocks (16 with AVX-512, 8 with AVX2)."""
    net = Net()
    data = net.block(net.input(["N", 3, 4, 4]), 32)
    data = net.relu(net.conv(net.pool(data), 32, 3))
    hidden = net.relu(net.gemm(net.flatten(net.pool(data)), 24))
    return net.build(net.gemm(hidden, 5))


@cache
def dense() -> onnx.ModelProto:
    net = Net()
    data = net.input(["N", 16])
    for units in (40, 40):
        data = net.relu(net.gemm(data, units))
    return net.build(net.gemm(data, 1))


def attempt(model: onnx.ModelProto, **given: Any) -> tuple[onnx.ModelProto, Ledger]:
    return prune(model, Recipe(**{"runs": 2, **given}), feeds(model, 1, 64))


def analysed(model: onnx.ModelProto, **given: Any) -> tuple[Analysis, Recipe]:
    recipe = Recipe(**{"runs": 2, **given})
    return analyse(as_model(model), recipe, open_source(feeds(model, 1, 64), input_specs(model)), Stopwatch()), recipe


def never(_: Plan) -> RecoveryRecord:
    raise AssertionError("no trial was asked for")


@pytest.mark.parametrize("target", [0.05, 0.37, 0.5, 0.81, 0.95])
@pytest.mark.parametrize("sparsifier", ["admm", "wanda"])
def test_zeros_meet_the_target_exactly(target: float, sparsifier: str) -> None:
    model = convolutional()
    result, ledger = attempt(model, target=target, structural=0, sparsifier=sparsifier)
    before, nonzero = count_weights(fold(canonicalize(model))), count_nonzero(result)
    total = count_weights(model)
    assert before < total, "folding the normalisation removes weights, too"
    assert 1 - nonzero / total >= target > 1 - (nonzero + 1) / total
    assert ledger.weights.after == before
    zeros = {name: int((value == 0).sum()) for name, value in editable(result).items() if name in ledger.zeroed}
    assert zeros == ledger.zeroed


@pytest.mark.parametrize("share", [0.25, 0.7, 1.0])
def test_a_structural_share_is_met_by_units(share: float) -> None:
    model = dense()
    result, ledger = attempt(model, target=0.6, structural=share)
    total = count_weights(model)
    assert ledger.weights.removed >= share * 0.6 * total
    # The last step that went was needed: every one takes at most a row and a column of the middle matrix.
    assert ledger.weights.removed <= share * 0.6 * total + 40 + 40 + 1
    assert (ledger.zeroed == {}) == (share == 1.0)
    assert 1 - count_nonzero(result) / total >= 0.6


def test_a_fraction_of_the_units_and_a_target_come_together() -> None:
    result, ledger = attempt(convolutional(), target=0.7, channels=0.5)
    assert [len(group.removed) / group.size for group in ledger.groups] == [0.5] * 3
    nonzero, total = count_nonzero(result), count_weights(convolutional())
    assert 1 - nonzero / total >= 0.7
    assert not ledger.zeroed or 1 - (nonzero + 1) / total < 0.7


@pytest.mark.parametrize("recover", [True, False], ids=["recover", "plain"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.55, 0.9])
def test_a_fraction_of_the_macs_is_saved_by_units(share: float, recover: bool) -> None:
    model = dense()
    result, ledger = attempt(model, macs=share, recover=recover)
    left = count_macs(canonicalize(result), {"x_0": (1, 16)})
    assert ledger.macs.before == count_macs(model, {"x_0": (1, 16)}) == 16 * 40 + 40 * 40 + 40
    assert ledger.macs.after == left
    # The last unit that went was needed: it takes at most a row and a column with it.
    assert share <= 1 - left / ledger.macs.before < share + 80 / ledger.macs.before
    assert not ledger.zeroed
    assert next((gate.name, gate.ok) for gate in ledger.gates) == ("macs", True)


def test_macs_are_saved_where_they_are() -> None:
    """Channels take nearly all multiply-accumulates, hidden units nearly all weights."""
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 16, 16]), 16, 3))
    pooled = net.node("MaxPool", [data], ["N", 16, 2, 2], kernel_shape=[8, 8], strides=[8, 8])
    hidden = net.relu(net.gemm(net.flatten(pooled), 96))
    model = net.build(net.gemm(hidden, 5))
    by_macs, by_weights = attempt(model, macs=0.4, align=1)[1], attempt(model, target=0.4, structural=1, align=1)[1]
    of_macs, of_weights = ({g.size: len(g.removed) for g in ledger.groups}[16] for ledger in (by_macs, by_weights))
    assert of_macs >= 6
    assert of_weights == 0


def test_units_are_aligned_and_zeros_come_on_top_where_macs_are_asked_for() -> None:
    _, ledger = attempt(convolutional(), macs=0.5, target=0.9, align=8)
    assert ledger.macs.after <= 0.5 * ledger.macs.before
    assert ledger.weights.sparsity >= 0.9
    assert ledger.zeroed
    assert {(group.size - len(group.removed)) % 8 for group in ledger.groups if group.size == 32} == {0}


@pytest.mark.parametrize(("align", "words"), [(1, "the most that can be reached is --macs 0.9"), (8, "--align off")])
def test_macs_that_cannot_be_saved_are_an_error_that_names_what_can(align: int, words: str) -> None:
    with pytest.raises(TargetError, match=words) as caught:
        attempt(convolutional(), macs=0.9999, align=align)
    reachable = caught.value.reachable
    _, ledger = attempt(convolutional(), macs=np.floor(reachable * 1e4) / 1e4, align=align)
    assert ledger.macs.after == round((1 - reachable) * ledger.macs.before)


@pytest.mark.parametrize("asked", [{"macs": 0.5}, {"target": 0.5, "structural": 1.0}], ids=["macs", "weights"])
def test_where_no_unit_may_go_only_inspect_is_advised(asked: dict[str, Any]) -> None:
    net = Net()
    with pytest.raises(TargetError, match="inspect") as caught:
        attempt(net.build(net.relu(net.gemm(net.input(["N", 12]), 24))), align=8, **asked)
    assert caught.value.reachable == 0
    assert "--align" not in caught.value.hint


def test_auto_leaves_convolutions_whole_blocks() -> None:
    removed = 0
    for target in (0.5, 0.8, 0.95):
        _, ledger = attempt(convolutional(), target=target)
        for group in ledger.groups:
            removed += len(group.removed)
            if group.size == 32:
                assert (group.size - len(group.removed)) % preferred_widths().block == 0
    assert removed, "nothing was tested"


def test_auto_is_hardly_worse_than_zeros_alone() -> None:
    for model, target in ((convolutional(), 0.7), (dense(), 0.7)):
        analysis, recipe = analysed(model, target=target)
        trials = Trials(analysis, recipe)
        chosen = trials.of(plan(analysis, recipe, target, trials.of))
        zeros = trials.of(plan(analysis, Recipe(target=target, structural=0, runs=2), target, never))
        assert chosen.measured_l2 <= zeros.measured_l2 * 1.1 + 1e-9
        assert len(trials.done) <= 6


def test_auto_removes_what_does_nothing_in_place_of_zeroing() -> None:
    """Half of the hidden units are copies of others: they go, and the outputs are what they were."""
    model = dense()
    arrays = editable(model)
    for weight, bias in (("w_0", "b_0"), ("w_1", "b_1")):
        arrays[weight][20:], arrays[bias][20:] = arrays[weight][:20], arrays[bias][:20]
    model = replaced(model, **arrays)
    result, ledger = attempt(model, target=0.5)
    assert ledger.weights.removed > 0.37 * ledger.weights.before, "units meet most of the target"
    assert ledger.fidelity.relative_l2 < 0.05
    for group in ledger.groups:
        kept = [place for place in range(40) if place not in group.removed]
        assert len({place % 20 for place in kept}) >= 14, "of most pairs one stays"
    assert count_nonzero(result) <= 0.5 * count_weights(model)


@pytest.mark.parametrize("target", [0.1, 0.3])
def test_auto_removes_no_more_than_was_asked_for(target: float) -> None:
    """Nearly all units are dead, and could go for nothing."""
    model = dense()
    arrays = editable(model)
    for name in ("w_0", "b_0", "w_1", "b_1"):
        arrays[name][4:] = 0
    _, ledger = attempt(replaced(model, **arrays), target=target)
    assert 0 < ledger.weights.removed <= target * ledger.weights.before


def test_a_pattern_alone_removes_no_unit() -> None:
    _, ledger = attempt(dense(), pattern="2:4")
    assert ledger.weights.removed == 0
    assert ledger.weights.zeroed > 0


def layers_of(model: onnx.ModelProto) -> dict[str, tuple[npt.NDArray[np.float64], int]]:
    arrays = editable(model)
    return {
        layer.weight: (layer.matrix(model), kernel_of(arrays[layer.weight].shape))
        for layer in find_layers(Graph(model))
    }


@pytest.mark.parametrize(("pattern", "n", "m"), [("2:4", 2, 4), ("4:8", 4, 8), ("1:4", 1, 4)])
@pytest.mark.parametrize("given", [{}, {"target": 0.3, "structural": 0}, {"channels": 0.5}], ids=str)
def test_n_of_m_holds_in_the_file(pattern: str, n: int, m: int, given: dict[str, Any]) -> None:
    result, ledger = attempt(convolutional(), pattern=pattern, **given)
    held = []
    for name, (matrix, kernel) in layers_of(result).items():
        groups, width, outputs = matrix.shape
        channels = width // kernel
        whole = channels - channels % m
        parts = matrix.reshape(groups, channels, kernel * outputs)[:, :whole].reshape(
            groups, whole // m, m, kernel * outputs
        )
        if name in ledger.zeroed:
            assert (np.count_nonzero(parts, axis=2) == n).all()
            held.append(name)
        else:
            assert matrix.all()
    if "target" in given:
        assert ledger.weights.sparsity >= 0.3
        assert held
    else:
        assert held == ["w_1", "w_2", "w_3"]


@pytest.mark.parametrize(("pattern", "inputs", "outputs"), [("16x1", 16, 1), ("4x4", 4, 4), ("1x8", 1, 8)])
def test_blocks_hold_in_the_file(pattern: str, inputs: int, outputs: int) -> None:
    result, ledger = attempt(dense(), target=0.6, structural=0, pattern=pattern)
    nonzero, total = count_nonzero(result), count_weights(dense())
    assert 0.6 <= 1 - nonzero / total < 0.6 + len(ledger.zeroed) * inputs * outputs / total
    for name, (matrix, _) in layers_of(result).items():
        if name not in ledger.zeroed:
            continue
        width, columns = matrix.shape[1:]
        for row in range(0, width, inputs):
            for column in range(0, columns, outputs):
                block = matrix[0, row : row + inputs, column : column + outputs]
                assert block.all() or not block.any()


UNREACHABLE: list[dict[str, Any]] = [
    {"target": 0.999, "structural": 0},
    {"target": 0.9999},
    {"target": 0.999, "structural": 1},
    {"target": 0.999, "channels": 0.25},
    {"target": 0.7, "pattern": "2:4", "structural": 0},
]


@pytest.mark.parametrize("given", UNREACHABLE, ids=str)
def test_an_unreachable_target_names_one_that_is(given: dict[str, Any]) -> None:
    model = small.network()
    with pytest.raises(TargetError, match="--target") as caught:
        attempt(model, **given)
    assert 0 < caught.value.reachable < given["target"]
    best = float(np.floor(caught.value.reachable * 1e4) / 1e4)
    assert f"--target {best}" in str(caught.value)
    _, ledger = attempt(model, **{**given, "target": best})
    assert ledger.weights.sparsity >= best


def test_zeros_go_where_they_are_heard_least() -> None:
    """Two branches that are added up, one a hundred times smaller: its weights go first, though they are as large."""
    net = Net()
    data = net.input(["N", 12])
    strong, weak = (net.gemm(net.relu(net.gemm(data, 20)), 6) for _ in range(2))
    model = net.build(net.add(strong, weak))
    arrays = editable(model)
    model = replaced(model, w_3=arrays["w_3"] / 100, b_3=arrays["b_3"] / 100)
    analysis, recipe = analysed(model, target=0.4, structural=0)
    kept = plan(analysis, recipe, 0.4, never).kept
    size = {name: value.size for name, value in arrays.items()}
    assert kept["w_2"] <= 0.2 * size["w_2"]
    assert kept["w_3"] <= 0.2 * size["w_3"]
    assert kept.get("w_0", size["w_0"]) > 0.8 * size["w_0"]
    assert kept.get("w_1", size["w_1"]) > 0.8 * size["w_1"]


def test_the_more_must_go_the_larger_the_predicted_error() -> None:
    for structural in (0, 0.5, 1):
        analysis, recipe = analysed(dense(), target=0.5, structural=structural)
        errors = [plan(analysis, recipe, target, never).error for target in (0.1, 0.3, 0.5, 0.7, 0.9)]
        assert (np.diff(np.array(errors, dtype=np.float64)) > 0).all()
        assert errors[0] is not None
        assert errors[0] >= 0


def test_a_model_without_weights_has_nothing_to_prune() -> None:
    net = Net()
    model = net.build(net.relu(net.input(["N", 6])))
    for given in ({}, {"structural": 0}, {"structural": 1}, {"recover": False}):
        with pytest.raises(TargetError, match="no weights"):
            attempt(model, target=0.5, **given)
    _, ledger = attempt(model, target=0.0)
    assert ledger.weights.before == 0


@pytest.mark.parametrize("asked", [{"target": 0.5}, {"channels": 0.5}], ids=["target", "channels"])
def test_a_weight_without_entries_is_passed_over(asked: dict[str, Any]) -> None:
    net = Net()
    data = net.input(["N", 8])
    nothing = net.node("MatMul", [data, net.initializer(np.zeros((8, 0)), "nothing")], ["N", 0])
    model = net.build(net.gemm(net.relu(net.gemm(data, 16)), 4), nothing)
    result, ledger = attempt(model, **asked)
    assert ledger.weights.sparsity >= 0.4
    assert {tensor.name: list(tensor.dims) for tensor in result.graph.initializer}["nothing"] == [8, 0]
