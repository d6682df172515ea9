"""Rounds: equal counts from every part of every balance, whatever the balances."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.ir.coupling.units import FROZEN
from graphprune.passes.balance import rounds

IntArray = npt.NDArray[np.int64]


def assert_balanced(balances: list[IntArray], found: list[IntArray]) -> None:
    """Demand that every round is balanced, and no unit goes twice."""
    taken = np.concatenate(found) if found else np.empty(0, dtype=np.int64)
    assert len(np.unique(taken)) == len(taken)
    for units in found:
        assert len(units)
        for parts in balances:
            counts = np.isin(parts, units).sum(axis=1)
            assert (counts == counts[0]).all()


@given(st.integers(2, 5), st.integers(1, 8), st.integers(0, 2**32))
def test_one_balance_takes_the_first_of_every_part(parts: int, size: int, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(parts * size)
    balance = np.arange(parts * size).reshape(parts, size)
    found = rounds([balance, balance[::-1]], order) or []
    place = {int(unit): index for index, unit in enumerate(order)}
    assert len(found) == size
    assert_balanced([balance], found)
    for row in balance:
        first = [next(int(unit) for unit in units if unit in row) for units in found]
        assert first == sorted(row.tolist(), key=lambda unit: place[unit])


@given(st.integers(2, 5), st.integers(2, 5), st.integers(1, 4), st.integers(0, 2**32))
def test_two_balances_that_cross_in_any_way_are_used_up(left: int, right: int, size: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    count = left * right * size
    balances = [np.arange(count).reshape(left, -1), random.permutation(count).reshape(right, -1)]
    found = rounds(balances, random.permutation(count))
    assert found is not None
    assert_balanced(balances, found)
    # Equal shares are a solution at every turn, so that nothing is left over.
    assert sum(len(units) for units in found) == count


@given(st.integers(2, 4), st.integers(1, 6), st.integers(0, 12), st.integers(0, 2**32))
def test_a_balance_over_a_part_of_the_units_of_another(parts: int, size: int, more: int, seed: int) -> None:
    """As behind a concatenation: new channels in groups, and the same with old ones in larger groups."""
    random = np.random.default_rng(seed)
    more *= parts
    count = parts * size + more
    balances = [np.arange(more, count).reshape(parts, -1), np.arange(count).reshape(parts, -1)]
    found = rounds(balances, random.permutation(count))
    assert found
    assert_balanced(balances, found)
    assert sum(len(units) for units in found) == count


def test_three_balances_lose_the_same_share_of_every_intersection() -> None:
    grid = np.arange(64).reshape(2, 2, 2, 8)
    balances = [np.moveaxis(grid, axis, 0).reshape(2, -1) for axis in range(3)]
    found = rounds(balances, np.arange(64)[::-1])
    assert found is not None
    assert [len(units) for units in found] == [8] * 8
    assert_balanced(balances, found)
    assert set(found[0].tolist()) == set(grid[..., -1].ravel().tolist())


def test_positions_that_stay_are_no_units() -> None:
    balance = np.array([[0, 1, 2], [3, FROZEN, 4], [5, 6, 7]])
    found = rounds([balance], np.arange(8))
    assert found is not None
    assert [sorted(units.tolist()) for units in found] == [[0, 3, 5], [1, 4, 6]]


def test_three_balances_with_positions_that_stay_have_no_rounds() -> None:
    grid = np.arange(64).reshape(2, 2, 2, 8)
    balances = [np.moveaxis(grid, axis, 0).reshape(2, -1).copy() for axis in range(3)]
    balances[0][0, 0] = FROZEN
    assert rounds(balances, np.arange(1, 64)) == []


@pytest.mark.parametrize("parts", [[[0, 1], [1, 2]], [[0, 0], [1, 2]]])
def test_a_unit_in_several_places_of_one_balance_has_no_rounds(parts: list[list[int]]) -> None:
    assert rounds([np.array(parts)], np.arange(3)) is None
