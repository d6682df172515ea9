"""Distillation: a student comes nearer to its teacher on samples that it has not seen, and never further from it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from graphprune import ModelError, Recipe, prune  # noqa: E402
from graphprune.finetune import Masks, to_proto, to_torch  # noqa: E402
from graphprune.finetune.distill import Hint, Lesson, distill  # noqa: E402
from tests import small  # noqa: E402
from tests.nets import Net  # noqa: E402
from tests.oracles import feeds, run, values  # noqa: E402

TEACHER = small.network()
BATCHES = [feeds(TEACHER, seed, 8) for seed in range(6)]
HELD_OUT = [feeds(TEACHER, seed, 8) for seed in range(100, 104)]
OUTPUT = TEACHER.graph.output[0].name


def student(noise: float = 0.1) -> onnx.ModelProto:
    """The teacher, with noise on its matrices, and half of them zero."""
    model, random = onnx.ModelProto(), np.random.default_rng(0)
    model.CopyFrom(TEACHER)
    for tensor in model.graph.initializer:
        if len(tensor.dims) > 1:
            value = onnx.numpy_helper.to_array(tensor)
            value = value + noise * value.std() * random.standard_normal(value.shape)
            value[np.abs(value) < np.median(np.abs(value))] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float32), tensor.name))
    return model


def lesson(**given: Any) -> Lesson:
    hints = [Hint(OUTPUT), Hint("conv_1"), Hint("gemm_0")]
    return Lesson(
        **{
            "teacher": TEACHER,
            "hints": hints,
            "batches": BATCHES,
            "held_out": HELD_OUT,
            "cut": dict,
            **given,
        }
    )


def error(model: onnx.ModelProto) -> float:
    """Relative error of the output on samples that nobody has seen."""
    unseen = feeds(TEACHER, 1000, 64)
    wanted, found = run(TEACHER, unseen)[OUTPUT], run(model, unseen)[OUTPUT]
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_a_student_learns_with_its_zeros_in_place() -> None:
    start = student()
    module = to_torch(start)
    names = [tensor.name for tensor in start.graph.initializer if len(tensor.dims) > 1]
    Masks(module, names)
    counted: list[int] = []
    found = distill(module, lesson(), epochs=20, progress=counted.append)
    assert found.after < 0.8 * found.before
    assert 0 < found.best <= found.epochs <= 20
    assert sum(counted) >= 20 * len(BATCHES) * found.epochs / 20
    tuned = to_proto(module)
    assert error(tuned) < 0.8 * error(start)
    for name in names:
        assert not values(tuned)[name][values(start)[name] == 0].any()
        assert (values(tuned)[name] != values(start)[name]).any()


def test_the_loss_is_the_mean_squared_error_over_the_variance() -> None:
    start = student()
    found = distill(to_torch(start), lesson(hints=[Hint(OUTPUT)], batches=BATCHES[:1]), epochs=1)
    expected = []
    for batch in HELD_OUT:
        wanted, got = run(TEACHER, batch)[OUTPUT], run(start, batch)[OUTPUT]
        expected.append(np.square(got - wanted).mean() / wanted.var())
    assert found.before == pytest.approx(np.mean(expected), rel=1e-4)


def test_nothing_to_learn_changes_nothing() -> None:
    module = to_torch(TEACHER)
    found = distill(module, lesson(), epochs=2)
    assert found.before == pytest.approx(0, abs=1e-10)
    assert (found.best, found.after) == (0, found.before)
    assert to_proto(module) == TEACHER


def test_the_same_seed_gives_the_same_weights() -> None:
    made = []
    for seed in (0, 0, 1):
        module = to_torch(student())
        distill(module, lesson(), epochs=2, seed=seed)
        made.append(to_proto(module).SerializeToString(deterministic=True))
    assert made[0] == made[1] != made[2]


def test_a_narrower_student_learns_what_is_left_of_its_layers() -> None:
    data = small.calibration(TEACHER, samples=256)
    asked = Recipe(channels=0.75, align="off", runs=2, finetune="distill", epochs=30, max_latency_ratio=1e3)
    _, taught = prune(TEACHER, asked, data)
    (turn,) = taught.rounds
    assert turn.distillation is not None
    assert turn.distillation["after"] < turn.distillation["before"]
    plain = Recipe(channels=0.75, align="off", runs=2, max_latency_ratio=1e3)
    _, untaught = prune(TEACHER, plain, data)
    assert taught.recovery is not None
    assert untaught.recovery is not None
    assert taught.recovery.measured_l2 < untaught.recovery.measured_l2


def test_inputs_that_differ_in_shape_are_not_mixed() -> None:
    uneven = [feeds(TEACHER, seed, size) for seed, size in enumerate((8, 3, 5))]
    found = distill(to_torch(student()), lesson(batches=uneven), epochs=3)
    assert found.after <= found.before


def test_what_cannot_be_taught() -> None:
    with pytest.raises(ModelError, match="nothing to learn"):
        distill(to_torch(TEACHER), lesson(hints=[]))
    broken = {name: np.full_like(value, np.nan) for name, value in HELD_OUT[0].items()}
    with pytest.raises(ModelError, match="infinite or not numbers"):
        distill(to_torch(student()), lesson(held_out=[broken]))


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_half_precision_learns_as_well(kind: Any) -> None:
    net = Net(kind=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)))
    teacher = net.build(net.gemm(net.relu(net.gemm(net.input(["N", 8], "x"), 16)), 4))
    module = to_torch(teacher)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.7)
    random = np.random.default_rng(0)
    batches = [{"x": random.standard_normal((8, 8)).astype(kind)} for _ in range(12)]
    hints = [Hint(teacher.graph.output[0].name)]
    found = distill(module, Lesson(teacher, hints, batches[:8], batches[8:], dict), epochs=10)
    assert found.after < 0.3 * found.before


def test_a_model_that_rounds_everything_is_said_to_be_none() -> None:
    net = Net()
    data = net.gemm(net.input(["N", 8], "x"), 4)
    names = [net.initializer(np.array(0.1), "scale"), net.initializer(np.array(0), "zero", onnx.TensorProto.INT8)]
    rounded = net.node("QuantizeLinear", [data, *names], ["N", 4], kind=onnx.TensorProto.INT8)
    teacher = net.build(net.node("DequantizeLinear", [rounded, *names], ["N", 4], kind=onnx.TensorProto.FLOAT))
    batches = [{"x": np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)}]
    with pytest.raises(ModelError, match="quantise it afterwards"):
        distill(to_torch(teacher), Lesson(teacher, [Hint(rounded)], batches, batches, dict), epochs=1)
