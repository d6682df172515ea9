"""Expand, Tile, ConstantOfShape: repeated positions get ids of their own, and shape constants are patched."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.nets import Net
from tests.oracles import assert_exact, coupled, reasons, units_on


@pytest.mark.parametrize("constants", [False, True])
def test_expand_follows_what_it_is_added_to(constants: bool) -> None:
    """A constant of one channel, repeated to eight, is as wide as the convolution beside it."""
    net = Net(13, constants=constants)
    data = net.conv(net.input([2, 3, 4, 4]), 8)
    ones = net.initializer(np.full((1, 1, 1, 1), 0.3, np.float32))
    wide = net.node("Expand", [ones, net.constant(np.array([1, 8, 4, 1]))], [1, 8, 4, 1])
    coupling = assert_exact(net.build(net.conv(net.relu(net.add(data, wide)), 2)))
    assert coupling.units == 8


def test_expand_passes_channels_and_may_name_them() -> None:
    net = Net(13)
    data = net.relu(net.conv(net.input([2, 3, 4, 4]), 8))
    pooled = net.global_pool(data)
    wide = net.node("Expand", [pooled, net.constant(np.array([2, 8, 4, 4]))], [2, 8, 4, 4])
    coupling = assert_exact(net.build(net.conv(wide, 2)))
    assert units_on(coupling, "w_0", 0) == units_on(coupling, "w_1", 1)


def test_expand_to_a_shape_that_is_not_known_freezes() -> None:
    net = Net(13)
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8))
    shape = net.input([4], "target")
    net.kinds[shape] = TensorProto.INT64
    coupling = coupled(net.build(net.node("Expand", [net.global_pool(data), shape], ["N", "C", "H", "W"])))
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 0] == "the shape that Expand makes is computed"


@pytest.mark.parametrize("axis", [1, 2])
def test_tile_repeats_ids(axis: int) -> None:
    net = Net(13)
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 6))
    repeats = [1, 1, 1, 1]
    repeats[axis] = 2
    shape = ["N", 12, 4, 4] if axis == 1 else ["N", 6, 8, 4]
    tiled = net.node("Tile", [data, net.constant(np.array(repeats))], shape)
    coupling = assert_exact(net.build(net.conv(tiled, 2)))
    assert units_on(coupling, "w_1", 1) == units_on(coupling, "w_0", 0) * (2 if axis == 1 else 1)


def test_tile_by_computed_repeats_freezes() -> None:
    net = Net(13)
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 6))
    repeats = net.node("Cast", [net.input([4])], [4], kind=TensorProto.INT64, to=TensorProto.INT64)
    coupling = coupled(net.build(net.node("Tile", [data, repeats], [None, None, None, None])))
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 0] == "the repeats of Tile along the axis are computed"


def test_zeros_of_a_constant_shape_do_not_freeze() -> None:
    """An initial state made by ConstantOfShape narrows with the hidden units of an LSTM."""
    hidden, inputs = 6, 4
    random = np.random.default_rng(0)
    stored = {
        "W": random.normal(size=(1, 4 * hidden, inputs)),
        "R": random.normal(size=(1, 4 * hidden, hidden)),
        "last": random.normal(size=(hidden, 2)),
    }
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("LSTM", ["x", "W", "R", "", "", "zeros", "zeros"], ["", "h"], hidden_size=hidden),
        helper.make_node("MatMul", ["h", "last"], ["y"]),
    ]
    initializers = [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in stored.items()]
    initializers.append(onnx.numpy_helper.from_array(np.array([1, 2, hidden]), "shape"))
    graph = helper.make_graph(
        nodes,
        "state",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 2, inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 2])],
        initializers,
    )
    coupling = coupled(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert [len(group.units) for group in coupling.groups] == [hidden]
