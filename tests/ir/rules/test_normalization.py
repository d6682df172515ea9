"""BatchNormalization and LRN."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from graphprune.ir.units import FROZEN
from tests.nets import Net
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


@pytest.mark.parametrize("op", ["LayerNormalization", "GroupNormalization"])
def test_normalising_over_channels_freezes_them(op: str) -> None:
    net = Net(21)
    if op == "LayerNormalization":
        data = net.linear(net.input(["N", 5, 4]), 6)
        normed = net.node(op, [data, net.vector(6, "scale"), net.vector(6, "shift")], axis=-1)
        model = net.build(net.linear(normed, 2))
    else:
        data = net.conv(net.input(["N", 3, 4, 4]), 6)
        normed = net.node(op, [data, net.vector(6, "scale"), net.vector(6, "shift")], num_groups=2)
        model = net.build(net.conv(normed, 2))
    coupling = coupled(model)
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 1 if op == "LayerNormalization" else 0].startswith(f"{op} normalises over")
