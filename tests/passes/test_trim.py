"""Which units trimming chooses: by threshold, by fraction, by trial, by the number of weights left."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphprune.errors import TargetError
from graphprune.ir.cost import count_weights
from graphprune.ir.coupling.units import Coupling
from graphprune.ir.surgery import remove
from graphprune.passes import trim
from graphprune.passes.choice import Step, queues, take
from graphprune.passes.criteria import Scores
from tests.measure import editable, given_scores, replaced, scored
from tests.nets import Net
from tests.oracles import assert_legal, coupled, feeds, units_on
from tests.strategies import graphs, seeds

Bools = npt.NDArray[np.bool_]


def dense(*widths: int) -> onnx.ModelProto:
    """Fully connected layers with Relu between them."""
    net = Net()
    data = net.input(["N", widths[0]])
    for width in widths[1:-1]:
        data = net.relu(net.gemm(data, width))
    return net.build(net.gemm(data, widths[-1]))


def convolutions(width: int, hidden: int = 24) -> onnx.ModelProto:
    """A convolution and a fully connected layer behind it."""
    net = Net()
    data = net.relu(net.conv(net.input(["N", 2, 4, 4]), width, 3))
    data = net.relu(net.gemm(net.flatten(net.pool(data)), hidden))
    return net.build(net.gemm(data, 3))


def grouped() -> onnx.ModelProto:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8, 1))
    return net.build(net.conv(net.relu(net.conv(data, 12, 3, group=2)), 2, 1))


def named(coupling: Coupling, values: list[float], criterion: str = "apoz", dead: tuple[int, ...] = ()) -> Scores:
    """Scores for a net of one group, by place."""
    (group,) = coupling.groups
    placed = np.zeros(coupling.units)
    placed[group.units] = values
    gone = np.zeros(coupling.units, dtype=np.bool_)
    gone[group.units[list(dead)]] = True
    return Scores(placed, (criterion,), gone)


def chosen(coupling: Coupling, steps: list[Step]) -> list[int]:
    (group,) = coupling.groups
    place = {unit: index for index, unit in enumerate(group.units.tolist())}
    return [place[int(unit)] for step in steps for unit in step.units]


# -- the rule of mean plus one standard deviation ----------------------------------------------------------------


def test_the_rule_names_what_is_more_than_one_standard_deviation_above_the_mean() -> None:
    model = dense(6, 40, 24, 3)
    coupling, scores = scored(model, feeds(model, 5, 64))
    assert set(scores.criteria) == {"apoz"}
    expected = set()
    for group in coupling.groups:
        apoz = scores.values[group.units]
        expected |= set(group.units[apoz > apoz.mean() + apoz.std()].tolist())
    steps = trim.by_threshold(coupling, scores)
    assert {int(unit) for step in steps for unit in step.units} == expected
    assert len(steps) == len(expected) > 4
    assert [step.rank for step in steps] == sorted((step.rank for step in steps), reverse=True)


def test_exactly_one_standard_deviation_is_not_more() -> None:
    coupling = coupled(dense(3, 2, 2))
    assert trim.by_threshold(coupling, named(coupling, [0.25, 0.75])) == []  # mean 0.5, deviation 0.25
    coupling = coupled(dense(3, 5, 2))
    assert trim.by_threshold(coupling, named(coupling, [0.5] * 5)) == []
    assert chosen(coupling, trim.by_threshold(coupling, named(coupling, [0.5, 0.5, 0.5, 0.9, 0.5]))) == [3]


def test_another_criterion_names_dead_units_alone() -> None:
    coupling = coupled(dense(3, 5, 2))
    energies = [-1e-6, -1.0, -2.0, -2.0, -1.0]
    assert trim.by_threshold(coupling, named(coupling, energies, "activation")) == []
    dead = named(coupling, energies, "activation", dead=(3,))
    assert chosen(coupling, trim.by_threshold(coupling, dead)) == [3]


def test_dead_units_come_first_and_one_unit_stays() -> None:
    coupling = coupled(dense(3, 6, 2))
    scores = named(coupling, [0.1, 0.1, 0.1, 0.95, 0.05, 0.1], dead=(4,))
    steps = trim.by_threshold(coupling, scores)
    assert chosen(coupling, steps) == [4, 3]
    assert [step.rank == float("inf") for step in steps] == [True, False]
    all_dead = named(coupling, [1.0] * 6, dead=(0, 1, 2, 3, 4, 5))
    assert len(trim.by_threshold(coupling, all_dead)) == 5


def test_a_unit_that_nobody_reads_goes_though_it_is_the_most_active() -> None:
    model = dense(4, 6, 3)
    arrays = editable(model)
    arrays["w_0"][2], arrays["b_0"][2], arrays["w_1"][:, 2] = 0.01, 5.0, 0.0
    coupling, scores = scored(replaced(model, **arrays), feeds(model, 5, 64))
    assert scores.values[coupling.groups[0].units[2]] == 0.0
    assert 2 in chosen(coupling, trim.by_threshold(coupling, scores))


# -- a fraction of every group -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "gone"),
    [(0.0, (0, 0)), (0.09, (0, 0)), (0.1, (1, 0)), (0.3, (3, 2)), (0.5, (5, 3)), (0.7, (7, 4)), (0.999, (9, 6))],
)
def test_fractions_are_rounded_down_to_whole_units_and_one_stays(fraction: float, gone: tuple[int, int]) -> None:
    coupling = coupled(dense(4, 10, 7, 3))
    scores = given_scores(coupling, 3)
    removed = trim.by_fraction(coupling, queues(coupling, scores), fraction)
    assert tuple(int(removed[group.units].sum()) for group in coupling.groups) == gone
    for group in coupling.groups:  # the highest scores go
        lost, left = (scores.values[group.units[mask]] for mask in (removed[group.units], ~removed[group.units]))
        assert lost.min(initial=1.0) >= left.max()


@pytest.mark.parametrize(("fraction", "gone"), [(0.29, 29), (0.57, 57), (0.58, 58), (0.289999, 28)])
def test_rounding_errors_of_the_product_do_not_count(fraction: float, gone: int) -> None:
    coupling = coupled(dense(4, 100, 3))
    assert int(trim.by_fraction(coupling, queues(coupling, given_scores(coupling)), fraction).sum()) == gone


def test_a_group_of_one_unit_keeps_it() -> None:
    coupling = coupled(dense(4, 2, 3))
    for fraction in (0.5, 0.9):
        assert int(trim.by_fraction(coupling, queues(coupling, given_scores(coupling)), fraction).sum()) == 1


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.99])
def test_parts_of_a_grouped_convolution_keep_equal_counts(fraction: float) -> None:
    coupling = coupled(grouped())
    scores = given_scores(coupling, 4)
    removed = trim.by_fraction(coupling, queues(coupling, scores), fraction)
    for weight, width in (("w_0", 4), ("w_1", 6)):
        parts = np.array(units_on(coupling, weight, 0)).reshape(2, width)
        count = min(int(fraction * width), width - 1)
        assert removed[parts].sum(axis=1).tolist() == [count, count]
        for part in parts:  # and within its part each has the highest scores
            assert set(part[np.argsort(-scores.values[part])[:count]]) == set(part[removed[part]])


@given(model=graphs(), seed=seeds(), fraction=st.floats(0, 0.999))
def test_fractions_are_legal_on_random_graphs(model: onnx.ModelProto, seed: int, fraction: float) -> None:
    coupling = coupled(model)
    removed = trim.by_fraction(coupling, queues(coupling, given_scores(coupling, seed)), fraction)
    assert_legal(coupling, removed)
    for group in coupling.groups:
        assert int(removed[group.units].sum()) <= fraction * len(group.units) + 1e-6


# -- until few enough weights are left ---------------------------------------------------------------------------


def left_after(coupling: Coupling, removed: Bools) -> int:
    """Count weights in the file that surgery makes."""
    return count_weights(remove(coupling, removed)[0])


def by_weights(coupling: Coupling, scores: Scores, most_left: int, outside: int = 0) -> Bools:
    before = count_weights(coupling.graph.proto) + outside
    steps = trim.by_rank(queues(coupling, scores))
    return trim.by_weights(coupling, steps, most_left, weights_outside=outside, weights_before=before)


def shortest_prefix(coupling: Coupling, scores: Scores, most_left: int) -> Bools | None:
    """Try the prefixes one after the other."""
    order = sorted((s for q in queues(coupling, scores) for s in q.steps[: q.most]), key=lambda step: -step.rank)
    for count in range(len(order) + 1):
        removed = take(coupling, order[:count])
        if left_after(coupling, removed) <= most_left:
            return removed
    return None


@pytest.mark.parametrize("make", [lambda: dense(6, 11, 7, 3), grouped, lambda: convolutions(6)])
@pytest.mark.parametrize("share", [1.0, 0.9, 0.6, 0.3, 0.1, 0.0])
def test_by_weights_is_the_shortest_prefix_that_is_enough(make: Callable[[], onnx.ModelProto], share: float) -> None:
    model = make()
    coupling = coupled(model)
    scores = given_scores(coupling, 6, levels=5)
    most_left = int(share * count_weights(model))
    expected = shortest_prefix(coupling, scores, most_left)
    if expected is None:
        with pytest.raises(TargetError):
            by_weights(coupling, scores, most_left)
    else:
        assert by_weights(coupling, scores, most_left).tolist() == expected.tolist()


@settings(max_examples=25)
@given(model=graphs(), seed=seeds(), share=st.floats(0, 1))
def test_by_weights_on_random_graphs(model: onnx.ModelProto, seed: int, share: float) -> None:
    coupling = coupled(model)
    scores = given_scores(coupling, seed, levels=6)
    total = count_weights(coupling.graph.proto)
    expected = shortest_prefix(coupling, scores, int(share * total))
    if expected is None:
        with pytest.raises(TargetError):
            by_weights(coupling, scores, int(share * total))
    else:
        assert by_weights(coupling, scores, int(share * total)).tolist() == expected.tolist()


def test_weights_elsewhere_count_as_left() -> None:
    coupling = coupled(dense(6, 11, 3))
    scores = given_scores(coupling, 6)
    removed = by_weights(coupling, scores, 60 + 1000, 1000)
    assert removed.tolist() == by_weights(coupling, scores, 60).tolist()
    assert left_after(coupling, removed) <= 60 < left_after(coupling, np.zeros_like(removed))


def test_when_removal_is_not_enough_the_error_names_what_is() -> None:
    model = dense(6, 11, 3)
    coupling = coupled(model)
    scores = given_scores(coupling, 6)
    before, least = count_weights(model), 6 + 1 + 3 + 3  # one unit, its bias, what reads it, the outputs' biases
    with pytest.raises(TargetError, match=f"{least} of {before}") as caught:
        by_weights(coupling, scores, least - 1)
    assert caught.value.exit_code == 1
    assert caught.value.reachable == pytest.approx(1 - least / before, abs=1e-12)
    assert left_after(coupling, by_weights(coupling, scores, least)) == least


# -- as far as the outputs bear it -------------------------------------------------------------------------------


def by_count(limit: float, asked: list[int]) -> Callable[[Bools], float]:
    """An error that grows with the number of units removed; notes what was asked."""

    def error(removed: Bools) -> float:
        asked.append(int(removed.sum()))
        return float(removed.sum()) / limit

    return error


def rule_of_sixteen(coupling: Coupling) -> tuple[list[Step], Scores]:
    """Sixteen of sixty-four units stand out, all differently."""
    values = [0.1] * 48 + [0.80 + index / 100 for index in range(16)]
    scores = named(coupling, values)
    steps = trim.by_threshold(coupling, scores)
    assert chosen(coupling, steps) == list(range(63, 47, -1))
    return steps, scores


@pytest.mark.parametrize(("bearable", "gone"), [(16, 16), (15, 8), (8, 8), (7, 4), (4, 4), (3, 2), (2, 2), (1, 0)])
def test_the_largest_share_that_the_outputs_bear_goes(bearable: int, gone: int) -> None:
    coupling = coupled(dense(4, 64, 3))
    steps, _ = rule_of_sixteen(coupling)
    asked: list[int] = []
    removed = trim.by_trial(coupling, steps, by_count(bearable / trim.SLACK, asked))
    (group,) = coupling.groups
    assert np.flatnonzero(removed[group.units]).tolist() == list(range(64 - gone, 64))
    tried = [16, 8, 4, 2]
    assert asked == [0, *(tried if gone == 0 else tried[: tried.index(gone) + 1])]


def test_dead_units_go_whatever_the_outputs_say() -> None:
    coupling = coupled(dense(4, 64, 3))
    scores = named(coupling, [0.1] * 60 + [0.9] * 4, dead=(7, 8))
    removed = trim.by_trial(coupling, trim.by_threshold(coupling, scores), by_count(1e-3, []))
    (group,) = coupling.groups
    assert np.flatnonzero(removed[group.units]).tolist() == [7, 8]
    asked: list[int] = []
    only_dead = named(coupling, [0.1] * 64, dead=(7, 8))
    removed = trim.by_trial(coupling, trim.by_threshold(coupling, only_dead), by_count(1, asked))
    assert np.flatnonzero(removed[group.units]).tolist() == [7, 8]
    assert asked == [], "nothing to try"


BLOCK = 16


@pytest.mark.parametrize("extra", [0, 3])
def test_convolutions_keep_whole_blocks_and_dense_layers_any_number(extra: int) -> None:
    width = 5 * BLOCK + extra
    coupling = coupled(convolutions(width, hidden=24))
    scores = given_scores(coupling, 8)
    steps = [step for queue in queues(coupling, scores) for step in queue.steps[: queue.most]]
    steps.sort(key=lambda step: -step.rank)
    for count in (1, BLOCK, 2 * BLOCK + 7, len(steps)):
        removed = trim.by_trial(coupling, steps[:count], lambda _: 0.0, BLOCK)
        conv, hidden = (np.array(units_on(coupling, weight, 0)) for weight in ("w_0", "w_1"))
        taken = {int(unit) for step in steps[:count] for unit in step.units}
        of_conv = len(taken & set(conv.tolist()))
        kept = int((~removed[conv]).sum())
        assert kept % BLOCK == 0 or kept == width
        assert 0 <= kept - (width - of_conv) < BLOCK, "more stays than fills the last block"
        assert set(hidden[removed[hidden]].tolist()) == taken & set(hidden.tolist())
        best = [unit for step in steps[:count] for unit in step.units if unit in set(conv.tolist())]
        assert set(conv[removed[conv]].tolist()) == set(best[: width - kept]), "the first of the order go"


@pytest.mark.parametrize("align", [1, 4, 5, 16])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.97])
def test_a_fraction_keeps_multiples_of_channels(fraction: float, align: int) -> None:
    coupling = coupled(convolutions(40, hidden=24))
    scores = given_scores(coupling, 3)
    plain = trim.by_fraction(coupling, queues(coupling, scores), fraction)
    removed = trim.by_fraction(coupling, queues(coupling, scores), fraction, align)
    conv, hidden = (np.array(units_on(coupling, weight, 0)) for weight in ("w_0", "w_1"))
    kept, wanted = int((~removed[conv]).sum()), int((~plain[conv]).sum())
    assert kept == min(-(-wanted // align) * align, 40)
    np.testing.assert_array_equal(removed[hidden], plain[hidden])
    assert not (removed & ~plain).any()


def test_channels_that_go_together_count_each() -> None:
    """A grouped convolution loses a channel of each of its groups at once."""
    net = Net()
    data = net.relu(net.conv(net.input(["N", 4, 4, 4]), 24, 3))
    data = net.relu(net.conv(data, 24, 3, group=3))
    coupling = coupled(net.build(net.conv(data, 2)))
    removed = trim.by_fraction(coupling, queues(coupling, given_scores(coupling)), 0.4, 4)
    for weight in ("w_0", "w_1"):
        conv = np.array(units_on(coupling, weight, 0))
        assert int((~removed[conv]).sum()) in (16, 20, 24), "40 % of 8 rounds of 3 are 3 rounds: 15 stay"
        assert removed[conv].any() == (int((~removed[conv]).sum()) < 24)
