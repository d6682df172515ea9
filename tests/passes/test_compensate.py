"""What removed units added on average goes into the biases; for constant units that repairs all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from graphprune.calib.run import calibrate, probes_for
from graphprune.calib.sources import input_specs, open_source
from graphprune.ir.coupling.walk import couple
from graphprune.ir.graph import Graph
from graphprune.ir.surgery import remove
from graphprune.passes import compensate
from graphprune.passes.canonicalize import canonicalize
from tests.measure import Array, editable, materialise, replaced
from tests.nets import Net
from tests.oracles import Feeds, assert_close, feeds, removal, run, units_on

TOLERANCE = 1e-5


def repaired(
    model: onnx.ModelProto, weight: str, channels: Sequence[int], inputs: Feeds
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Remove output channels of a weight, and repair it; return the model without and with the repair."""
    coupling = couple(Graph(canonicalize(model)))
    statistics = calibrate(coupling.graph, probes_for(coupling), open_source(inputs, input_specs(model)), threads=1)
    units = units_on(coupling, weight, 0)
    removed = removal(coupling, [units[channel] for channel in channels])
    trimmed, _ = remove(coupling, removed)
    after = onnx.ModelProto()
    after.CopyFrom(trimmed)
    deltas = compensate.plan(coupling, removed, statistics)
    assert deltas, "nothing to repair"
    compensate.apply(after, deltas)
    onnx.checker.check_model(after, full_check=True)
    for name, value in editable(trimmed).items():
        if value.ndim > 1 and not name.startswith("bias"):
            assert editable(after)[name].tobytes() == value.tobytes(), f"{name} is no bias"
    return trimmed, after


def constant_units(model: onnx.ModelProto, channels: dict[str, list[int]]) -> onnx.ModelProto:
    """Make channels of convolutions and Gemm constant: no weight comes in, and a bias of their own."""
    arrays = editable(model)
    for weight, which in channels.items():
        bias = weight.replace("w", "b")
        for place, channel in enumerate(which):
            arrays[weight][channel] = 0
            arrays[bias][channel] = 0.7 + place / 3
    return replaced(model, **arrays)


def check_exact(model: onnx.ModelProto, weight: str, channels: list[int]) -> onnx.ModelProto:
    """Demand that constant units can go without a trace; and that they leave one where nothing is repaired."""
    model = constant_units(model, {weight: channels})
    trimmed, after = repaired(model, weight, channels, feeds(model, 1, 8))
    others = feeds(model, 2, 5)  # samples never seen
    expected = run(model, others)
    assert_close(expected, run(after, others), TOLERANCE)
    with pytest.raises(AssertionError):
        assert_close(expected, run(trimmed, others), 1e-2)
    return after


