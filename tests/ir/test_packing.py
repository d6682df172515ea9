"""Packed products against the dense ones with the same zeros, and what is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from graphprune.ir.graph import Graph
from graphprune.ir.packing import Packed, blocks_name, find_sites, inputs_name, packed, with_packed
from graphprune.ir.tensors import array, replace_values
from graphprune.passes.patterns import shared_inputs
from tests.nets import Net
from tests.oracles import assert_close, feeds, run


def matmul(net: Net, rank: int, inputs: int, outputs: int) -> str:
    shape = ["N", "S", 3][: rank - 1]
    return net.linear(net.input([*shape, inputs]), outputs)


def gemm(net: Net, inputs: int, outputs: int, **options: Any) -> str:
    return net.gemm(net.input(["N", inputs]), outputs, **options)


def conv(net: Net, inputs: int, outputs: int, *, stride: int = 1, rank: int = 2) -> str:
    data = net.input(["N", inputs, *["H", "W", 2][:rank]])
    names = [data, net.weight([outputs, inputs, *[1] * rank]), net.vector(outputs)]
    return net.node("Conv", names, ["N", outputs, *["?a", "?b", 2][:rank]], strides=[stride] * rank)


PRODUCTS: dict[str, Callable[[Net, int, int], str]] = {
    "matmul of rows": lambda net, inputs, outputs: matmul(net, 2, inputs, outputs),
    "matmul of sequences": lambda net, inputs, outputs: matmul(net, 3, inputs, outputs),
    "matmul of rank 4": lambda net, inputs, outputs: matmul(net, 4, inputs, outputs),
    "gemm": gemm,
    "gemm, not transposed": lambda net, inputs, outputs: gemm(net, inputs, outputs, transposed=False),
    "gemm without bias": lambda net, inputs, outputs: gemm(net, inputs, outputs, bias=False),
    "conv": conv,
    "conv in steps": lambda net, inputs, outputs: conv(net, inputs, outputs, stride=2),
    "conv of sequences": lambda net, inputs, outputs: conv(net, inputs, outputs, rank=1),
}


def with_zeros(model: onnx.ModelProto, groups: int, count: int) -> onnx.ModelProto:
    """Zero all but some inputs of every group of columns of the only site's weight."""
    graph = Graph(model)
    (site,) = find_sites(graph).values()
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == site.weight)
    values = array(tensor)
    keeps = site.stored(shared_inputs(count, groups)(np.abs(site.matrix(values))[None])[0], values.shape)
    replace_values(tensor, np.where(keeps, values, 0).astype(values.dtype))
    return model


def pack_only(model: onnx.ModelProto, groups: int) -> tuple[onnx.ModelProto, Packed]:
    graph = Graph(model)
    (site,) = find_sites(graph).values()
    weight = packed(site.matrix(array(graph.initializers[site.weight])), groups)
    return with_packed(graph, {site.weight: weight}), weight


