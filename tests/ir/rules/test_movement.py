"""Transpose, Concat, Split, Slice, Pad: ids move as data does, and the bounds are counted anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from graphprune.ir.coupling.units import FROZEN
from tests.nets import Net
from tests.oracles import assert_exact, check_removal, coupled, feeds, reasons, removal, units_on, values

OPSETS = [8, 9, 10, 11, 13, 18, 21]
FAR = 2**63 - 1


def form(model: onnx.ModelProto, op: str) -> dict[str, Any]:
    """Return the attributes, and the values of the constant inputs by slot, of the one node of that operator."""
    (node,) = [node for node in model.graph.node if node.op_type == op]
    stored = values(model)
    found: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    found |= {str(slot): stored[name].tolist() for slot, name in enumerate(node.input) if name in stored}
    return found


def cut(net: Net, model: onnx.ModelProto, positions: list[int], name: str = "w_0") -> onnx.ModelProto:
    """Remove what these positions of a weight's axis 0 carry."""
    coupling = coupled(model)
    units = units_on(coupling, name, 0)
    return check_removal(coupling, removal(coupling, sorted({units[place] for place in positions})), feeds(model))


# -- Split ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("told", [False, True])
def test_split_sizes_are_patched(opset: int, told: bool) -> None:
    net = Net(opset)
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8))
    left, right = net.split(data, [4, 4], told=told)
    model = net.build(net.conv(left, 2), net.conv(right, 2))
    assert_exact(model)
    found = form(cut(net, model, [0, 2, 7]), "Split")
    assert found["split" if opset < 13 else "1"] == [2, 3]
    assert "num_outputs" not in found


def test_split_in_three_of_different_sizes() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 9))
    parts = net.split(data, [2, 4, 3])
    coupling = assert_exact(net.build(*(net.conv(part, 2) for part in parts)))
    whole = units_on(coupling, "w_0", 0)
    assert [units_on(coupling, f"w_{place}", 1) for place in (1, 2, 3)] == [whole[:2], whole[2:6], whole[6:]]


def test_split_along_another_axis_changes_nothing() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 6))
    top, bottom = net.split(data, [1, 3], axis=2)
    model = net.build(net.conv(top, 2), net.conv(bottom, 2))
    coupling = assert_exact(model)
    assert units_on(coupling, "w_1", 1) == units_on(coupling, "w_2", 1) == units_on(coupling, "w_0", 0)
    assert form(cut(net, model, [1, 2]), "Split")["1"] == [1, 3]


def test_split_by_a_negative_axis() -> None:
    net = Net()
    left, right = net.split(net.relu(net.linear(net.input(["N", 5, 4]), 6)), [2, 4], axis=2)
    model = net.build(net.linear(left, 2), net.linear(right, 2))
    next(n for n in model.graph.node if n.op_type == "Split").attribute[0].i = -1
    assert assert_exact(model).units == 6


def test_equal_parts_that_stay_equal_are_still_told() -> None:
    net = Net(13)
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8))
    model = net.build(*(net.conv(part, 2) for part in net.split(data, [4, 4], told=False)))
    assert form(cut(net, model, [0, 7]), "Split")["1"] == [3, 3]


# -- Slice ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(2, 6, (1, 4)), (0, 5, (0, 3)), (-5, FAR, (2, 5)), (1, -1, (0, 5)), (-100, 5, (0, 3))],
)
def test_slice_bounds_are_patched(opset: int, start: int, end: int, expected: tuple[int, int]) -> None:
    net = Net(opset)
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8))
    part = net.slice(data, {1: (start, end, 1)})
    model = net.build(net.conv(part, 2), net.conv(data, 2))
    coupling = assert_exact(model)
    assert units_on(coupling, "w_1", 1) == units_on(coupling, "w_0", 0)[start:end]
    pruned = cut(net, model, [0, 4, 7])  # of 0..7 stay 1, 2, 3, 5, 6
    found = form(pruned, "Slice")
    starts, ends = (found["starts"], found["ends"]) if opset < 10 else (found["1"], found["2"])
    assert (starts[0], ends[0]) == expected


def test_slice_of_several_axes_patches_the_channels_alone() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 6, 6]), 8))
    part = net.slice(data, {3: (1, 5, 2), 1: (2, 8, 1), 2: (0, FAR, 1)})
    model = net.build(net.conv(part, 2), net.conv(data, 2))
    assert_exact(model)
    found = form(cut(net, model, [0, 1, 5]), "Slice")
    assert found["1"] == [1, 0, 0]
    assert found["2"] == [5, 5, FAR]
    assert found["3"] == [3, 1, 2]
    assert found["4"] == [2, 1, 1]


