"""What removing units costs, against least squares with their columns left out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest

from graphprune.passes.elimination import Problem, cost_of, eliminate

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def rows_of(width: int, seed: int = 0) -> FloatArray:
    random = np.random.default_rng([seed, width])
    return random.normal(size=(4 * width, width)) @ random.normal(size=(width, width))


def problem(rows: FloatArray, columns: dict[int, Sequence[int]], importance: float = 1.0, outputs: int = 3) -> Problem:
    matrix = np.random.default_rng(len(columns)).normal(size=(rows.shape[1], outputs))
    own = {unit: np.array(which, dtype=np.int64) for unit, which in columns.items()}
    return Problem(rows.T @ rows, matrix, own, importance)


def solved(rows: FloatArray, found: Problem, units: Sequence[int]) -> tuple[float, FloatArray]:
    """The error without the units' columns, and the matrix that least squares makes of the rest."""
    gone = [column for unit in units for column in found.columns.get(unit, [])]
    kept = [column for column in range(rows.shape[1]) if column not in gone]
    goal = rows @ found.matrix
    matrix = np.zeros_like(found.matrix)
    matrix[kept] = np.linalg.lstsq(rows[:, kept], goal, rcond=None)[0]
    return found.importance * float(((goal - rows @ matrix) ** 2).sum()), matrix


def steps_of(*units: Sequence[int]) -> list[IntArray]:
    return [np.array(step, dtype=np.int64) for step in units]


CASES: dict[str, tuple[dict[int, Sequence[int]], list[IntArray]]] = {
    "a column each": ({unit: [unit] for unit in range(7)}, steps_of(*([unit] for unit in range(7)))),
    "several columns each": ({4: [0, 1], 5: [2, 5], 9: [4, 3], 1: [7, 6]}, steps_of([4], [9], [1], [5])),
    "columns that belong to none": ({0: [1], 1: [3], 2: [6]}, steps_of([0], [1], [2])),
    "more or fewer columns": ({0: [0], 1: [1, 2, 3], 2: [4, 5], 3: [7]}, steps_of([0], [1], [2], [3])),
    "several units at once": ({unit: [unit] for unit in range(8)}, steps_of([0, 5], [1, 2, 6], [3, 7])),
    "units that are not read": ({0: [0], 1: [2, 3]}, steps_of([0], [7], [1], [8, 9])),
}


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("case", list(CASES))
def test_step_after_step_costs_what_least_squares_without_the_columns_loses(case: str, *, ordered: bool) -> None:
    columns, steps = CASES[case]
    rows = rows_of(8)
    found = problem(rows, columns, importance=2.5)
    result = eliminate([found], steps, ordered=ordered, looks=range(1, len(steps)))
    assert sorted(result.order) == list(range(len(steps)))
    assert len(result.costs) == len(steps) - 1
    before, gone = 0.0, list[int]()
    left = list(range(len(steps)))
    for number, step in enumerate(result.order[:-1]):
        costs = {index: solved(rows, found, [*gone, *steps[index]])[0] - before for index in left}
        if ordered:
            assert step == number
        else:
            assert costs[step] == pytest.approx(min(costs.values()), rel=1e-6, abs=1e-8)
        assert result.costs[number] == pytest.approx(costs[step], rel=1e-6, abs=1e-8)
        left.remove(step)
        gone += [int(unit) for unit in steps[step]]
        before, matrix = solved(rows, found, gone)
        np.testing.assert_allclose(result.matrices[number + 1][0], matrix, atol=1e-8)
        assert cost_of(found, np.array(gone)) == pytest.approx(before, rel=1e-6, abs=1e-8)


def test_layers_that_read_the_same_units_add_up_by_importance() -> None:
    first, second = rows_of(6, 1), rows_of(10, 2)
    problems = [
        problem(first, {unit: [unit] for unit in range(5)}, 0.5),
        problem(second, {unit: [2 * unit, 2 * unit + 1] for unit in (4, 2, 0, 1, 3)}, 3.0),
    ]
    steps = steps_of(*([unit] for unit in range(5)))
    result = eliminate(problems, steps)
    for number in range(1, 5):
        gone = [int(steps[index][0]) for index in result.order[:number]]
        wanted = sum(solved(rows, found, gone)[0] for rows, found in zip((first, second), problems, strict=True))
        assert result.costs[:number].sum() == pytest.approx(wanted, rel=1e-6)
    alone = eliminate(problems[:1], steps)
    assert alone.order != result.order