@settings(max_examples=15)
@given(data=st.data())
@pytest.mark.parametrize("kind", PRODUCTS)
def test_a_packed_product_equals_the_dense_one_with_its_zeros(kind: str, data: st.DataObject) -> None:
    inputs, outputs = data.draw(st.integers(1, 24)), data.draw(st.integers(1, 24))
    net = Net(seed=data.draw(st.integers(0, 9)), opset=data.draw(st.sampled_from([8, 9, 13, 17])))
    model = net.build(PRODUCTS[kind](net, inputs, outputs))
    (site,) = find_sites(Graph(model)).values()
    assert (site.inputs, site.outputs) == (inputs, outputs)
    groups = data.draw(st.sampled_from([count for count in range(1, outputs + 1) if site.fits(count)]))
    count = data.draw(st.integers(1, inputs))
    dense = with_zeros(model, groups, count)
    made, weight = pack_only(dense, groups)
    assert weight.inputs.shape == (groups, count)
    assert weight.blocks.shape == (groups, count, -(-outputs // groups))
    onnx.checker.check_model(made, full_check=True)
    assert site.weight not in {tensor.name for tensor in made.graph.initializer}
    given_inputs = feeds(dense, 3, data.draw(st.integers(1, 5)))
    assert_close(run(dense, given_inputs), run(made, given_inputs))
    assert_close(run(dense, given_inputs), run(made, given_inputs, optimised=False))


def test_no_entry_is_lost_where_groups_read_different_numbers_of_inputs() -> None:
    matrix = np.zeros((5, 4), np.float32)
    matrix[[0, 2, 4], [0, 1, 1]] = 1, 2, 3
    matrix[3, 2] = np.nan
    weight = packed(matrix, 2)
    assert weight.inputs.shape == (2, 3)
    assert weight.inputs[0].tolist() == [0, 2, 4]
    assert 3 in weight.inputs[1]
    again = np.zeros_like(matrix)
    for group in range(2):
        again[weight.inputs[group], 2 * group : 2 * group + 2] = weight.blocks[group]
    assert np.array_equal(matrix, again, equal_nan=True)


def test_a_weight_of_zeros_alone_is_packed_as_one_input() -> None:
    assert packed(np.zeros((5, 4), np.float32), 2).inputs.shape == (2, 1)


def test_the_constants_are_named_as_promised_and_names_that_are_taken_are_avoided() -> None:
    net = Net()
    data = net.input(["N", 6])
    model = net.build(net.relu(net.gemm(data, 4)))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "w_0.blocks"))
    graph = Graph(model)
    made, _ = pack_only(model, 2)
    names = {tensor.name for tensor in made.graph.initializer}
    assert {blocks_name(graph, "w_0"), inputs_name(graph, "w_0")} == {"w_0.blocks_", "w_0.inputs"} <= names


def test_an_empty_batch_stays_empty() -> None:
    net = Net()
    model = with_zeros(net.build(gemm(net, 6, 4)), 2, 3)
    made, _ = pack_only(model, 2)
    (result,) = run(made, {model.graph.input[0].name: np.zeros((0, 6), np.float32)}).values()
    assert result.shape == (0, 4)


# -- what is left alone ----------------------------------------------------------------------------------------------


def shared_weight(net: Net) -> str:
    data, weight = net.input(["N", 6]), net.weight([6, 6])
    return net.node("MatMul", [net.node("MatMul", [data, weight], ["N", 6]), weight], ["N", 6])


def constant_product(net: Net) -> str:
    made = net.node("MatMul", [net.weight([3, 6]), net.weight([6, 4])], [3, 4])
    return net.add(net.input([3, 4]), made)


def vector_product(net: Net) -> str:
    return net.node("MatMul", [net.input([6]), net.weight([6, 4])], [4])


def stack_of_matrices(net: Net) -> str:
    return net.node("MatMul", [net.input([2, 3, 6]), net.weight([2, 6, 4])], [2, 3, 4])


def transposed_data(net: Net) -> str:
    return net.node("Gemm", [net.input([6, 3]), net.weight([6, 4])], [3, 4], transA=1)


DECLINED: dict[str, Callable[[Net], str]] = {
    "a weight read twice": shared_weight,
    "a product of constants": constant_product,
    "a vector": vector_product,
    "a stack of matrices": stack_of_matrices,
    "transA": transposed_data,
    "alpha": lambda net: gemm(net, 6, 4, alpha=0.5),
    "beta": lambda net: gemm(net, 6, 4, beta=0.5),
    "a kernel of 3": lambda net: net.conv(net.input(["N", 4, 6, 6]), 4, 3),
    "groups": lambda net: net.conv(net.input(["N", 4, 6, 6]), 4, 1, group=2),
}


@pytest.mark.parametrize("kind", DECLINED)
def test_what_cannot_be_packed_is_left_alone(kind: str) -> None:
    net = Net()
    assert find_sites(Graph(net.build(DECLINED[kind](net)))) == {}


def test_other_element_types_and_old_operator_sets_are_left_alone() -> None:
    net = Net(kind=TensorProto.DOUBLE)
    assert find_sites(Graph(net.build(gemm(net, 6, 4)))) == {}
    net = Net()
    model = net.build(gemm(net, 6, 4))
    assert find_sites(Graph(model))
    model.opset_import[0].version = 6
    assert find_sites(Graph(model)) == {}


def test_a_weight_that_is_an_output_is_left_alone() -> None:
    net = Net()
    made = gemm(net, 6, 4)
    model = net.build(made, "w_0")
    assert find_sites(Graph(model)) == {}
