"""Normalisation of channels one by one, in groups, and over the axis that would be cut."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from graphprune.ir.coupling.units import FROZEN
from tests.nets import Extent, Net
from tests.oracles import assert_close, assert_exact, check_removal, coupled, feeds, reasons, removal, run, units_on


@pytest.mark.parametrize("opset", [8, 9, 13, 15, 21])
def test_all_four_parameters_go_with_the_channel(opset: int) -> None:
    net = Net(opset)
    data = net.relu(net.batch_norm(net.conv(net.input(["N", 3, 4, 4]), 6)))
    coupling = assert_exact(net.build(net.conv(data, 2)))
    for name in ("scale_0", "shift_0", "mean_0", "var_0"):
        assert units_on(coupling, name, 0) == units_on(coupling, "w_0", 0)


def test_normalisation_of_rows() -> None:
    net = Net()
    hidden = net.relu(net.batch_norm(net.gemm(net.input(["N", 3]), 6)))
    assert assert_exact(net.build(net.gemm(hidden, 2))).units == 6


def test_normalisation_before_the_convolution() -> None:
    net = Net()
    data = net.conv(net.input(["N", 3, 4, 4]), 6)
    for _ in range(2):
        data = net.add(data, net.conv(net.relu(net.batch_norm(data)), 6, 3))
    assert assert_exact(net.build(net.conv(net.relu(net.batch_norm(data)), 2))).units == 6


def test_the_shift_of_a_removed_channel_does_not_leak() -> None:
    net = Net()
    data = net.conv(net.input(["N", 3, 4, 4]), 6)
    scale, shift, mean, variance = (net.initializer(np.full(6, value), name) for name, value in
                                    [("scale", 1.0), ("shift", 100.0), ("mean", -50.0), ("var", 1.0)])  # fmt: skip
    normal = net.relu(net.node("BatchNormalization", [data, scale, shift, mean, variance]))
    model = net.build(net.conv(normal, 2, bias=False))
    coupling = coupled(model)
    units = units_on(coupling, "w_0", 0)
    inputs = feeds(model)
    pruned = check_removal(coupling, removal(coupling, units[1:]), inputs)
    # Channel 0 alone: were the shift of the others still there, it would outweigh everything.
    kernel, weight, bias = net.array("w_0")[0], net.array("w_1")[:, 0], net.array("b_0")[0]
    channel = np.einsum("nchw,c->nhw", inputs["x_0"], kernel.reshape(-1)) + bias
    channel = np.maximum((channel + 50) / np.sqrt(1 + 1e-5) + 100, 0)
    expected = channel[:, None] * weight.reshape(1, -1, 1, 1)
    assert_close({"conv_1": expected.astype(np.float32)}, run(pruned, inputs))


def test_one_set_of_statistics_shared_by_two() -> None:
    net = Net()
    data = net.input(["N", 3, 4, 4])
    parameters = [net.vector(6, name, 0.5, 1.5) for name in ("scale", "shift", "mean", "var")]
    made = [net.relu(net.node("BatchNormalization", [net.conv(data, 6), *parameters])) for _ in range(2)]
    coupling = assert_exact(net.build(*(net.conv(one, 2) for one in made)))
    assert units_on(coupling, "w_0", 0) == units_on(coupling, "w_1", 0)


def test_training_mode_is_frozen() -> None:
    net = Net()
    model = net.build(net.conv(net.batch_norm(net.conv(net.input([2, 3, 4, 4]), 6)), 2))
    node = next(n for n in model.graph.node if n.op_type == "BatchNormalization")
    node.attribute.append(helper.make_attribute("training_mode", 1))
    node.output.extend(["running_mean", "running_var"])
    coupling = coupled(model)
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 0] == "BatchNormalization in training mode"


def test_normalisation_of_an_input_is_frozen() -> None:
    net = Net()
    coupling = coupled(net.build(net.conv(net.batch_norm(net.input(["N", 3, 4, 4])), 2)))
    assert coupling.units == 0
    assert units_on(coupling, "scale_0", 0) == [FROZEN] * 3


def test_lrn_freezes_the_channels_with_a_reason_and_nothing_else() -> None:
    net = Net()
    first = net.relu(net.conv(net.input(["N", 3, 4, 4]), 6))
    normal = net.node("LRN", [net.conv(first, 5)], size=3, name="the lrn")
    coupling = assert_exact(net.build(net.conv(normal, 2)))
    assert coupling.units == 6
    assert units_on(coupling, "w_1", 0) == units_on(coupling, "w_2", 1) == [FROZEN] * 5
    found = {(d.tensor, d.axis): d.reason for d in coupling.declined}
    for key in (("w_1", 0), ("w_2", 1)):
        assert found[key].node == "the lrn"
        assert "neighbouring channels" in found[key].text


def test_instance_normalization_joins_its_parameters() -> None:
    net = Net()
    data = net.conv(net.input(["N", 3, 4, 4]), 6)
    normed = net.node("InstanceNormalization", [data, net.vector(6, "scale"), net.vector(6, "shift")])
    coupling = assert_exact(net.build(net.conv(net.relu(normed), 2)))
    assert units_on(coupling, "scale_0", 0) == units_on(coupling, "shift_0", 0) == units_on(coupling, "w_0", 0)


# -- groups of channels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [2, 3, 6])
def test_whole_groups_go(groups: int) -> None:
    net = Net(21)
    data = net.conv(net.input(["N", 3, 4, 4]), 12)
    scale, shift = net.vector(12, "scale", 0.5, 1.5), net.vector(12, "shift")
    normal = net.node("GroupNormalization", [data, scale, shift], num_groups=groups)
    coupling = assert_exact(net.build(net.conv(net.relu(normal), 2)))
    units = np.array(units_on(coupling, "w_0", 0)).reshape(groups, -1)
    assert (units == units[:, :1]).all()
    assert len(set(units[:, 0])) == groups
    assert units_on(coupling, "scale_0", 0) == units_on(coupling, "shift_0", 0) == units.ravel().tolist()


def test_one_group_of_all_channels_is_frozen() -> None:
    net = Net(21)
    data = net.conv(net.input(["N", 3, 4, 4]), 6)
    normal = net.node("GroupNormalization", [data, net.vector(6, "scale"), net.vector(6, "shift")], num_groups=1)
    coupling = coupled(net.build(net.conv(normal, 2)))
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 0].startswith("GroupNormalization normalises over the axis")


def test_groups_as_instances_go_whole() -> None:
    """How torch's exporters write GroupNorm: the groups are channels of InstanceNormalization."""
    net = Net()
    data = net.conv(net.input([2, 3, 4, 4]), 12)
    rows = net.reshape(data, [0, 3, -1], [2, 3, 64])
    ones, zeros = net.initializer(np.ones(3), "ones"), net.initializer(np.zeros(3), "zeros")
    normal = net.node("InstanceNormalization", [rows, ones, zeros])
    back = net.reshape(normal, [2, 12, 4, 4], [2, 12, 4, 4])
    scale = net.initializer(net.random.uniform(0.5, 1.5, (12, 1, 1)), "scale")
    shift = net.initializer(net.random.normal(size=(12, 1, 1)), "shift")
    made = net.relu(net.add(net.add(back, scale, op="Mul"), shift))
    coupling = assert_exact(net.build(net.conv(made, 2)))
    units = np.array(units_on(coupling, "w_0", 0)).reshape(3, 4)
    assert (units == units[:, :1]).all()
    assert len(set(units[:, 0])) == 3
    assert units_on(coupling, "scale", 0) == units_on(coupling, "shift", 0) == units.ravel().tolist()
    assert units_on(coupling, "ones", 0) == units[:, 0].tolist()


