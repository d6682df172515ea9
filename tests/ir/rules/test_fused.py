"""A convolution fused with a sum and an activation."""

from __future__ import annotations

import numpy as np
import pytest

from tests.nets import Net
from tests.oracles import assert_exact, units_on


def fused(net: Net, data: str, channels: int, *, group: int = 1, added: str = "", activation: str = "Relu") -> str:
    net.imports["com.microsoft"] = 1
    batch, inputs, *spatial = net.shapes[data]
    weight = net.weight([channels, int(inputs) // group, 3, 3])
    names = [data, weight, net.vector(channels), *([added] if added else [])]
    more = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "group": group, "activation": activation}
    return net.node("FusedConv", names, [batch, channels, *spatial], domain="com.microsoft", **more)


@pytest.mark.parametrize("activation", ["Relu", "Sigmoid"])
def test_channels_go(activation: str) -> None:
    net = Net()
    hidden = fused(net, net.input([2, 3, 4, 4]), 6, activation=activation)
    coupling = assert_exact(net.build(net.conv(fused(net, hidden, 6, group=6), 2)))
    assert units_on(coupling, "w_0", 0) == units_on(coupling, "w_1", 0) == units_on(coupling, "w_2", 1)
    assert coupling.units == 6


def test_what_is_added_goes_along() -> None:
    net = Net()
    data = net.input([2, 3, 4, 4])
    first = net.conv(data, 6)
    coupling = assert_exact(net.build(net.conv(fused(net, data, 6, added=first), 2)))
    assert units_on(coupling, "w_0", 0) == units_on(coupling, "w_1", 0) == units_on(coupling, "w_2", 1)
    assert len(np.unique(units_on(coupling, "w_0", 0))) == 6