def test_slice_without_axes_and_by_negative_axes() -> None:
    net = Net()
    data = net.relu(net.conv(net.input([2, 3, 4, 4]), 8))
    bounds = [net.initializer(np.array(v), n) for n, v in (("starts", [0, 3]), ("ends", [2, 7]))]
    first = net.node("Slice", [data, *bounds], [2, 4, 4, 4])
    negative = [net.initializer(np.array([v]), n) for n, v in (("from", 1), ("to", 6), ("axis", -3))]
    second = net.node("Slice", [data, *negative], [2, 5, 4, 4])
    coupling = assert_exact(net.build(net.conv(first, 2), net.conv(second, 2), net.conv(data, 2)))
    whole = units_on(coupling, "w_0", 0)
    assert units_on(coupling, "w_1", 1) == whole[3:7]
    assert units_on(coupling, "w_2", 1) == whole[1:6]


@pytest.mark.parametrize("bounds", [(0, FAR, 2), (1, FAR, 2), (1, 7, 3), (7, -(2**31), -1), (-2, 0, -2)])
def test_slice_in_steps_picks_channels(bounds: tuple[int, int, int]) -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8))
    coupling = assert_exact(net.build(net.conv(net.slice(data, {1: bounds}), 2), net.conv(data, 2)))
    assert units_on(coupling, "w_1", 1) == units_on(coupling, "w_0", 0)[slice(*bounds)]


def test_slice_in_steps_beside_other_axes_freezes_the_channels() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8))
    coupling = coupled(net.build(net.conv(net.slice(data, {1: (0, FAR, 2), 2: (0, 2, 1)}), 2)))
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 0] == "Slice takes positions of several axes, this one in steps"


def test_an_axis_that_is_cut_at_computed_bounds_is_frozen_and_the_others_are_free() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8))
    end = net.input([1], "end")
    net.kinds[end] = onnx.TensorProto.INT64
    start = net.initializer(np.array([0]), "start")
    rows = net.node("Slice", [data, start, end, net.initializer(np.array([2]), "axis")], ["N", 8, "H", 4])
    model = net.build(net.conv(rows, 2))
    assert_exact(model, inputs={**feeds(model), "end": np.array([3])})
    channels = net.node("Slice", [data, start, end, net.initializer(np.array([1]), "axis")], ["N", "C", 4, 4])
    net.outputs.clear()
    coupling = coupled(net.build(net.node("ReduceMax", [channels], [1, 1, 1, 1])))
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 0] == "the bounds that Slice cuts the axis at are computed"


def test_slice_along_computed_axes_is_frozen() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8))
    axis = net.input([1], "axis")
    net.kinds[axis] = onnx.TensorProto.INT64
    bounds = [net.initializer(np.array([bound]), name) for name, bound in (("start", 0), ("end", 2))]
    coupling = coupled(net.build(net.node("Slice", [data, *bounds, axis], ["N", "C", "H", "W"])))
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 0] == "the axes that Slice cuts are computed"


def test_what_no_slice_reads_may_go_entirely() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8))
    model = net.build(net.conv(net.slice(data, {1: (0, 4, 1)}), 2))
    found = form(cut(net, model, [4, 5, 6, 7, 1]), "Slice")
    assert (found["1"], found["2"]) == ([0], [3])


# -- Pad -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("opset", "axes"), [*((opset, False) for opset in OPSETS), (18, True), (21, True)])
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_pads_are_patched(opset: int, value: float, axes: bool) -> None:
    net = Net(opset)
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 4))
    padded = net.pad(data, {1: (2, 3), 2: (1, 0)} if not axes else {2: (1, 0), 1: (2, 3)}, value=value, axes=axes)
    other = net.pad(net.conv("x_0", 9), {2: (1, 0)})
    model = net.build(net.conv(net.relu(net.add(padded, other)), 2))
    coupling = assert_exact(model)
    stage = units_on(coupling, "w_1", 0)
    assert stage[2:6] == units_on(coupling, "w_0", 0)
    assert len(set(stage)) == 9
    pruned = check_removal(coupling, removal(coupling, [stage[0], stage[3], stage[7], stage[8]]), feeds(model))
    first = next(node for node in pruned.graph.node if node.op_type == "Pad")
    stored = values(pruned)
    pads = helper.get_node_attr_value(first, "pads") if opset < 11 else stored[first.input[1]].tolist()
    assert list(pads) == ([1, 1, 0, 1] if axes else [0, 1, 1, 0, 0, 1, 0, 0])


def test_padding_that_only_its_reader_carries_goes_alone() -> None:
    net = Net()
    data = net.pad(net.relu(net.conv(net.input(["N", 3, 4, 4]), 4)), {1: (1, 1)}, value=1.0)
    model = net.build(net.conv(data, 2))
    coupling = assert_exact(model)
    assert len(set(units_on(coupling, "w_1", 1)) - {FROZEN}) == 6
    pruned = check_removal(coupling, removal(coupling, units_on(coupling, "w_1", 1)[5:]), feeds(model))
    assert form(pruned, "Pad")["1"] == [0, 1, 0, 0, 0, 0, 0, 0]


