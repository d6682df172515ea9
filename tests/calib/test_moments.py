"""Second moments against sums in float64, and merged against taken at once."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from graphprune.calib.moments import SecondMoments, second_moments

Array = npt.NDArray[Any]


def draw(count: int, groups: int, width: int, outputs: int, mean: float = 0.0) -> tuple[Array, Array]:
    random = np.random.default_rng([count, groups, width])
    rows = random.normal(mean, 1.0, (count, groups, width)).astype(np.float32)
    return rows, random.normal(0.3, 1.0, (count, groups, outputs)).astype(np.float32)


def expected(rows: Array, errors: Array) -> SecondMoments:
    """The same, row by row and in float64."""
    groups = rows.shape[1]
    gram = np.zeros((groups, rows.shape[2] + 1, rows.shape[2] + 1))
    cross = np.zeros((groups, rows.shape[2] + 1, errors.shape[2]))
    energy = np.zeros((groups, errors.shape[2]))
    for row, error in zip(rows.astype(np.float64), errors.astype(np.float64), strict=True):
        for group in range(groups):
            longer = np.append(row[group], 1.0)
            gram[group] += np.outer(longer, longer)
            cross[group] += np.outer(longer, error[group])
            energy[group] += error[group] ** 2
    return SecondMoments(len(rows), gram, cross, energy)


def assert_same(left: SecondMoments, right: SecondMoments, rtol: float) -> None:
    assert left.count == right.count
    for one, other in ((left.gram, right.gram), (left.cross, right.cross), (left.energy, right.energy)):
        assert one.dtype == np.float64
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=rtol * np.abs(other).max())


@pytest.mark.parametrize("shape", [(1, 1, 3, 2), (40, 1, 5, 1), (30, 4, 3, 2), (25, 6, 1, 1)])
def test_sums_of_products(shape: tuple[int, int, int, int]) -> None:
    rows, errors = draw(*shape)
    found = second_moments(rows, errors)
    assert_same(found, expected(rows, errors), 1e-6)
    assert found.gram[:, -1, -1].tolist() == [shape[0]] * shape[1]
    np.testing.assert_allclose(found.gram, found.gram.swapaxes(1, 2), rtol=1e-12)


def test_moments_of_parts_add_up_to_those_of_the_whole() -> None:
    rows, errors = draw(60, 2, 4, 3, mean=2.0)
    cuts = [0, 7, 8, 33, 60]
    parts = [second_moments(rows[a:b], errors[a:b]) for a, b in pairwise(cuts)]
    first, second, third, fourth = parts
    assert_same(first + second + third + fourth, second_moments(rows, errors), 1e-6)
    assert_same((fourth + first) + (third + second), second_moments(rows, errors), 1e-6)


def test_many_small_parts_are_summed_in_double_precision() -> None:
    rows, errors = np.full((1, 1, 1), 0.1, np.float32), np.zeros((1, 1, 1), np.float32)
    part = second_moments(rows, errors)
    total = part
    for _ in range(9999):
        total = total + part
    assert total.gram[0, 0, 0] == pytest.approx(10000 * float(np.float32(0.1)) ** 2, rel=1e-6)


def test_a_mean_far_above_the_spread_costs_no_digits_of_it() -> None:
    rows, errors = draw(4000, 1, 3, 1, mean=1000.0)
    errors = rows[:, :, :1] - 1000  # the first entry's own deviation
    found = second_moments(rows, errors)
    mean = found.gram[0, :-1, -1] / 4000
    covariance = found.gram[0, :-1, :-1] / 4000 - np.outer(mean, mean)
    exact = np.cov(rows[:, 0].T.astype(np.float64), bias=True)
    np.testing.assert_allclose(covariance, exact, atol=1e-5 * exact.max())
    shared = found.cross[0, :-1, 0] / 4000 - mean * found.cross[0, -1, 0] / 4000
    np.testing.assert_allclose(shared, exact[:, 0], atol=1e-5)


@pytest.mark.parametrize(("kind", "rtol"), [(np.float16, 1e-6), (np.float64, 1e-13)])
def test_no_sum_is_taken_in_half_precision(kind: type[np.floating[Any]], rtol: float) -> None:
    rows, errors = (40 * part.astype(kind) for part in draw(3000, 1, 3, 2, mean=4.0))
    assert float(np.square(rows.astype(np.float64)).sum()) > float(np.finfo(np.float16).max)
    assert_same(second_moments(rows, errors), expected(rows, errors), rtol)


def test_what_is_not_finite_is_seen() -> None:
    rows, errors = draw(5, 1, 3, 1)
    rows[2, 0, 1] = np.inf
    found = second_moments(rows, errors)
    assert not np.isfinite(found.gram[0, 1, 1])
