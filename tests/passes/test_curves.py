"""Error curves grow, start at nothing, go through what was measured; their hulls lie below them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from graphprune.passes.curves import LEVELS, MEASURED, bent, hull, local_errors

FloatArray = npt.NDArray[np.float64]


def layer(groups: int = 1, width: int = 20, outputs: int = 8, seed: int = 0) -> tuple[FloatArray, FloatArray]:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(groups, 200, width)) @ random.normal(size=(groups, width, width))
    return rows.swapaxes(1, 2) @ rows / 200, random.normal(size=(groups, width, outputs))


@pytest.mark.parametrize("groups", [1, 3])
def test_the_more_is_zero_the_larger_the_error(groups: int) -> None:
    gram, dense = layer(groups)
    errors, solutions = local_errors(gram, dense)
    whole = float((dense * (gram @ dense)).sum())
    assert errors.shape == (len(LEVELS),)
    assert errors[0] == 0
    assert (np.diff(errors) >= 0).all()
    assert errors[1] > 0
    assert 0.1 * whole < errors[-1] <= whole * (1 + 1e-6)
    assert tuple(solutions) == MEASURED
    for level, new in solutions.items():
        assert np.count_nonzero(new) == round((1 - level) * dense.size)
        lost = new - dense
        assert (lost * (gram @ lost)).sum() == pytest.approx(errors[LEVELS.index(level)], rel=1e-2)


def test_weights_that_are_zero_already_are_no_part_of_a_level() -> None:
    gram, dense = layer()
    dense[:, :10] *= np.abs(dense[:, :10]) > 0.8
    _, solutions = local_errors(gram, dense)
    for level, new in solutions.items():
        assert np.count_nonzero(new) == round((1 - level) * np.count_nonzero(dense))


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e30])
def test_the_scale_of_the_rows_does_not_matter(scale: float) -> None:
    gram, dense = layer()
    expected, _ = local_errors(gram, dense)
    found, _ = local_errors(gram * scale**2, dense)
    np.testing.assert_allclose(found, expected * scale**2, rtol=1e-3)


def test_a_bent_curve_goes_through_what_was_measured_and_grows() -> None:
    shape = np.array([0.0, 1.0, 2.0, 4.0, 8.0, 16.0])
    found = bent(shape, {2: 0.2, 4: 4.0})
    assert found[0] == 0
    assert found[[2, 4]] == pytest.approx([0.2, 4.0])
    assert found[1] == pytest.approx(0.1)  # in front of the first and behind the last the nearest ratio holds
    assert found[5] == pytest.approx(8.0)
    assert 0.2 < found[3] < 4.0
    assert (np.diff(found) >= 0).all()
    np.testing.assert_allclose(bent(shape, {2: 2e6, 4: 8e6}), shape * 1e6)


def test_measurements_of_nothing_bend_nothing() -> None:
    shape = np.array([0.0, 0.0, 3.0])
    np.testing.assert_array_equal(bent(shape, {}), shape)
    np.testing.assert_array_equal(bent(shape, {1: 0.5, 2: 0.0}), shape)
    assert bent(np.zeros(3), {1: 2.0}).tolist() == [0, 0, 0]


def test_a_curve_never_falls_even_where_less_is_measured_later() -> None:
    found = bent(np.array([0.0, 1.0, 2.0, 3.0]), {1: 5.0, 3: 1.0})
    assert (np.diff(found) >= 0).all()
    assert found[1] == pytest.approx(5.0)


def test_the_hull_is_the_largest_convex_curve_below() -> None:
    assert hull([0, 1, 4, 9], [0, 1, 2, 3]) == [0, 1, 2, 3]
    assert hull([0, 5, 6, 10], [0, 1, 2, 3]) == [0, 2, 3]
    assert hull([0, 5, 8, 9], [0, 1, 2, 3]) == [0, 3]
    assert hull([0.0], [0.0]) == [0]
    random = np.random.default_rng(1)
    for _ in range(50):
        places = np.cumsum(random.random(12))
        errors = np.cumsum(random.random(12) ** 4)
        corners = hull(errors, places)
        assert (corners[0], corners[-1]) == (0, 11)
        assert (np.interp(places, places[corners], errors[corners]) <= errors + 1e-12).all()
        slopes = np.diff(errors[corners]) / np.diff(places[corners])
        assert (np.diff(slopes) > 0).all()
