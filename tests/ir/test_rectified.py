"""Where zeros mark inactive units."""

from __future__ import annotations

import pytest

from graphprune.ir.graph import Graph
from graphprune.ir.rectified import rectified
from tests.nets import Net


@pytest.mark.parametrize(("alpha", "expected"), [(None, True), (0.5, True), (0.0, True), (-0.5, False)])
def test_a_thresholded_relu_rectifies_from_zero_on(alpha: float | None, expected: bool) -> None:
    net = Net()
    attributes = {} if alpha is None else {"alpha": alpha}
    made = net.node("ThresholdedRelu", [net.input(["N", 3])], **attributes)
    assert (made in rectified(Graph(net.build(made)))) == expected


@pytest.mark.parametrize(("low", "expected"), [(0.0, True), (-1.0, False), (0.5, False)])
@pytest.mark.parametrize("opset", [9, 17])
def test_a_clip_rectifies_at_zero(opset: int, low: float, expected: bool) -> None:
    net = Net(opset)
    made = net.clip(net.input(["N", 3]), low)
    assert (made in rectified(Graph(net.build(made)))) == expected


@pytest.mark.parametrize("opset", [9, 11, 17])
@pytest.mark.parametrize(("value", "expected"), [(0.0, True), (-1.0, False), (1.0, False)])
def test_padding_with_zeros_alone_carries(opset: int, value: float, expected: bool) -> None:
    net = Net(opset)
    made = net.pad(net.relu(net.input(["N", 3, 4, 4])), {2: (1, 1)}, value=value)
    assert (made in rectified(Graph(net.build(made)))) == expected


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_padding_without_a_value_carries(mode: str) -> None:
    net = Net()
    data = net.relu(net.input(["N", 4]))
    made = net.node("Pad", [data, net.constant([0, 1, 0, 1], "pads")], ["N", 6], mode=mode)
    assert {data, made} <= rectified(Graph(net.build(made)))


def test_a_computed_value_is_not_trusted() -> None:
    net = Net()
    data = net.relu(net.input(["N", 4]))
    made = net.node("Pad", [data, net.constant([0, 1, 0, 1], "pads"), net.input([], "value")], ["N", 6])
    assert made not in rectified(Graph(net.build(made)))
