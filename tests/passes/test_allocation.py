"""Shares of what has to go: by least predicted error, against choices made entry by entry."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.ir.cost import weights_left
from graphprune.passes.allocation import in_order, share_whole, share_zeros
from graphprune.passes.choice import Queue, queues, take
from graphprune.passes.curves import LEVELS, ZeroCurve
from tests.measure import given_scores
from tests.nets import Net
from tests.oracles import coupled

LINE = np.array(LEVELS)


def curve(weight: str, size: int, errors: npt.ArrayLike) -> ZeroCurve:
    return ZeroCurve(weight, size, np.asarray(errors, dtype=np.float64))


def test_the_weight_that_costs_less_goes_first() -> None:
    curves = [curve("dear", 1000, 5 * LINE), curve("cheap", 1000, LINE)]
    found = share_zeros(curves, {"dear": 1000, "cheap": 1000}, 600)
    assert found.kept == {"cheap": 400}
    assert found.error == pytest.approx(0.6)
    found = share_zeros(curves, {"dear": 1000, "cheap": 1000}, 1500)
    assert found.kept == {"cheap": 10, "dear": 490}
    assert found.error == pytest.approx(0.99 + 5 * 0.51)


def test_an_entry_counts_and_not_a_fraction() -> None:
    """As much error for as large a fraction: of the larger weight more goes for it."""
    found = share_zeros([curve("small", 100, LINE), curve("large", 1000, LINE)], {"small": 100, "large": 1000}, 500)
    assert found.kept == {"large": 500}


def test_alike_at_the_margin() -> None:
    """Costs that grow with the square of what is zero: as much of each, in parts inverse to what it costs."""
    curves = [curve("a", 10_000, LINE**2), curve("b", 10_000, 3 * LINE**2)]
    found = share_zeros(curves, {"a": 10_000, "b": 10_000}, 8000)
    assert found.kept["a"] + found.kept["b"] == 12_000
    assert 1 - found.kept["a"] / 10_000 == pytest.approx(0.6, abs=0.1)  # levels are that far apart


def test_what_was_removed_takes_its_part_of_the_error_with_it() -> None:
    curves = [curve("a", 1000, LINE), curve("b", 1000, LINE)]
    assert share_zeros(curves, {"a": 500, "b": 1000}, 300).error == pytest.approx(0.3)
    assert share_zeros(curves, {"b": 1000}, 300).kept == {"b": 700}


def test_nothing_needed_nothing_goes() -> None:
    assert share_zeros([curve("a", 10, LINE)], {"a": 10}, 0) == share_zeros([], {}, 0)


@given(
    sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=8), part=st.floats(0, 1), seed=st.integers(0, 2**32 - 1)
)
def test_exactly_as_many_go_as_must(sizes: list[int], part: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    curves = [
        curve(str(index), size, np.concatenate([[0.0], np.cumsum(random.random(len(LEVELS) - 1) ** 3)]))
        for index, size in enumerate(sizes)
    ]
    needed = int(part * sum(sizes))
    known = {curve.weight: curve.size for curve in curves}
    found = share_zeros(curves, known, needed)
    assert sum(known[name] - count for name, count in found.kept.items()) == needed
    assert all(0 <= count <= known[name] for name, count in found.kept.items())


def test_no_other_share_is_predicted_to_cost_less() -> None:
    random = np.random.default_rng(3)
    convex = [np.cumsum(np.sort(random.random(len(LEVELS))) * np.diff([0, *LEVELS])) for _ in range(3)]
    convex = [errors - errors[0] for errors in convex]
    curves = [curve(str(index), 1000, errors) for index, errors in enumerate(convex)]
    found = share_zeros(curves, dict.fromkeys("012", 1000), 1200)
    best = min(
        sum(np.interp(part, LEVELS, errors) for part, errors in zip((a, b, 1.2 - a - b), convex, strict=True))
        for a in np.linspace(0, 0.99, 100)
        for b in np.linspace(0, 0.99, 100)
        if 0 <= 1.2 - a - b <= 0.99
    )
    assert found.error <= best + 1e-9


def test_a_pattern_is_taken_where_it_costs_least_for_what_it_saves() -> None:
    curves = [curve("dear", 100, 5 * LINE), curve("cheap", 100, LINE), curve("odd", 30, LINE)]
    sizes, least = {"dear": 100, "cheap": 100, "odd": 30}, {"dear": 50, "cheap": 50, "odd": 30}
    assert share_whole(curves, sizes, least, 40).kept == {"cheap": 50}
    assert share_whole(curves, sizes, least, 51).kept == {"cheap": 50, "dear": 50}
    found = share_whole(curves, sizes, least, None)
    assert found.kept == {"cheap": 50, "dear": 50}
    assert found.error == pytest.approx(0.5 + 2.5)
    assert share_whole(curves, sizes, least, 0).kept == {}


# -- units -------------------------------------------------------------------------------------------------------


def two_layers(first: int = 32, second: int = 48, *, convolved: bool = False) -> Any:
    net = Net()
    if convolved:
        data = net.relu(net.conv(net.input(["N", 3, 4, 4]), first, 3))
        return coupled(net.build(net.conv(net.relu(net.conv(data, second, 3)), 2)))
    data = net.relu(net.gemm(net.input(["N", 8]), first))
    return coupled(net.build(net.gemm(net.relu(net.gemm(data, second)), 2)))


def priced(coupling: Any, *costs: npt.NDArray[np.float64]) -> list[Queue]:
    found = queues(coupling, given_scores(coupling))
    return [
        Queue(queue.steps, queue.groups, "obs", tuple(cost[: queue.most].tolist()))
        for queue, cost in zip(found, costs, strict=True)
    ]


def group_order(steps: list[Any]) -> list[int]:
    return [step.group for step in steps]


def test_units_go_by_what_they_cost_for_every_weight() -> None:
    coupling = two_layers()
    growing = np.arange(1.0, 60.0)
    order = in_order(coupling, priced(coupling, growing, 1000 * growing))
    assert group_order(order) == [0] * 31 + [1] * 47
    order = in_order(coupling, priced(coupling, 1000 * growing, growing))
    assert group_order(order) == [1] * 47 + [0] * 31


def test_the_order_within_a_queue_is_kept_and_the_last_step_stays() -> None:
    coupling = two_layers()
    found = priced(coupling, np.arange(1.0, 60.0), np.arange(1.0, 60.0))
    order = in_order(coupling, found)
    for queue in found:
        own = [step for step in order if step.group == queue.groups[0]]
        assert own == list(queue.steps[:-1])


def test_what_has_gone_makes_the_other_group_worth_less() -> None:
    """Steps that cost alike go in turns: the matrix between the groups shrinks from both sides."""
    coupling = two_layers(40, 40)
    growing = np.arange(1.0, 60.0)
    order = group_order(in_order(coupling, priced(coupling, growing, growing)))
    assert {0, 1} <= set(order[:20])
    removed = take(coupling, in_order(coupling, priced(coupling, growing, growing))[:20])
    assert weights_left(coupling, removed) < weights_left(coupling, np.zeros(coupling.units, dtype=np.bool_))


def test_convolutions_lose_whole_blocks() -> None:
    coupling = two_layers(40, 64, convolved=True)
    growing = np.arange(1.0, 80.0)
    order = in_order(coupling, priced(coupling, growing, growing), block=16)
    ends = [place + 1 for place, (one, two) in enumerate(pairwise(group_order(order))) if one != two] + [len(order)]
    for end in ends:
        taken = group_order(order[:end])
        for group, width in ((0, 40), (1, 64)):
            assert taken.count(group) == 0 or (width - taken.count(group)) % 16 == 0
    assert max(group_order(order).count(0), 0) == 24
    assert group_order(order).count(1) == 48


def test_dense_layers_know_no_blocks() -> None:
    coupling = two_layers()
    growing = np.arange(1.0, 60.0)
    found = priced(coupling, growing, growing)
    assert in_order(coupling, found, block=16) == in_order(coupling, found)


def test_what_weights_are_worth_decides_which_units_go_first() -> None:
    coupling = two_layers()
    found = priced(coupling, np.ones(60), np.ones(60))
    first, last = ("w_0", "w_2")
    for dear, group in ((first, 0), (last, 1)):
        order = in_order(coupling, found, worth={dear: 1e6})
        assert group_order(order)[:20] == [group] * 20


@pytest.mark.parametrize("most", [0.0, 5.0, 40.0, 1e6])
def test_blocks_that_cost_too_much_are_passed_over(most: float) -> None:
    coupling = two_layers(64, 64, convolved=True)
    dear, cheap = np.full(80, 100.0), np.arange(1.0, 81.0) / 60
    found = priced(coupling, dear, cheap)
    order = in_order(coupling, found, block=16, worth={"w_0": 1e9}, most=most)
    spent = sum(
        (dear, cheap)[step.group][group_order(order)[:place].count(step.group)] for place, step in enumerate(order)
    )
    assert spent <= most
    assert group_order(order).count(0) == (48 if most == 1e6 else 0)
    assert group_order(order).count(1) == {0.0: 0, 5.0: 16, 40.0: 48, 1e6: 48}[most]
