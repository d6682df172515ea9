"""Nine classic topologies: real graphs, random weights, half of every group removed."""

from __future__ import annotations

import numpy as np
import pytest

from graphprune.ir.cost import count_weights
from graphprune.ir.graph import Graph
from tests.light import NAMES, light
from tests.oracles import assert_close, check_removal, coupled, feeds, random_removal, run

UNITS = {
    "bvlc_alexnet": 1536,
    "densenet121": 10240,
    "inception_v1": 7024,
    "inception_v2": 9952,
    "resnet50": 11456,
    "shufflenet": 1660,
    "squeezenet": 2944,
    "vgg19": 6016,
    "zfnet512": 2816,
}
"""What each must offer at least; fewer would mean that something freezes or joins what it need not."""


@pytest.mark.parametrize("name", NAMES)
def test_half_of_a_classic_network(name: str) -> None:
    model = light(name)
    coupling = coupled(model)
    inputs = feeds(model)
    before = run(coupling.graph.proto, inputs)
    for value in before.values():
        assert 1e-3 < np.std(value) < 1e4, "activations vanish or explode: nothing would be compared"
    removed = random_removal(coupling, 0.5, 0)
    pruned = check_removal(coupling, removed, inputs)
    assert coupling.units >= UNITS[name]
    # In ShuffleNet the same number has to go from every group, so a random half is cut down to a quarter.
    most = 0.8 if name == "shufflenet" else 0.6
    assert count_weights(pruned) < most * count_weights(coupling.graph.proto)
    assert Graph(pruned).outputs == Graph(model).outputs
    with pytest.raises(AssertionError):  # what was removed mattered
        assert_close(before, run(pruned, inputs), 1e-2)
