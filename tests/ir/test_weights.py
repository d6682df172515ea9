"""The weights that read each unit, against a network run one input position at a time."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphprune.ir.coupling.units import Contraction
from graphprune.ir.coupling.walk import couple
from graphprune.ir.graph import Graph
from graphprune.ir.weights import constant_value, contracted_matrix, contracted_norms, produced_norms
from tests.nets import Net
from tests.oracles import coupled, run, values


def second(model: onnx.ModelProto) -> tuple[Graph, Contraction]:
    """Return the graph and the contraction of the last weight."""
    coupling = coupled(model)
    return coupling.graph, coupling.contractions[-1]


@pytest.mark.parametrize("group", [1, 2, 4])
def test_a_convolution_s_matrix_is_its_response_to_constant_channels(group: int) -> None:
    net = Net()
    data = net.input([1, 8, 3, 3])
    weight = net.weight([12, 8 // group, 3, 3])
    made = net.node("Conv", [data, weight], [1, 12, 1, 1], group=group)
    model = net.build(made)
    graph, contraction = second(model)
    matrix = contracted_matrix(graph, contraction)
    assert matrix is not None
    for channel in range(8):
        one = np.zeros((1, 8, 3, 3), np.float32)
        one[0, channel] = 1
        np.testing.assert_allclose(run(model, {"x_0": one})[made].ravel(), matrix[channel], rtol=1e-5, atol=1e-6)
    assert contracted_norms(graph, contraction).shape == (8,)


@pytest.mark.parametrize("group", [1, 2])
def test_norms_count_every_weight_that_reads_a_channel(group: int) -> None:
    net = Net()
    weight = net.weight([4, 4 // group, 2, 2])
    model = net.build(net.node("Conv", [net.input([1, 4, 2, 2]), weight], [1, 4, 1, 1], group=group))
    graph, contraction = second(model)
    array = values(model)[weight].astype(np.float64)
    expected = []
    for channel in range(4):
        part, offset = divmod(channel, 4 // group)
        rows = array[part * 4 // group : (part + 1) * 4 // group]
        expected.append((rows[:, offset] ** 2).sum())
    np.testing.assert_allclose(contracted_norms(graph, contraction), expected, rtol=1e-12)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_gemm_s_matrix_is_its_weight(transposed: bool) -> None:
    net = Net()
    model = net.build(net.gemm(net.input(["N", 5]), 3, transposed=transposed))
    matrix = contracted_matrix(*second(model))
    array = values(model)["w_0"]
    np.testing.assert_array_equal(matrix, array.T if transposed else array)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_on_the_left(transposed: bool) -> None:
    net = Net()
    weight = net.weight([4, 6] if transposed else [6, 4])
    model = net.build(net.node("Gemm", [weight, net.input([4, 3])], [6, 3], transA=int(transposed)))
    graph, contraction = second(model)
    array = values(model)[weight].astype(np.float64)
    matrix = array if transposed else array.T
    np.testing.assert_array_equal(contracted_matrix(graph, contraction), matrix)
    np.testing.assert_allclose(contracted_norms(graph, contraction), (matrix**2).sum(axis=1), rtol=1e-12)


@pytest.mark.parametrize("op", ["Gemm", "com.microsoft.FusedGemm", "com.microsoft.FusedMatMul"])
def test_a_weight_counts_with_what_it_is_scaled_by(op: str) -> None:
    net = Net()
    net.imports["com.microsoft"] = 1
    domain, _, name = op.rpartition(".")
    names = [net.input([2, 5]), net.weight([3, 5])]
    model = net.build(net.node(name, names, [2, 3], domain=domain, transB=1, alpha=0.5))
    graph, contraction = second(model)
    expected = values(model)["w_0"].astype(np.float64).T / 2
    np.testing.assert_array_equal(contracted_matrix(graph, contraction), expected)
    np.testing.assert_allclose(contracted_norms(graph, contraction), (expected**2).sum(axis=1), rtol=1e-12)


def test_an_einsum_s_matrix_is_its_weight() -> None:
    net = Net()
    made = net.node("Einsum", [net.weight([3, 5]), net.input([2, 5])], [2, 3], equation="oi,bi->bo")
    model = net.build(made)
    np.testing.assert_array_equal(contracted_matrix(*second(model)), values(model)["w_0"].T)


def test_computed_weights_are_computed() -> None:
    net = Net()
    weight, scale = net.weight([5, 3]), net.vector(3, "scale", 0.5, 1.5)
    turned = net.transpose(net.add(weight, scale, op="Mul"), [1, 0])
    model = net.build(net.node("MatMul", [net.input(["N", 3]), turned], ["N", 5]))
    graph, contraction = second(model)
    expected = (values(model)[weight] * values(model)[scale]).T
    for found in (contracted_matrix(graph, contraction), constant_value(graph, turned)):
        assert found is not None
        np.testing.assert_allclose(found.astype(np.float64), expected, rtol=1e-6)
    assert constant_value(graph, "x_0") is None


def test_two_activations_have_no_matrix() -> None:
    net = Net()
    left, right = net.linear(net.input([2, 3]), 4), net.linear(net.input([5, 3]), 4)
    model = net.build(net.node("MatMul", [left, net.transpose(right, [1, 0])], [2, 5]))
    graph, contraction = second(model)
    assert contracted_matrix(graph, contraction) is None
    assert contracted_norms(graph, contraction).tolist() == [1.0] * 4


def computed_weight(domain: str, *functions: onnx.FunctionProto) -> onnx.ModelProto:
    """A product with a weight that an operator of another domain computes."""
    net = Net()
    net.imports[domain] = 1
    made = net.node("Twice", [net.weight([3, 4])], name="twice", domain=domain)
    graph = helper.make_graph(
        [*net.nodes, helper.make_node("MatMul", ["x", made], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        net.initializers,
        value_info=[helper.make_tensor_value_info(made, TensorProto.FLOAT, [3, 4])],
    )
    imports = [helper.make_opsetid(name, version) for name, version in net.imports.items()]
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=8)


def test_a_weight_that_a_local_function_computes_is_computed() -> None:
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    twice = helper.make_function("my", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    model = computed_weight("my", twice)
    onnx.checker.check_model(model)
    found = constant_value(Graph(model), "twice_0")
    assert found is not None
    np.testing.assert_array_equal(found, 2 * values(model)["w_0"])


def test_a_weight_that_an_unknown_operator_computes_is_not_known() -> None:
    coupling = couple(Graph(computed_weight("my")))
    assert constant_value(coupling.graph, "twice_0") is None
    (contraction,) = coupling.contractions
    assert contracted_matrix(coupling.graph, contraction) is None
    assert produced_norms(coupling.graph, contraction) is None
    assert contracted_norms(coupling.graph, contraction).tolist() == [1.0] * 3
