"""Nothing is silent: every axis of a weight is in a unit or declined, and shares of the weights are what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings

from graphprune import Recipe, prune
from graphprune.ir.cost import count_weights
from graphprune.ir.coupling.atoms import support
from graphprune.ir.coupling.units import FROZEN, Coupling
from graphprune.passes.choice import CROSSING
from graphprune.record import declined_records, reason_records
from tests import small
from tests.nets import Net
from tests.oracles import coupled
from tests.strategies import graphs

ZOO = """autoencoder_ad dscnn_kws dtln_1 dtln_2 espcn gtcrn_simple lenet300_mnist lenet5_mnist magika mnist_cntk
mobilenet_v1_025_imagenet mobilenet_v2_imagenet ppocr_det resnet20_cifar10 resnet20_cifar10_bn shufflenet_v2_imagenet
silero_vad squeezenet11_imagenet ultraface_rfb vit_tracker yolox_nano""".split()


def slides(coupling: Coupling, name: str, axis: int) -> bool:
    """Whether an axis is that of a convolution's kernel, which has taps, not channels."""
    readers = {node.op for node in coupling.graph.consumers.get(name, [])}
    return axis >= 2 and bool(readers) and readers <= {"Conv", "ConvTranspose"}


def assert_accounted(coupling: Coupling) -> int:
    """Demand of every position of every axis of every matrix that it may go, or is declined, and not both."""
    seen = 0
    for name, tensor in coupling.graph.initializers.items():
        axes = [axis for axis, extent in enumerate(tensor.dims) if extent > 1 and not slides(coupling, name, axis)]
        if not coupling.graph.is_float(name) or sum(extent > 1 for extent in tensor.dims) < 2:
            continue
        for axis in axes:
            own = [ids for ids in coupling.ids.get(name, ()) if support(ids)[-1] == axis]
            free = np.any(np.broadcast_arrays(*[ids != FROZEN for ids in own]), axis=0) if own else np.False_
            held = [d.frozen for d in coupling.declined if (d.tensor, d.axis) == (name, axis)]
            kept = np.any(np.broadcast_arrays(*held), axis=0) if held else np.False_
            assert np.all(free | kept), f"{name} axis {axis} of {list(tensor.dims)} is left alone without a reason"
            assert not np.any(free & kept), f"{name} axis {axis} of {list(tensor.dims)} may go and is declined"
            seen += 1
    return seen


# -- nothing is silent -------------------------------------------------------------------------------------------


@given(model=graphs())
@settings(max_examples=60)
def test_every_axis_of_a_random_graph_is_accounted_for(model: onnx.ModelProto) -> None:
    assert assert_accounted(coupled(model)) > 0


@pytest.mark.zoo
@pytest.mark.parametrize("name", ZOO)
def test_every_axis_of_a_real_network_is_accounted_for(name: str, zoo: Path) -> None:
    assert assert_accounted(coupled(onnx.load(str(zoo / "models" / f"{name}.onnx")))) > 0


def test_the_directions_of_a_recurrent_operator_are_declined() -> None:
    net = Net()
    weights = [net.weight([2, 20, 3]), net.weight([2, 20, 5])]
    (made,) = net.nodes_of(
        "LSTM", [net.input([4, 1, 3]), *weights], [[4, 2, 1, 5]], hidden_size=5, direction="bidirectional"
    )
    flat = net.reshape(net.transpose(made, [0, 2, 1, 3]), [4, 10], [4, 10])
    coupling = coupled(net.build(net.gemm(flat, 2)))
    assert assert_accounted(coupling) > 0
    reasons = {(d.tensor, d.axis): d.reason.text for d in coupling.declined}
    assert [reasons[name, 0] for name in weights] == ["LSTM keeps its directions"] * 2


def test_units_that_no_choice_can_take_are_declined() -> None:
    net = Net()
    hidden = net.relu(net.conv(net.input([1, 3, 5, 5]), 3))
    halves = [net.slice(hidden, {1: (start, start + 2, 1)}) for start in (0, 1)]
    model = net.build(net.conv(net.relu(net.conv(net.concat(*halves), 8, group=2)), 2))
    _, ledger = prune(model, Recipe(channels=0.5, recover=False, runs=2))
    crossing = {(d.tensor, d.axis): d for d in ledger.declined if d.reason == CROSSING.text}
    assert {key: d.positions for key, d in crossing.items()} == {("w_0", 0): 3, ("b_0", 0): 3, ("w_1", 1): 2}
    assert crossing["w_1", 1].share == pytest.approx(8 * 2 / ledger.weights.before)
    assert "w_0" not in ledger.kept
    assert len(ledger.kept["w_1"]["0"]) == 4


# -- shares ------------------------------------------------------------------------------------------------------


def test_a_weight_counts_once_for_a_reason_and_for_each_axis_that_holds_it() -> None:
    net = Net()
    net.imports["my.own"] = 1
    hidden = net.gemm(net.input(["N", 3]), 6, bias=False)
    held = net.weight([6, 4])
    model = net.build(net.node("Mystery", [hidden, held], ["N", 4], domain="my.own", name="middle"))
    coupling = coupled(model)
    total = 3 * 6 + 6 * 4
    assert count_weights(coupling.graph.proto) == total
    found = {(d.tensor, d.axis): d for d in declined_records(coupling.graph, coupling.declined)}
    assert {key: (d.positions, d.share) for key, d in found.items()} == {
        (held, 0): (6, pytest.approx(24 / total)),
        (held, 1): (4, pytest.approx(24 / total)),
        ("w_0", 0): (6, pytest.approx(18 / total)),
        ("w_0", 1): (3, pytest.approx(18 / total)),
    }
    reasons = {record.reason: record for record in reason_records(coupling.graph, coupling.declined)}
    mystery = reasons["no rule for operator my.own.Mystery"]
    assert (mystery.op, mystery.nodes, mystery.axes, mystery.share) == ("my.own.Mystery", ["middle"], 3, 1.0)
    entry = reasons["graph input 'x_0' keeps its shape"]
    assert (entry.op, entry.nodes, entry.axes, entry.share) == ("", [], 1, pytest.approx(18 / total))


def test_columns_that_differ_from_group_to_group_count_as_the_weights_they_hold() -> None:
    net = Net()
    model = net.build(net.conv(net.relu(net.conv(net.input(["N", 8, 5, 5]), 12, 3, group=4)), 2, 1))
    coupling = coupled(model)
    (columns,) = [d for d in coupling.declined if (d.tensor, d.axis) == ("w_0", 1)]
    assert (columns.positions, columns.frozen.sum()) == (2, 12 * 2)
    (record,) = declined_records(coupling.graph, [columns])
    assert record.share == pytest.approx(12 * 2 * 9 / count_weights(coupling.graph.proto))


def test_the_ledger_tells_the_largest_share_first() -> None:
    model = small.network()
    _, ledger = prune(model, Recipe(channels=0.5, recover=False, runs=2), small.calibration(model))
    assert [(d.tensor, d.axis) for d in ledger.declined] == [("w_0", 1), ("w_4", 0)]
    for records in (ledger.declined, ledger.reasons):
        shares = [record.share for record in records]
        assert shares == sorted(shares, reverse=True)
        assert 0 < min(shares) <= max(shares) <= 1
    assert [reason.reason for reason in ledger.reasons] == [declined.reason for declined in ledger.declined]
