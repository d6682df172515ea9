"""Widths that ONNX Runtime's convolutions like, against what it makes of convolutions of every width."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from graphprune.ir.kernels import ANY, Widths, preferred_widths, widths
from graphprune.ir.session import open_session
from tests.nets import Net


def blocked(folder: Path, channels: int) -> bool:
    """Whether a chain of convolutions stays on blocks: reordered once on the way in and once on the way out."""
    net = Net()
    data = net.relu(net.conv(net.input([1, 16, 8, 8]), channels, 3))
    data = net.relu(net.conv(data, channels, 3, group=channels))
    path = folder / f"{channels}.onnx"
    open_session(net.build(net.conv(data, 16, 1)), threads=1, optimised_to=path)
    found = [node for node in onnx.load(path).graph.node if node.op_type != "Conv" or not node.domain]
    return [node.op_type for node in found] == ["ReorderInput", "ReorderOutput"]


def test_a_multiple_of_the_step_and_no_other_width_stays_on_blocks(tmp_path: Path) -> None:
    good = preferred_widths()
    if good == ANY:
        pytest.skip("ONNX Runtime's convolutions do not work on blocks on this machine")
    assert good.block % good.step == 0
    assert good.step < good.block
    for channels in range(good.block, 2 * good.block + 1):
        assert blocked(tmp_path, channels) == (channels % good.step == 0), channels


def test_a_block_is_what_one_channel_is_filled_up_to(tmp_path: Path) -> None:
    good = preferred_widths()
    if good == ANY:
        pytest.skip("ONNX Runtime's convolutions do not work on blocks on this machine")
    for channels in (good.step, good.block, good.block + good.step):
        net = Net()
        path = tmp_path / "optimised.onnx"
        data = net.conv(net.input([1, channels, 8, 8]), channels, 3, group=channels)
        open_session(net.build(data), threads=1, optimised_to=path)
        (weight,) = (tensor for tensor in onnx.load(path).graph.initializer if len(tensor.dims) == 4)
        assert weight.dims[0] == int(np.ceil(channels / good.block)) * good.block


def test_what_is_asked_for_is_taken() -> None:
    assert widths("off") == ANY == Widths(1, 1)
    assert widths(6) == Widths(6, 6)
    assert widths("auto") == preferred_widths()