def test_padding_that_meets_what_has_to_stay_is_frozen() -> None:
    net = Net()
    data = net.input(["N", 6, 4, 4])
    padded = net.pad(net.relu(net.conv(data, 4)), {1: (1, 1)})
    coupling = coupled(net.build(net.conv(net.add(padded, data), 2)))
    assert coupling.units == 0


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_padding_with_own_values(mode: str) -> None:
    for axis, units in ((2, 4), (1, 0)):
        net = Net()
        data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 4))
        model = net.build(net.conv(net.pad(data, {axis: (1, 1)}), 2))
        node = next(n for n in model.graph.node if n.op_type == "Pad")
        node.attribute.append(helper.make_attribute("mode", mode))
        del node.input[2:]
        assert coupled(model).units == units
        if units:
            assert_exact(model)


def test_cropping_freezes_the_channels() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 6))
    coupling = coupled(net.build(net.conv(net.pad(data, {1: (-1, 2)}), 2)))
    assert coupling.units == 0
    assert "crops it" in reasons(coupling)["w_0", 0]


def test_cropping_rows_leaves_the_channels_free() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 6))
    assert assert_exact(net.build(net.conv(net.pad(data, {2: (-1, 0)}), 2))).units == 6


def test_computed_pads_are_frozen() -> None:
    net = Net()
    data = net.relu(net.conv(net.input([1, 3, 4, 4]), 6))
    pads = net.input([8], "pads")
    net.kinds[pads] = onnx.TensorProto.INT64
    coupling = coupled(net.build(net.conv(net.node("Pad", [data, pads], [1, 6, "C", "D"]), 2)))
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 0] == "the pads of the axis are computed"


# -- Concat and Transpose ------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [1, -3])
def test_concat_lays_units_behind_each_other(axis: int) -> None:
    net = Net()
    data = net.input(["N", 3, 4, 4])
    parts = [net.relu(net.conv(data, size)) for size in (2, 3, 4)]
    model = net.build(net.conv(net.concat(parts[0], parts[1], parts[2], parts[0]), 2))
    next(n for n in model.graph.node if n.op_type == "Concat").attribute[0].i = axis
    coupling = assert_exact(model)
    own = [units_on(coupling, f"w_{place}", 0) for place in range(3)]
    assert units_on(coupling, "w_3", 1) == own[0] + own[1] + own[2] + own[0]
    assert coupling.units == 9


def test_concat_along_rows_joins_the_channels() -> None:
    net = Net()
    data = net.input(["N", 3, 4, 4])
    tall = net.concat(net.relu(net.conv(data, 6)), net.relu(net.conv(data, 6)), axis=2)
    coupling = assert_exact(net.build(net.conv(tall, 2)))
    assert units_on(coupling, "w_0", 0) == units_on(coupling, "w_1", 0)
    assert coupling.units == 6


def test_concat_with_a_constant() -> None:
    net = Net()
    hidden = net.relu(net.conv(net.input([2, 3, 4, 4]), 6))
    constant = net.initializer(net.random.normal(size=(2, 3, 4, 4)), "k")
    coupling = assert_exact(net.build(net.conv(net.concat(hidden, constant), 2)))
    assert units_on(coupling, "w_1", 1)[:6] == units_on(coupling, "w_0", 0)


def test_concat_of_whole_parts_may_lose_all_of_one_but_one() -> None:
    net = Net()
    data = net.input(["N", 3, 4, 4])
    model = net.build(net.conv(net.concat(net.relu(net.conv(data, 4)), net.relu(net.conv(data, 4))), 2))
    cut(net, model, [0, 1, 3])


@pytest.mark.parametrize("order", [[0, 2, 3, 1], [0, 3, 1, 2], [0, 1, 3, 2], [3, 2, 0, 1]])
def test_transposes(order: list[int]) -> None:
    net = Net()
    hidden = net.relu(net.conv(net.input([2, 3, 4, 5]), 6))
    back = [order.index(axis) for axis in range(4)]
    coupling = assert_exact(net.build(net.conv(net.transpose(net.relu(net.transpose(hidden, order)), back), 2)))
    assert coupling.units == 6


def test_transpose_without_an_order_reverses() -> None:
    net = Net()
    hidden = net.relu(net.linear(net.input([5, 4]), 6))
    turned = net.node("Transpose", [hidden], [6, 5])
    coupling = assert_exact(net.build(net.node("MatMul", [net.weight([2, 6]), turned], [2, 5])))
    assert coupling.units == 6
