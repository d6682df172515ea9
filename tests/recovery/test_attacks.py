"""Models and data that once broke the repair, or led its predictions astray."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from graphprune import Recipe, prune
from graphprune.analysis import split
from graphprune.calib.moments import second_moments
from graphprune.calib.sources import input_specs, open_source
from graphprune.errors import RecipeError
from tests.nets import Net

Array = npt.NDArray[np.float32]
INPUTS = 12


def mlp(zeros: float = 0.0) -> onnx.ModelProto:
    """Three layers, of whose weights a part is zero already."""
    random = np.random.default_rng(3)
    net = Net()
    x, before = net.input(["n", INPUTS], "x"), INPUTS
    for width in (24, 24, 5):
        weight = random.normal(0, np.sqrt(2 / before), (before, width))
        weight[np.abs(weight) < np.quantile(np.abs(weight), zeros)] = 0
        names = [net.initializer(weight, net.name("w")), net.vector(width)]
        x = net.node("Gemm", [net.relu(x) if before > INPUTS else x, *names], ["n", width])
        before = width
    return net.build(x)


def samples(count: int = 128, scale: float = 1.0) -> dict[str, Array]:
    return {"x": (np.random.default_rng(5).normal(size=(count, INPUTS)) * scale).astype(np.float32)}


@pytest.mark.parametrize("scale", [1e20, 1e30])
def test_inputs_whose_squares_overflow_are_repaired_by(scale: float) -> None:
    model, ledger = prune(mlp(), Recipe(target=0.5, runs=2), samples(scale=scale))
    assert all(np.isfinite(numpy_helper.to_array(tensor)).all() for tensor in model.graph.initializer)
    assert ledger.weights.sparsity >= 0.5
    assert ledger.recovery is not None
    assert ledger.recovery.measured_l2 < 0.5


def test_moments_of_values_whose_squares_overflow_are_finite() -> None:
    rows = np.full((4, 1, 2), 1e25, np.float32)
    rows[0] = -1e25
    found = second_moments(rows, rows)
    np.testing.assert_allclose(found.gram[0, :2, :2], 4e50)
    np.testing.assert_allclose(found.energy, 4e50)


def test_zeros_that_are_there_already_cost_nothing_and_save_nothing() -> None:
    recipe = Recipe(target=0.86, structural=0.0, runs=2)
    _, ledger = prune(mlp(zeros=0.8), recipe, samples())
    assert ledger.recovery is not None
    assert ledger.recovery.measured_l2 > 0.05  # so it is no easy task, and
    assert 0.4 < ledger.recovery.predicted_l2 / ledger.recovery.measured_l2 < 2.5


def test_of_few_samples_some_are_held_out() -> None:
    model = mlp()
    found = split(open_source(samples(16), input_specs(model)))
    assert found.splits
    assert sum(len(batch["x"]) for batch in found.held_out) == 4
    assert sum(len(batch["x"]) for batch in found.every) == 16


@pytest.mark.parametrize(
    ("recipe", "calibration", "where"),
    [
        ({"pattern": "2:4", "recover": False}, samples(), "--no-recover"),
        ({"pattern": "2:4", "target": 0.3}, None, "--calib"),
        ({"max_drop": 0.02, "recover": False}, samples(), "--no-recover"),
        ({"max_drop": 0.02}, None, "--calib"),
    ],
)
def test_what_needs_repair_is_refused_without(
    recipe: dict[str, object], calibration: dict[str, Array] | None, where: str
) -> None:
    with pytest.raises(RecipeError, match="needs kept weights to change") as caught:
        prune(mlp(), Recipe(**recipe), calibration)  # type: ignore[arg-type]
    assert where in str(caught.value)


def test_blocks_without_a_target_are_refused() -> None:
    with pytest.raises(RecipeError, match="blocks leave open"):
        Recipe(pattern="8x1")


def test_biases_that_a_removal_adds_count_towards_the_target() -> None:
    """Two products that share a weight are not solved anew: means are put right in biases of their own."""
    random, net = np.random.default_rng(1), Net()
    hidden = net.relu(net.linear(net.input(["n", INPUTS], "x"), 24))
    shared = net.initializer(random.normal(size=(24, 24)) / 5, "shared")
    bias = net.initializer(random.normal(size=24), "bias")
    for _ in range(2):
        hidden = net.relu(net.node("Add", [net.node("MatMul", [hidden, shared], ["n", 24]), bias], ["n", 24]))
    model = net.build(net.linear(hidden, 3))
    for target in (0.2, 0.35, 0.5):
        _, ledger = prune(model, Recipe(target=target, runs=2), samples())
        assert ledger.weights.sparsity >= target
