"""Other matrices and biases written into a model, against what ONNX Runtime then computes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from graphprune.ir.graph import Graph
from graphprune.ir.layers.layer import Layer, find_layers
from graphprune.ir.layers.writing import add_biases, drop_biases, write
from tests.nets import Net
from tests.oracles import assert_close, feeds, run, values


def stored(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def only(model: onnx.ModelProto) -> Layer:
    (layer,) = find_layers(Graph(model))
    return layer


def networks() -> dict[str, tuple[Net, str, int]]:
    """Nets of one layer, their output and the axis of its channels."""
    made = {}
    net = Net()
    made["conv"] = net, net.conv(net.input([2, 4, 6, 6]), 6, 3, group=2), 1
    net = Net()
    names = [net.input([2, 4, 5]), net.weight([4, 3, 3]), net.vector(6)]
    made["transposed"] = net, net.node("ConvTranspose", names, [2, 6, 11], group=2, strides=[2]), 1
    net = Net()
    made["gemm"] = net, net.gemm(net.input([3, 4]), 5, alpha=0.3, beta=0.7), 1
    net = Net()
    made["gemm upright"] = net, net.gemm(net.input([3, 4]), 5, transposed=False, beta=-2.0), 1
    net = Net()
    made["matmul"] = net, net.linear(net.input([2, 3, 4]), 5), 2
    net = Net()
    product = net.linear(net.input([2, 3, 4]), 5, bias=False)
    bias = net.initializer(net.random.normal(size=(1, 1, 5)), "b_0")
    made["matmul with a wide bias"] = net, net.node("Add", [bias, product], [2, 3, 5]), 2
    return made


@pytest.mark.parametrize("name", list(networks()))
def test_a_change_of_matrix_and_bias_changes_the_output_as_it_says(name: str) -> None:
    net, output, axis = networks()[name]
    model = net.build(output)
    layer, inputs, random = only(model), feeds(model), np.random.default_rng(0)
    before = run(model, inputs)[output]
    matrix = layer.matrix(model)
    shift = random.normal(size=(matrix.shape[0], matrix.shape[2]))
    write(layer, stored(model), 2 * matrix, shift)
    shape = [1] * before.ndim
    shape[axis] = -1
    bias = layer.node.attributes.get("beta", 1.0) * net.array(layer.bias).reshape(shape)
    wanted = 2 * (before - bias) + bias + shift.reshape(shape)
    np.testing.assert_allclose(run(model, inputs)[output], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_the_shift_of_a_recurrent_layer_goes_into_the_input_s_bias(op: str, gates: int, direction: str) -> None:
    directions, hidden = 1 + (direction == "bidirectional"), 2
    net = Net()
    names = [net.input([4, 1, 3]), net.weight([directions, gates * hidden, 3])]
    names += [net.weight([directions, gates * hidden, hidden])]
    names += [net.initializer(net.random.normal(size=(directions, 2 * gates * hidden)), "both")]
    steps = net.node(op, names, [4, directions, 1, hidden], hidden_size=hidden, direction=direction)
    model = net.build(steps)
    layer, inputs = only(model), feeds(model)
    before = run(model, inputs)[steps]
    # Data that is larger by 1 throughout gives what a shift of the sum of the weights gives.
    wanted = run(model, {"x_0": inputs["x_0"] + 1})[steps]
    matrix = layer.matrix(model)
    write(layer, stored(model), matrix, matrix.sum(axis=1))
    np.testing.assert_allclose(run(model, inputs)[steps], wanted, rtol=1e-4, atol=1e-6)
    assert np.abs(wanted - before).max() > 1e-2
    np.testing.assert_array_equal(values(model)["both"][:, gates * hidden :], net.array("both")[:, gates * hidden :])


def test_a_layer_without_bias_gains_no_shift() -> None:
    net = Net()
    model = net.build(net.linear(net.input([2, 4]), 5, bias=False))
    layer = only(model)
    write(layer, stored(model), layer.matrix(model) * 0, np.ones((1, 5)))
    assert not run(model, feeds(model))[layer.output].any()


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_element_types_stay(kind: int) -> None:
    net = Net(kind=kind)
    model = net.build(net.gemm(net.input([3, 4]), 6))
    layer, before = only(model), values(model)
    write(layer, stored(model), layer.matrix(model), np.zeros((1, 6)))
    for name, value in values(model).items():
        assert value.dtype == before[name].dtype
        np.testing.assert_array_equal(value.astype(np.float64), before[name].astype(np.float64))
    write(layer, stored(model), layer.matrix(model), np.ones((1, 6)))
    got, wanted = values(model)[layer.bias].astype(np.float64), before[layer.bias].astype(np.float64) + 1
    np.testing.assert_allclose(got, wanted, rtol=1e-2)


def without_biases(ir_version: int | None = None) -> onnx.ModelProto:
    net = Net(ir_version=ir_version)
    made = net.relu(net.conv(net.input([2, 3, 4, 4]), 4, 3, group=1, bias=False))
    made = net.node("ConvTranspose", [made, net.weight([4, 3, 2, 2])], [2, 6, 5, 5], group=2)
    made = net.gemm(net.flatten(net.relu(made)), 5, bias=False)
    return net.build(net.linear(net.gemm(made, 4), 3, bias=False))


@pytest.mark.parametrize("ir_version", [3, 8])
def test_biases_of_zeros_come_and_go(ir_version: int) -> None:
    model = without_biases(ir_version)
    before, text = run(model, feeds(model)), model.SerializeToString(deterministic=True)
    made = add_biases(model)
    onnx.checker.check_model(model, full_check=True)
    assert [values(model)[name].shape for name in made] == [(4,), (6,), (5,)]
    assert all(layer.bias for layer in find_layers(Graph(model)) if layer.node.op != "MatMul")
    assert_close(before, run(model, feeds(model)))
    drop_biases(model, made)
    assert model.SerializeToString(deterministic=True) == text


def test_a_bias_that_was_written_to_stays() -> None:
    model = without_biases(3)
    made = add_biases(model)
    first, second, _, _, _ = find_layers(Graph(model))
    write(first, stored(model), first.matrix(model), np.ones((1, 4)))
    write(second, stored(model), second.matrix(model), np.zeros((2, 3)))
    drop_biases(model, made)
    onnx.checker.check_model(model, full_check=True)
    assert [layer.bias for layer in find_layers(Graph(model))] == [made[0], "", "", "b_0", ""]


def test_a_bias_left_out_by_an_empty_name() -> None:
    model = without_biases()
    model.graph.node[0].input.append("")
    made = add_biases(model)
    assert list(model.graph.node[0].input) == ["x_0", "w_0", made[0]]
    drop_biases(model, made)
    onnx.checker.check_model(model, full_check=True)


def test_a_layer_whose_bias_is_shared_or_counts_nothing_gains_none() -> None:
    net = Net()
    data, bias = net.input([2, 4]), net.vector(4)
    first = net.node("Gemm", [data, net.weight([4, 4]), bias], [2, 4])
    second = net.node("Gemm", [first, net.weight([4, 4]), bias], [2, 4])
    model = net.build(net.gemm(second, 3, beta=0.0))
    assert add_biases(model) == []
    assert [layer.bias for layer in find_layers(Graph(model))] == ["", "", ""]


def test_only_biases_that_cost_no_time_are_made_on_request() -> None:
    net = Net()
    first = net.relu(net.batch_norm(net.conv(net.input([2, 3, 4, 4]), 4, 3, bias=False)))
    model = net.build(net.conv(first, 5, 3, bias=False))
    (made,) = add_biases(model, only_folded=True)
    assert [layer.bias for layer in find_layers(Graph(model))] == [made, ""]
