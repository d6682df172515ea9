"""Operators with one input, and broadcasting."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from graphprune.ir.coupling.units import FROZEN
from graphprune.ir.rules.elementwise import BROADCAST, UNARY
from tests.nets import Net
from tests.oracles import all_groups, assert_exact, coupled, reasons, units_on

FLOATS_TO_FLOATS = [
    "Abs", "Atan", "Ceil", "Celu", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish",
    "Identity", "LeakyRelu", "Mish", "Neg", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin",
    "Softplus", "Softsign", "Tan", "Tanh", "ThresholdedRelu",
]  # fmt: skip


@pytest.mark.parametrize("op", FLOATS_TO_FLOATS)
def test_unary_operators_pass_units(op: str) -> None:
    assert op in UNARY
    net = Net(21)
    hidden = net.conv(net.input(["N", 3, 4, 4]), 6)
    coupling = assert_exact(net.build(net.conv(net.node(op, [hidden]), 2)))
    assert coupling.units == 6


@pytest.mark.parametrize("opset", [9, 13])
def test_clip_and_dropout(opset: int) -> None:
    net = Net(opset)
    hidden = net.dropout(net.clip(net.conv(net.input(["N", 3, 4, 4]), 6)))
    assert assert_exact(net.build(net.conv(hidden, 2))).units == 6


def test_comparisons_and_where() -> None:
    net = Net()
    hidden = net.conv(net.input(["N", 3, 4, 4]), 6)
    low = net.initializer(net.random.normal(size=(6, 1, 1)), "low")
    above = net.node("Greater", [hidden, low], kind=TensorProto.BOOL)
    positive = net.node("Greater", [hidden, net.initializer(0.0, "zero")], kind=TensorProto.BOOL)
    chosen = net.node("Where", [net.node("And", [above, positive]), hidden, low], kind=TensorProto.FLOAT)
    coupling = assert_exact(net.build(net.conv(chosen, 2)))
    assert units_on(coupling, "low", 0) == units_on(coupling, "w_0", 0)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Max", "Min", "Mean", "Sum", "Pow", "PRelu", "Div"])
@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6, 1, 1), (), (1,), (6, 4, 4), (2, 6, 4, 4)])
def test_constants_of_any_shape(op: str, shape: tuple[int, ...]) -> None:
    assert op in BROADCAST
    net = Net()
    hidden = net.node("Softplus", [net.conv(net.input([2, 3, 4, 4]), 6)])  # positive, for Pow
    constant = net.initializer(net.random.uniform(0.5, 1.5, shape), "k")
    coupling = assert_exact(net.build(net.conv(net.add(hidden, constant, op=op), 2)))
    assert coupling.units == 6
    if 6 in shape:
        assert units_on(coupling, "k", shape.index(6)) == units_on(coupling, "w_0", 0)


def test_prelu_with_one_slope_for_each_channel_or_for_all() -> None:
    for shape in ((6, 1, 1), (1,), (6, 4, 4)):
        net = Net()
        hidden = net.conv(net.input(["N", 3, 4, 4]), 6)
        slope = net.initializer(net.random.uniform(0.1, 0.9, shape), "slope")
        assert assert_exact(net.build(net.conv(net.node("PRelu", [hidden, slope]), 2))).units == 6


def test_activations_are_joined_position_by_position() -> None:
    net = Net()
    data = net.input(["N", 3, 4, 4])
    left, right = net.conv(data, 6), net.conv(data, 6)
    coupling = assert_exact(net.build(net.conv(net.relu(net.add(left, right)), 2)))
    assert units_on(coupling, "w_0", 0) == units_on(coupling, "w_1", 0)
    assert list(all_groups(coupling).values()) == [6]


def test_a_gate_of_one_channel_joins_nothing() -> None:
    net = Net()
    data = net.input(["N", 3, 4, 4])
    gate = net.node("Sigmoid", [net.conv(data, 1)])
    coupling = assert_exact(net.build(net.conv(net.add(net.conv(data, 6), gate, op="Mul"), 2)))
    assert coupling.units == 6
    assert FROZEN not in units_on(coupling, "w_1", 0)


def test_operands_of_different_rank() -> None:
    net = Net()
    hidden = net.conv(net.input([2, 3, 4, 4]), 6)
    row = net.vector(4, "row")
    coupling = assert_exact(net.build(net.conv(net.add(hidden, row), 2)))
    assert coupling.units == 6
    assert units_on(coupling, row, 0) == [FROZEN] * 4, "it lies along the last axis, which stays"


def test_a_vector_that_meets_the_units_on_the_last_axis() -> None:
    net = Net()
    hidden = net.linear(net.input(["N", 5, 4]), 6, bias=False)
    scale = net.vector(6, "scale")
    table = net.initializer(net.random.normal(size=(5, 6)), "table")
    coupling = assert_exact(net.build(net.linear(net.add(net.add(hidden, scale, op="Mul"), table), 2)))
    assert units_on(coupling, scale, 0) == units_on(coupling, "table", 1) == units_on(coupling, "w_0", 1)
    assert units_on(coupling, "table", 0) == [FROZEN] * 5


def test_a_constant_met_on_different_axes() -> None:
    net = Net()
    data = net.input([1, 3, 6, 6])
    constant = net.vector(6, "both")
    channels = net.conv(data, 6)
    columns = net.add(channels, constant)
    turned = net.add(net.transpose(net.conv(net.relu(columns), 6), [0, 2, 3, 1]), constant)
    coupling = coupled(net.build(net.linear(turned, 2)))
    assert units_on(coupling, "both_0", 0) == [FROZEN] * 6, "along the columns it has to stay"
    assert units_on(coupling, "w_1", 0) == [FROZEN] * 6
    assert len(set(units_on(coupling, "w_0", 0))) == 6


def test_a_frozen_operand_freezes_the_other() -> None:
    net = Net()
    data = net.input(["N", 6, 4, 4])
    coupling = coupled(net.build(net.conv(net.add(net.conv(data, 6), data), 2)))
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 0] == "graph input 'x_0' keeps its shape"


@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_the_axis_attribute_of_old_operator_sets_is_frozen(op: str) -> None:
    net = Net(8)
    hidden = net.conv(net.input([1, 3, 4, 4]), 6)
    constant = net.vector(6, "k")
    model = net.build(net.conv(net.add(hidden, net.initializer(np.ones((6, 1, 1)), "other"), op=op), 2))
    node = next(n for n in model.graph.node if n.op_type == op)
    node.input[1] = constant
    node.attribute.append(onnx.helper.make_attribute("axis", 1))
    node.attribute.append(onnx.helper.make_attribute("broadcast", 1))
    model.opset_import[0].version = 6
    coupling = coupled(model)
    assert units_on(coupling, "w_0", 0) == [FROZEN] * 6
    assert f"{op} does not broadcast from the last axis on in operator sets before 7" in reasons(coupling).values()


def test_a_mask_of_dropout_carries_the_units() -> None:
    net = Net()
    hidden = net.conv(net.input(["N", 3, 4, 4]), 6)
    data, mask = net.nodes_of("Dropout", [hidden], [net.shapes[hidden]] * 2)
    net.kinds[mask] = TensorProto.BOOL
    kept = net.node("Where", [mask, data, net.initializer(0.0, "zero")], kind=TensorProto.FLOAT)
    assert assert_exact(net.build(net.conv(kept, 2))).units == 6


def test_casts_to_and_fro() -> None:
    net = Net()
    hidden = net.conv(net.input(["N", 3, 4, 4]), 6)
    half = net.node("Cast", [hidden], kind=TensorProto.DOUBLE, to=TensorProto.DOUBLE)
    scaled = net.node("Mul", [half, net.initializer(net.random.uniform(1, 2, (6, 1, 1)), "k", TensorProto.DOUBLE)])
    back = net.node("Cast", [scaled], kind=TensorProto.FLOAT, to=TensorProto.FLOAT)
    coupling = assert_exact(net.build(net.conv(back, 2)))
    assert units_on(coupling, "k", 0) == units_on(coupling, "w_0", 0)


# -- several inputs ----------------------------------------------------------------------------------------------


def where(net: Net, *names: str) -> str:
    return net.node("Where", list(names), net.shapes[names[1]], kind=TensorProto.FLOAT)


def test_where_with_a_mask_shared_over_the_channels() -> None:
    net = Net()
    hidden = net.conv(net.input([2, 3, 4, 4]), 6)
    mask = net.initializer(net.random.normal(size=(1, 1, 4, 4)) > 0, "mask")
    coupling = assert_exact(net.build(net.conv(where(net, mask, hidden, net.initializer(-2.0, "low")), 2)))
    assert coupling.units == 6


def test_where_with_a_condition_for_every_channel() -> None:
    net = Net()
    hidden = net.conv(net.input([2, 3, 4, 4]), 6)
    gate = net.node("Greater", [net.global_pool(hidden), net.initializer(0.0, "zero")], kind=TensorProto.BOOL)
    chosen = net.initializer(net.random.normal(size=(6, 1, 1)) > 0, "chosen")
    first = where(net, gate, hidden, net.initializer(-2.0, "low"))
    second = where(net, chosen, first, net.conv(net.input([2, 3, 4, 4]), 6))
    coupling = assert_exact(net.build(net.conv(second, 2)))
    assert units_on(coupling, "chosen", 0) == units_on(coupling, "w_0", 0) == units_on(coupling, "w_1", 0)
    assert coupling.units == 6


def test_where_between_numbers_carries_the_channels_of_its_condition() -> None:
    net = Net()
    hidden = net.conv(net.input([2, 3, 4, 4]), 6)
    above = net.node("Greater", [hidden, net.initializer(0.0, "zero")], kind=TensorProto.BOOL)
    names = [above, net.initializer(1.5, "high"), net.initializer(-0.5, "low")]
    step = net.node("Where", names, net.shapes[hidden], kind=TensorProto.FLOAT)
    assert assert_exact(net.build(net.conv(step, 2))).units == 6


def test_where_with_a_condition_that_is_an_input_is_frozen() -> None:
    net = Net()
    hidden = net.conv(net.input([2, 3, 4, 4]), 6)
    mask = net.input([6, 1, 1], "mask")
    net.kinds[mask] = TensorProto.BOOL
    coupling = coupled(net.build(net.conv(where(net, mask, hidden, net.initializer(0.0, "zero")), 2)))
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 0] == "graph input 'mask' keeps its shape"


@pytest.mark.parametrize("op", ["Sum", "Mean", "Max", "Min"])
def test_many_inputs_of_different_shapes(op: str) -> None:
    net = Net()
    data = net.input([2, 3, 4, 4])
    first, second = net.conv(data, 6), net.conv(data, 6)
    shared = net.conv(data, 1)
    row = net.initializer(net.random.normal(size=(6, 1, 4)), "row")
    made = net.node(op, [first, net.global_pool(second), shared, row, net.initializer(0.3, "number")])
    alone = net.node(op, [net.conv(data, 5)])
    coupling = assert_exact(net.build(net.conv(made, 2), net.conv(alone, 2)))
    assert units_on(coupling, "w_0", 0) == units_on(coupling, "w_1", 0) == units_on(coupling, "row", 0)
    assert units_on(coupling, "w_2", 0) == [FROZEN]
    assert coupling.units == 11


def test_the_type_of_another_tensor() -> None:
    net = Net()
    hidden = net.conv(net.input([2, 3, 4, 4]), 6)
    like = net.node("Cast", [net.conv(hidden, 5)], kind=TensorProto.DOUBLE, to=TensorProto.DOUBLE)
    wide = net.node("CastLike", [hidden, like], kind=TensorProto.DOUBLE)
    back = net.node("CastLike", [wide, hidden], kind=TensorProto.FLOAT)
    coupling = assert_exact(net.build(net.conv(back, 2)))
    assert all_groups(coupling) == {
        (("w_0", 0), ("b_0", 0), ("w_1", 1), ("w_2", 1)): 6,
        (("w_1", 0), ("b_1", 0)): 5,
    }, "only the type is read: neither side ties the other"


def test_computed_bounds_of_clip_are_numbers() -> None:
    net = Net()
    hidden = net.conv(net.input([2, 3, 4, 4]), 6)
    low = net.squeeze(net.reduce(net.input([2, 5]), [0, 1], "ReduceMin"), [0, 1])
    assert assert_exact(net.build(net.conv(net.node("Clip", [hidden, low]), 2))).units == 6


# -- ONNX Runtime's own ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["Gelu", "QuickGelu", "FastGelu", "BiasGelu"])
@pytest.mark.parametrize("biased", [False, True])
def test_activations_of_onnx_runtime(op: str, biased: bool) -> None:
    net = Net()
    net.imports["com.microsoft"] = 1
    hidden = net.linear(net.input([2, 5, 4]), 6, bias=False)
    names = [hidden, *([net.vector(6, "shift")] if op == "BiasGelu" or (biased and op == "FastGelu") else [])]
    coupling = assert_exact(net.build(net.linear(net.node(op, names, domain="com.microsoft"), 2)))
    assert coupling.units == 6
    if len(names) > 1:
        assert units_on(coupling, "shift_0", 0) == units_on(coupling, "w_0", 1)
