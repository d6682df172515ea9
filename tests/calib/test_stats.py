"""Moments add up, in any order and from any shards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.calib.stats import Key, Moments, merge

KEYS: tuple[Key, ...] = (("a", 1), ("a", 2), ("b", 1))


def of(rows: list[list[int]]) -> Moments:
    """Moments of integers, whose sums are exact: samples by channels."""
    values = np.array(rows, dtype=np.float64).reshape(-1, 3)
    return Moments(len(values), values.sum(axis=0), (values <= 0).sum(axis=0) * 1.0, (values**2).sum(axis=0))


def listed(moments: Moments) -> tuple[object, ...]:
    def plain(value: np.ndarray | None) -> object:
        return None if value is None else value.tolist()

    return moments.count, plain(moments.total), plain(moments.zeros), plain(moments.squares)


def all_of(statistics: dict[Key, Moments]) -> dict[Key, object]:
    return {key: listed(moments) for key, moments in statistics.items()}


ROWS = st.lists(st.lists(st.integers(-50, 50), min_size=3, max_size=3), max_size=6)
STATISTICS = st.dictionaries(st.sampled_from(KEYS), ROWS.map(of))


@given(parts=st.lists(ROWS, min_size=1, max_size=5))
def test_shards_add_up_to_the_whole(parts: list[list[list[int]]]) -> None:
    total = of(parts[0])
    for part in parts[1:]:
        total = total + of(part)
    assert listed(total) == listed(of([row for part in parts for row in part]))


@given(a=STATISTICS, b=STATISTICS, c=STATISTICS)
def test_merging_is_associative_and_commutative(
    a: dict[Key, Moments], b: dict[Key, Moments], c: dict[Key, Moments]
) -> None:
    assert all_of(merge(merge(a, b), c)) == all_of(merge(a, merge(b, c)))
    assert all_of(merge(a, b)) == all_of(merge(b, a))
    assert all_of(merge(a, {})) == all_of(a) == all_of(merge({}, a))
    before = all_of(a)
    merge(a, b)
    assert all_of(a) == before, "merging changed its input"


def test_mean_and_apoz() -> None:
    moments = of([[0, 1, 2], [-1, 3, 0], [4, 0, 0], [0, 0, 6]])
    assert moments.mean.tolist() == [0.75, 1.0, 2.0]
    assert moments.apoz is not None
    assert moments.apoz.tolist() == [0.75, 0.5, 0.5]
    assert Moments(0, np.zeros(3)).mean.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("left", "right"), [(True, False), (False, True), (False, False)])
def test_what_was_not_measured_everywhere_is_not_known(left: bool, right: bool) -> None:
    def some(known: bool) -> Moments:
        return Moments(1, np.ones(3), np.ones(3) if known else None, np.ones(3) if known else None)

    total = some(left) + some(right)
    assert (total.count, total.total.tolist()) == (2, [2, 2, 2])
    assert (total.zeros, total.squares, total.apoz) == (None, None, None)
