"""The fewer rows there are, the less their correlations are trusted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from graphprune.calib.moments import SecondMoments, second_moments
from graphprune.passes.damping import LEVELS, LITTLE, PLENTY, damped, damping
from graphprune.passes.patterns import largest
from graphprune.passes.ridge import CAUTION, centred
from graphprune.passes.sparse import sparse

FloatArray = npt.NDArray[np.float64]
WIDTH, OUTPUTS = 24, 6
CHOOSE = largest(WIDTH * OUTPUTS // 4)


def rows_of(count: int, seed: int) -> FloatArray:
    mixing = np.random.default_rng(7).normal(size=(WIDTH, WIDTH)) * np.linspace(0.05, 2, WIDTH)[:, None]
    return np.random.default_rng(seed).normal(size=(count, WIDTH)) @ mixing + 0.5


def parts_of(*counts: int, seed: int = 0) -> list[SecondMoments]:
    """Moments of rows alone: there are no errors to repair."""
    found = [rows_of(count, seed * 100 + place)[:, None] for place, count in enumerate(counts)]
    return [second_moments(rows, np.zeros((len(rows), 1, OUTPUTS))) for rows in found]


def weight(seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).normal(size=(1, WIDTH, OUTPUTS))


def test_plenty_of_rows_need_hardly_any() -> None:
    assert damping(parts_of(PLENTY * WIDTH, 8), weight(), CHOOSE) == LITTLE
    assert damping(parts_of(PLENTY * WIDTH), weight(), CHOOSE) == LITTLE


def test_what_nothing_judges_is_done_with_caution() -> None:
    assert damping(parts_of(40), weight(), CHOOSE) == CAUTION


def test_the_level_is_the_one_that_the_last_part_takes_best() -> None:
    for seed in range(4):
        parts, dense = parts_of(16, 14, 40, seed=seed), weight(seed)
        fitted, judge = centred(parts[0] + parts[1]), rows_of(40, seed * 100 + 2)
        errors = []
        for level in LEVELS:
            lost = (sparse(damped(fitted, level, dense), dense, CHOOSE, "wanda") - dense)[0]
            errors.append(np.square((judge - fitted.mean[0]) @ lost).sum())  # the bias puts the fitted mean right
        assert damping(parts, dense, CHOOSE) == LEVELS[int(np.argmin(errors))]


@pytest.mark.parametrize("biased", [True, False])
def test_few_rows_ask_for_more_than_many(biased: bool) -> None:
    few, many = (
        np.mean([np.log(damping(parts_of(n, n, n, seed=s), weight(s), CHOOSE, biased=biased)) for s in range(8)])
        for n in (6, 100)
    )
    assert few > many


def test_what_the_data_lacks_is_taken_from_the_weights() -> None:
    """Classes of which there is no sample: their weights tell where their features lie."""
    random, kept, ratios = np.random.default_rng(0), largest(64 * 100 // 4), []
    for _ in range(4):
        features = np.maximum(random.normal(size=(100, 64)), 0)
        dense = (features - features.mean(axis=0)).T[None]
        seen, unseen = (
            np.repeat(part, 8, axis=0) + 0.3 * random.normal(size=(8 * len(part), 64))
            for part in (features[:12], features[12:])
        )
        rows = centred(second_moments(seen[:, None], np.zeros((len(seen), 1, 100))))
        lost = [(sparse(gram, dense, kept) - dense)[0] for gram in (damped(rows, 1.0, dense), rows.damped(1.0))]
        along, even = (np.square((unseen - rows.mean) @ part).mean() for part in lost)
        ratios.append(along / even)
    assert max(ratios) < 0.85


@pytest.mark.parametrize("dense", [np.zeros((2, WIDTH, OUTPUTS)), np.repeat(weight(), 2, axis=0)], ids=["zero", "any"])
def test_damping_adds_its_part_of_the_variance(dense: FloatArray) -> None:
    found = rows_of(9, 0).reshape(9, 1, WIDTH).repeat(2, axis=1)
    rows = centred(second_moments(found, np.zeros((9, 2, OUTPUTS))))
    gram = damped(rows, 0.5, dense)
    before, after = (np.trace(part, axis1=1, axis2=2) for part in (rows.covariance, gram))
    np.testing.assert_allclose(after, 1.5 * before)
    assert np.linalg.eigvalsh(gram).min() > 0
