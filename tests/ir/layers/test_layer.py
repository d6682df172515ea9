"""Which nodes are layers, what their biases are, and what their outputs add up to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphprune.ir.graph import Graph
from graphprune.ir.layers.layer import Layer, find_layers, kernel_of
from tests.nets import Extent, Net


def layers(model: onnx.ModelProto) -> list[Layer]:
    return find_layers(Graph(model))


def only(model: onnx.ModelProto) -> Layer:
    (layer,) = layers(model)
    return layer


def matmul(net: Net, shape: Sequence[Extent] = ("N", 5, 6), units: int = 4) -> str:
    weight = net.weight([int(shape[-1]), units])
    return net.node("MatMul", [net.input(shape), weight], [*shape[:-1], units])


# -- layers ------------------------------------------------------------------------------------------------------


def test_layers_come_in_the_order_of_computation() -> None:
    net = Net()
    first = net.relu(net.conv(net.input(["N", 3, 8, 8]), 4, 3))
    turned = net.node("ConvTranspose", [first, net.weight([4, 2, 3, 3])], ["N", 2, 10, 10])
    last = net.linear(net.gemm(net.flatten(turned), 5), 2)
    found = layers(net.build(last))
    assert [layer.node.op for layer in found] == ["Conv", "ConvTranspose", "Gemm", "MatMul"]
    assert found[0].data == "x_0"
    assert found[0].output == "conv_0"
    assert [layer.weight for layer in found] == ["w_0", "w_1", "w_2", "w_3"]


def test_the_matrix_is_that_of_the_weight_stored() -> None:
    net = Net(kind=TensorProto.FLOAT16)
    model = net.build(net.conv(net.input(["N", 4, 8, 8]), 6, 3, group=2))
    matrix = only(model).matrix(model)
    assert matrix.dtype == np.float64
    weight = net.array("w_0").astype(np.float64)
    np.testing.assert_array_equal(matrix, weight.reshape(2, 3, 18).transpose(0, 2, 1))
    assert kernel_of(weight.shape) == 9
    assert kernel_of((4, 6)) == 1


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_weights_of_every_float_type_make_layers(kind: int) -> None:
    net = Net(kind=kind)
    found = only(net.build(net.linear(net.input(["N", 6]), 4)))
    assert found.bias == "b_0"


def shared_weight(net: Net) -> str:
    data = net.input(["N", 6])
    weight = net.weight([6, 6])
    return net.node("MatMul", [net.relu(net.node("MatMul", [data, weight], ["N", 6])), weight], ["N", 6])


def weight_that_is_an_output(net: Net) -> str:
    made = matmul(net)
    net.output("w_0")
    return made


def computed_weight(net: Net) -> str:
    weight = net.node("Mul", [net.weight([6, 4]), net.vector(4)], [6, 4])
    return net.node("MatMul", [net.input(["N", 6]), weight], ["N", 4])


def weight_in_front(net: Net) -> str:
    return net.node("MatMul", [net.weight([4, 6]), net.input([6, 3])], [4, 3])


def stacked_weights(net: Net) -> str:
    return net.node("MatMul", [net.input([2, 5, 6]), net.weight([2, 6, 4])], [2, 5, 4])


def product_of_activations(net: Net) -> str:
    return net.node("MatMul", [net.input([2, 5, 6]), net.input([2, 6, 4])], [2, 5, 4])


def vector_times_matrix(net: Net) -> str:
    return net.node("MatMul", [net.input([6]), net.weight([6, 4])], [4])


def constant_data(net: Net) -> str:
    made = net.node("MatMul", [net.weight([3, 6]), net.weight([6, 4])], [3, 4])
    return net.add(net.input([3, 4]), made)


def turned_data(net: Net) -> str:
    return net.node("Gemm", [net.input([6, 3]), net.weight([6, 4])], [3, 4], transA=1)


def product_that_counts_nothing(net: Net) -> str:
    return net.gemm(net.input(["N", 6]), 4, alpha=0.0)


def padding_to_fit(net: Net) -> str:
    data, weight = net.input([1, 2, 4, 4]), net.weight([2, 3, 3, 3])
    return net.node("ConvTranspose", [data, weight], [1, 3, 8, 8], auto_pad="SAME_UPPER", strides=[2, 2])


def output_shape_given(net: Net) -> str:
    data, weight = net.input([1, 2, 4, 4]), net.weight([2, 3, 3, 3])
    return net.node("ConvTranspose", [data, weight], [1, 3, 9, 9], output_shape=[9, 9], strides=[2, 2])


def quantised_weight(net: Net) -> str:
    stored = net.initializer(np.ones((6, 4), np.int8), "q")
    scale = net.initializer(0.1, "scale")
    weight = net.node("DequantizeLinear", [stored, scale], [6, 4], kind=TensorProto.FLOAT)
    return net.node("MatMul", [net.input(["N", 6]), weight], ["N", 4])


def whole_numbers(net: Net) -> str:
    net.kind = TensorProto.INT32
    return net.node("MatMul", [net.input(["N", 6]), net.initializer(np.ones((6, 4), np.int32))], ["N", 4])


def operator_of_another_domain(net: Net) -> str:
    net.imports["com.microsoft"] = 1
    data, weight = net.input([1, 2, 4, 4]), net.weight([3, 2, 1, 1])
    return net.node("FusedConv", [data, weight], [1, 3, 4, 4], domain="com.microsoft", activation="Relu")


NO_LAYERS: list[Callable[[Net], str]] = [
    shared_weight,
    weight_that_is_an_output,
    computed_weight,
    weight_in_front,
    stacked_weights,
    product_of_activations,
    vector_times_matrix,
    constant_data,
    turned_data,
    product_that_counts_nothing,
    padding_to_fit,
    output_shape_given,
    quantised_weight,
    whole_numbers,
    operator_of_another_domain,
]


@pytest.mark.parametrize("make", NO_LAYERS, ids=lambda make: make.__name__)
def test_no_layers(make: Callable[[Net], str]) -> None:
    net = Net()
    assert layers(net.build(make(net))) == []


def branched(op: str, inputs: list[str]) -> onnx.ModelProto:
    """MatMul and its bias's values, and an If one branch of which is a node."""
    net = Net()
    made = matmul(net, ("N", 6))
    net.vector(4)
    graphs = {}
    for name, node in {"then_branch": (op, inputs), "else_branch": ("Neg", [made])}.items():
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4])
        graphs[name] = helper.make_graph([helper.make_node(*node, [name])], name, [], [value])
    condition = net.initializer(np.array(True), "condition")
    return net.build(net.node("If", [condition], ["N", 4], kind=TensorProto.FLOAT, **graphs))


