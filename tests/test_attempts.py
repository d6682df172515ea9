"""A result that is slower than the original is given up for a safer one, and never handed over in silence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from graphprune import Recipe, pipeline, prune
from graphprune.ir.kernels import ANY, preferred_widths
from graphprune.verify.latency import Latency
from tests.nets import Net
from tests.oracles import feeds


def depthwise(width: int = 64) -> onnx.ModelProto:
    """Where a width that suits no kernel costs most: a convolution for every channel alone."""
    net = Net()
    data = net.relu(net.conv(net.input([1, 4, 20, 20]), width, 1))
    for _ in range(3):
        data = net.relu(net.conv(data, width, 3, group=width))
    return net.build(net.conv(data, 8, 1))


def data(model: onnx.ModelProto) -> list[dict[str, np.ndarray]]:
    return [feeds(model, seed, batch=1) for seed in range(24)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Latency ratios to be measured next; the last one again and again. Time itself cannot be made to repeat."""
    ratios: list[float] = []

    def compare_latency(*_: object, **__: object) -> Latency:
        ratio = ratios.pop(0) if len(ratios) > 1 else ratios[0]
        word = "slower" if ratio > 1.01 else "faster" if ratio < 0.99 else "same"
        return Latency(1, 10, 1.0, ratio, ratio, (ratio, ratio), 0.95, word)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "compare_latency", compare_latency)
    return ratios


def width(model: onnx.ModelProto) -> int:
    return next(int(tensor.dims[0]) for tensor in model.graph.initializer if len(tensor.dims) == 4)


def test_a_width_that_suits_no_kernel_misses_a_gate() -> None:
    if preferred_widths() == ANY:
        pytest.skip("ONNX Runtime's convolutions do not work on blocks on this machine")
    model = depthwise()
    pruned, ledger = prune(model, Recipe(channels=0.02, align="off"), data(model))
    assert width(pruned) == 63
    assert ledger.latency.verdict == "slower"
    (gate,) = ledger.gates
    assert (gate.name, gate.ok, gate.limit) == ("not-slower", False, 1.0)
    assert 1 < gate.value == ledger.latency.proven <= ledger.latency.ratio
    pruned, ledger = prune(model, Recipe(channels=0.1), data(model))
    assert width(pruned) == 60
    assert ledger.gates == []


def test_whole_blocks_are_tried_where_the_result_is_slower(clock: list[float]) -> None:
    if (block := preferred_widths().block) not in (8, 16):
        pytest.skip(f"44 channels are no better and no worse than 48 in blocks of {block}")
    model = depthwise()
    clock += [1.0]
    assert width(prune(model, Recipe(channels=0.32), data(model))[0]) == 44
    clock[:] = [1.2, 1.2, 0.9]
    pruned, ledger = prune(model, Recipe(channels=0.32), data(model))
    assert width(pruned) == 48
    (note,) = [note for note in ledger.notes if "slower" in note]
    assert "x1.20" in note
    assert f"multiples of {block}" in note
    assert ledger.gates == []
    assert ledger.recipe["align"] == "auto"


def test_all_units_stay_where_blocks_are_slower_too(clock: list[float]) -> None:
    clock += [1.3, 1.3, 1.2, 1.2, 1.0]
    model = depthwise()
    pruned, ledger = prune(model, Recipe(target=0.3), data(model))
    assert width(pruned) == 64
    assert ledger.weights.removed == 0
    assert ledger.weights.sparsity >= 0.3
    assert len([note for note in ledger.notes if "slower" in note]) == 2
    assert [gate.name for gate in ledger.gates] == ["target"]


def test_one_slow_measurement_is_not_enough(clock: list[float]) -> None:
    clock += [1.2, 1.0]
    model = depthwise()
    _, ledger = prune(model, Recipe(channels=0.4), data(model))
    assert ledger.latency.ratio == 1.0
    assert not [note for note in ledger.notes if "slower" in note]


def test_a_limit_of_the_users_own_is_the_only_one(clock: list[float]) -> None:
    clock += [1.2]
    model = depthwise()
    recipe = Recipe(channels=0.4, max_latency_ratio=1.5)
    pruned, ledger = prune(model, recipe, data(model))
    assert width(pruned) == 40
    assert [(gate.name, gate.ok) for gate in ledger.gates] == [("max-latency-ratio", True)]
    _, ledger = prune(model, replace(recipe, max_latency_ratio=1.1), data(model))
    assert [(gate.name, gate.ok) for gate in ledger.gates] == [("max-latency-ratio", False)]


def test_the_fastest_is_handed_over_where_all_are_slower(clock: list[float]) -> None:
    clock += [1.2, 1.2, 1.5, 1.5]
    model = depthwise()
    pruned, ledger = prune(model, Recipe(channels=0.4), data(model))
    assert width(pruned) == 40
    assert ledger.latency.ratio == 1.2
    assert [(gate.name, gate.ok) for gate in ledger.gates] == [("not-slower", False)]