# -- over the hidden axis ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("op", "opset"), [("LayerNormalization", 17), ("RMSNormalization", 23)])
def test_the_axis_normalised_over_is_frozen_and_the_others_pass(op: str, opset: int) -> None:
    net = Net(opset, ir_version=8 if opset < 23 else 11)
    maps = net.relu(net.conv(net.input(["N", 3, 4, 5]), 6))
    parameters = [net.vector(5, "scale"), *([net.vector(5, "shift")] if op == "LayerNormalization" else [])]
    normal = net.node(op, [maps, *parameters], axis=-1, name="the norm")
    rows = net.linear(net.input(["N", 7, 4]), 6)
    others = [net.vector(6, "scale"), *([net.vector(6, "shift")] if op == "LayerNormalization" else [])]
    hidden = net.linear(net.node(op, [rows, *others]), 2)
    coupling = assert_exact(net.build(net.conv(normal, 2), hidden))
    assert coupling.units == 6
    assert len(set(units_on(coupling, "w_0", 0))) == 6
    text = f"{op} normalises over the axis: removing a position is not zeroing it"
    assert reasons(coupling)["w_1", 1] == reasons(coupling)["w_2", 0] == text


@pytest.mark.parametrize("rms", [False, True])
def test_normalisation_in_arithmetic_is_frozen_by_its_mean(rms: bool) -> None:
    """Nothing here is called a normalisation: it is ReduceMean that cannot lose a position."""
    net = Net()
    rows = net.linear(net.input(["N", 5, 4]), 6)
    centred = rows if rms else net.add(rows, net.reduce(rows, [2]), op="Sub")
    square = net.reduce(net.add(centred, net.initializer(2.0, "two"), op="Pow"), [2])
    spread = net.node("Sqrt", [net.add(square, net.initializer(1e-5, "epsilon"))])
    normal = net.add(net.add(centred, spread, op="Div"), net.vector(6, "scale"), op="Mul")
    coupling = coupled(net.build(net.linear(normal, 2)))
    assert coupling.units == 0
    for key in (("w_0", 1), ("w_1", 0)):
        assert reasons(coupling)[key] == "ReduceMean reduces over the axis: removing a position is not zeroing it"


