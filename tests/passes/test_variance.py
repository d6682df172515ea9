"""Outputs get the original's mean and variance back."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from graphprune.passes.ridge import Centred
from graphprune.passes.variance import MOST, matched

FloatArray = npt.NDArray[np.float64]


def measured(rows: FloatArray, errors: FloatArray, *, biased: bool = True) -> Centred:
    """Moments of rows and errors, both of shape (rows, groups, columns)."""
    mean, error = rows.mean(axis=0), errors.mean(axis=0)
    if not biased:
        mean, error = 0 * mean, 0 * error
    x, e = rows - mean, errors - error
    count = len(rows)
    return Centred(
        np.einsum("ngk,ngl->gkl", x, x) / count,
        np.einsum("ngk,ngo->gko", x, e) / count,
        mean,
        error,
        (e**2).mean(axis=0),
    )


def case(seed: int = 0) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Rows, the weight that the draft has, what its outputs lack, and a smaller weight."""
    random = np.random.default_rng(seed)
    rows = random.normal(1.0, 1.0, (500, 2, 6)) @ random.normal(size=(6, 6))
    before = random.normal(size=(2, 6, 4))
    errors = random.normal(0.5, 1.5, (500, 2, 4)) + 0.1 * rows[:, :, :4]
    after = before * random.uniform(0.55, 1.0, (2, 1, 4))
    return rows, before, errors, after


def outputs(rows: FloatArray, matrix: FloatArray) -> FloatArray:
    return np.asarray(np.einsum("ngk,gko->ngo", rows, matrix))


@pytest.mark.parametrize("seed", range(5))
def test_mean_and_variance_are_the_originals(seed: int) -> None:
    rows, before, errors, after = case(seed)
    original = outputs(rows, before) + errors
    bias = (original - outputs(rows, after)).mean(axis=0)  # least squares has put the mean right
    scaled, shift = matched(measured(rows, errors), before, after)
    result = outputs(rows, scaled) + bias + shift
    np.testing.assert_allclose(result.mean(axis=0), original.mean(axis=0), rtol=1e-9)
    wanted, factor = original.var(axis=0), (scaled / after)[:, 0]
    np.testing.assert_allclose(scaled, after * factor[:, None])
    free = (factor > 1) & (factor < MOST)
    assert free.sum() >= 4
    np.testing.assert_allclose(result.var(axis=0)[free], wanted[free], rtol=1e-9)


def test_without_a_bias_the_energy_is_the_originals() -> None:
    rows, before, errors, after = case()
    original = outputs(rows, before) + errors
    scaled, shift = matched(measured(rows, errors, biased=False), before, after)
    assert not shift.any()
    factor = (scaled / after)[:, 0]
    free = (factor > 1) & (factor < MOST)
    assert free.any()
    energy = (outputs(rows, scaled) ** 2).mean(axis=0)
    np.testing.assert_allclose(energy[free], (original**2).mean(axis=0)[free], rtol=1e-9)


def test_a_layer_that_lacks_nothing_is_left_as_it_is() -> None:
    rows, before, errors, _ = case()
    scaled, shift = matched(measured(rows, 0 * errors), before, before)
    np.testing.assert_array_equal(scaled, before)
    assert not shift.any()


def test_outputs_that_vary_more_or_not_at_all_are_left_as_they_are() -> None:
    rows, before, errors, after = case()
    louder = before * 1.5
    scaled, _ = matched(measured(rows, 0 * errors), before, louder)
    np.testing.assert_array_equal(scaled, louder)
    after[:, :, 1] = 0
    scaled, _ = matched(measured(rows, errors), before, after)
    assert not scaled[:, :, 1].any()
    assert np.isfinite(scaled).all()


def test_noise_is_not_amplified_without_end() -> None:
    rows, before, errors, _ = case()
    after = before * 0.01
    scaled, _ = matched(measured(rows, errors), before, after)
    np.testing.assert_allclose(scaled, after * MOST)


def test_what_is_not_finite_changes_nothing() -> None:
    rows, before, errors, after = case()
    found = measured(rows, errors)
    found.covariance[0] = np.inf
    scaled, _ = matched(found, before, after)
    np.testing.assert_array_equal(scaled[0], after[0])
