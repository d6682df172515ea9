"""Nine classic topologies: real graphs, random weights, half of every group removed, by random scores."""

from __future__ import annotations

import numpy as np
import pytest

from graphprune.ir.cost import count_weights
from graphprune.ir.graph import Graph
from graphprune.passes.choice import queues
from graphprune.passes.criteria import Scores
from graphprune.passes.trim import by_fraction
from tests.light import NAMES, light
from tests.oracles import assert_close, check_removal, coupled, feeds, run

UNITS = {
    "bvlc_alexnet": 1536,
    "densenet121": 10240,
    "inception_v1": 7024,
    "inception_v2": 9952,
    "resnet50": 11456,
    "shufflenet": 5008,
    "squeezenet": 2944,
    "vgg19": 6016,
    "zfnet512": 2816,
}
"""What each must offer at least; fewer would mean that something freezes or joins what it need not."""
LOST = 0.6
"""Share of the weights that must go with half of the units: three quarters but for the ends of the networks."""


@pytest.mark.parametrize("name", NAMES)
def test_half_of_a_classic_network(name: str) -> None:
    model = light(name)
    coupling = coupled(model)
    inputs = feeds(model)
    before = run(coupling.graph.proto, inputs)
    for value in before.values():
        assert 1e-3 < np.std(value) < 1e4, "activations vanish or explode: nothing would be compared"
    values = np.random.default_rng(0).random(coupling.units)
    dead = np.zeros(coupling.units, dtype=np.bool_)
    removed = by_fraction(coupling, queues(coupling, Scores(values, ("activation",) * len(coupling.groups), dead)), 0.5)
    pruned = check_removal(coupling, removed, inputs)
    assert coupling.units >= UNITS[name]
    assert count_weights(pruned) < (1 - LOST) * count_weights(coupling.graph.proto)
    assert Graph(pruned).outputs == Graph(model).outputs
    with pytest.raises(AssertionError):  # what was removed mattered
        assert_close(before, run(pruned, inputs), 1e-2)
