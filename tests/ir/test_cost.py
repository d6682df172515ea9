"""Weights and MACs, counted by the formula and by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from onnx import TensorProto, helper, numpy_helper

from graphprune.ir.cost import count_macs, count_nonzero, count_weights, macs_by_weight, weight_tensors, weights_left
from graphprune.ir.surgery import remove
from tests.nets import Net
from tests.oracles import coupled, random_removal
from tests.strategies import fractions, graphs, seeds


@settings(max_examples=60)
@given(model=graphs(), fraction=fractions(), seed=seeds())
def test_weights_left_is_what_surgery_leaves(model: onnx.ModelProto, fraction: float | None, seed: int) -> None:
    coupling = coupled(model)
    removed = random_removal(coupling, fraction, seed)
    pruned, _ = remove(coupling, removed)
    assert weights_left(coupling, removed) == count_weights(pruned)
    assert weights_left(coupling, np.zeros_like(removed)) == count_weights(coupling.graph.proto)


def test_weights_are_all_floats_that_an_output_depends_on() -> None:
    net = Net(constants=True)
    data = net.input(["N", 4])
    scale = net.constant(np.ones(6, np.float32), "scale")
    hidden = net.add(net.linear(data, 6), scale, op="Mul")  # 24 + 6 + 6
    made = net.reshape(hidden, [0, 2, 3], ["N", 2, 3])  # integers do not count
    net.linear(data, 50)  # nor does what no output reads
    net.initializer(np.zeros(99), "unused")
    model = net.build(made)
    assert count_weights(model) == 36
    assert sorted(t.name for t, _ in weight_tensors(model) if t.name) == ["b_0", "w_0"]


@pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"])
def test_every_float_type_counts(kind: str) -> None:
    net = Net(kind=TensorProto.DataType.Value(kind))
    model = net.build(net.relu(net.add(net.input(["N", 3]), net.vector(3))))
    assert count_weights(model) == 3


def test_weights_of_subgraphs_count() -> None:
    def branch(name: str) -> onnx.GraphProto:
        own = helper.make_tensor(f"{name}_own", TensorProto.FLOAT, [5], [1.0] * 5)
        nodes = [helper.make_node("Add", ["caught", f"{name}_own"], [name])]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, [5])], [own])

    net = Net()
    flag = net.input([], "flag")
    net.kinds[flag] = TensorProto.BOOL
    net.initializer(np.ones(5), "caught")
    chosen = net.node(
        "If", [flag], [5], kind=TensorProto.FLOAT, then_branch=branch("left"), else_branch=branch("right")
    )
    assert count_weights(net.build(chosen)) == 15


def test_zeros_are_no_weights_of_the_result() -> None:
    net = Net()
    model = net.build(net.gemm(net.input(["N", 3]), 4))
    weight = np.array(numpy_helper.to_array(model.graph.initializer[0]))
    weight[:2] = 0
    weight[2, 0] = -0.0
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w_0"))
    assert count_weights(model) == 16
    assert count_nonzero(model) == int((weight != 0).sum()) + 4


@pytest.mark.parametrize(("group", "stride"), [(1, 1), (2, 1), (4, 2)])
def test_macs_of_a_convolution(group: int, stride: int) -> None:
    net = Net()
    model = net.build(net.conv(net.input(["N", 4, 6, 6]), 8, 3, group=group, stride=stride))
    rows = 6 // stride
    for batch in (1, 3):
        assert count_macs(model, {"x_0": (batch, 4, 6, 6)}) == batch * 8 * rows * rows * (4 // group) * 9


def test_macs_of_a_transposed_convolution() -> None:
    net = Net()
    weight = net.weight([4, 3, 2, 2])
    made = net.node("ConvTranspose", [net.input([1, 4, 5, 5]), weight], [1, 6, 10, 10], group=2, strides=[2, 2])
    assert count_macs(net.build(made), {"x_0": (1, 4, 5, 5)}) == 4 * 25 * 3 * 4


@pytest.mark.parametrize("transposed", [False, True])
def test_macs_of_matrix_products(transposed: bool) -> None:
    net = Net()
    data = net.input(["N", 7])
    assert count_macs(net.build(net.gemm(data, 5, transposed=transposed)), {"x_0": (2, 7)}) == 2 * 7 * 5
    net = Net()
    assert count_macs(net.build(net.linear(net.input(["N", 3, 7]), 5)), {"x_0": (2, 3, 7)}) == 2 * 3 * 7 * 5
    net = Net()
    turned = net.node("Gemm", [net.input([7, 2]), net.weight([7, 5])], [2, 5], transA=1)
    assert count_macs(net.build(turned), {"x_0": (7, 2)}) == 2 * 7 * 5


def test_macs_of_fused_products() -> None:
    net = Net()
    net.imports["com.microsoft"] = 1
    names = [net.input([2, 7, 3]), net.weight([5, 7])]
    turned = net.node("FusedMatMul", names, [2, 3, 5], domain="com.microsoft", transA=1, transB=1)
    assert count_macs(net.build(turned), {"x_0": (2, 7, 3)}) == 2 * 3 * 7 * 5


@pytest.mark.parametrize(
    ("equation", "shapes", "expected"),
    [
        ("bsi,io->bso", [(2, 5, 7), (7, 3)], 2 * 5 * 7 * 3),
        ("...i,io->...o", [(2, 5, 7), (7, 3)], 2 * 5 * 7 * 3),
        ("bi,bj,ko->bo", [(2, 3), (2, 4), (5, 6)], 2 * 3 * 4 + 2 * 5 * 6),  # i and j are summed up at once
        ("bsi->bs", [(2, 5, 7)], 0),
    ],
)
def test_macs_of_an_einsum(equation: str, shapes: list[tuple[int, ...]], expected: int) -> None:
    net = Net()
    names = [net.input(list(shape)) for shape in shapes]
    result = list(np.einsum(equation, *(np.ones(shape) for shape in shapes)).shape)
    model = net.build(net.node("Einsum", names, result, equation=equation))
    assert count_macs(model, dict(zip(names, shapes, strict=True))) == expected


@pytest.mark.parametrize("past", [0, 3])
def test_macs_of_attention_are_those_of_its_two_products(past: int) -> None:
    net = Net(23, ir_version=11)
    names = [net.input([2, 4, 5, 6]), net.input([2, 2, 7, 6]), net.input([2, 2, 7, 3])]
    caches = [net.input([2, 2, past, width]) for width in (6, 3)] if past else []
    made = net.node("Attention", [*names, *([""] if past else []), *caches], [2, 4, 5, 3])
    shapes = {name: tuple(int(extent) for extent in net.shapes[name]) for name in net.inputs}
    assert count_macs(net.build(made), shapes) == 2 * 4 * 5 * (7 + past) * (6 + 3)


def test_macs_of_attention_that_projects_by_itself() -> None:
    net = Net()
    net.imports["com.microsoft"] = 1
    names = [net.input([2, 5, 7]), net.weight([7, 60]), net.vector(60)]
    more = {"num_heads": 4, "qkv_hidden_sizes": [24, 24, 12]}
    made = net.node("Attention", names, [2, 5, 12], domain="com.microsoft", **more)
    products = 2 * 4 * 5 * 5 * (6 + 3)
    assert count_macs(net.build(made), {"x_0": (2, 5, 7)}) == 2 * 5 * 7 * 60 + products


def test_macs_of_unknown_shapes_are_none() -> None:
    net = Net()
    model = net.build(net.conv(net.input(["N", 3, "H", "W"]), 4, 3))
    assert count_macs(model, {}) == 0
    assert count_macs(model, {"x_0": (1, 3, 5, 6)}) == 4 * 30 * 27


def test_macs_fall_with_the_channels() -> None:
    net = Net()
    model = net.build(net.conv(net.relu(net.conv(net.input([1, 3, 4, 4]), 8, 3)), 2))
    coupling = coupled(model)
    removed = np.arange(8) < 6
    pruned, _ = remove(coupling, removed)
    shapes = {"x_0": (1, 3, 4, 4)}
    assert count_macs(model, shapes) == 16 * (8 * 27 + 2 * 8)
    assert count_macs(pruned, shapes) == 16 * (2 * 27 + 2 * 2)


def test_macs_of_a_network_are_shared_out_to_its_weights() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 8, 8]), 12, 3))  # w_0
    data = net.depthwise(data)  # w_1
    model = net.build(net.gemm(net.flatten(net.pool(data)), 4))
    shapes = {"x_0": (2, 3, 8, 8)}
    found = macs_by_weight(model, shapes)
    assert sum(found.values()) == count_macs(model, shapes)
    assert found["w_0"] == 2 * 64 * 12 * 27
    assert found["w_1"] == 2 * 64 * 12 * 9
    assert not {"b_0", "b_1"} & found.keys()


def test_the_weights_of_a_recurrent_operator_share_its_macs_by_size() -> None:
    weight, state = np.ones((1, 48, 16), np.float32), np.ones((1, 48, 12), np.float32)
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=12)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [6, 2, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [6, 1, 2, 12])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(state, "r")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert macs_by_weight(model, {}) == {"w": 12 * 48 * 16, "r": 12 * 48 * 12}
