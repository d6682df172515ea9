"""Sparse weights that stand for a dense one: how many entries stay, how well, and solved for how exactly."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from graphprune.passes.patterns import Pattern, blocks, largest, n_of_m
from graphprune.passes.sparse import METHODS, refit, sparse

FloatArray = npt.NDArray[np.float64]


def problem(seed: int = 0, groups: int = 1, width: int = 24, outputs: int = 10) -> tuple[FloatArray, FloatArray]:
    """Second moments of correlated rows of different sizes, and a weight."""
    random = np.random.default_rng([seed, groups, width])
    mixing = random.normal(size=(groups, width, width)) / np.sqrt(width) + np.eye(width)
    rows = random.normal(size=(groups, 8 * width, width)) @ (mixing * random.uniform(0.3, 3, width))
    return rows.swapaxes(1, 2) @ rows / (8 * width), random.normal(size=(groups, width, outputs))


def cost(gram: FloatArray, dense: FloatArray, found: FloatArray) -> float:
    lost = found - dense
    return float((lost * (gram @ lost)).sum())


def solved(gram: FloatArray, dense: FloatArray, kept: npt.NDArray[np.bool_]) -> FloatArray:
    """The best weight with these entries, column by column."""
    wanted = np.zeros_like(dense)
    for group, _, column in np.ndindex(len(dense), 1, dense.shape[2]):
        own = np.flatnonzero(kept[group, :, column])
        right = gram[group][own] @ dense[group, :, column]
        wanted[group, own, column] = np.linalg.solve(gram[group][np.ix_(own, own)], right)
    return wanted


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_as_many_entries_stay_as_may_and_they_are_the_best_there_are(method: str, groups: int, share: float) -> None:
    gram, dense = problem(0, groups)
    count = round(share * dense.size)
    found = sparse(gram, dense, largest(count), method)
    assert np.count_nonzero(found) == count
    best = solved(gram, dense, found != 0)
    np.testing.assert_allclose(found, best, rtol=0, atol=1e-3)
    assert cost(gram, dense, found) <= cost(gram, dense, best) + 1e-6 * cost(gram, dense, 0 * dense)


@pytest.mark.parametrize("method", list(METHODS))
def test_patterns_hold(method: str) -> None:
    gram, dense = problem()
    kept = sparse(gram, dense, n_of_m(2, 4, 1), method) != 0
    assert (kept.reshape(1, 6, 4, 10).sum(axis=2) == 2).all()
    kept = sparse(gram, dense, blocks(120, 4, 1), method) != 0
    assert set(kept.reshape(1, 6, 4, 10).sum(axis=2).ravel()) == {0, 4}
    assert kept.sum() == 120


@pytest.mark.parametrize("method", ["magnitude", "wanda", "obs"])
def test_rows_that_are_independent_and_alike_leave_the_largest_as_they_are(method: str) -> None:
    _, dense = problem()
    found = sparse(3.0 * np.eye(24)[None], dense, largest(60), method)
    np.testing.assert_allclose(found, dense * largest(60)(np.abs(dense)), atol=1e-12)


@pytest.mark.parametrize("method", ["wanda", "obs"])
def test_what_a_weight_multiplies_counts(method: str) -> None:
    _, dense = problem()
    energy = np.random.default_rng(1).uniform(0.01, 10, 24)
    found = sparse(np.diag(energy)[None], dense, largest(60), method)
    kept = largest(60)(np.abs(dense) * np.sqrt(energy)[:, None])
    np.testing.assert_allclose(found, dense * kept, atol=1e-10)


@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_taking_turns_is_hardly_worse_than_the_best_where_that_is_known(spread: float) -> None:
    for seed in range(6):
        _, dense = problem(seed, width=60, outputs=20)
        energy = np.exp(np.random.default_rng(seed).uniform(-spread, spread, 60))
        kept = largest(240)(np.abs(dense) * np.sqrt(energy)[:, None])  # rows are independent
        gram = np.diag(energy)[None]
        assert cost(gram, dense, sparse(gram, dense, largest(240))) < 1.002 * cost(gram, dense, dense * kept)


@pytest.mark.parametrize("share", [0.5, 0.3, 0.1])
def test_methods_that_know_more_do_better(share: float) -> None:
    costs = dict.fromkeys(METHODS, 0.0)
    for seed in range(12):
        gram, dense = problem(seed)
        total = cost(gram, dense, 0 * dense)
        for method in METHODS:
            choose = largest(round(share * dense.size))
            costs[method] += cost(gram, dense, sparse(gram, dense, choose, method)) / total / 12
    assert costs["admm"] < 0.95 * min(costs["obs"], costs["wanda"])
    assert costs["wanda"] < costs["magnitude"]
    gram, dense = problem(0)
    kept = largest(round(share * dense.size))(np.abs(dense))
    assert cost(gram, dense, sparse(gram, dense, lambda _: kept)) < cost(gram, dense, dense * kept)


@pytest.mark.parametrize("seed", range(5))
def test_surgery_takes_the_entry_first_that_costs_least_when_the_rows_behind_make_up_for_it(seed: int) -> None:
    gram, dense = problem(seed, width=8, outputs=4)
    found = sparse(gram, dense, largest(dense.size - 1), "obs")
    costs = []
    for row, column in np.ndindex(dense.shape[1:]):
        kept = np.ones(dense.shape, dtype=np.bool_)
        kept[0, row, column] = False
        left = dense.copy()
        left[:, row:] = 0
        behind = kept[0, row:, column]
        part = gram[0, row:, row:]
        change = np.zeros_like(dense)
        own = -dense[0, row, column]
        change[0, row, column] = own
        rest = np.flatnonzero(behind) + row
        change[0, rest, column] = np.linalg.solve(part[np.ix_(behind, behind)], -gram[0, rest, row] * own)
        costs.append(cost(gram, dense, dense + change))
    assert int(np.argmin(costs)) == int(np.flatnonzero(found.ravel() == 0)[0])


@pytest.mark.parametrize("choice", ["largest", "2:4", "4x1", "3x2"])
def test_surgery_in_parts_keeps_to_the_choice(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphprune.passes.sparse.BLOCK", 7)  # no multiple of any of them
    gram, dense = problem()
    choose = largest(120) if choice == "largest" else Pattern.parse(choice).choice(120, 1)
    found = sparse(gram, dense, choose, "obs")
    np.testing.assert_array_equal(choose((found != 0).astype(np.float64)), found != 0)
    assert np.count_nonzero(found) == 120


def test_surgery_that_makes_up_for_what_is_gone_beats_scores_alone() -> None:
    parts, alone = 0.0, 0.0
    for seed in range(12):
        gram, dense = problem(seed, width=60)
        count = dense.size // 4
        parts += cost(gram, dense, sparse(gram, dense, largest(count), "obs"))
        scores = np.abs(dense) / np.sqrt(np.einsum("gkk->gk", np.linalg.inv(gram)))[:, :, None]
        kept = largest(count)(scores)
        alone += cost(gram, dense, sparse(gram, dense, lambda _, kept=kept: kept))
    assert parts < alone


def test_wide_layers_are_chosen_by_wanda(monkeypatch: pytest.MonkeyPatch) -> None:
    gram, dense = problem()
    monkeypatch.setattr("graphprune.passes.sparse.WIDEST", 20)
    np.testing.assert_array_equal(sparse(gram, dense, largest(60)), sparse(gram, dense, largest(60), "wanda"))


def test_rows_that_are_dead_or_there_twice() -> None:
    gram, dense = problem()
    gram[0, :, 3] = gram[0, 3] = 0
    gram[0, :, 5], gram[0, 5] = gram[0, :, 4], gram[0, 4]
    gram[0, 5, 5] = gram[0, 4, 5]
    gram += 1e-12 * np.eye(24)
    for method in METHODS:
        found = sparse(gram, dense, largest(120), method)
        assert np.isfinite(found).all()
        assert np.count_nonzero(found) <= 120
        assert cost(gram, dense, found) <= cost(gram, dense, dense * (found != 0)) + 1e-9
        if method != "magnitude":
            assert not found[0, 3].any()


@pytest.mark.parametrize("groups", [1, 2])
def test_refit_solves_the_normal_equations_of_any_goal(groups: int) -> None:
    gram, dense = problem(4, groups)
    random = np.random.default_rng(0)
    kept, start = random.random(dense.shape) < 0.4, random.normal(size=dense.shape)
    kept[0, :, 0] = False  # a column of which nothing stays
    kept[0, :, 1] = True
    found = refit(gram, gram @ dense, kept, start, steps=200)
    assert not found[~kept].any()
    np.testing.assert_allclose(found, solved(gram, dense, kept), atol=1e-3)
    np.testing.assert_allclose(found[0, :, 1], dense[0, :, 1], atol=1e-3)


def test_refit_gets_better_step_by_step_and_stops_where_it_starts_at_the_end() -> None:
    gram, dense = problem(4)
    kept = np.random.default_rng(0).random(dense.shape) < 0.4
    right = gram @ dense
    costs = [cost(gram, dense, refit(gram, right, kept, dense, steps=steps)) for steps in (0, 1, 3, 10, 60)]
    assert costs[0] == pytest.approx(cost(gram, dense, dense * kept))
    assert all(later < sooner for sooner, later in pairwise(costs[:-1]))
    assert costs[-1] <= costs[-2]
    best = solved(gram, dense, kept)
    np.testing.assert_allclose(refit(gram, right, kept, best), best, atol=1e-9)
