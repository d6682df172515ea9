"""Calibration over a source: which activations, and the same whatever the batches."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graphprune.calib.probes import Probe
from graphprune.calib.run import calibrate, probes_for
from graphprune.calib.sources import Source, input_specs, open_source
from graphprune.calib.stats import Key, Moments, merge
from graphprune.errors import ModelError
from graphprune.ir.graph import Graph
from tests.measure import Array, materialise
from tests.nets import Net
from tests.oracles import coupled, feeds


def network(batch: int | str = "N") -> onnx.ModelProto:
    """Relu and Sigmoid, convolutions and dense layers, a residual and a Concat."""
    net = Net()
    stem = net.relu(net.conv(net.input([batch, 3, 8, 8]), 6, 3))
    joined = net.relu(net.add(stem, net.conv(net.node("Sigmoid", [net.conv(stem, 5, 3)]), 6, 3)))
    both = net.concat(net.pool(joined), net.clip(net.conv(net.pool(stem), 4, 1)))
    hidden = net.relu(net.gemm(net.flatten(net.pool(both)), 7))
    return net.build(net.linear(hidden, 3))


def source(model: onnx.ModelProto, data: Array) -> Source:
    return open_source({"x_0": data}, input_specs(model))


def measured(model: onnx.ModelProto, data: Array, batch_size: int = 8) -> dict[Key, Moments]:
    coupling = coupled(model)
    return calibrate(coupling.graph, probes_for(coupling), source(model, data), batch_size=batch_size, threads=1)


def assert_same(left: dict[Key, Moments], right: dict[Key, Moments]) -> None:
    """Demand equal counts, and sums to rounding."""
    assert left.keys() == right.keys()
    for key, moments in left.items():
        other = right[key]
        assert moments.count == other.count
        assert moments.total == pytest.approx(other.total, rel=1e-5, abs=1e-5)
        assert (moments.zeros is None, moments.squares is None) == (other.zeros is None, other.squares is None)
        if moments.zeros is not None and other.zeros is not None:
            assert moments.zeros.tolist() == other.zeros.tolist()
        if moments.squares is not None and other.squares is not None:
            assert moments.squares == pytest.approx(other.squares, rel=1e-5)


DATA: Array = feeds(network(), 2, 13)["x_0"]


def test_a_probe_for_every_activation_through_which_units_are_consumed() -> None:
    coupling = coupled(network())
    probes = probes_for(coupling)
    found = {(p.tensor, p.axis): (p.zeros, p.squares) for p in probes}
    active, other = (True, False), (False, True)
    assert found == {
        ("relu_0", 1): active,
        ("sigmoid_0", 1): other,
        ("maxpool_1", 1): active,
        ("flatten_0", 1): active,
        ("relu_2", 1): active,
    }
    assert len(probes) == len(found)
    assert not any(p.tensor == "x_0" for p in probes), "graph inputs carry no units"


def test_a_product_of_two_activations_is_probed_for_no_constant() -> None:
    net = Net()
    data = net.input(["N", 4])
    table = net.weight([6, 4])
    product = net.node("MatMul", [data, net.transpose(table, [1, 0])], ["N", 6])
    coupling = coupled(net.build(net.gemm(net.relu(product), 2)))
    assert [(p.tensor, p.axis) for p in probes_for(coupling)] == [("relu_0", 1)]


def test_a_product_of_two_constants_is_not_probed() -> None:
    net = Net()
    product = net.node("MatMul", [net.weight([4, 6]), net.weight([6, 5])], [4, 5])
    coupling = coupled(net.build(net.node("MatMul", [net.input(["N", 4]), product], ["N", 5])))
    assert [contraction.node.inputs[0] for contraction in coupling.contractions] == ["w_0", "x_0"]
    assert probes_for(coupling) == []


def test_statistics_equal_numpy_on_the_whole_network() -> None:
    model = network()
    found = measured(model, DATA)
    kept = materialise(model, [name for name, _ in found], {"x_0": DATA})
    for (name, axis), moments in found.items():
        rows = np.moveaxis(kept[name], axis, 0).reshape(kept[name].shape[axis], -1).astype(np.float64)
        assert moments.count == rows.shape[1]
        assert moments.mean == pytest.approx(rows.mean(axis=1), rel=1e-5, abs=1e-6)
        assert moments.total.shape == (kept[name].shape[axis],)
        if moments.zeros is not None:
            assert moments.zeros.tolist() == (rows <= 0).sum(axis=1).tolist()
        else:
            assert moments.squares == pytest.approx((rows**2).sum(axis=1), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 5, 13, 100])
def test_batches_of_any_size_give_the_same(batch_size: int) -> None:
    assert_same(measured(network(), DATA, batch_size), measured(network(), DATA, 8))


def test_a_fixed_batch_gives_the_same() -> None:
    assert_same(measured(network(4), DATA[:12]), measured(network(), DATA[:12]))
    assert_same(measured(network(1), DATA), measured(network(), DATA))


def test_shards_merge_to_the_whole_in_any_order() -> None:
    shards = [measured(network(), part) for part in (DATA[:2], DATA[2:9], DATA[9:])]
    whole = measured(network(), DATA)
    assert_same(merge(merge(shards[0], shards[1]), shards[2]), whole)
    assert_same(merge(shards[2], merge(shards[1], shards[0])), whole)


def test_the_order_of_the_samples_does_not_matter() -> None:
    assert_same(measured(network(), DATA[::-1].copy()), measured(network(), DATA))


@pytest.mark.parametrize(("model", "batch_size"), [(network(), 5), (network(), 100), (network(1), 8), (network(4), 8)])
def test_progress_adds_up_to_the_samples(model: onnx.ModelProto, batch_size: int) -> None:
    coupling = coupled(model)
    given = source(model, DATA)
    told: list[int] = []
    calibrate(coupling.graph, probes_for(coupling), given, batch_size=batch_size, threads=1, progress=told.append)
    assert sum(told) == given.samples
    assert min(told) > 0


def test_progress_counts_whole_feeds_as_samples() -> None:
    model = network()
    coupling = coupled(model)
    stacked = source(model, np.stack([DATA[:3], DATA[3:6]]))
    told: list[int] = []
    calibrate(coupling.graph, probes_for(coupling), stacked, threads=1, progress=told.append)
    assert sum(told) == stacked.samples == 2


def test_nothing_to_probe_runs_nothing() -> None:
    def never() -> list[dict[str, Array]]:
        raise AssertionError("the data was walked")

    model = network()
    unread = Source("nothing", tuple(input_specs(model)), True, never, known=1)  # type: ignore[arg-type]
    assert calibrate(Graph(model), [], unread) == {}


def test_a_model_that_does_not_run_is_a_named_error() -> None:
    net = Net()
    data = net.relu(net.input(["N", 6]))
    broken = net.node("Reshape", [data, net.constant(np.array([-1, 5]))], ["M", 5])
    model = net.build(broken)
    with pytest.raises(ModelError, match="ONNX Runtime cannot run"):
        calibrate(Graph(model), [Probe(broken, 1)], open_source(np.ones((7, 6), np.float32), input_specs(model)))
