"""Reshape, Flatten, Squeeze, Unsqueeze: merging and splitting, and the constants that name pruned axes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.ir.coupling.units import FROZEN
from graphprune.ir.rules.reshape import blocks
from tests.nets import Net
from tests.oracles import assert_exact, check_removal, coupled, feeds, reasons, removal, units_on, values


def hidden(net: Net, channels: int = 6, batch: int | str = "N") -> str:
    return net.relu(net.conv(net.input([batch, 3, 2, 2]), channels))


# -- blocks --------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.data())
def test_blocks_hold_equal_numbers_of_elements(source: list[int], data: st.DataObject) -> None:
    # Merge neighbours of the source to get a target: both have the same elements.
    cuts = data.draw(st.lists(st.booleans(), min_size=len(source) - 1, max_size=len(source) - 1))
    target = [source[0]]
    for extent, apart in zip(source[1:], cuts, strict=True):
        if apart:
            target.append(extent)
        else:
            target[-1] *= extent
    for left, right in ((source, target), (target, source)):
        found = blocks(tuple(left), tuple(right))
        assert [axis for axes, _ in found for axis in axes] == list(range(len(left)))
        assert [axis for _, axes in found for axis in axes] == list(range(len(right)))
        for axes, new_axes in found:
            assert np.prod([left[a] for a in axes]) == np.prod([right[a] for a in new_axes])


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (("N", 4, 2, 2), ("N", 16), [((0,), (0,)), ((1, 2, 3), (1,))]),
        (("N", 6, 2, 2), ("N", 2, 3, 2, 2), [((0,), (0,)), ((1,), (1, 2)), ((2,), (3,)), ((3,), (4,))]),
        ((None, 4, 2), (None, 8), [((0,), (0,)), ((1, 2), (1,))]),
        (("N", 4, "H", "W"), ("N", 4, None), [((0,), (0,)), ((1,), (1,)), ((2, 3), (2,))]),
        (("N", 3, 4), (None, 4), [((0, 1), (0,)), ((2,), (1,))]),
        ((2, 3), (3, 2), [((0, 1), (0, 1))]),
        ((4, 1), (4,), [((0, 1), (0,))]),
        ((1, 4), (4,), [((0, 1), (0,))]),
    ],
)
def test_blocks_of_known_shapes(source: tuple, target: tuple, expected: list) -> None:
    assert [(tuple(a), tuple(b)) for a, b in blocks(source, target)] == expected


# -- merging and splitting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", ["N", 1, 2])
@pytest.mark.parametrize("target", [[-1, 24], [0, 24], [0, -1]])
def test_merging_all_but_the_batch(batch: int | str, target: list[int]) -> None:
    net = Net()
    model = net.build(net.gemm(net.reshape(hidden(net, batch=batch), target, [batch, 24]), 3))
    coupling = assert_exact(model)
    units = units_on(coupling, "w_0", 0)
    assert units_on(coupling, "w_1", 1) == [unit for unit in units for _ in range(4)]


def test_a_stale_extent_is_patched_and_zero_and_minus_one_stay() -> None:
    for target, expected in (([-1, 24], [-1, 16]), ([0, 24], [0, 16]), ([0, -1], [0, -1])):
        net = Net()
        model = net.build(net.gemm(net.reshape(hidden(net), target, ["N", 24]), 3))
        coupling = coupled(model)
        pruned = check_removal(coupling, removal(coupling, units_on(coupling, "w_0", 0)[:2]), feeds(model))
        node = next(n for n in pruned.graph.node if n.op_type == "Reshape")
        assert values(pruned)[node.input[1]].tolist() == expected
        assert "shape" not in values(pruned) or expected == target, "a constant that nothing reads is left behind"


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("nodes", [False, True])
def test_one_constant_of_two_reshapes_that_need_different_patches(listed: bool, nodes: bool) -> None:
    net = Net(9, listed=listed, constants=nodes)
    data = net.input(["N", 3, 2, 2])
    constant = net.constant(np.array([-1, 24]))
    made = [net.gemm(net.reshape(net.relu(net.conv(data, 6)), [], ["N", 24], constant=constant), 3) for _ in range(3)]
    model = net.build(*made)
    coupling = assert_exact(model)
    first, second = units_on(coupling, "w_0", 0), units_on(coupling, "w_2", 0)
    pruned = check_removal(coupling, removal(coupling, [*first[:1], *second[:4]]), feeds(model))
    shapes = [values(pruned)[n.input[1]].tolist() for n in pruned.graph.node if n.op_type == "Reshape"]
    assert shapes == [[-1, 20], [-1, 8], [-1, 24]]


def test_a_constant_that_is_read_as_data_too_keeps_its_value() -> None:
    net = Net()
    constant = net.constant(np.array([-1, 24]))
    flat = net.reshape(hidden(net), [], ["N", 24], constant=constant)
    model = net.build(net.gemm(flat, 3), net.node("Neg", [constant]))
    assert_exact(model)


def test_zero_that_copies_an_axis_that_stays_while_the_output_s_shrinks() -> None:
    net = Net()
    data = net.squeeze(net.relu(net.conv(net.input([1, 3, 2, 2]), 4)), [0])
    # [4, 2, 2] -> [2, 2, 4]: the channels lie on the first two axes, and 0 names the middle one.
    rows = net.transpose(net.reshape(data, [2, 0, 4], [2, 2, 4]), [0, 2, 1])
    coupling = assert_exact(net.build(net.linear(rows, 3)))
    units = units_on(coupling, "w_0", 0)
    assert units == [units[0], units[1]] * 2
    assert coupling.units == 2


def test_merging_the_rows_keeps_the_channels() -> None:
    for target in ([0, 0, -1], [0, 6, 4], [-1, 6, 4]):
        net = Net()
        merged = net.reshape(hidden(net), target, ["N", 6, 4])
        coupling = assert_exact(net.build(net.linear(net.transpose(merged, [0, 2, 1]), 3)))
        assert units_on(coupling, "w_1", 0) == units_on(coupling, "w_0", 0)


def test_merging_with_a_dynamic_axis_is_frozen() -> None:
    net = Net()
    made = net.reshape(hidden(net), [-1, 4], ["K", 4])
    coupling = coupled(net.build(net.linear(made, 3)))
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 0] == "Reshape merges the axis with one of unknown extent"


def test_splitting_joins_equal_offsets() -> None:
    net = Net()
    parts = net.reshape(hidden(net), [0, 2, 3, 2, 2], ["N", 2, 3, 2, 2])
    mean = net.reduce(parts, [1], "ReduceSum", keepdims=False)
    coupling = assert_exact(net.build(net.conv(mean, 2)))
    units = units_on(coupling, "w_0", 0)
    assert units == units[:3] * 2
    assert units_on(coupling, "w_1", 1) == units[:3]


def test_a_computed_shape_is_frozen() -> None:
    net = Net()
    shape = net.input([2], "target")
    net.kinds[shape] = onnx.TensorProto.INT64
    coupling = coupled(net.build(net.node("Reshape", [hidden(net), shape], ["A", "B"])))
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 0] == "the shape that Reshape makes is computed"


def test_a_weight_that_is_reshaped() -> None:
    net = Net()
    flat = net.weight([6, 3], fan_in=3)
    weight = net.reshape(flat, [6, 3, 1, 1], [6, 3, 1, 1])
    bias = net.reshape(net.vector(6), [1, 6, 1, 1], [1, 6, 1, 1])
    data = net.node("Conv", [net.input(["N", 3, 4, 4]), weight], ["N", 6, 4, 4])
    model = net.build(net.conv(net.relu(net.add(data, bias)), 2))
    coupling = assert_exact(model)
    assert units_on(coupling, flat, 0) == units_on(coupling, "b_0", 0)
    assert coupling.units == 6


def test_reshape_to_the_same_shape() -> None:
    net = Net()
    assert assert_exact(net.build(net.conv(net.reshape(hidden(net), [0, 6, 2, 2], ["N", 6, 2, 2]), 2))).units == 6


# -- Flatten, Squeeze, Unsqueeze -----------------------------------------------------------------------------


@pytest.mark.parametrize("batch", ["N", 2])
def test_flatten(batch: int | str) -> None:
    net = Net()
    assert assert_exact(net.build(net.gemm(net.flatten(hidden(net, batch=batch)), 2))).units == 6


@pytest.mark.parametrize("axis", [0, 2, 3])
def test_flatten_that_merges_the_batch(axis: int) -> None:
    net = Net()
    shape = [1, 24] if axis == 0 else [6, 4] if axis == 2 else [12, 2]
    flat = net.node("Flatten", [hidden(net, batch=1)], shape, axis=axis)
    model = net.build(net.linear(flat, 2))
    assert (coupled(model).units > 0) == (axis == 0)
    if axis == 0:
        assert_exact(model)


@pytest.mark.parametrize("opset", [9, 13])
def test_squeeze_and_unsqueeze(opset: int) -> None:
    net = Net(opset)
    data = net.squeeze(net.global_pool(hidden(net)), [2, 3])
    data = net.unsqueeze(net.relu(net.gemm(data, 5)), [2, 3])
    coupling = assert_exact(net.build(net.conv(data, 2)))
    assert coupling.units == 11


@pytest.mark.parametrize("opset", [9, 13])
def test_squeeze_of_all_axes_spares_one_that_shrinks_to_a_position(opset: int) -> None:
    net = Net(opset)
    pooled = net.global_pool(hidden(net, batch=1))
    vector = net.node("Squeeze", [pooled], [6])
    model = net.build(net.gemm(net.unsqueeze(vector, [0]), 2))
    coupling = coupled(model)
    check_removal(coupling, removal(coupling, units_on(coupling, "w_0", 0)[1:]), feeds(model))
    assert_exact(model)


def test_unsqueezed_weights() -> None:
    net = Net()
    flat = net.weight([6, 3], fan_in=3)
    weight = net.unsqueeze(flat, [2, 3])
    data = net.relu(net.node("Conv", [net.input(["N", 3, 4, 4]), weight], ["N", 6, 4, 4]))
    coupling = assert_exact(net.build(net.gemm(net.flatten(net.global_pool(data)), 2)))
    assert FROZEN not in units_on(coupling, flat, 0)
