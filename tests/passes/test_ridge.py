"""Least squares from moments, against numpy's own on the rows themselves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from graphprune.calib.moments import SecondMoments, second_moments
from graphprune.passes.ridge import CAUTION, RIDGES, Solution, centred, solve

FloatArray = npt.NDArray[np.float64]


def problem(
    count: int, groups: int = 1, width: int = 6, outputs: int = 3, *, noise: float = 0.1, seed: int = 0
) -> tuple[FloatArray, FloatArray]:
    """Correlated rows with a mean, and errors that are linear in them but for some noise."""
    truth = np.random.default_rng([groups, width, outputs])
    mixing = truth.normal(size=(groups, width, width))
    change, shift = truth.normal(size=(groups, width, outputs)), truth.normal(size=(groups, outputs))
    random = np.random.default_rng(seed)
    rows = np.einsum("ngk,gkj->ngj", random.normal(size=(count, groups, width)), mixing) + 1
    errors = np.einsum("ngk,gko->ngo", rows, change) + shift
    return rows, errors + noise * random.normal(size=errors.shape)


def parts_of(rows: FloatArray, errors: FloatArray, *cuts: int) -> list[SecondMoments]:
    ends = [0, *cuts, len(rows)]
    return [second_moments(rows[a:b], errors[a:b]) for a, b in pairwise(ends)]


def left(solution: Solution, rows: FloatArray, errors: FloatArray) -> float:
    """The mean squared error that a solution leaves."""
    missed = errors - np.einsum("ngk,gko->ngo", rows, solution.change) - solution.shift
    return float((missed**2).sum(axis=(1, 2)).mean())


@pytest.mark.parametrize("groups", [1, 3])
def test_with_much_data_it_is_ordinary_least_squares(groups: int) -> None:
    rows, errors = problem(4000, groups, noise=0.0)
    solution = solve(parts_of(rows, errors, 3000))
    assert solution.ridge == min(RIDGES)
    for group in range(groups):
        padded = np.column_stack([rows[:, group], np.ones(len(rows))])
        wanted = np.linalg.lstsq(padded, errors[:, group], rcond=None)[0]
        np.testing.assert_allclose(solution.change[group], wanted[:-1], atol=0.02)
        np.testing.assert_allclose(solution.shift[group], wanted[-1], atol=0.02)
    assert solution.after < 1e-3 * solution.before


def test_without_a_bias_it_is_least_squares_through_the_origin() -> None:
    rows, errors = problem(4000, noise=0.0)
    solution = solve(parts_of(rows, errors, 3000), biased=False)
    wanted = np.linalg.lstsq(rows[:, 0], errors[:, 0], rcond=None)[0]
    np.testing.assert_allclose(solution.change[0], wanted, atol=0.02)
    assert not solution.shift.any()
    assert solution.rows.mean.any() == np.False_


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("level", [1e-3, 0.3])
def test_a_ridge_shrinks_the_change(level: float, *, biased: bool) -> None:
    rows, errors = problem(50)
    moments = centred(*parts_of(rows, errors), biased=biased)
    change = np.linalg.solve(moments.damped(level), moments.cross)[0]
    about = rows[:, 0] - (rows[:, 0].mean(axis=0) if biased else 0)
    wanted = errors[:, 0] - (errors[:, 0].mean(axis=0) if biased else 0)
    strength = len(rows) * level * (about**2).mean()
    longer = np.concatenate([about, np.sqrt(strength) * np.eye(6)])
    np.testing.assert_allclose(change, np.linalg.lstsq(longer, np.pad(wanted, ((0, 6), (0, 0))), rcond=None)[0])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("count", "noise"), [(16, 3.0), (16, 0.1), (40, 30.0), (400, 1.0)])
def test_what_judges_is_never_made_worse_and_told_as_it_is(count: int, noise: float, seed: int) -> None:
    rows, errors = problem(count, 2, noise=noise, seed=seed)
    cut = 3 * count // 4
    fitted, judge = parts_of(rows, errors, cut)
    solution = solve([fitted, judge])
    assert solution.after <= solution.before
    assert solution.before == pytest.approx(float((errors[cut:] ** 2).sum(axis=(1, 2)).mean()))
    if np.isfinite(solution.ridge):  # the solution from the first part alone is what was judged
        moments = centred(fitted)
        change = np.linalg.solve(moments.damped(solution.ridge), moments.cross)
        shift = moments.error - (moments.mean[:, None] @ change)[:, 0]
        alone = Solution(change, shift, solution.ridge, 0, 0, moments)
        assert solution.after == pytest.approx(left(alone, rows[cut:], errors[cut:]))


def test_what_other_data_contradicts_leaves_the_weight_alone() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 1, 6))
    rows -= rows.mean(axis=0)
    errors = rows[:, :, :2] * np.where(np.arange(40) < 30, 1, -1)[:, None, None] + 5
    solution = solve(parts_of(rows, errors, 30))
    assert solution.ridge == np.inf
    assert not solution.change.any()
    np.testing.assert_allclose(solution.shift, errors.mean(axis=0))  # the mean is put right all the same


def test_not_even_the_mean_is_put_right_where_that_does_not_hold() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(40, 1, 6))
    errors = np.concatenate([np.full((30, 1, 2), 1.0), np.full((10, 1, 2), -1.0)])
    solution = solve(parts_of(rows, errors, 30))
    assert not solution.change.any()
    assert not solution.shift.any()
    assert solution.after == solution.before == pytest.approx(2.0)


def test_no_errors_no_change() -> None:
    rows, errors = problem(40)
    solution = solve(parts_of(rows, 0 * errors, 30))
    assert (solution.before, solution.after) == (0, 0)
    assert not solution.change.any()
    assert not solution.shift.any()


def test_data_that_nothing_judges() -> None:
    rows, errors = problem(60)
    solution = solve(parts_of(rows, errors))
    assert solution.ridge == CAUTION
    assert np.isnan(solution.after)
    assert left(solution, rows, errors) < 0.3 * solution.before


def test_the_change_is_computed_from_all_parts() -> None:
    rows, errors = problem(90)
    three, two = solve(parts_of(rows, errors, 30, 60)), solve(parts_of(rows, errors, 60))
    np.testing.assert_allclose(three.change, two.change)
    assert three.rows.mean == pytest.approx(rows.mean(axis=0))


@pytest.mark.parametrize("cuts", [(), (30,)])
def test_what_is_not_finite_changes_nothing(cuts: Sequence[int]) -> None:
    rows, errors = problem(40)
    for broken, place in ((rows, 3), (errors, 35)):
        spoilt = broken.copy()
        spoilt[place, 0, 1] = np.inf
        found = solve(parts_of(spoilt, errors, *cuts) if broken is rows else parts_of(rows, spoilt, *cuts))
        assert found.ridge == np.inf
        assert not found.change.any()
        assert not found.shift.any()


def test_dead_rows_and_the_same_row_twice() -> None:
    rows, errors = problem(200, noise=0.0)
    rows[:, 0, 0] = 0
    rows[:, 0, 1] = rows[:, 0, 2]
    solution = solve(parts_of(rows, errors, 150))
    assert np.isfinite(solution.change).all()
    assert not solution.change[0, 0].any()
    np.testing.assert_allclose(solution.change[0, 1], solution.change[0, 2], rtol=1e-4, atol=1e-6)
    assert solution.after < solution.before
    nothing = solve(parts_of(0 * rows, errors, 150))
    assert not nothing.change.any()