def test_nodes_in_bodies_are_no_layers_and_share_what_they_read() -> None:
    assert layers(branched("MatMul", ["x_0", "w_0"])) == []
    assert only(branched("Relu", ["matmul_0"])).total == "matmul_0"


def test_an_addition_in_a_body_is_neither_bias_nor_sum() -> None:
    model = branched("Add", ["matmul_0", "b_0"])
    branch = model.graph.node[1].attribute
    for attribute in branch:  # nothing else reads the product
        attribute.g.node[0].input[0] = "matmul_0" if attribute.name == "then_branch" else "x_0"
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((6, 6), np.float32), "w_0"))
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.ones(6, np.float32), "b_0"))
    for value in (*model.graph.output, *(attribute.g.output[0] for attribute in branch)):
        value.type.tensor_type.shape.dim[1].dim_value = 6
    onnx.checker.check_model(model, full_check=True)
    found = only(model)
    assert (found.bias, found.total) == ("", "matmul_0")


def test_data_of_unknown_rank() -> None:
    net = Net()
    model = net.build(net.node("MatMul", [net.input(["N", 6]), net.weight([6, 4])], ["N", 4]))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    assert layers(model) == []


# -- recurrent operators -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_recurrent_layers(first: bool, biased: bool) -> None:
    net = Net()
    names = [net.input([5, "N", 3]), net.weight([1, 16, 3]), net.weight([1, 16, 4])]
    names += [net.initializer(np.ones((1, 32)), "both")] if biased else []
    steps, state = net.nodes_of("LSTM", names, [[5, 1, "N", 4], [1, "N", 4]], hidden_size=4)
    if not first:
        net.nodes[-1].output[0] = ""
    found = only(net.build(state))
    assert found.output == (steps if first else state)
    assert found.total == found.output
    assert found.bias == ("both" if biased else "")
