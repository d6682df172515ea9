"""Rewrites that leave the function of a model as it is, one by one and together."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from onnx import TensorProto, helper, numpy_helper

from graphprune.ir.rewriting import simplify
from graphprune.ir.rewriting.folding import constant_values
from graphprune.passes.canonicalize import canonicalize
from graphprune.passes.fold import fold
from tests.nets import Net
from tests.oracles import TOLERANCE, assert_close, feeds, run, values
from tests.strategies import graphs


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def assert_same_function(before: onnx.ModelProto, after: onnx.ModelProto, tolerance: float = TOLERANCE) -> None:
    onnx.checker.check_model(after, full_check=True)
    inputs = feeds(before)
    assert_close(run(before, inputs), run(after, inputs), tolerance)


@settings(max_examples=60)
@given(model=graphs())
def test_canonical_forms_compute_the_same(model: onnx.ModelProto) -> None:
    before = model.SerializeToString(deterministic=True)
    plain = canonicalize(model)
    assert_same_function(model, plain)
    stored = values(plain)
    for name, value in values(model).items():
        if name in stored:
            assert stored[name].tobytes() == value.tobytes(), name
    # Folding scales weights by up to 1/sqrt(0.5), each rounded once more.
    assert_same_function(model, fold(canonicalize(model)), 4 * TOLERANCE)
    assert model.SerializeToString(deterministic=True) == before
    again = canonicalize(plain)
    assert again.SerializeToString(deterministic=True) == plain.SerializeToString(deterministic=True)


# -- Constant nodes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ({"value": helper.make_tensor("t", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])}, np.array([1, 2, 3], np.float32)),
        ({"value_float": 2.5}, np.array(2.5, np.float32)),
        ({"value_floats": [1.0, 2.0, 4.0]}, np.array([1, 2, 4], np.float32)),
    ],
)
def test_constant_nodes_become_initializers(attribute: dict[str, Any], expected: np.ndarray) -> None:
    net = Net()
    data = net.input(["N", 3])
    constant = net._made("k", expected.shape)
    net.nodes.append(helper.make_node("Constant", [], [constant], **attribute))
    model = net.build(net.add(data, constant))
    result = canonicalize(model)
    assert operators(result) == {"Add": 1}
    stored = values(result)["k"]
    assert stored.dtype == expected.dtype
    assert stored.tolist() == expected.tolist()
    assert_same_function(model, result)


@pytest.mark.parametrize(("name", "value"), [("value_int", 2), ("value_ints", [0, 2])])
def test_integer_constants_become_initializers(name: str, value: Any) -> None:
    node = helper.make_node("Constant", [], ["k"], **{name: value})
    output = helper.make_tensor_value_info("y", TensorProto.INT64, list(np.shape(value)))
    graph = helper.make_graph([node, helper.make_node("Neg", ["k"], ["y"])], "net", [], [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert simplify.constants_to_initializers(model) == 1
    assert values(model)["k"].tolist() == value
    assert values(model)["k"].dtype == np.int64


def test_a_constant_that_is_an_output_and_is_read_too() -> None:
    net = Net(constants=True)
    data = net.input(["N", 3])
    constant = net.constant(np.array([1.0, 2.0, 3.0], np.float32), "k")
    model = net.build(net.add(data, constant), constant)
    assert_same_function(model, canonicalize(model))


def test_constants_of_strings_stay_nodes() -> None:
    node = helper.make_node("Constant", [], ["y"], value_strings=[b"a", b"b"])
    graph = helper.make_graph([node], "net", [], [helper.make_tensor_value_info("y", TensorProto.STRING, [2])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert operators(canonicalize(model)) == {"Constant": 1}


# -- initializers listed as inputs ---------------------------------------------------------------------------


@pytest.mark.parametrize(("opset", "listed"), [(17, False), (9, False), (8, True)])
def test_initializers_leave_the_inputs_where_the_ir_version_lets_them(opset: int, listed: bool) -> None:
    net = Net(opset, listed=True)
    model = net.build(net.conv(net.input(["N", 3, 4, 4]), 2))
    assert len(model.graph.input) == 3
    result = canonicalize(model)
    assert [value.name for value in result.graph.input] == ["x_0", *(["w_0", "b_0"] if listed else [])]
    assert_same_function(model, result)


# -- folding -------------------------------------------------------------------------------------------------


def test_shape_arithmetic_is_folded_and_weights_are_not() -> None:
    net = Net()
    data = net.input([2, 3, 4, 4])
    hidden = net.conv(data, 4)
    shape = net.node("Shape", [hidden], [4], kind=TensorProto.INT64)
    first = net.node("Gather", [shape, net.initializer(np.array([0]), "zero")], [1], kind=TensorProto.INT64)
    target = net.node("Concat", [first, net.initializer(np.array([-1]), "rest")], [2], kind=TensorProto.INT64, axis=0)
    flat = net.node("Reshape", [hidden, target], [2, 64])
    scaled = net.node("Mul", [net.weight([64, 5], fan_in=64), net.initializer(0.5, "half")])
    model = net.build(net.node("MatMul", [flat, scaled], [2, 5]))
    found = constant_values(model)
    assert found[target].tolist() == [2, -1]
    assert scaled not in found
    result = canonicalize(model)
    assert operators(result) == {"Conv": 1, "Reshape": 1, "Mul": 1, "MatMul": 1}
    assert_same_function(model, result)


def test_known_extents_of_dynamic_shapes_are_folded() -> None:
    net = Net()
    hidden = net.conv(net.input(["N", 3, "H", "W"]), 4)
    shape = net.node("Shape", [hidden], [4], kind=TensorProto.INT64)
    channels = net.node("Gather", [shape, net.initializer(np.array(1), "one")], [], kind=TensorProto.INT64)
    batch = net.node("Gather", [shape, net.initializer(np.array(0), "zero")], [], kind=TensorProto.INT64)
    model = net.build(hidden, net.node("Neg", [channels]), net.node("Neg", [batch]))
    found = constant_values(model)
    assert found[channels].tolist() == 4
    assert batch not in found
    assert shape not in found
    result = canonicalize(model)
    assert operators(result)["Gather"] == 1
    inputs = {"x_0": np.ones((2, 3, 5, 6), np.float32)}
    assert_close(run(model, inputs), run(result, inputs))


def test_a_folded_output_keeps_its_node() -> None:
    net = Net()
    data = net.input([2, 3])
    model = net.build(net.node("Shape", [net.relu(data)], [2], kind=TensorProto.INT64))
    result = canonicalize(model)
    assert operators(result)["Shape"] == 1
    assert_same_function(model, result)


# -- identities and dead ends --------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [9, 17])
def test_identities_and_dropout_go(opset: int) -> None:
    net = Net(opset)
    data = net.node("Identity", [net.dropout(net.node("Identity", [net.conv(net.input(["N", 3, 4, 4]), 4)]))])
    weight = net.node("Identity", [net.weight([2, 4, 1, 1])])
    model = net.build(net.node("Conv", [data, weight], ["N", 2, 4, 4]))
    result = canonicalize(model)
    assert operators(result) == {"Conv": 2}
    assert_same_function(model, result)


def test_an_identity_that_makes_an_output_stays() -> None:
    net = Net()
    hidden = net.relu(net.input(["N", 3]))
    model = net.build(net.node("Identity", [hidden]), net.dropout(hidden))
    result = canonicalize(model)
    assert operators(result) == operators(model)
    assert_same_function(model, result)


def test_a_dropout_whose_mask_is_read_stays() -> None:
    net = Net()
    data, mask = net.nodes_of("Dropout", [net.input(["N", 3])], [["N", 3], ["N", 3]])
    net.kinds[mask] = TensorProto.BOOL
    model = net.build(net.relu(data), net.node("Not", [mask]))
    assert operators(canonicalize(model))["Dropout"] == 1


def test_an_identity_that_a_subgraph_captures_stays() -> None:
    net = Net()
    data, flag = net.input(["N", 3]), net.input([], "flag")
    net.kinds[flag] = TensorProto.BOOL
    same = net.node("Identity", [net.relu(data)])

    def branch(op: str) -> onnx.GraphProto:
        value = helper.make_tensor_value_info(op, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op, [same], [op])], op, [], [value])

    model = net.build(
        net.node("If", [flag], ["N", 3], kind=TensorProto.FLOAT, then_branch=branch("Neg"), else_branch=branch("Abs"))
    )
    result = canonicalize(model)
    onnx.checker.check_model(result, full_check=True)
    for chosen in (True, False):
        inputs = {"x_0": np.ones((2, 3), np.float32), "flag": np.array(chosen)}
        assert_close(run(model, inputs), run(result, inputs))


def test_dead_nodes_and_initializers_go() -> None:
    net = Net(listed=True)
    data = net.input(["N", 3, 4, 4])
    net.relu(net.conv(data, 7))
    net.initializer(np.zeros(3), "unused")
    model = net.build(net.conv(data, 2))
    assert simplify.drop_dead(model) == 5
    assert [t.name for t in model.graph.initializer] == ["w_1", "b_1"]
    assert [v.name for v in model.graph.input] == ["x_0", "w_1", "b_1"]
    assert operators(model) == {"Conv": 1}


# -- BatchNormalization --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_normalisation_is_folded_into_the_convolution(bias: bool, group: int) -> None:
    net = Net()
    data = net.conv(net.input(["N", 3, 4, 4]), 4)
    model = net.build(net.conv(net.relu(net.batch_norm(net.conv(data, 8, 3, group=group, bias=bias))), 2))
    folded = fold(canonicalize(model))
    assert operators(folded) == {"Conv": 3, "Relu": 1}
    assert_same_function(model, folded)
    assert operators(canonicalize(model))["BatchNormalization"] == 1


def test_normalisation_stays_where_the_convolution_has_other_readers() -> None:
    net = Net()
    made = net.conv(net.input(["N", 3, 4, 4]), 4)
    shared_weight = net.weight([4, 3, 1, 1])
    twice = [net.conv("x_0", 4, weight=shared_weight) for _ in range(2)]
    model = net.build(net.add(net.batch_norm(made), made), *(net.batch_norm(one) for one in twice))
    folded = fold(canonicalize(model))
    assert operators(folded)["BatchNormalization"] == 3
    assert_same_function(model, folded)


def test_normalisation_of_an_output_stays() -> None:
    net = Net()
    made = net.conv(net.input(["N", 3, 4, 4]), 4)
    model = net.build(made, net.batch_norm(made))
    assert_same_function(model, fold(canonicalize(model)))


def test_normalisation_by_the_batch_s_own_statistics_stays() -> None:
    net = Net()
    made = net.batch_norm(net.conv(net.input(["N", 3, 4, 4]), 4))
    model = net.build(made)
    node = model.graph.node[-1]
    node.attribute.append(helper.make_attribute("training_mode", 1))
    node.output.extend(["running_mean", "running_var"])
    assert operators(fold(canonicalize(model)))["BatchNormalization"] == 1
    del node.output[1:]
    assert operators(fold(canonicalize(model)))["BatchNormalization"] == 1


def test_one_tensor_in_two_roles_of_a_normalisation() -> None:
    net = Net()
    made = net.conv(net.input(["N", 3, 4, 4]), 4, bias=False)
    ones, zeros = net.initializer(np.full(4, 1.5), "ones"), net.initializer(np.full(4, 0.25), "zeros")
    model = net.build(net.node("BatchNormalization", [made, ones, zeros, zeros, ones]))
    folded = fold(canonicalize(model))
    assert operators(folded) == {"Conv": 1}
    assert_same_function(model, folded)


def test_an_output_that_is_noted_as_a_single_number_gets_its_shape() -> None:
    net = Net()
    data = net.input(["N", 3, 4, 4])
    model = net.build(net.conv(data, 2), net.reduce(data, [0, 1, 2, 3], keepdims=False))
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    with pytest.raises(onnx.shape_inference.InferenceError, match="differ in rank"):
        onnx.checker.check_model(model, full_check=True)
    assert simplify.correct_ranks(model) == 1
    onnx.checker.check_model(model, full_check=True)
    shape, single = (value.type.tensor_type.shape for value in model.graph.output)
    assert [d.dim_param or d.dim_value for d in shape.dim] == ["N", 2, 4, 4]
    assert list(single.dim) == []
    assert simplify.correct_ranks(model) == 0


def test_a_sparse_initializer_is_kept() -> None:
    net = Net()
    data = net.input(["N", 3])
    model = net.build(net.relu(data))
    held = numpy_helper.from_array(np.array([2.0], np.float32), "sparse")
    places = numpy_helper.from_array(np.array([1], np.int64), "places")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(held, places, [3]))
    model.graph.node.append(helper.make_node("Mul", ["relu_0", "sparse"], ["y"]))
    model.graph.output[0].name = "y"
    result = canonicalize(model)
    assert list(result.graph.sparse_initializer) == list(model.graph.sparse_initializer)
    assert operators(result) == {"Relu": 1, "Mul": 1}


def test_a_constant_output_s_initializer_takes_a_name_that_is_free() -> None:
    net = Net(constants=True)
    first = net.constant(np.array([1.0, 2.0], np.float32), "k")
    shapes = [first, net.input([2], f"{first}_value"), net.input([2], f"{first}_value_")]
    model = net.build(first, net.add(*shapes, op="Sum"))
    before = run(model, feeds(model))
    assert simplify.constants_to_initializers(model) == 1
    onnx.checker.check_model(model, full_check=True)
    assert_close(before, run(model, feeds(model)))


@pytest.mark.parametrize(
    ("other", "read", "removed"),
    [((0.1, 7), "moves", 1), ((0.2, 7), "moves", 0), ((0.1, 8), "moves", 0), ((0.1, 7), "relu", 0)],
)
def test_requantisations_between_two_moves(other: tuple[float, int], read: str, removed: int) -> None:
    def step(data: str, scale: float, zero: int) -> str:
        point = [net.initializer(scale, "scale"), net.initializer(zero, "zero", TensorProto.UINT8)]
        stepped = net.node("QuantizeLinear", [data, *point], kind=TensorProto.UINT8)
        return net.node("DequantizeLinear", [stepped, *point], kind=TensorProto.FLOAT)

    net = Net()
    first = net.reshape(step(net.input(["N", 6]), 0.1, 7), [0, 2, 3], ["N", 2, 3])
    between = step(first, *other)
    outputs = [step(net.transpose(between, [0, 2, 1]), *other), *([net.relu(between)] if read == "relu" else [])]
    model = net.build(*outputs)
    before = run(model, feeds(model), optimised=False)
    assert simplify.remove_requantizations(model) == removed
    simplify.drop_dead(model)
    onnx.checker.check_model(model, full_check=True)
    assert operators(model)["QuantizeLinear"] == 3 - removed
    for name, value in run(model, feeds(model), optimised=False).items():
        np.testing.assert_array_equal(value, before[name])
