"""Resize, Upsample, DepthToSpace, SpaceToDepth: channels pass, and what becomes one goes together."""

from __future__ import annotations

import numpy as np
import pytest

from tests.nets import Net
from tests.oracles import all_groups, assert_exact, coupled, reasons, units_on, values


def resized(opset: int, *, by_sizes: bool, mode: str = "nearest") -> Net:
    """Conv - Relu - Resize to twice the size - Conv."""
    net = Net(opset)
    data = net.relu(net.conv(net.input(["N" if not by_sizes else 2, 3, 4, 4]), 8))
    shape = [net.shapes[data][0], 8, 8, 8]
    scales = np.array([1, 1, 2, 2], np.float32)
    # Operator set 11 wants both inputs, empty where they are not used.
    roi, empty = ("", "") if opset > 11 else (net.initializer(np.zeros(0, np.float32)) for _ in range(2))
    if opset < 9:
        made = net.node("Upsample", [data], shape, mode=mode, scales=scales.tolist())
    elif opset < 10:
        made = net.node("Upsample", [data, net.initializer(scales)], shape, mode=mode)
    elif opset < 11:
        made = net.node("Resize", [data, net.initializer(scales)], shape, mode=mode)
    elif by_sizes:
        made = net.node("Resize", [data, roi, empty, net.constant(np.array(shape))], shape, mode=mode)
    else:
        made = net.node("Resize", [data, roi, net.initializer(scales)], shape, mode=mode)
    net.output(net.conv(made, 2))
    return net


@pytest.mark.parametrize("opset", [8, 9, 10, 11, 13, 19])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_channels_pass_through_scales(opset: int, mode: str) -> None:
    coupling = assert_exact(resized(opset, by_sizes=False, mode=mode).build())
    assert units_on(coupling, "w_0", 0) == units_on(coupling, "w_1", 1)
    assert coupling.units == 8


@pytest.mark.parametrize("opset", [11, 13, 19])
def test_sizes_are_patched(opset: int) -> None:
    assert assert_exact(resized(opset, by_sizes=True).build()).units == 8


def test_sizes_of_named_axes_need_no_patch() -> None:
    net = Net(18)
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8))
    sizes = net.constant(np.array([8, 6]))
    made = net.node("Resize", [data, "", "", sizes], ["N", 8, 8, 6], mode="nearest", axes=[2, 3])
    assert assert_exact(net.build(net.conv(made, 2))).units == 8


def test_resampled_channels_are_frozen() -> None:
    net = Net(18)
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8))
    sizes = net.constant(np.array([4]))
    made = net.node("Resize", [data, "", "", sizes], ["N", 4, 4, 4], mode="nearest", axes=[1])
    coupling = coupled(net.build(net.conv(made, 2)))
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 0] == "Resize resamples the axis"


def test_a_scale_that_rounds_to_the_same_extent_still_resamples() -> None:
    net = Net(13)
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8))
    scales = net.initializer(np.array([1, 1.1, 1, 1], np.float32))
    made = net.node("Resize", [data, "", scales], ["N", 8, 4, 4], mode="linear")
    assert coupled(net.build(net.conv(made, 2))).units == 0


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_channels_of_one_pixel_block_go_together(mode: str) -> None:
    net = Net(13)
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 12))
    made = net.node("DepthToSpace", [data], ["N", 3, 8, 8], blocksize=2, mode=mode)
    coupling = assert_exact(net.build(net.conv(made, 2)))
    units = np.array(units_on(coupling, "w_0", 0))
    assert coupling.units == 3
    assert units.reshape((4, 3) if mode == "DCR" else (3, 4)).tolist() == (
        [[0, 1, 2]] * 4 if mode == "DCR" else [[0] * 4, [1] * 4, [2] * 4]
    )


def test_space_to_depth_repeats_channels() -> None:
    net = Net(13)
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 5))
    made = net.node("SpaceToDepth", [data], ["N", 20, 2, 2], blocksize=2)
    coupling = assert_exact(net.build(net.conv(made, 2)))
    assert units_on(coupling, "w_1", 1) == units_on(coupling, "w_0", 0) * 4
    assert list(all_groups(coupling).values()) == [5]
    assert len(values(coupling.graph.proto)) == 4


def test_samples_are_taken_of_every_channel_by_itself() -> None:
    net = Net(20)
    data = net.relu(net.conv(net.input([2, 3, 4, 4]), 6))
    grid = net.initializer(net.random.uniform(-1, 1, (2, 3, 5, 2)), "grid")
    sampled = net.node("GridSample", [data, grid], [2, 6, 3, 5])
    rows = net.initializer(np.array([[0.0, 0.0, 3.0, 3.0], [1.0, 0.0, 2.0, 3.0]]), "rois")
    which = net.initializer(np.array([0, 1]), "which")
    pooled = net.node("RoiAlign", [data, rows, which], [2, 6, 2, 2], output_height=2, output_width=2)
    coupling = assert_exact(net.build(net.conv(sampled, 2), net.conv(pooled, 2)))
    assert units_on(coupling, "w_1", 1) == units_on(coupling, "w_2", 1) == units_on(coupling, "w_0", 0)


def test_where_samples_are_taken_is_frozen() -> None:
    net = Net(20)
    data = net.input([2, 3, 4, 4])
    grid = net.transpose(net.conv(net.input([2, 3, 5, 5]), 2), [0, 2, 3, 1])
    coupling = coupled(net.build(net.conv(net.node("GridSample", [data, grid], [2, 3, 5, 5]), 2)))
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 0].startswith("GridSample takes samples along the axis")