@pytest.mark.parametrize("op", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
@pytest.mark.parametrize("shape", [["N", 5, 6], [1, 5, 6]])
def test_skip_normalisation_freezes_the_hidden_axis_and_joins_the_steps(op: str, shape: list[Extent]) -> None:
    net = Net()
    net.imports["com.microsoft"] = 1
    data = net.input(["N", 5, 4])
    steps = net.weight([7, 5])
    rows = net.relu(net.node("MatMul", [steps, data], ["N", 7, 4]))
    other = net.node("MatMul", [net.weight([7, 5]), net.input(["N" if shape[0] == "N" else 1, 5, 6])], [shape[0], 7, 6])
    gamma, beta = net.vector(6, "gamma"), net.vector(6, "beta")
    names = [net.linear(rows, 6), other, gamma, *([beta] if op == "SkipLayerNormalization" else [])]
    normal, *unused, total = net.nodes_of(op, names, [["N", 7, 6], [], [], ["N", 7, 6]], domain="com.microsoft")
    for name in unused:
        net.nodes[-1].output[list(net.nodes[-1].output).index(name)] = ""
    made = net.node("MatMul", [net.weight([3, 7]), net.add(normal, total)], ["N", 3, 6])
    coupling = assert_exact(net.build(net.linear(made, 2)))
    assert units_on(coupling, "w_0", 0) == units_on(coupling, "w_1", 0) == units_on(coupling, "w_3", 1)
    assert coupling.units == 7
    text = f"com.microsoft.{op} normalises over the axis: removing a position is not zeroing it"
    assert reasons(coupling)["w_2", 1] == text


def test_fused_embeddings_are_frozen_with_a_reason() -> None:
    net = Net()
    net.imports["com.microsoft"] = 1
    words = net.input(["N", 5], "words")
    net.kinds[words] = TensorProto.INT32
    tables = [net.weight([extent, 6], name="table") for extent in (9, 5, 2)]
    names = [words, "", *tables[:2], "", net.vector(6, "gamma"), net.vector(6, "beta")]
    made, unused = net.nodes_of(
        "EmbedLayerNormalization", names, [["N", 5, 6], ["N"]], kind=TensorProto.FLOAT, domain="com.microsoft"
    )
    net.kinds[unused] = TensorProto.INT32
    coupling = coupled(net.build(net.linear(net.relu(net.linear(made, 8)), 2)))
    text = "EmbedLayerNormalization normalises over the hidden axis, and looks positions up by number"
    assert {reasons(coupling)["table_0", axis] for axis in (0, 1)} == {text}
    assert reasons(coupling)["w_0", 0] == text
    assert coupling.units == 8


def test_mean_variance_normalisation_passes_the_channels_unless_it_runs_over_them() -> None:
    for axes, units in (((0, 2, 3), 6), ((1, 2, 3), 0)):
        net = Net()
        data = net.conv(net.input([2, 3, 4, 4]), 6)
        model = net.build(net.conv(net.node("MeanVarianceNormalization", [data], axes=list(axes)), 2))
        assert coupled(model).units == units
        if units:
            assert_exact(model)


def test_a_norm_over_the_last_axis_passes_the_channels() -> None:
    for axis, units in ((-1, 6), (1, 0)):
        net = Net()
        data = net.conv(net.input([2, 3, 4, 4]), 6)
        model = net.build(net.conv(net.node("LpNormalization", [data], axis=axis, p=2), 2))
        assert coupled(model).units == units
        if units:
            assert_exact(model)
