"""Pooling passes channels; Softmax, reductions and ArgMax freeze what they read at once."""

from __future__ import annotations

from typing import Any

import onnx
import pytest

from graphprune.ir.coupling.units import FROZEN
from tests.nets import Net
from tests.oracles import assert_exact, coupled, reasons, units_on


def hidden(net: Net, channels: int = 6) -> str:
    return net.relu(net.conv(net.input(["N", 3, 4, 4]), channels))


# -- pooling -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
def test_pooling_passes_channels(op: str) -> None:
    net = Net()
    assert assert_exact(net.build(net.conv(net.pool(hidden(net), op), 2))).units == 6


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
def test_global_pooling_passes_channels(op: str) -> None:
    net = Net()
    assert assert_exact(net.build(net.conv(net.global_pool(hidden(net), op), 2))).units == 6


def test_pooling_along_units_freezes_them() -> None:
    net = Net()
    rows = net.relu(net.linear(net.input(["N", 3, 4, 4]), 6))
    coupling = coupled(net.build(net.conv(net.pool(rows), 2)))
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 1] == "MaxPool slides along the axis"


def test_indices_of_a_pooling_are_frozen() -> None:
    net = Net()
    pooled, places = net.nodes_of("MaxPool", [hidden(net)], [["N", 6, 2, 2]] * 2, kernel_shape=[2, 2], strides=[2, 2])
    net.kinds[places] = onnx.TensorProto.INT64
    coupling = coupled(net.build(net.conv(pooled, 2), places))
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 0] == "the indices of MaxPool count over all channels"


# -- Softmax and its kin -------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_over_the_channels_they_are_frozen(op: str) -> None:
    net = Net()
    coupling = coupled(net.build(net.conv(net.node(op, [hidden(net)], axis=1, name="it"), 2)))
    assert coupling.units == 0
    for key in (("w_0", 0), ("w_1", 1)):
        found = next(d for d in coupling.declined if (d.tensor, d.axis) == key)
        assert (found.reason.node, found.reason.op) == ("it", op)
        assert "normalises over the axis" in found.reason.text


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [2, 3, -1])
def test_over_rows_or_columns_the_channels_go(op: str, axis: int) -> None:
    net = Net()
    assert assert_exact(net.build(net.conv(net.node(op, [hidden(net)], axis=axis), 2))).units == 6


@pytest.mark.parametrize(
    ("opset", "axis", "units"), [(11, 2, 6), (11, 1, 0), (11, None, 0), (13, None, 6), (11, -1, 6)]
)
def test_before_operator_set_13_everything_behind_the_axis_counts(opset: int, axis: int | None, units: int) -> None:
    net = Net(opset)
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    model = net.build(net.conv(net.node("Softmax", [hidden(net)], **attributes), 2))
    assert coupled(model).units == units
    if units:
        assert_exact(model)


def test_an_axis_in_front_of_the_channels_takes_them_along_before_operator_set_13() -> None:
    for opset, units in ((11, 0), (13, 6)):
        net = Net(opset)
        turned = net.transpose(hidden(net), [0, 2, 3, 1])
        soft = net.node("Softmax", [turned], axis=2)
        assert coupled(net.build(net.linear(soft, 2))).units == units


# -- reductions ----------------------------------------------------------------------------------------------

REDUCTIONS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]


@pytest.mark.parametrize("kind", REDUCTIONS)
@pytest.mark.parametrize("opset", [11, 13, 18])
def test_reductions_over_space_pass_channels(kind: str, opset: int) -> None:
    net = Net(opset)
    positive = net.node("Sigmoid", [net.conv(net.input(["N", 3, 2, 2]), 6)])
    reduced = net.reduce(positive, [2, 3], f"Reduce{kind}")
    assert assert_exact(net.build(net.conv(reduced, 2))).units == 6


@pytest.mark.parametrize("opset", [11, 18])
@pytest.mark.parametrize("axes", [[2, 3], [-1, -2], [3]])
def test_reduced_axes_leave_the_rank(opset: int, axes: list[int]) -> None:
    net = Net(opset)
    reduced = net.reduce(hidden(net), [axis % 4 for axis in axes], keepdims=False)
    made = net.gemm(reduced, 2) if len(axes) == 2 else net.conv(reduced, 2)
    model = net.build(made)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("axes"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 0 + axes, tensor.name))
    assert assert_exact(model).units == 6


@pytest.mark.parametrize("kind", REDUCTIONS)
def test_reductions_over_channels_freeze_them(kind: str) -> None:
    net = Net()
    coupling = coupled(net.build(net.conv(net.reduce(hidden(net), [1], f"Reduce{kind}"), 2)))
    assert coupling.units == 0
    assert "reduces over the axis" in reasons(coupling)["w_0", 0]


def test_a_reduction_of_everything() -> None:
    for keepdims in (0, 1):
        net = Net()
        data = hidden(net)
        mean = net.node("ReduceMean", [data], [1, 1, 1, 1] if keepdims else [], keepdims=keepdims)
        coupling = coupled(net.build(net.conv(net.add(data, mean, op="Sub"), 2)))
        assert coupling.units == 0
        assert "reduces over the axis" in reasons(coupling)["w_0", 0]


@pytest.mark.parametrize(("noop", "units"), [(0, 0), (1, 6)])
def test_no_axes_at_all(noop: int, units: int) -> None:
    net = Net(18)
    data = hidden(net)
    made = net.node("ReduceMean", [data], net.shapes[data] if noop else [1, 1, 1, 1], noop_with_empty_axes=noop)
    model = net.build(net.conv(made, 2) if noop else made)
    assert coupled(model).units == units


def test_computed_axes_are_frozen() -> None:
    net = Net(18)
    axes = net.input([1], "which")
    net.kinds[axes] = onnx.TensorProto.INT64
    coupling = coupled(net.build(net.node("ReduceMean", [hidden(net), axes], ["A", "B", "C", "D"])))
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 0] == "the axes of ReduceMean are computed"


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_the_place_of_the_largest_channel(op: str) -> None:
    for axis, units in ((1, 0), (2, 6)):
        net = Net()
        first = net.relu(net.conv(net.input(["N", 3, 4, 4]), 6))
        shape = [1 if place == axis else extent for place, extent in enumerate(net.shapes[first])]
        place = net.node(op, [first], shape, kind=onnx.TensorProto.INT64, axis=axis)
        cast = net.node("Cast", [place], kind=onnx.TensorProto.FLOAT, to=onnx.TensorProto.FLOAT)
        coupling = coupled(net.build(net.conv(cast, 2), net.conv(first, 2)))
        assert coupling.units == units
        if axis == 1:
            assert units_on(coupling, "w_0", 0) == [FROZEN] * 6


def test_layer_normalisation_by_hand_is_frozen() -> None:
    net = Net()
    rows = net.linear(net.input(["N", 5, 4]), 6)
    centred = net.add(rows, net.reduce(rows, [2]), op="Sub")
    spread = net.node("Sqrt", [net.reduce(net.add(centred, centred, op="Mul"), [2])])
    coupling = coupled(net.build(net.linear(net.add(centred, spread, op="Div"), 2)))
    assert coupling.units == 0
