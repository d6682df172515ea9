"""Conv: any rank, any grouping, any kernel."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from graphprune.ir.surgery import remove
from graphprune.verify.masking import masked
from tests.nets import Net
from tests.oracles import (
    all_groups,
    assert_close,
    assert_exact,
    assert_legal,
    check_removal,
    coupled,
    feeds,
    reasons,
    removal,
    run,
    units_on,
    values,
)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_convolutions_of_any_rank(rank: int, bias: bool) -> None:
    net = Net()
    data = net.input(["N", 3, *[4] * rank])
    assert_exact(net.build(net.conv(net.relu(net.conv(data, 6, 3, stride=2, bias=bias)), 2, 3)))


@pytest.mark.parametrize("multiplier", [1, 2, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_depthwise_keeps_as_many_groups_as_channels(multiplier: int, bias: bool) -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 6))
    made = net.relu(net.depthwise(data, multiplier, bias=bias))
    coupling = assert_exact(net.build(net.conv(made, 2)))
    units = units_on(coupling, "w_0", 0)
    pruned = check_removal(coupling, removal(coupling, units[1:5]), feeds(coupling.graph.proto))
    (group,) = [helper.get_node_attr_value(node, "group") for node in pruned.graph.node if "w_1" in node.input]
    assert group == 2
    assert values(pruned)["w_1"].shape == (2 * multiplier, 1, 3, 3)


def test_depthwise_down_to_one_channel() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 6))
    coupling = coupled(net.build(net.conv(net.relu(net.depthwise(data, 2)), 2)))
    check_removal(coupling, removal(coupling, units_on(coupling, "w_0", 0)[:5]), feeds(coupling.graph.proto))


def test_depthwise_on_a_graph_input_is_frozen() -> None:
    net = Net()
    coupling = coupled(net.build(net.conv(net.depthwise(net.input(["N", 3, 4, 4])), 2)))
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 0] == "graph input 'x_0' keeps its shape"


def test_one_depthwise_weight_shared_by_two() -> None:
    net = Net()
    weight = net.weight([6, 1, 3, 3], "both")
    data = net.conv(net.input(["N", 3, 4, 4]), 6)
    for _ in range(2):
        data = net.relu(net.conv(data, 6, 3, group=6, weight=weight))
    coupling = assert_exact(net.build(net.conv(data, 2)))
    assert len(set(units_on(coupling, "both_0", 0))) == 6


@pytest.mark.parametrize("groups", [2, 4])
def test_grouped_kept_indices_are_nested_where_they_differ(groups: int) -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8))
    coupling = assert_exact(net.build(net.conv(net.relu(net.conv(data, 8, 3, group=groups)), 2)))
    size = 8 // groups
    inputs, outputs = units_on(coupling, "w_0", 0), units_on(coupling, "w_1", 0)
    # Another offset goes in every group, on both sides.
    gone = [
        units[group * size + (group + shift) % size]
        for shift, units in enumerate((inputs, outputs))
        for group in range(groups)
    ]
    removed = removal(coupling, gone)
    check_removal(coupling, removed, feeds(coupling.graph.proto))
    _, kept = remove(coupling, removed)
    rows = [row for row in range(8) if outputs[row] not in gone]
    assert kept["w_1"][0] == rows
    assert kept["w_1"][1] == [
        [offset for offset in range(size) if inputs[row // size * size + offset] not in gone] for row in rows
    ]


def test_grouped_kept_indices_where_all_groups_lose_the_same() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8))
    coupling = coupled(net.build(net.conv(net.relu(net.conv(data, 4, 3, group=2)), 2)))
    inputs = units_on(coupling, "w_0", 0)
    removed = removal(coupling, [inputs[1], inputs[5]])
    check_removal(coupling, removed, feeds(coupling.graph.proto))
    _, kept = remove(coupling, removed)
    assert kept["w_1"] == {1: [0, 2, 3]}


def test_a_removal_that_is_out_of_balance_is_caught_by_the_oracle() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8))
    coupling = coupled(net.build(net.conv(net.relu(net.conv(data, 4, 3, group=2)), 2)))
    with pytest.raises(AssertionError):
        assert_legal(coupling, removal(coupling, units_on(coupling, "w_0", 0)[:1]))


def test_grouped_convolutions_in_a_row() -> None:
    net = Net()
    data = net.block(net.input(["N", 3, 4, 4]), 8, 1)
    inner = net.relu(net.batch_norm(net.conv(data, 8, 3, group=4, bias=False)))
    inner = net.conv(net.relu(net.conv(inner, 8, 3, group=2)), 8, 1)
    coupling = assert_exact(net.build(net.conv(net.add(inner, data), 2)))
    assert sorted(all_groups(coupling).values()) == [8, 8, 8]


def test_one_grouped_weight_shared_by_two() -> None:
    net = Net()
    weight = net.weight([8, 2, 3, 3], "both")
    data = net.conv(net.input(["N", 3, 4, 4]), 8)
    for _ in range(2):
        data = net.relu(net.conv(data, 8, 3, group=4, weight=weight))
    assert_exact(net.build(net.conv(data, 2)))


def test_a_grouped_convolution_after_a_flat_one_of_one_row() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 7]), 8, 3))
    assert_exact(net.build(net.conv(net.relu(net.conv(data, 4, 3, group=2)), 2)))


def test_a_weight_computed_from_initializers() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 6))
    stored = net.weight([5, 1, 1, 6], fan_in=6)  # channels last, as other frameworks store them
    weight = net.transpose(stored, [0, 3, 1, 2])
    made = net.relu(net.node("Conv", [data, weight], ["N", 5, 4, 4]))
    coupling = assert_exact(net.build(net.conv(made, 2)))
    assert units_on(coupling, "w_0", 0) == units_on(coupling, stored, 3)
    assert sorted(all_groups(coupling).values()) == [5, 6]


def test_a_weight_that_depends_on_the_input() -> None:
    net = Net()
    data = net.relu(net.conv(net.input([1, 3, 4, 4]), 6))
    kernel = net.reshape(net.gemm(net.flatten(net.global_pool(data)), 12), [2, 6, 1, 1], [2, 6, 1, 1])
    model = net.build(net.node("Conv", [data, kernel], [1, 2, 4, 4]))
    coupling = coupled(model)
    channels = units_on(coupling, "w_0", 0)
    assert len(set(channels)) == 6
    assert units_on(coupling, "w_1", 0) == channels * 2
    # No stored weight reads the channels, so zeros in weights cannot stand for the masks here.
    removed = removal(coupling, channels[:4])
    pruned, _ = remove(coupling, removed)
    inputs = feeds(model)
    assert_close(run(masked(coupling, removed), inputs), run(pruned, inputs))


def test_grouped_by_a_computed_weight_is_frozen() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 6))
    weight = net.node("Mul", [net.weight([4, 3, 1, 1]), net.initializer(0.5, "half")])
    coupling = coupled(net.build(net.conv(data, 4, 1, group=2, weight=weight)))
    assert coupling.units == 0
    assert "the weight of a grouped convolution is computed" in reasons(coupling).values()


def test_spatial_kernels_stay_whole() -> None:
    net = Net()
    coupling = assert_exact(net.build(net.conv(net.relu(net.conv(net.input([2, 3, 6, 6]), 5, 3)), 2, 3)))
    assert all(axis < 2 for axes in all_groups(coupling) for _, axis in axes)


def test_what_comes_along_the_rows_is_frozen() -> None:
    net = Net()
    data = net.relu(net.linear(net.input(["N", 3, 4, 5]), 6))  # units on the last axis, which Conv slides along
    coupling = coupled(net.build(net.conv(data, 2, 3)))
    assert units_on(coupling, "w_0", 1) == [-1] * 6
    assert reasons(coupling)["w_0", 1] == "Conv slides along the axis"


def test_removed_channels_leave_the_weights_bit_identical() -> None:
    net = Net()
    model = net.build(net.conv(net.relu(net.conv(net.input(["N", 3, 4, 4]), 6, 3)), 2))
    coupling = coupled(model)
    pruned = check_removal(coupling, removal(coupling, units_on(coupling, "w_0", 0)[::2]), feeds(model))
    assert np.array_equal(values(pruned)["w_0"], values(model)["w_0"][1::2])
    assert np.array_equal(values(pruned)["b_0"], values(model)["b_0"][1::2])
    assert np.array_equal(values(pruned)["w_1"], values(model)["w_1"][:, 1::2])
    assert [list(t.dims) for t in pruned.graph.initializer] == [[3, 3, 3, 3], [3], [2, 3, 1, 1], [2]]


# -- ConvTranspose -------------------------------------------------------------------------------------------


def transposed(net: Net, data: str, outputs: int, *, groups: int = 1, bias: bool = True) -> str:
    """Add a transposed convolution that doubles height and width."""
    batch, channels, height, width = net.shapes[data]
    weight = net.weight((channels, outputs // groups, 2, 2), "t", fan_in=channels // groups)
    inputs = [data, weight, *([net.vector(outputs)] if bias else [])]
    shape = [batch, outputs, height * 2, width * 2]
    return net.node("ConvTranspose", inputs, shape, group=groups, strides=[2, 2], kernel_shape=[2, 2])


@pytest.mark.parametrize("bias", [False, True])
def test_transposed_convolution_swaps_the_axes(bias: bool) -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 6))
    coupling = assert_exact(net.build(net.conv(net.relu(transposed(net, data, 5, bias=bias)), 2)))
    assert units_on(coupling, "t_0", 0) == units_on(coupling, "w_0", 0)
    assert units_on(coupling, "t_0", 1) == units_on(coupling, "w_1", 1)
    assert coupling.units == 11


def test_depthwise_transposed_convolution_takes_its_channel_along() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 6))
    coupling = assert_exact(net.build(net.conv(transposed(net, data, 6, groups=6), 2)))
    assert coupling.units == 6


def test_transposed_convolution_of_one_input_channel_a_group_keeps_its_columns() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 6))
    coupling = assert_exact(net.build(net.conv(transposed(net, data, 12, groups=6), 2)))
    assert units_on(coupling, "w_1", 1) == np.repeat(units_on(coupling, "w_0", 0), 2).tolist()
    assert coupling.units == 6


def test_grouped_transposed_convolution_keeps_equal_counts() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8))
    coupling = assert_exact(net.build(net.conv(net.relu(transposed(net, data, 6, groups=2)), 2)))
    assert [parts.shape for parts in coupling.balances] == [(2, 4), (2, 3)]
    assert coupling.units == 14
