"""Gather: picked positions keep their ids, and the indices count what stays."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from tests.nets import Net
from tests.oracles import assert_exact, reasons, units_on


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
