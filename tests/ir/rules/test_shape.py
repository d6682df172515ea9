"""Shape and Size, and shapes that the graph computes from them: exact, whatever the extents that are open."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from graphprune.passes.canonicalize import canonicalize
from tests.nets import Net
from tests.oracles import Array, all_groups, assert_close, assert_exact, check_removal, coupled, random_removal, run

INT64 = TensorProto.INT64
IMAGES = [(2, 4, 4), (1, 5, 3), (3, 8, 6)]
"""Batch, height, width."""


def image(*shape: int) -> dict[str, Array]:
    batch, height, width = shape
    return {"x_0": np.random.default_rng(0).normal(size=(batch, 3, height, width)).astype(np.float32)}


def prune_at_every_extent(model: onnx.ModelProto) -> dict[tuple[tuple[str, int], ...], int]:
    coupling = coupled(model)
    for seed, fraction in enumerate([0.2, 0.5, None]):
        removed = random_removal(coupling, fraction, seed)
        assert removed.any()
        for extents in IMAGES:
            assert_close(run(model, image(*extents)), run(coupling.graph.proto, image(*extents)))
            check_removal(coupling, removed, image(*extents))
    return all_groups(coupling)


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def shape_of(net: Net, data: str) -> str:
    return net.node("Shape", [data], [len(net.shapes[data])], kind=INT64)


def extent(net: Net, shape: str, *axes: int) -> str:
    return net.node("Gather", [shape, net.constant(np.array(axes), "axes")], [len(axes)], kind=INT64)


def target(net: Net, *parts: str | int) -> str:
    names = [part if isinstance(part, str) else net.constant(np.array([part]), "part") for part in parts]
    return net.node("Concat", names, [sum(int(net.shapes[name][0]) for name in names)], kind=INT64, axis=0)


def features(net: Net, channels: int = 8) -> str:
    return net.relu(net.conv(net.input(["N", 3, "H", "W"]), channels))


# -- Shape and Size ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "length"), [({}, 4), ({"start": 1}, 3), ({"start": -3, "end": -1}, 2), ({"end": 2}, 2)]
)
def test_a_shape_keeps_telling_the_original_s_extents(attributes: dict[str, int], length: int) -> None:
    net = Net(15)
    data = features(net)
    told = net.node("Shape", [data], [length], kind=INT64, **attributes)
    model = net.build(net.conv(data, 2), told)
    assert prune_at_every_extent(model) == {(("w_0", 0), ("b_0", 0), ("w_1", 1)): 8}


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_a_size_keeps_telling_the_original_s(opset: int) -> None:
    net = Net(opset)
    data = features(net)
    model = net.build(net.conv(data, 2), net.node("Size", [data], [], kind=INT64))
    assert list(prune_at_every_extent(model).values()) == [8]


def test_a_scale_by_the_number_of_channels_keeps_its_value() -> None:
    net = Net(13)
    data = features(net)
    channels = net.node("Cast", [extent(net, shape_of(net, data), 1)], [1], kind=TensorProto.FLOAT, to=1)
    scaled = net.node("Div", [data, net.node("Sqrt", [channels])])
    assert list(prune_at_every_extent(net.build(net.conv(scaled, 2))).values()) == [8]


# -- Reshape -------------------------------------------------------------------------------------------------


def test_a_batch_that_is_read_is_copied() -> None:
    net = Net(13)
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 6))
    flat = net.node("Reshape", [data, target(net, extent(net, shape_of(net, data), 0), -1)], ["N", 96])
    model = net.build(net.gemm(flat, 2))
    canonical = canonicalize(model)
    assert operators(canonical) == {"Conv": 1, "Relu": 1, "Reshape": 1, "Gemm": 1}
    assert list(onnx.numpy_helper.to_array(canonical.graph.initializer[-1])) == [0, -1]
    assert_exact(model, batch=3)


@pytest.mark.parametrize("copies", [False, True])
def test_a_literal_zero_is_an_empty_axis_where_the_node_says_so(copies: bool) -> None:
    net = Net(14)
    batch = extent(net, shape_of(net, net.input(["N", 6])), 0)
    parts = [batch, 0] if copies else [batch, 2, 3]
    shape = ["N", 6] if copies else ["N", 2, 3]
    made = net.node("Reshape", ["x_0", target(net, *parts)], shape, allowzero=int(not copies))
    model = net.build(made)
    canonical = canonicalize(model)
    assert operators(canonical) == {"Reshape": 1}
    inputs = {"x_0": np.ones((3, 6), np.float32)}
    assert_close(run(model, inputs), run(canonical, inputs))


def test_zero_is_not_copied_under_allowzero() -> None:
    net = Net(14)
    data = net.input(["N", 0])
    made = net.node("Reshape", [data, target(net, extent(net, shape_of(net, data), 0), 0)], ["N", 0], allowzero=1)
    canonical = canonicalize(net.build(made))
    assert operators(canonical)["Concat"] == 1


def test_a_target_of_two_open_extents_keeps_being_computed() -> None:
    """A shuffle of channels by views of all extents."""
    net = Net(13)
    data = features(net)
    shape = shape_of(net, data)
    batch, rows = extent(net, shape, 0), extent(net, shape, 2, 3)
    apart = net.node("Reshape", [data, target(net, batch, 2, 4, rows)], ["N", 2, 4, "H", "W"])
    turned = net.transpose(apart, [0, 2, 1, 3, 4])
    made = net.node("Reshape", [turned, target(net, batch, 8, rows)], ["N", 8, "H", "W"])
    model = net.build(net.conv(made, 2))
    assert operators(canonicalize(model))["Concat"] == 2
    assert sum(prune_at_every_extent(model).values()) > 0


# -- Expand, ConstantOfShape, Tile ---------------------------------------------------------------------------


def test_expand_to_the_shape_of_another_tensor() -> None:
    net = Net(13)
    data = features(net)
    wide = net.node("Expand", [net.global_pool(data), shape_of(net, data)], ["N", 8, "H", "W"])
    assert prune_at_every_extent(net.build(net.conv(wide, 2))) == {(("w_0", 0), ("b_0", 0), ("w_1", 1)): 8}


def test_expand_to_more_channels_than_there_are() -> None:
    net = Net(13)
    data = features(net)
    one = net.initializer(np.full((1, 1, 1, 1), 0.3, np.float32))
    wide = net.node("Expand", [one, shape_of(net, data)], ["N", 8, "H", "W"])
    assert list(prune_at_every_extent(net.build(net.conv(net.relu(net.add(data, wide)), 2))).values()) == [8]


def test_an_axis_that_expand_may_or_may_not_widen_is_frozen() -> None:
    net = Net(13)
    data = features(net)
    open_extent = extent(net, shape_of(net, net.input(["K"], "k")), 0)  # 1 or 8
    shape = target(net, extent(net, shape_of(net, data), 0), open_extent, 1, 1)
    wide = net.node("Expand", [data, shape], ["N", 8, "H", "W"])
    coupling = coupled(net.build(net.conv(wide, 2)))
    assert coupling.units == 0
    text = next(d.reason.text for d in coupling.declined if (d.tensor, d.axis) == ("w_0", 0))
    assert text == "the extent that Expand makes of the axis is computed"


def test_zeros_of_as_many_channels() -> None:
    net = Net(13)
    data = features(net)
    shape = shape_of(net, data)
    shape = target(net, extent(net, shape, 0), 8, extent(net, shape, 2, 3))
    zeros = net.node("ConstantOfShape", [shape], ["N", 8, "H", "W"], kind=TensorProto.FLOAT)
    assert list(prune_at_every_extent(net.build(net.conv(net.add(data, zeros), 2))).values()) == [8]


def test_tile_along_an_open_axis() -> None:
    net = Net(13)
    data = features(net)
    rows = net.initializer(net.random.normal(size=(1, 8, 1, 1)), "row")
    repeats = target(net, extent(net, shape_of(net, data), 0), 1, 1, 1)
    tiled = net.node("Tile", [rows, repeats], ["N", 8, 1, 1])
    assert list(prune_at_every_extent(net.build(net.conv(net.relu(net.add(data, tiled)), 2))).values()) == [8]


# -- Resize, Slice, Pad --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resize_to_the_size_of_another_tensor(mode: str) -> None:
    net = Net(13)
    fine = features(net, 6)
    coarse = net.node("MaxPool", [net.conv(fine, 10)], ["N", 10, "h", "w"], kernel_shape=[2, 2], strides=[2, 2])
    sizes = target(net, extent(net, shape_of(net, coarse), 0, 1), extent(net, shape_of(net, fine), 2, 3))
    up = net.node("Resize", [coarse, "", "", sizes], ["N", 10, "H", "W"], mode=mode)
    model = net.build(net.conv(net.concat(net.relu(up), fine), 2))
    assert sorted(prune_at_every_extent(model).values()) == [6, 10]


def test_resize_by_scales_that_are_computed_for_the_rows_alone() -> None:
    net = Net(10)
    data = features(net)
    height = net.node("Cast", [extent(net, shape_of(net, data), 2)], [1], kind=TensorProto.FLOAT, to=1)
    factor = net.node("Div", [net.node("Add", [height, height], [1]), height], [1])
    ones = net.initializer(np.ones(2, np.float32), "ones")
    scales = net.node("Concat", [ones, factor, factor], [4], axis=0)
    made = net.node("Resize", [data, scales], ["N", 8, "A", "B"], mode="nearest")
    assert list(prune_at_every_extent(net.build(net.conv(made, 2))).values()) == [8]


@pytest.mark.parametrize("kind", [np.int64, np.int32])
def test_slice_of_channels_and_of_computed_rows_at_once(kind: type) -> None:
    net = Net(13)
    data = features(net)
    number = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    rows = extent(net, shape_of(net, data), 2)
    rows = net.node("Sub", [rows, net.constant(np.array([1]), "one")], [1])
    ends = net.node("Cast", [target(net, 6, rows)], [2], kind=number, to=number)
    starts, axes, steps = (net.constant(np.array(v, kind), "bound") for v in ([2, 0], [1, 2], [1, 1]))
    made = net.node("Slice", [data, starts, ends, axes, steps], ["N", 4, "h", "W"])
    model = net.build(net.conv(made, 2))
    groups = prune_at_every_extent(model)
    assert sorted(groups.values()) == [4, 4]  # what is cut off, and what stays


def test_pad_of_channels_and_of_computed_rows_at_once() -> None:
    net = Net(13)
    data = features(net)
    rows = extent(net, shape_of(net, data), 2)
    pads = target(net, 0, 1, 0, 0, 0, 2, rows, 0)
    padded = net.node("Pad", [data, pads], ["N", 11, "h", "W"])
    groups = prune_at_every_extent(net.build(net.conv(net.relu(padded), 2)))
    assert sum(groups.values()) == 11


# -- all together --------------------------------------------------------------------------------------------


def test_an_initial_state_of_zeros_for_every_row_of_the_batch() -> None:
    hidden, net = 6, Net(14)
    data = net.input(["T", "N", 4])
    shape = target(net, 1, extent(net, shape_of(net, data), 1), hidden)
    zeros = net.node("ConstantOfShape", [shape], [1, "N", hidden], kind=TensorProto.FLOAT)
    weights = [net.weight([1, 4 * hidden, size], fan_in=size) for size in (4, hidden)]
    made = net.node("LSTM", [data, *weights, "", "", zeros, zeros], ["T", 1, "N", hidden], hidden_size=hidden)
    last = net.weight([hidden, 2], fan_in=hidden)
    model = net.build(net.node("MatMul", [made, last], ["T", 1, "N", 2]))
    coupling = coupled(model)
    assert list(all_groups(coupling).values()) == [hidden]
    for steps, batch in ((3, 2), (5, 1), (1, 4)):
        inputs = {"x_0": np.random.default_rng(0).normal(size=(steps, batch, 4)).astype(np.float32)}
        check_removal(coupling, random_removal(coupling, 0.5, 0), inputs)


def test_removing_twice_is_removing_once_more() -> None:
    """What surgery writes for computed shapes is understood again."""
    net = Net(13)
    data = features(net)
    wide = net.node("Expand", [net.global_pool(data), shape_of(net, data)], ["N", 8, "H", "W"])
    coupling = coupled(net.build(net.conv(wide, 2)))
    once = check_removal(coupling, random_removal(coupling, 0.3, 0), image(2, 4, 4))
    again = coupled(once)
    assert 0 < again.units < 8
    for extents in IMAGES:
        check_removal(again, random_removal(again, None, 1), image(*extents))
