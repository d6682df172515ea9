"""Legal choices: balances, the position that every axis keeps, and the order in which units go."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.ir.coupling.units import FROZEN, Coupling
from graphprune.passes.choice import queues, take
from graphprune.passes.criteria import Scores, normalised
from tests.measure import given_scores
from tests.nets import Net
from tests.oracles import assert_legal, check_removal, coupled, feeds, units_on
from tests.strategies import graphs, seeds


def plain() -> onnx.ModelProto:
    net = Net()
    hidden = net.relu(net.gemm(net.input(["N", 4]), 7))
    return net.build(net.gemm(net.relu(net.gemm(hidden, 5)), 3))


def grouped(groups: int = 2) -> onnx.ModelProto:
    """A grouped convolution between two plain ones."""
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8, 1))
    return net.build(net.conv(net.relu(net.conv(data, 12, 3, group=groups)), 2, 1))


def crossing() -> onnx.ModelProto:
    """Two grouped convolutions in a row whose groups cut the same channels differently."""
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8, 1))
    middle = net.relu(net.conv(data, 8, 3, group=2))
    return net.build(net.conv(net.relu(net.conv(middle, 8, 3, group=4)), 2, 1))


def test_units_outside_balances_go_one_by_one_highest_score_first() -> None:
    coupling = coupled(plain())
    scores = given_scores(coupling, 1, levels=3)
    for queue, group in zip(queues(coupling, scores), coupling.groups, strict=True):
        order = [step.units.tolist() for step in queue.steps]
        expected = sorted(group.units.tolist(), key=lambda unit: -scores.values[unit])  # ties in order of position
        assert order == [[unit] for unit in expected]
        assert queue.most == len(group.units) - 1
        ranks = dict(zip(group.units.tolist(), normalised(group, scores), strict=True))
        assert [step.rank for step in queue.steps] == [ranks[unit] for unit in expected]
        assert [step.score for step in queue.steps] == [scores.values[unit] for unit in expected]


def test_parts_that_hold_the_same_units_unequally_often_stay_balanced() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 2))
    model = net.build(net.conv(net.concat(data, data, data), 4, group=2))  # [a, b, a] and [b, a, b]
    coupling = coupled(model)
    steps = [step for queue in queues(coupling, given_scores(coupling, 1)) for step in queue.steps]
    assert_legal(coupling, take(coupling, steps[:1]))
    assert not steps


def test_dead_units_go_first_whatever_their_score() -> None:
    coupling = coupled(plain())
    scores = given_scores(coupling, 1)
    group = coupling.groups[0]
    least = int(group.units[np.argmin(scores.values[group.units])])
    dead = scores.dead.copy()
    dead[least] = True
    queue = queues(coupling, replace(scores, dead=dead))[0]
    assert queue.steps[0].units.tolist() == [least]
    assert [step.rank == float("inf") for step in queue.steps] == [True] + [False] * 6


@pytest.mark.parametrize("groups", [2, 4])
def test_units_of_a_grouped_convolution_go_in_rounds_one_of_each_group(groups: int) -> None:
    coupling = coupled(grouped(groups))
    scores = given_scores(coupling, 2)
    found = {queue.groups: queue for queue in queues(coupling, scores)}
    inputs = np.array(units_on(coupling, "w_0", 0)).reshape(groups, -1)
    outputs = np.array(units_on(coupling, "w_1", 0)).reshape(groups, -1)
    for parts in (inputs, outputs):
        (queue,) = (q for q in found.values() if set(q.steps[0].units) <= set(parts.ravel()))
        ordered = np.stack([row[np.argsort(-scores.values[row])] for row in parts])
        assert [sorted(step.units.tolist()) for step in queue.steps] == np.sort(ordered.T, axis=1).tolist()
        assert queue.most == parts.shape[1] - 1
        assert queue.steps[0].score == pytest.approx(scores.values[ordered[:, 0]].mean(), abs=1e-15)


def test_units_in_balances_that_cross_go_in_rounds_that_keep_both() -> None:
    coupling = coupled(crossing())
    found = queues(coupling, given_scores(coupling))
    middle = np.array(units_on(coupling, "w_1", 0))
    (queue,) = (q for q in found if set(q.steps[0].units) <= set(middle))
    assert len(queue.steps) == 2
    for step in queue.steps:
        taken = np.isin(middle, step.units)
        assert taken.reshape(2, 4).sum(axis=1).tolist() == [2, 2]
        assert taken.reshape(4, 2).sum(axis=1).tolist() == [1, 1, 1, 1]


def test_equal_balances_of_two_convolutions_are_one() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8, 1))
    middle = net.relu(net.conv(data, 8, 3, group=2))
    model = net.build(net.conv(net.relu(net.conv(middle, 8, 3, group=2)), 2, 1))
    coupling = coupled(model)
    assert len(coupling.balances) == 4
    for queue in queues(coupling, given_scores(coupling)):
        assert [len(step.units) for step in queue.steps] == [2] * 4


def slice_of(first: int, last: int) -> tuple[Coupling, list[int]]:
    """A layer, part of which runs beside all of it: two places to starve."""
    net = Net()
    hidden = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8, 1))
    part = net.slice(hidden, {1: (first, last, 1)})
    coupling = coupled(net.build(net.conv(net.concat(hidden, part), 2, 1)))
    return coupling, units_on(coupling, "w_0", 0)


def test_an_axis_that_would_starve_gets_the_last_of_its_units_back() -> None:
    coupling, units = slice_of(2, 5)
    assert FROZEN not in units
    values = np.zeros(coupling.units)
    values[units] = [0.5, 0.1, 0.7, 0.9, 0.8, 0.6, 0.2, 0.3]
    scores = Scores(values, ("apoz",) * len(coupling.groups), np.zeros(coupling.units, dtype=np.bool_))
    (queue,) = queues(coupling, scores)
    removed = take(coupling, queue.steps[:4])  # the three of the slice, 3 4 2, and 5
    assert [place for place, unit in enumerate(units) if removed[unit]] == [3, 4, 5]
    check_removal(coupling, removed, feeds(coupling.graph.proto))


def test_taking_nothing_and_taking_all_but_one() -> None:
    coupling = coupled(plain())
    all_queues = queues(coupling, given_scores(coupling))
    assert not take(coupling, []).any()
    removed = take(coupling, [step for queue in all_queues for step in queue.steps])
    assert [int((~removed[group.units]).sum()) for group in coupling.groups] == [1, 1]
    # What stays is what would have gone last.
    for queue, group in zip(all_queues, coupling.groups, strict=True):
        assert group.units[~removed[group.units]].tolist() == queue.steps[-1].units.tolist()


@given(model=graphs(), seed=seeds(), count=st.integers(0, 200))
def test_every_prefix_of_the_queues_is_legal_on_random_graphs(model: onnx.ModelProto, seed: int, count: int) -> None:
    coupling = coupled(model)
    made = queues(coupling, given_scores(coupling, seed, levels=4))
    seen = [unit for queue in made for step in queue.steps for unit in step.units]
    assert len(seen) == len(set(seen)), "a unit is in two steps"
    order = sorted((s for q in made for s in q.steps[: q.most]), key=lambda step: -step.rank)
    assert_legal(coupling, take(coupling, order[:count]))
