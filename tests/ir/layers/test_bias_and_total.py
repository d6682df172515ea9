"""What a layer's bias is, and what its output adds up to."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graphprune.ir.graph import Graph
from graphprune.ir.layers.layer import Layer, find_layers
from tests.nets import Extent, Net

SHAPE: list[Extent] = ["N", 5, 4]


def product(net: Net, rows: int = 5) -> str:
    """MatMul of [N, rows, 6] to [N, rows, 4]."""
    return net.node("MatMul", [net.input(["N", rows, 6]), net.weight([6, 4])], ["N", rows, 4])


def first(net: Net, *outputs: str) -> Layer:
    return find_layers(Graph(net.build(*outputs)))[0]


# -- biases ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shape", [(4,), (1, 4), (1, 1, 4)])
def test_a_constant_added_to_a_product(shape: tuple[int, ...], turned: bool) -> None:
    net = Net()
    made, bias = product(net), net.initializer(net.random.normal(size=shape), "b")
    found = first(net, net.node("Add", [bias, made] if turned else [made, bias], SHAPE))
    assert (found.bias, found.total) == ("b", "add_0")


@pytest.mark.parametrize("shape", [(), (1,), (5, 1), (5, 4), (1, 5, 4)])
def test_a_constant_that_has_no_value_for_every_channel(shape: tuple[int, ...]) -> None:
    net = Net()
    made, constant = product(net), net.initializer(net.random.normal(size=shape), "b")
    found = first(net, net.node("Add", [made, constant], SHAPE))
    assert (found.bias, found.total) == ("", "add_0")


@pytest.mark.parametrize("shape", [(1, 1, 1, 4), (3, 1, 5, 4)])
def test_a_constant_that_broadens_the_product(shape: tuple[int, ...]) -> None:
    net = Net()
    made, constant = product(net), net.initializer(net.random.normal(size=shape), "b")
    found = first(net, net.node("Add", [made, constant], [shape[0], "N", 5, 4]))
    assert (found.bias, found.total) == ("", made)


def test_a_constant_as_wide_as_the_product_is_high() -> None:
    net = Net()
    made = product(net, rows=4)
    found = first(net, net.node("Add", [made, net.initializer(np.ones((4, 1)), "b")], ["N", 4, 4]))
    assert found.bias == ""


def test_a_bias_that_is_an_output_or_read_twice() -> None:
    net = Net()
    made, bias = product(net), net.vector(4)
    net.output(bias)
    assert first(net, net.add(made, bias)).bias == ""
    net = Net()
    made, bias = product(net), net.vector(4)
    assert first(net, net.add(net.add(made, bias), bias)).bias == ""
    net = Net()
    data, weight, bias = net.input(["N", 3, 8, 8]), net.weight([4, 3, 1, 1]), net.vector(4)
    made = net.node("Conv", [data, weight, bias], ["N", 4, 8, 8])
    again = net.node("Conv", [made, net.weight([4, 4, 1, 1]), bias], ["N", 4, 8, 8])
    assert first(net, again).bias == ""


def test_a_product_that_is_an_output_or_read_twice_has_no_bias() -> None:
    net = Net()
    made = product(net)
    net.output(made)
    assert first(net, net.add(made, net.vector(4))).bias == ""
    net = Net()
    made = product(net)
    assert first(net, net.add(net.relu(made), net.add(made, net.vector(4)))).bias == ""


def test_what_is_added_and_no_constant() -> None:
    net = Net()
    made = product(net)
    found = first(net, net.add(made, net.input(SHAPE)))
    assert (found.bias, found.total) == ("", "add_0")
    net = Net()
    made = product(net)
    found = first(net, net.add(made, made))
    assert (found.bias, found.total) == ("", made)


@pytest.mark.parametrize(
    ("shape", "beta", "found"),
    [
        ((4,), 1.0, True),
        ((1, 4), 0.5, True),
        ((4,), 0.0, False),
        ((1,), 1.0, False),
        ((), 1.0, False),
        ((4, 1), 1.0, False),
        ((4, 4), 1.0, False),
    ],
)
def test_biases_of_gemm(shape: tuple[int, ...], beta: float, found: bool) -> None:
    for turned in (0, 1):
        net = Net()
        bias = net.initializer(net.random.normal(size=shape), "b")
        weight = net.weight([4, 6] if turned else [6, 4])
        made = net.node("Gemm", [net.input([4, 6]), weight, bias], [4, 4], transB=turned, beta=beta)
        assert first(net, made).bias == ("b" if found else "")


def test_a_gemm_of_one_channel() -> None:
    net = Net()
    assert first(net, net.gemm(net.input(["N", 6]), 1)).bias == "b_0"


def test_layers_without_bias() -> None:
    net = Net()
    assert first(net, net.conv(net.input(["N", 3, 8, 8]), 4, bias=False)).bias == ""
    net = Net()
    data, weight = net.input(["N", 3, 8, 8]), net.weight([4, 3, 1, 1])
    bias = net.node("Neg", [net.vector(4)])  # computed
    assert first(net, net.node("Conv", [data, weight, bias], ["N", 4, 8, 8])).bias == ""


# -- sums --------------------------------------------------------------------------------------------------------


def test_the_end_of_a_residual_branch() -> None:
    net = Net()
    stem = net.relu(net.conv(net.input(["N", 3, 8, 8]), 4, 3))
    inner = net.relu(net.conv(stem, 4, 3))
    summed = net.add(net.conv(inner, 4, 3), stem)
    found = find_layers(Graph(net.build(net.conv(net.relu(summed), 2))))
    assert [layer.total for layer in found] == ["conv_0", "conv_1", summed, "conv_3"]


def test_a_shortcut_with_a_layer_of_its_own_adds_up_to_the_same() -> None:
    net = Net()
    data = net.input(["N", 3, 8, 8])
    summed = net.add(net.conv(data, 4, 1), net.conv(net.relu(net.conv(data, 4, 3)), 4, 3))
    found = find_layers(Graph(net.build(net.relu(summed))))
    assert [layer.total for layer in found] == [summed, "conv_1", summed]


def test_a_transformer_block_goes_through_bias_and_residual() -> None:
    net = Net()
    data = net.input(["N", "T", 6])
    hidden = net.relu(net.linear(data, 8))
    summed = net.add(net.linear(hidden, 6), data)
    up, down = find_layers(Graph(net.build(net.relu(summed))))
    assert (up.bias, up.total) == ("b_0", "add_0")
    assert (down.bias, down.total) == ("b_1", summed)


def test_a_sum_that_is_an_output_is_the_end() -> None:
    net = Net()
    data = net.input(SHAPE)
    one = net.add(product(net), data)
    found = first(net, one, net.add(one, data))
    assert found.total == one


@pytest.mark.parametrize("other", [["N", 1, 4], [1, 5, 4], [4], ["N", 5, 1]])
def test_what_is_broadcast_to_a_product_may_be_added(other: list[Extent]) -> None:
    net = Net()
    made = product(net)
    assert first(net, net.node("Add", [net.input(other), made], SHAPE)).total == "add_0"


@pytest.mark.parametrize("other", [["M", 5, 4], [7, 5, 4], [3, 1, 5, 4]])
def test_an_addition_that_may_broaden_the_product_is_the_end(other: list[Extent]) -> None:
    net = Net()
    made = product(net)
    shape = [*other[:-3], "K", 5, 4]
    assert first(net, net.node("Add", [made, net.input(other)], shape)).total == made


def test_a_product_of_one_row_may_be_broadened() -> None:
    net = Net()
    made = product(net, rows=1)
    assert first(net, net.node("Add", [made, net.input(SHAPE)], SHAPE)).total == made


@pytest.mark.parametrize("extent", [None, -1])
def test_extents_without_a_name_may_differ(extent: int | None) -> None:
    net = Net()
    made = product(net)
    model = net.build(net.relu(net.add(made, net.input(SHAPE))))
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].Clear()
        if extent is not None:  # as some exporters write it
            value.type.tensor_type.shape.dim[0].dim_value = extent
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    assert find_layers(Graph(model))[0].total == made
