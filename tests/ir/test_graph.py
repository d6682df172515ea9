"""The read-only view of a graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphprune.errors import ModelError
from graphprune.ir.graph import Graph
from graphprune.ir.shapes.inference import infer_shapes, skeleton
from tests.nets import Net


def small() -> tuple[Net, onnx.ModelProto]:
    net = Net()
    data = net.input(["N", 3, 8, 8])
    made = net.relu(net.conv(data, 4, 3, stride=2))
    return net, net.build(net.gemm(net.flatten(made), 5))


def test_shapes_keep_symbols_and_numbers() -> None:
    net, model = small()
    graph = Graph(model)
    for name, shape in net.shapes.items():
        assert graph.shape(name) == tuple(shape), name
    assert graph.shape("nothing") is None


def test_shapes_for_concrete_inputs() -> None:
    _, model = small()
    assert Graph(model, {"x_0": (7, 3, 8, 8)}).shape("gemm_0") == (7, 5)
    assert Graph(model, {"x_0": (7, 3, 8, 8)}).shape("relu_0") == (7, 4, 4, 4)


def test_stale_notes_of_the_exporter_do_not_bind_concrete_inputs() -> None:
    net = Net()
    model = net.build(net.relu(net.conv(net.input(["N", 3, "H", "W"]), 4)))
    noted = helper.make_tensor_value_info("conv_0", TensorProto.FLOAT, [1, 4, 8, 8])
    model.graph.value_info.append(noted)
    assert Graph(model, {"x_0": (2, 3, 5, 6)}).shape("relu_0") == (2, 4, 5, 6)


def test_element_types() -> None:
    net = Net()
    data = net.input(["N", 3])
    cast = net.node("Cast", [data], kind=TensorProto.DOUBLE, to=TensorProto.DOUBLE)
    model = net.build(cast)
    graph = Graph(model)
    assert graph.element_types[data] == TensorProto.FLOAT
    assert graph.element_types[cast] == TensorProto.DOUBLE


def test_producers_consumers_inputs_and_outputs() -> None:
    net, model = small()
    graph = Graph(model)
    assert graph.inputs == ["x_0"]
    assert graph.outputs == ["gemm_0"]
    assert graph.producer["relu_0"].op == "Relu"
    assert [node.op for node in graph.consumers["conv_0"]] == ["Relu"]
    assert "x_0" not in graph.producer
    assert graph.opset == net.opset


def test_a_tensor_read_twice_by_one_node_has_one_consumer() -> None:
    net = Net()
    data = net.input(["N", 3])
    graph = Graph(net.build(net.add(data, data)))
    assert len(graph.consumers[data]) == 1


def test_initializers_listed_as_inputs_are_no_inputs() -> None:
    net = Net(8)
    data = net.input(["N", 3, 4, 4])
    model = net.build(net.conv(data, 2))
    assert len(model.graph.input) == 3
    assert Graph(model).inputs == [data]


def test_constants_and_the_initializers_behind_them() -> None:
    net = Net()
    data = net.input(["N", 3])
    weight = net.weight([4, 3])
    scale = net.vector(3, "scale")
    scaled = net.add(weight, scale, op="Mul")
    turned = net.transpose(scaled, [1, 0])
    model = net.build(net.node("MatMul", [data, turned], ["N", 4]))
    graph = Graph(model)
    assert graph.constants == {weight, scale, scaled, turned}
    assert set(graph.sources(turned)) == {weight, scale}
    assert graph.sources(data) == []


def test_names_that_nested_subgraphs_capture() -> None:
    def leaf(output: str, captured: str) -> onnx.GraphProto:
        node = helper.make_node("Add", [captured, "own"], [output])
        own = helper.make_tensor("own", TensorProto.FLOAT, [1], [1.0])
        return helper.make_graph([node], "leaf", [], [helper.make_empty_tensor_value_info(output)], [own])

    inner = helper.make_node("If", ["flag"], ["z"], then_branch=leaf("a", "x"), else_branch=leaf("b", "w"))
    outer = helper.make_graph([inner], "outer", [], [helper.make_empty_tensor_value_info("z")])
    value = helper.make_tensor_value_info
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["i"])], "else", [], [value("i", 1, [2])])
    node = helper.make_node("If", ["flag"], ["y"], then_branch=outer, else_branch=other)
    graph = helper.make_graph(
        [node],
        "net",
        [value("flag", TensorProto.BOOL, []), value("x", 1, [2])],
        [value("y", 1, [2])],
        [helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    assert set(Graph(model).nodes[0].captured) == {"flag", "x", "w"}


def test_operators_of_other_domains_carry_their_domain() -> None:
    net = Net()
    net.imports["my.domain"] = 1
    data = net.input(["N", 3])
    model = net.build(net.node("Relu", [data], domain="my.domain"), net.node("Relu", [data]))
    model.graph.node[1].domain = "ai.onnx"  # another name of the same
    assert [node.op for node in Graph(model).nodes] == ["my.domain.Relu", "Relu"]


def test_a_node_without_a_name_is_called_by_its_output() -> None:
    net, model = small()
    model.graph.node[1].name = ""
    assert Graph(model).nodes[1].label == "relu_0"
    assert Graph(model).nodes[0].label == "conv_0_node"
    assert net.shapes["relu_0"][1] == 4


def test_a_skeleton_has_the_shape_constants_and_not_the_weights() -> None:
    net = Net()
    data = net.input(["N", 4])
    made = net.reshape(net.linear(data, 18), [0, 6, 3], ["N", 6, 3])
    model = net.build(made)
    bare = skeleton(model)
    assert [t.name for t in bare.graph.initializer] == ["shape"]
    assert {v.name for v in bare.graph.input} == {data, "w_0", "b_0"}
    assert bare.ByteSize() < model.ByteSize()
    assert len(model.graph.initializer) == 3, "the model itself was changed"
    assert [d.dim_value for d in infer_shapes(model).graph.output[0].type.tensor_type.shape.dim[1:]] == [6, 3]


def test_a_graph_whose_shapes_cannot_be_inferred_is_a_model_error() -> None:
    _, model = small()
    model.graph.node[0].domain = "not.imported"
    with pytest.raises(ModelError, match=r"shape inference finds the graph contradictory[\s\S]*not\.imported"):
        _ = Graph(model).shapes


def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


@pytest.mark.parametrize("wrapped", ["", "function", "subgraph"])
@pytest.mark.parametrize("op", ["Bernoulli", "RandomNormalLike", "RandomUniformLike", "Multinomial"])
def test_what_is_drawn_at_random_is_no_constant(op: str, wrapped: str) -> None:
    net = Net()
    weight = net.weight([2, 3])
    draw = helper.make_node(op, [weight], ["drawn"])
    functions = []
    if wrapped == "function":
        inner = helper.make_node(op, ["a"], ["b"])
        functions = [helper.make_function("my", "Draw", ["a"], ["b"], [inner], [helper.make_opsetid("", 17)])]
        draw = helper.make_node("Draw", [weight], ["drawn"], domain="my")
    if wrapped == "subgraph":
        noise = [helper.make_node("RandomNormal", [], ["r"], shape=[2]), helper.make_node("Identity", ["r"], ["z"])]
        branch = helper.make_graph(noise, "branch", [], [value("z", 2)])
        net.initializer(np.array(True), "flag", TensorProto.BOOL)
        draw = helper.make_node("If", ["flag"], ["drawn"], then_branch=branch, else_branch=branch)
    nodes = [draw, helper.make_node("Identity", ["drawn"], ["y"]), helper.make_node("Neg", [weight], ["negated"])]
    graph = helper.make_graph(nodes, "net", [], [value("y")], net.initializers)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=8)
    assert Graph(model).constants == {t.name for t in net.initializers} | {"negated"}


@pytest.mark.parametrize("op", ["RandomNormal", "RandomUniform"])
def test_a_node_without_inputs_makes_no_constant(op: str) -> None:
    graph = helper.make_graph([helper.make_node(op, [], ["y"], shape=[2])], "net", [], [value("y", 2)])
    assert Graph(helper.make_model(graph, ir_version=8)).constants == set()


@pytest.mark.parametrize("noted", [[1, 4], [1, 7, 8, 8], ["N", 4, "H", "W"]])
def test_notes_of_the_exporter_do_not_hide_what_is_inferred(noted: list[int | str]) -> None:
    net = Net()
    data = net.input(["N", 3, 8, 8])
    hidden = net.relu(net.conv(data, 4))
    model = net.build(net.conv(hidden, 5))
    model.graph.value_info.append(value(hidden, *noted))
    model.graph.value_info.append(value("b_0", 1, 4))
    model.graph.value_info.append(value(data, 3))
    onnx.checker.check_model(model)
    graph = Graph(model)
    assert graph.shape(hidden) == ("N", 4, 8, 8)
    assert graph.shape("conv_1") == ("N", 5, 8, 8)
    assert graph.shape("b_0") == (4,)
    assert graph.shape(data) == ("N", 3, 8, 8)


def test_notes_of_the_exporter_count_where_nothing_is_inferred() -> None:
    net = Net()
    net.imports["com.microsoft"] = 1
    active = net.node("Trilu", [net.input(["N", 3])], domain="com.microsoft")
    model = net.build(net.linear(active, 4))
    assert Graph(model).shape(active) is None
    assert Graph(model).shape("matmul_0") is None
    model.graph.value_info.append(value(active, "N", 3))
    assert Graph(model).shape(active) == ("N", 3)
    assert Graph(model).shape("matmul_0") == ("N", 4)
