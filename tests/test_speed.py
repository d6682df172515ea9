"""Units and branches go until the model is as fast as asked for; time here is the number of multiply-accumulates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphprune import Ledger, Recipe, TargetError, prune, speed
from graphprune.ir.cost import count_macs
from graphprune.ir.kernels import preferred_widths
from graphprune.verify.kernel_times import Kernel, KernelTimes
from graphprune.verify.latency import Latency
from tests.commands import QUICK, command
from tests.nets import Net
from tests.oracles import feeds, run
from tests.passes.test_branches import residual


def chain(width: int = 48) -> onnx.ModelProto:
    """Three convolutions of channels that may all go."""
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 8, 8]), width, 3))
    data = net.relu(net.conv(net.relu(net.conv(data, width, 3)), width, 3))
    return net.build(net.conv(data, 4, 1))


def types(kernels: Sequence[Kernel]) -> list[Any]:
    return [kernel.types[:2] for kernel in kernels]


def samples(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return feeds(model, batch=32)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that can be made to repeat: a kernel takes its weights times its places, and a model a factor of that."""
    factor = [1.0]

    def of(_: KernelTimes, kernels: Sequence[Kernel]) -> list[float]:
        return [1e-6 * float(np.prod(weight[0]) * np.prod(data[0][2:])) for data, weight in types(kernels)]

    def compare_latency(before: onnx.ModelProto, after: onnx.ModelProto, inputs: Any, **_: object) -> Latency:
        shapes = {name: value.shape for name, value in inputs.items()}
        ratio = count_macs(after, shapes) / count_macs(before, shapes) * factor[0]
        return Latency(1, 10, 1.0, ratio, ratio, (ratio, ratio), 0.95, "faster")

    monkeypatch.setattr(KernelTimes, "of", of)
    monkeypatch.setattr(KernelTimes, "share", lambda *_: 1.0)
    monkeypatch.setattr(speed, "compare_latency", compare_latency)
    return factor


def faster(model: onnx.ModelProto, asked: float, **given: Any) -> tuple[onnx.ModelProto, Ledger]:
    return prune(model, Recipe(**{"speedup": asked, "runs": 2, "align": 8, **given}), samples(model))


def less(model: onnx.ModelProto, other: onnx.ModelProto) -> float:
    shapes = {name: value.shape for name, value in feeds(model, batch=1).items()}
    return count_macs(model, shapes) / count_macs(other, shapes)


@pytest.mark.parametrize("recover", [True, False])
@pytest.mark.parametrize("asked", [1.3, 2.0])
def test_the_speedup_is_reached_and_not_passed_by_much(work: list[float], asked: float, *, recover: bool) -> None:
    model = chain()
    pruned, ledger = faster(model, asked, recover=recover)
    assert ledger.speed is not None
    assert asked <= ledger.speed.measured <= asked * 1.2
    assert ledger.speed.predicted == pytest.approx(ledger.speed.measured, rel=1e-6)
    assert less(model, pruned) == pytest.approx(ledger.speed.measured, rel=1e-6)
    widths = [tensor.dims[0] for tensor in pruned.graph.initializer if len(tensor.dims) == 4][:-1]
    assert all(width % 8 == 0 for width in widths)
    assert ledger.weights.zeroed == 0


@pytest.mark.parametrize("factor", [0.8, 1.3])
def test_a_wrong_prediction_is_put_right(work: list[float], factor: float) -> None:
    work[0] = factor
    _, ledger = faster(chain(), 2.0)
    assert ledger.speed is not None
    assert 2.0 <= ledger.speed.measured <= 2.4
    assert ledger.speed.predicted == pytest.approx(ledger.speed.measured * factor, rel=1e-6)


def test_branches_go_where_no_width_is_left_to_halve(work: list[float]) -> None:
    model = residual(blocks=4)
    pruned, ledger = faster(model, 1.6, align=12)
    assert ledger.speed is not None
    assert 0 < len(ledger.speed.branches) < 4
    assert ledger.speed.measured >= 1.6
    operators = [node.op_type for node in pruned.graph.node]
    assert operators.count("Add") == 4 - len(ledger.speed.branches)
    names = {tensor.name for tensor in pruned.graph.initializer}
    assert set(ledger.kept) <= names
    inputs = samples(model)
    assert [v.shape for v in run(pruned, inputs).values()] == [v.shape for v in run(model, inputs).values()]


def test_zeros_come_on_top(work: list[float]) -> None:
    model = residual(blocks=4)
    _, ledger = faster(model, 1.6, align=12, target=0.8)
    assert ledger.speed is not None
    assert ledger.speed.measured >= 1.6
    assert ledger.weights.sparsity >= 0.8
    assert ledger.weights.zeroed > 0


@pytest.mark.parametrize("recover", [True, False])
def test_a_speedup_out_of_reach_names_the_most(work: list[float], *, recover: bool) -> None:
    with pytest.raises(TargetError, match="a speedup of 900 cannot be reached") as caught:
        faster(chain(16), 900, recover=recover)
    assert 1 < caught.value.reachable < 900


@pytest.mark.parametrize(("after", "ok"), [(0.55, False), (0.5, True), (0.3, True)])
def test_the_gate_is_on_what_was_measured_last(
    work: list[float], monkeypatch: pytest.MonkeyPatch, after: float, *, ok: bool
) -> None:
    found = Latency(1, 10, 1.0, after, after, (after, after), 0.95, "faster")
    monkeypatch.setattr("graphprune.pipeline.compare_latency", lambda *_, **__: found)
    _, ledger = faster(chain(), 2.0)
    (gate,) = ledger.gates
    assert (gate.name, gate.limit, gate.ok) == ("speedup", 2.0, ok)
    assert gate.value == pytest.approx(1 / after)


def test_the_command_makes_a_model_faster(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """On real kernels: how fast exactly depends on the machine, that it is narrower by whole blocks does not."""
    path, out = tmp_path / "net.onnx", tmp_path / "out.onnx"
    model = chain(128)
    onnx.save(model, path)
    done = command(capfd, path, "--speedup", "2", "--no-recover", "-o", out, *QUICK)
    assert done.code in (0, 1)
    assert "chosen for 2 times the speed: predicted" in done.err
    assert "speedup" in done.err
    assert 1.3 < less(model, onnx.load(out)) < 8
    block = preferred_widths().block
    kernels = [tensor.dims for tensor in onnx.load(out).graph.initializer if len(tensor.dims) == 4]
    assert [dims[0] % block for dims in kernels[:-1]] == [0, 0, 0]
