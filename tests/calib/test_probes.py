"""Statistics taken in the graph equal those of numpy on activations kept in full."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto

from graphprune.calib.probes import LARGE, STRIDE, Probe, probed
from graphprune.calib.run import calibrate
from graphprune.calib.sources import input_specs, open_source
from graphprune.calib.stats import Moments
from graphprune.errors import ModelError
from graphprune.ir.graph import Graph
from graphprune.ir.session import open_session
from tests.measure import materialise
from tests.nets import Net

Array = npt.NDArray[Any]
OPSETS = (9, 10, 11, 12, 13, 15, 17, 18, 20, 21)


def network(opset: int, shape: list[int | str], kind: int, activation: str) -> tuple[onnx.ModelProto, str]:
    """An activation of the input, and something that reads it."""
    net = Net(opset, kind=kind)
    data = net.input(shape)
    active = net.node(activation, [data]) if activation != "Clip" else net.clip(data)
    return net.build(net.node("Neg", [active])), active


def samples(shape: list[int | str], count: int, kind: int) -> Array:
    """Values with exact zeros, and positive ones down to the smallest that count."""
    random = np.random.default_rng(1)
    data = random.normal(size=[count, *(int(extent) for extent in shape[1:])])
    data[random.random(data.shape) < 0.2] = 0
    data[random.random(data.shape) < 0.05] = 1e-29 if kind != TensorProto.FLOAT16 else 6e-8
    data[random.random(data.shape) < 0.05] = 300.0
    data[:, 1] -= 400  # never active
    return data.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))


def measure(model: onnx.ModelProto, probe: Probe, data: Array, batch_size: int = 4) -> Moments:
    source = open_source({"x_0": data}, input_specs(model))
    return calibrate(Graph(model), [probe], source, batch_size=batch_size, threads=1)[probe.tensor, probe.axis]


def assert_equal(found: Moments, value: Array, axis: int, *, tolerance: float = 2e-6) -> None:
    """Demand exact counts, and sums to the rounding of single precision."""
    rows = np.moveaxis(value, axis, 0).reshape(value.shape[axis], -1).astype(np.float64)
    assert found.count == rows.shape[1]
    assert found.zeros is not None
    assert found.squares is not None
    assert found.zeros.tolist() == (rows <= 0).sum(axis=1).tolist()
    scale = np.abs(rows).sum(axis=1) + 1e-30
    assert (np.abs(found.total - rows.sum(axis=1)) <= tolerance * scale).all()
    assert found.squares == pytest.approx((rows**2).sum(axis=1), rel=tolerance)
    assert found.mean == pytest.approx(rows.mean(axis=1), rel=tolerance, abs=tolerance * scale.max())


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        (["N", 5, 7, 6], 1),  # the blocked form
        (["N", 5, 1, 1], 1),
        (["N", 5, 7, 6], 3),
        (["N", 5, 9], 1),
        (["N", 5, 9], 2),
        (["N", 6], 1),
        (["N", 3, 2, 4, 2], 1),
    ],
)
def test_both_forms_equal_numpy(opset: int, shape: list[int | str], axis: int) -> None:
    model, active = network(opset, shape, TensorProto.FLOAT, "Relu")
    data = samples(shape, 10, TensorProto.FLOAT)
    value = materialise(model, [active], {"x_0": data})[active]
    assert_equal(measure(model, Probe(active, axis, zeros=True, squares=True), data), value, axis)


@pytest.mark.parametrize("opset", [9, 12, 13, 21])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
@pytest.mark.parametrize("shape", [["N", 5, 7, 6], ["N", 5, 9], ["N", 6]])
def test_other_element_types(opset: int, kind: int, shape: list[int | str]) -> None:
    model, active = network(opset, shape, kind, "Relu")
    data = samples(shape, 10, kind)
    value = materialise(model, [active], {"x_0": data})[active]
    assert_equal(measure(model, Probe(active, 1, zeros=True, squares=True), data), value, 1)


@pytest.mark.parametrize("activation", ["Tanh", "Abs", "Clip"])
def test_negative_values_count_as_zeros(activation: str) -> None:
    model, active = network(17, ["N", 5, 7, 6], TensorProto.FLOAT, activation)
    data = samples(["N", 5, 7, 6], 10, TensorProto.FLOAT)
    value = materialise(model, [active], {"x_0": data})[active]
    assert_equal(measure(model, Probe(active, 1, zeros=True, squares=True), data), value, 1)


def test_free_extents_are_measured_too() -> None:
    model, active = network(17, ["N", 5, "H", "W"], TensorProto.FLOAT, "Relu")
    data = samples(["N", 5, 8, 6], 10, TensorProto.FLOAT)
    value = materialise(model, [active], {"x_0": data})[active]
    assert_equal(measure(model, Probe(active, 1, zeros=True, squares=True), data), value, 1)


def test_large_maps_are_sampled_evenly() -> None:
    height, width = 43, 31
    assert height * width > LARGE
    model, active = network(17, ["N", 3, height, width], TensorProto.FLOAT, "Relu")
    data = samples(["N", 3, height, width], 5, TensorProto.FLOAT)
    value = materialise(model, [active], {"x_0": data})[active]
    found = measure(model, Probe(active, 1, zeros=True, squares=True), data)
    assert found.sampled
    assert found.count == 5 * height * width
    seen = np.moveaxis(value[:, :, ::STRIDE, ::STRIDE], 1, 0).reshape(3, -1).astype(np.float64)
    assert found.apoz == pytest.approx((seen <= 0).mean(axis=1), abs=1e-6)
    assert found.mean == pytest.approx(seen.mean(axis=1), rel=2e-6)
    assert found.squares == pytest.approx((seen**2).mean(axis=1) * found.count, rel=2e-6)


def test_maps_up_to_the_limit_are_measured_whole() -> None:
    size = int(LARGE**0.5)
    whole, active = network(17, ["N", 3, size, size], TensorProto.FLOAT, "Relu")
    small = samples(["N", 3, size, size], 5, TensorProto.FLOAT)
    value = materialise(whole, [active], {"x_0": small})[active]
    assert_equal(measure(whole, Probe(active, 1, zeros=True, squares=True), small), value, 1)


def test_only_what_is_asked_for_is_measured() -> None:
    model, active = network(17, ["N", 5, 7, 6], TensorProto.FLOAT, "Relu")
    data = samples(["N", 5, 7, 6], 3, TensorProto.FLOAT)
    for zeros in (False, True):
        for squares in (False, True):
            found = measure(model, Probe(active, 1, zeros=zeros, squares=squares), data)
            assert (found.zeros is not None, found.squares is not None) == (zeros, squares)
            assert found.total.shape == (5,)


@pytest.mark.parametrize(("shape", "axis"), [(["N", 5, 7, 6], 1), (["N", 5, 9], 1), (["N", 6], 1)])
def test_a_run_returns_a_few_numbers_per_channel(shape: list[int | str], axis: int) -> None:
    model, active = network(17, shape, TensorProto.FLOAT, "Relu")
    made, placed = probed(Graph(model), [Probe(active, axis, zeros=True, squares=True)])
    names = [value.name for value in made.graph.output]
    assert sorted(names) == sorted(placed[0].outputs.values())
    data = samples(shape, 11, TensorProto.FLOAT)
    for value in materialise(made, names, {"x_0": data}).values():
        assert np.asarray(value).size in (1, data.shape[axis], 11 * data.shape[axis])
    assert "neg_0" not in names, "the model's own outputs are not asked for"


@pytest.mark.parametrize("listed", [True, False])
def test_probes_leave_the_model_alone_and_list_their_constants_where_needed(listed: bool) -> None:
    net = Net(8, ir_version=3 if listed else 4)
    hidden = net.relu(net.conv(net.input(["N", 3, 5, 5]), 4, 3))
    model = net.build(net.gemm(net.flatten(hidden), 3))
    before = model.SerializeToString(deterministic=True)
    made, _ = probed(Graph(model), [Probe(hidden, 1, zeros=True), Probe("flatten_0", 1, zeros=True, squares=True)])
    assert model.SerializeToString(deterministic=True) == before
    open_session(made, threads=1)
    stored = {tensor.name for tensor in made.graph.initializer}
    assert (stored <= {value.name for value in made.graph.input}) == listed


def test_operator_sets_without_broadcasting_are_refused() -> None:
    model, active = network(9, ["N", 5], TensorProto.FLOAT, "Relu")
    model.opset_import[0].version = 6
    with pytest.raises(ModelError, match="operator set 6 is not supported"):
        probed(Graph(model), [Probe(active, 1)])
    model.opset_import[0].version = 7
    probed(Graph(model), [Probe(active, 1)])
