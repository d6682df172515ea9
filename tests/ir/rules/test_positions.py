"""Operators that act by the order of positions along an axis: it is frozen, and the others pass."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from graphprune.ir.coupling.units import FROZEN
from tests.nets import Extent, Net
from tests.oracles import assert_exact, coupled, reasons, units_on


def hidden(net: Net, channels: int = 6) -> str:
    return net.relu(net.conv(net.input(["N", 3, 4, 5]), channels))


@pytest.mark.parametrize("op", ["CumSum", "CumProd"])
@pytest.mark.parametrize(("axis", "units"), [(1, 0), (-3, 0), (2, 6), (-1, 6)])
def test_running_sums(op: str, axis: int, units: int) -> None:
    net = Net(26 if op == "CumProd" else 17, ir_version=11 if op == "CumProd" else None)
    model = net.build(net.conv(net.node(op, [hidden(net), net.initializer(np.int64(axis), "axis")], name="it"), 2))
    if units:
        assert assert_exact(model).units == units
        return
    coupling = coupled(model)
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 0] == f"{op} acts by the order of the axis's positions"


def test_a_running_sum_along_a_computed_axis() -> None:
    net = Net()
    axis = net.input([], "axis")
    net.kinds[axis] = TensorProto.INT64
    coupling = coupled(net.build(net.conv(net.node("CumSum", [hidden(net), axis]), 2)))
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 0] == "the axis of CumSum is computed"


def top(net: Net, data: str, axis: int, count: int = 2) -> tuple[str, str]:
    shape = [count if place == axis % 4 else extent for place, extent in enumerate(net.shapes[data])]
    chosen, places = net.nodes_of("TopK", [data, net.initializer(np.array([count]), "k")], [shape, shape], axis=axis)
    net.kinds[places] = TensorProto.INT64
    return chosen, places


def test_the_largest_along_a_row() -> None:
    net = Net()
    data = hidden(net)
    chosen, places = top(net, data, -1)
    back = net.node("Cast", [places], kind=TensorProto.FLOAT, to=TensorProto.FLOAT)
    again = net.node("GatherElements", [data, places], net.shapes[places], axis=3)
    coupling = assert_exact(net.build(net.conv(net.add(net.add(chosen, back), again), 2)))
    assert coupling.units == 6


def test_the_largest_of_the_channels_are_frozen() -> None:
    net = Net()
    chosen, places = top(net, hidden(net), 1)
    net.output(places)
    coupling = coupled(net.build(net.conv(chosen, 2)))
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 0] == "TopK acts by the order of the axis's positions"


@pytest.mark.parametrize(("time", "batch"), [(0, 1), (1, 0)])
def test_reversed_sequences(time: int, batch: int) -> None:
    for rank, units in ((3, 6), (4, 0)):
        net = Net()
        rows = net.relu(net.linear(net.input([3, 2, 4]), 6)) if rank == 3 else hidden(net)
        lengths = net.initializer(np.full(int(net.shapes[rows][batch]) if rank == 3 else 6, 2), "lengths")
        turned = net.node("ReverseSequence", [rows, lengths], time_axis=time, batch_axis=batch)
        model = net.build(net.linear(turned, 2) if rank == 3 else net.conv(turned, 2))
        coupling = assert_exact(model) if units else coupled(model)
        assert coupling.units == units
        if not units:
            assert reasons(coupling)["w_0", 0] == "ReverseSequence acts by the order of the axis's positions"


def test_triangles_of_the_last_two_axes() -> None:
    net = Net()
    coupling = assert_exact(net.build(net.conv(net.node("Trilu", [hidden(net)], upper=0), 2)))
    assert coupling.units == 6
    net = Net()
    rows = net.relu(net.linear(net.input(["N", 5, 4]), 6))
    coupling = coupled(net.build(net.linear(net.node("Trilu", [rows, net.initializer(np.int64(1), "k")]), 2)))
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 1] == "Trilu acts by the order of the axis's positions"


@pytest.mark.parametrize("axis", [-1, 1])
def test_one_hot_puts_an_axis_of_classes_in(axis: int) -> None:
    net = Net()
    whole = net.node("Cast", [hidden(net)], kind=TensorProto.INT64, to=TensorProto.INT64)
    depth, values = net.initializer(np.int64(4), "depth"), net.initializer(np.array([-0.5, 1.5]), "values")
    shape: list[Extent] = ["N", 6, 4, 5]
    shape.insert(axis % 5, 4)
    hot = net.node("OneHot", [whole, depth, values], shape, kind=TensorProto.FLOAT, axis=axis)
    turned = hot if axis == -1 else net.transpose(hot, [0, 2, 3, 4, 1])
    summed = net.reduce(turned, [4], keepdims=False)
    coupling = assert_exact(net.build(net.conv(summed, 2)))
    assert coupling.units == 6


@pytest.mark.parametrize("op", ["GatherElements", "ScatterElements"])
def test_places_along_one_axis_pass_the_others(op: str) -> None:
    net = Net(18, ir_version=8)
    data = hidden(net) if op == "GatherElements" else net.relu(net.conv(net.input([2, 3, 4, 5]), 6))
    shape = [2, 6, 4, 3]
    places = net.initializer(net.random.integers(0, 5, shape).argsort(-1) % 5, "places")
    names = [data, places]
    if op == "ScatterElements":
        names.append(net.initializer(net.random.normal(size=shape), "updates"))
    made = net.node(op, names, shape if op == "GatherElements" else net.shapes[data], axis=3)
    model = net.build(net.conv(made, 2))
    if op == "GatherElements":
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 2
    coupling = assert_exact(model)
    for name in names[1:]:
        assert units_on(coupling, name, 1) == units_on(coupling, "w_0", 0)
        assert units_on(coupling, name, 3) == [FROZEN] * 3


@pytest.mark.parametrize(("axis", "extents"), [(1, [2, 4, 4, 5]), (3, [2, 4, 4, 3])])
def test_places_among_the_channels_or_in_a_part_of_them_are_frozen(axis: int, extents: list[int]) -> None:
    net = Net()
    data = net.relu(net.conv(net.input([2, 3, 4, 5]), 6))
    places = net.initializer(np.zeros(extents, np.int64), "places")
    coupling = coupled(net.build(net.conv(net.node("GatherElements", [data, places], extents, axis=axis), 2)))
    assert coupling.units == 0
    expected = {
        1: "GatherElements counts places along the axis",
        3: "GatherElements reads or writes a part of the data alone",
    }
    assert reasons(coupling)["w_0", 0] == expected[axis]


@pytest.mark.parametrize("op", ["NonZero", "Unique", "Compress", "EyeLike"])
def test_operators_without_a_rule_say_so(op: str) -> None:
    net = Net()
    data = net.relu(net.conv(net.input([2, 3, 4, 5]), 6))
    others = {"Compress": [net.initializer(np.array([True, False]), "condition")]}
    shape = {"NonZero": [4, "K"], "EyeLike": [6, 5]}.get(op, ["K"])
    if op == "EyeLike":
        data = net.reduce(data, [0, 2], keepdims=False)
    kind = TensorProto.INT64 if op == "NonZero" else None
    made = net.node(op, [data, *others.get(op, [])], shape, kind=kind)
    coupling = coupled(net.build(made))
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 0] == f"no rule for operator {op}"