def conv_net(tail: Callable[[Net, str], str], kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    net = Net(kind=kind)
    hidden = net.relu(net.conv(net.input(["N", 3, 6, 6]), 6, 3))
    return net.build(tail(net, hidden))


def unpadded(net: Net, data: str, channels: int, kernel: int = 3, group: int = 1, bias: str = "", **given: int) -> str:
    """Add a convolution without padding."""
    batch, inputs, height, width = net.shapes[data]
    weight = net.weight([channels, int(inputs) // group, kernel, kernel])
    names = [data, weight, *([bias] if bias else [])]
    shape = [batch, channels, int(height) - kernel + 1, int(width) - kernel + 1]
    return net.node("Conv", names, shape, kernel_shape=[kernel, kernel], group=group, **given)


TAILS: dict[str, Callable[[Net, str], str]] = {
    "conv": lambda net, data: unpadded(net, data, 4, bias=net.vector(4)),
    "conv without bias": lambda net, data: unpadded(net, data, 4),
    "conv 1x1": lambda net, data: net.conv(data, 4, 1),
    "conv behind a pooling": lambda net, data: unpadded(net, net.pool(data), 4, 2, bias=net.vector(4)),
    "gemm": lambda net, data: net.gemm(net.flatten(net.pool(data)), 4),
    "gemm not transposed": lambda net, data: net.gemm(net.flatten(data), 4, transposed=False),
    "gemm without bias": lambda net, data: net.gemm(net.flatten(data), 4, bias=False),
    "gemm alpha beta": lambda net, data: net.gemm(net.flatten(data), 4, alpha=0.5, beta=2.0),
    "gemm alpha without bias": lambda net, data: net.gemm(net.flatten(data), 4, bias=False, alpha=0.25),
    "gemm alpha, beta 0": lambda net, data: net.gemm(net.flatten(data), 4, alpha=0.25, beta=0.0),
    "matmul add": lambda net, data: net.linear(net.flatten(data), 4),
    "matmul": lambda net, data: net.linear(net.flatten(data), 4, bias=False),
    "matmul on the last axis": lambda net, data: net.linear(net.transpose(data, [0, 2, 3, 1]), 4),
    "concat": lambda net, data: net.conv(net.concat(data, net.node("Sigmoid", [data])), 4, 1),
    "conv, then dense": lambda net, data: net.gemm(net.flatten(net.relu(net.conv(data, 5, 1))), 3),
}


@pytest.mark.parametrize("name", TAILS)
def test_removal_of_constant_units_is_exact(name: str) -> None:
    check_exact(conv_net(TAILS[name]), "w_0", [1, 4])


def test_half_precision_is_repaired_within_its_rounding() -> None:
    model = constant_units(conv_net(TAILS["conv"], TensorProto.FLOAT16), {"w_0": [1, 4]})
    trimmed, after = repaired(model, "w_0", [1, 4], feeds(model, 1, 8))
    others = feeds(model, 2, 5)
    assert_close(run(model, others), run(after, others), 2e-3)
    with pytest.raises(AssertionError):
        assert_close(run(model, others), run(trimmed, others), 2e-2)


def test_a_bias_is_changed_in_place_and_a_missing_one_made() -> None:
    after = check_exact(conv_net(TAILS["conv"]), "w_0", [2])
    assert [node.op_type for node in after.graph.node] == ["Conv", "Relu", "Conv"]
    assert set(editable(after)) == {"w_0", "b_0", "w_1", "b_1"}
    after = check_exact(conv_net(TAILS["conv without bias"]), "w_0", [2])
    assert [len(node.input) for node in after.graph.node] == [3, 1, 3]
    after = check_exact(conv_net(TAILS["matmul add"]), "w_0", [2])
    assert [node.op_type for node in after.graph.node] == ["Conv", "Relu", "Flatten", "MatMul", "Add"]
    after = check_exact(conv_net(TAILS["matmul"]), "w_0", [2])
    assert [node.op_type for node in after.graph.node] == ["Conv", "Relu", "Flatten", "MatMul", "Add"]
    assert after.graph.output[0].name == "matmul_0"


@pytest.mark.parametrize("ir_version", [3, 8])
def test_new_biases_are_listed_where_the_ir_version_asks_for_it(ir_version: int) -> None:
    net = Net(opset=8, ir_version=ir_version)
    hidden = net.relu(net.conv(net.input(["N", 3, 6, 6]), 6, 3))
    after = check_exact(net.build(unpadded(net, hidden, 4)), "w_0", [1])
    names = {tensor.name for tensor in after.graph.initializer}
    assert len(names & {value.name for value in after.graph.input}) == (len(names) if ir_version < 4 else 0)


def test_a_shared_bias_is_not_corrupted() -> None:
    net = Net()
    data = net.input(["N", 3, 6, 6])
    bias = net.vector(6)
    hidden = net.relu(net.node("Conv", [data, net.weight([6, 3, 1, 1]), bias], ["N", 6, 6, 6], kernel_shape=[1, 1]))
    shared = net.vector(4, "shared")
    first, second = (unpadded(net, source, 4, 1, bias=shared) for source in (hidden, data))
    model = net.build(first, second)
    before = editable(model)["shared_0"]
    after = check_exact(model, "w_0", [1, 4])
    assert editable(after)["shared_0"].tobytes() == before.tobytes()
    inputs = feeds(model, 4, 5)
    assert run(after, inputs)[second].tobytes() == run(model, inputs)[second].tobytes()


def test_a_bias_that_is_a_graph_output_is_not_corrupted() -> None:
    net = Net()
    hidden = net.relu(net.conv(net.input(["N", 3, 6, 6]), 6, 1))
    bias = net.vector(4)
    check_exact(net.build(unpadded(net, hidden, 4, 1, bias=bias), net.node("Identity", [bias])), "w_0", [1])


@pytest.mark.parametrize("bias", [True, False])
def test_a_grouped_convolution_gets_each_group_its_own(bias: bool) -> None:
    net = Net()
    hidden = net.relu(net.conv(net.input(["N", 3, 6, 6]), 6, 3))
    names = {"bias": net.vector(4)} if bias else {}
    grouped = unpadded(net, hidden, 4, group=2, **names)  # type: ignore[arg-type]
    check_exact(net.build(net.conv(net.relu(grouped), 2, 1)), "w_0", [1, 3])


def test_consumers_that_lose_channels_themselves_are_repaired_where_they_stay() -> None:
    net = Net()
    hidden = net.relu(net.conv(net.input(["N", 3, 6, 6]), 6, 3))
    middle = net.relu(unpadded(net, hidden, 5, bias=net.vector(5)))
    model = constant_units(net.build(unpadded(net, middle, 2, bias=net.vector(2))), {"w_0": [1], "w_1": [0, 3]})
    coupling = couple(Graph(canonicalize(model)))
    inputs = feeds(model, 1, 8)
    statistics = calibrate(coupling.graph, probes_for(coupling), open_source(inputs, input_specs(model)), threads=1)
    first, second = units_on(coupling, "w_0", 0), units_on(coupling, "w_1", 0)
    removed = removal(coupling, [first[1], second[0], second[3]])
    trimmed, _ = remove(coupling, removed)
    deltas = compensate.plan(coupling, removed, statistics)
    assert sorted(len(delta) for delta in deltas.values()) == [2, 3]
    compensate.apply(trimmed, deltas)
    others = feeds(model, 2, 5)
    assert_close(run(model, others), run(trimmed, others), TOLERANCE)


def test_both_consumers_of_a_residual_stage_are_repaired() -> None:
    net = Net()
    data = net.input(["N", 3, 4, 4])
    stem = net.relu(net.conv(data, 6, 1))
    joined = net.relu(net.add(stem, net.conv(net.relu(net.conv(stem, 4, 1)), 6, 1)))
    model = constant_units(net.build(net.conv(joined, 3, 1)), {"w_0": [2], "w_2": [2]})
    _, after = repaired(model, "w_0", [2], feeds(model, 1, 8))
    others = feeds(model, 2, 5)
    assert_close(run(model, others), run(after, others), TOLERANCE)


def test_an_add_of_activations_behind_a_product_is_not_taken_for_a_bias() -> None:
    net = Net()
    data = net.input(["N", 4])
    hidden = net.relu(net.gemm(data, 6))
    product = net.linear(hidden, 4, bias=False)
    check_exact(net.build(net.add(product, data)), "w_0", [1, 2])
    check_exact(net.build(net.add(data, product)), "w_0", [1, 2])


def test_a_product_that_others_read_too_keeps_the_repair_for_all() -> None:
    net = Net()
    hidden = net.relu(net.gemm(net.input(["N", 4]), 6))
    product = net.linear(hidden, 4, bias=False)
    check_exact(net.build(net.add(product, net.vector(4)), net.node("Tanh", [product])), "w_0", [1, 2])
    check_exact(net.build(product), "w_0", [1, 2])


@pytest.mark.parametrize("addend", [(5, 1), (5, 3), (1, 3), (1, 1, 3), (1,)])
def test_an_addend_for_each_row_is_not_taken_for_a_bias(addend: tuple[int, ...]) -> None:
    net = Net()
    tokens = net.input(["N", 5, 4])
    hidden = net.relu(net.linear(tokens, 6))
    rows = net.initializer(net.random.normal(size=addend), "rows")
    model = net.build(net.add(net.linear(hidden, 3, bias=False), rows))
    arrays = editable(model)
    arrays["w_0"][:, [1, 4]] = 0
    arrays["b_0"][[1, 4]] = 0.7
    model = replaced(model, **arrays)
    coupling = couple(Graph(canonicalize(model)))
    inputs = feeds(model, 1, 8)
    statistics = calibrate(coupling.graph, probes_for(coupling), open_source(inputs, input_specs(model)), threads=1)
    units = units_on(coupling, "w_0", 1)
    removed = removal(coupling, [units[1], units[4]])
    trimmed, _ = remove(coupling, removed)
    compensate.apply(trimmed, compensate.plan(coupling, removed, statistics))
    others = feeds(model, 2, 5)
    assert_close(run(model, others), run(trimmed, others), TOLERANCE)


def test_a_batched_weight_gets_no_bias_that_mixes_its_batches() -> None:
    net = Net()
    data = net.input(["N", 2, 3, 4])
    hidden = net.relu(net.linear(data, 6))  # [N, 2, 3, 6]
    batched = net.initializer(net.random.normal(size=(2, 6, 3)), "batched")
    model = net.build(net.node("MatMul", [hidden, batched], ["N", 2, 3, 3]))
    arrays = editable(model)
    arrays["w_0"][:, [1, 4]] = 0
    arrays["b_0"][[1, 4]] = 0.7
    model = replaced(model, **arrays)
    coupling = couple(Graph(canonicalize(model)))
    inputs = feeds(model, 1, 8)
    statistics = calibrate(coupling.graph, probes_for(coupling), open_source(inputs, input_specs(model)), threads=1)
    units = units_on(coupling, "w_0", 1)
    removed = removal(coupling, [units[1], units[4]])
    trimmed, _ = remove(coupling, removed)
    before = run(trimmed, inputs)
    deltas = compensate.plan(coupling, removed, statistics)
    compensate.apply(trimmed, deltas)
    expected, after = run(model, inputs), run(trimmed, inputs)
    error = {name: float(np.linalg.norm(expected[name] - got[name])) for got in (after,) for name in got}
    unrepaired = {name: float(np.linalg.norm(expected[name] - before[name])) for name in before}
    assert all(error[name] <= unrepaired[name] for name in error)


def test_the_deltas_are_the_means_times_the_weights() -> None:
    net = Net()
    hidden = net.relu(net.conv(net.input(["N", 3, 6, 6]), 6, 3))
    output = net.conv(hidden, 4, 3)
    model = net.build(output)
    inputs = feeds(model, 1, 8)
    coupling = couple(Graph(canonicalize(model)))
    statistics = calibrate(coupling.graph, probes_for(coupling), open_source(inputs, input_specs(model)), threads=1)
    units = units_on(coupling, "w_0", 0)
    removed = removal(coupling, [units[0], units[5]])
    deltas = compensate.plan(coupling, removed, statistics)
    means: Array = materialise(model, [hidden], inputs)[hidden].astype(np.float64).mean(axis=(0, 2, 3))
    weight = editable(model)["w_1"].astype(np.float64).sum(axis=(2, 3))
    assert list(deltas) == [output]
    assert deltas[output] == pytest.approx(weight[:, [0, 5]] @ means[[0, 5]], rel=1e-5)
    assert compensate.plan(coupling, removal(coupling, []), statistics) == {}
    assert compensate.plan(coupling, removed, {}) == {}