def test_columns_that_are_there_twice_cost_nothing() -> None:
    rows = rows_of(6)
    rows[:, 4] = rows[:, 1]
    rows[:, 5] = rows[:, 0] - 2 * rows[:, 2]
    found = problem(rows, {unit: [unit] for unit in range(6)})
    scale = np.trace(found.gram) / 6
    damped = Problem(found.gram + 1e-9 * scale * np.eye(6), found.matrix, found.columns, 1.0)
    result = eliminate([damped], steps_of(*([unit] for unit in range(6))))
    energy = float(((rows @ found.matrix) ** 2).sum())
    assert result.costs[:2].max() < 1e-6 * energy
    assert result.costs[2:].min() > 1e-3 * energy
    assert len({1, 4} & set(result.order[:2])) == 1


def test_a_unit_whose_weight_is_zero_costs_nothing() -> None:
    found = problem(rows_of(5), {unit: [unit] for unit in range(5)})
    found.matrix[3] = 0
    result = eliminate([found], steps_of(*([unit] for unit in range(5))))
    assert result.order[0] == 3
    assert result.costs[0] == pytest.approx(0, abs=1e-12)


def test_units_that_no_layer_reads_cost_nothing() -> None:
    steps = steps_of([0], [1], [2])
    assert eliminate([], steps).costs.tolist() == [0, 0]
    found = problem(rows_of(4), {7: [0]})
    assert eliminate([found], steps).costs.tolist() == [0, 0]
    assert cost_of(found, np.array([0, 1])) == 0
    assert eliminate([found], steps[:1]).order == [0]


def test_the_problem_is_not_changed() -> None:
    found = problem(rows_of(5), {unit: [unit] for unit in range(5)})
    gram, matrix = found.gram.copy(), found.matrix.copy()
    eliminate([found], steps_of(*([unit] for unit in range(5))))
    np.testing.assert_array_equal(found.gram, gram)
    np.testing.assert_array_equal(found.matrix, matrix)


def test_greedy_elimination_is_near_the_best_choice_of_all() -> None:
    ratios = []
    for seed in range(20):
        rows = rows_of(7, seed)
        found = problem(rows, {unit: [unit] for unit in range(7)})
        result = eliminate([found], steps_of(*([unit] for unit in range(7))))
        pairs = [cost_of(found, np.array([a, b])) for a in range(7) for b in range(a)]
        assert result.costs[:2].sum() >= min(pairs) * (1 - 1e-9)
        ratios.append(result.costs[:2].sum() / min(pairs))
    assert np.median(ratios) < 1.2


def greedy(rows: FloatArray, found: Problem, steps: Sequence[IntArray], count: int) -> float:
    """The cost of taking the cheapest step so many times."""
    gone, cost, left = list[int](), 0.0, list(range(len(steps)))
    for _ in range(count):
        cost, best = min((solved(rows, found, [*gone, *steps[index]])[0], index) for index in left)
        gone += [int(unit) for unit in steps[best]]
        left.remove(best)
    return cost


@pytest.mark.parametrize("case", ["a column each", "more or fewer columns", "several units at once"])
def test_steps_change_places_where_the_cheapest_first_was_not_the_best(case: str) -> None:
    swapped, taken, best = 0.0, 0.0, 0.0
    columns, steps = CASES[case]
    half = len(steps) // 2
    for seed in range(30):
        rows = rows_of(8, seed)
        found = problem(rows, columns)
        result = eliminate([found], steps, looks=[half])
        gone = [int(unit) for index in result.order[:half] for unit in steps[index]]
        cost, matrix = solved(rows, found, gone)
        assert float(result.costs[:half].sum()) == pytest.approx(cost, rel=1e-6)
        np.testing.assert_allclose(result.matrices[half][0], matrix, atol=1e-7)
        ways = [
            solved(rows, found, [int(unit) for index in way for unit in steps[index]])[0]
            for way in combinations(range(len(steps)), half)
        ]
        swapped, taken, best = swapped + cost, taken + greedy(rows, found, steps, half), best + min(ways)
        assert cost <= greedy(rows, found, steps, half) * (1 + 1e-9)
    assert swapped < best + 0.6 * (taken - best) + 1e-9
