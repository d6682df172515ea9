"""Which entries stay, against a choice entry by entry."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from graphprune.passes.patterns import Pattern, blocks, largest, n_of_m, shared_inputs, within

FloatArray = npt.NDArray[np.float64]


def draw(*shape: int) -> FloatArray:
    return np.abs(np.random.default_rng(list(shape)).normal(size=shape))


@pytest.mark.parametrize("count", [0, 1, 7, 29, 30])
def test_the_largest(count: int) -> None:
    magnitudes = draw(2, 5, 3)
    kept = largest(count)(magnitudes)
    assert kept.shape == magnitudes.shape
    assert kept.sum() == count
    assert set(magnitudes[kept]) == set(np.sort(magnitudes.ravel())[30 - count :])


def test_equal_entries_are_counted_out() -> None:
    assert largest(3)(np.ones((1, 4, 2))).sum() == 3


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 3)])
@pytest.mark.parametrize("kernel", [1, 9])
@pytest.mark.parametrize("channels", [8, 11, 2])
def test_n_of_every_m_channels(n: int, m: int, kernel: int, channels: int) -> None:
    magnitudes = draw(2, channels * kernel, 5)
    kept = n_of_m(n, m, kernel)(magnitudes)
    apart = (2, channels, kernel, 5)
    values, stays = magnitudes.reshape(apart), kept.reshape(apart)
    for start in range(0, channels, m):
        part, those = values[:, start : start + m], stays[:, start : start + m]
        if part.shape[1] < m:
            assert those.all()
            continue
        assert (those.sum(axis=1) == n).all()
        low = np.where(those, np.inf, part).max(axis=1, where=~those, initial=0)
        assert (np.where(those, part, np.inf).min(axis=1) > low).all()
    assert Pattern(":", n, m).stays(magnitudes.shape, kernel) == kept.sum()


@pytest.mark.parametrize(("inputs", "outputs"), [(4, 1), (1, 4), (2, 3), (16, 1)])
@pytest.mark.parametrize("count", [0, 24, 50, 144])
def test_blocks(inputs: int, outputs: int, count: int) -> None:
    magnitudes = draw(2, 9, 8)
    kept = blocks(count, inputs, outputs)(magnitudes)
    assert kept.shape == magnitudes.shape
    assert kept.sum() <= count
    assert count - kept.sum() < inputs * outputs or kept.all()
    energies = {True: [0.0], False: [0.0]}
    for group in range(2):
        for row in range(0, 9, inputs):
            for column in range(0, 8, outputs):
                place = group, slice(row, row + inputs), slice(column, column + outputs)
                assert kept[place].all() or not kept[place].any()
                energies[bool(kept[place].all())].append(float((magnitudes[place] ** 2).mean()))
    assert kept.all() or not kept.any() or min(energies[True][1:]) >= max(energies[False])


def test_patterns_as_the_recipe_names_them() -> None:
    semi, block = Pattern.parse("2:4"), Pattern.parse("16x1")
    assert (semi, block) == (Pattern(":", 2, 4), Pattern("x", 16, 1))
    assert semi.fixes_count
    assert not block.fixes_count
    magnitudes = draw(1, 32, 4)
    np.testing.assert_array_equal(semi.choice(0, 2)(magnitudes), n_of_m(2, 4, 2)(magnitudes))
    np.testing.assert_array_equal(block.choice(40, 2)(magnitudes), blocks(40, 16, 1)(magnitudes))


def test_a_choice_among_some_entries_alone() -> None:
    magnitudes = draw(1, 6, 4)
    allowed = magnitudes < np.median(magnitudes)
    kept = within(allowed, largest(5))(magnitudes)
    assert kept.sum() == 5
    assert set(magnitudes[kept]) == set(np.sort(magnitudes[allowed])[-5:])
    assert within(allowed, largest(20))(magnitudes).sum() == allowed.sum()


@pytest.mark.parametrize(("outputs", "groups"), [(6, 1), (6, 3), (7, 3), (5, 5)])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_inputs_that_groups_of_columns_share(outputs: int, groups: int, count: int) -> None:
    magnitudes = draw(2, 8, outputs)
    kept = shared_inputs(count, groups)(magnitudes)
    columns = -(-outputs // groups)
    for start in range(0, outputs, columns):
        energy = np.square(magnitudes[:, :, start : start + columns]).sum(axis=2)
        for stack in range(2):
            best = set(np.argsort(energy[stack])[8 - count :])
            expected = [[row in best] * len(kept[stack, row, start : start + columns]) for row in range(8)]
            assert kept[stack, :, start : start + columns].tolist() == expected
