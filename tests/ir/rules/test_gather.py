"""Gather: picked positions keep their ids, and the indices count what stays."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from tests.nets import Net
from tests.oracles import assert_exact, coupled, reasons, units_on


@pytest.mark.parametrize("indices", [[3, 0, 5, 5], [-1, 2], list(range(8))[::-1]])
def test_constant_indices_pick_channels(indices: list[int]) -> None:
    net = Net(13)
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8))
    picked = net.node("Gather", [data, net.constant(np.array(indices))], ["N", len(indices), 4, 4], axis=1)
    coupling = assert_exact(net.build(net.conv(picked, 2), net.conv(data, 2)))
    all_units = units_on(coupling, "w_0", 0)
    assert units_on(coupling, "w_1", 1) == [all_units[index] for index in indices]


def test_a_scalar_index_keeps_its_position_and_is_counted_anew() -> None:
    net = Net(13)
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8))
    picked = net.node("Gather", [data, net.constant(np.array(5))], ["N", 4, 4], axis=1)
    coupling = assert_exact(net.build(picked, net.conv(data, 2)))
    assert coupling.units == 7
    assert reasons(coupling)["w_0", 0] == "Gather picks this position alone"


def test_indices_along_another_axis_pass_channels() -> None:
    net = Net(13)
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8))
    row = net.node("Gather", [data, net.constant(np.array(1))], ["N", 8, 4], axis=2)
    coupling = assert_exact(net.build(net.conv(net.unsqueeze(row, [3]), 2)))
    assert coupling.units == 8


def test_an_embedding_is_narrowed_and_its_words_stay() -> None:
    net = Net(13)
    words = net.node("Cast", [net.input(["N", 5])], ["N", 5], kind=TensorProto.INT64, to=TensorProto.INT64)
    table = net.weight((7, 8), fan_in=1)
    embedded = net.node("Gather", [table, words], ["N", 5, 8], kind=TensorProto.FLOAT)
    coupling = assert_exact(net.build(net.linear(net.relu(embedded), 3)))
    assert units_on(coupling, table, 1) == list(range(8))
    assert coupling.units == 8


@pytest.mark.parametrize("batched", [0, 1])
def test_gather_nd_passes_the_axes_behind_those_that_it_picks_from(batched: int) -> None:
    net = Net(13)
    hidden = net.relu(net.linear(net.input([2, 4, 3]), 8))
    # Of every sample a step (batched), or of two samples.
    picks = np.array([[3], [1]] if batched else [[1, 2], [0, 3], [1, 1]])
    picked = net.node("GatherND", [hidden, net.constant(picks)], [len(picks), 8], batch_dims=batched)
    coupling = assert_exact(net.build(net.gemm(picked, 2), net.linear(hidden, 3)))
    assert units_on(coupling, "w_1", 1) == units_on(coupling, "w_0", 1) == list(range(8))


def test_gather_nd_keeps_the_axes_that_it_picks_from() -> None:
    net = Net(13)
    hidden = net.relu(net.conv(net.input([2, 3, 4]), 6))
    picked = net.node("GatherND", [hidden, net.constant(np.array([[0, 5], [1, 0]]))], [2, 4])
    coupling = coupled(net.build(net.gemm(picked, 2)))
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 0] == "GatherND picks positions of the axis by indices"


@pytest.mark.parametrize("op", ["Gather", "GatherND"])
def test_what_kept_the_axes_before_is_told(op: str) -> None:
    net = Net(17)
    hidden = net.linear(net.input([4, 3]), 8)
    normed = net.node("LayerNormalization", [hidden, net.vector(8)])
    steps = net.node("Cast", [net.input([5, 1])], kind=TensorProto.INT64, to=TensorProto.INT64)
    places = steps if op == "GatherND" else net.squeeze(steps, [1])
    coupling = coupled(net.build(net.linear(net.node(op, [normed, places], [5, 8]), 2)))
    assert reasons(coupling)["w_1", 0].startswith("LayerNormalization normalises over the axis")
