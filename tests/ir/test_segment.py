"""Parts of models: cut in two anywhere, the halves together compute what the whole does."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphprune.ir.bodies import captured
from graphprune.ir.segment import segment
from tests.nets import Net
from tests.oracles import Array, assert_close, feeds, run


def residual(net: Net) -> list[str]:
    """Two inputs, two outputs, a tensor read from both halves, a Clip without lower bound, constants."""
    data = net.input(["N", 3, 8, 8])
    stem = net.relu(net.conv(data, 4, 3))
    high = net.initializer(2.0, "highest")
    inner = net.node("Clip", [net.batch_norm(net.conv(stem, 4, 3)), "", high])
    summed = net.add(inner, stem)
    other = net.gemm(net.flatten(net.pool(summed)), 5)
    return [net.add(other, net.input(["N", 5])), net.global_pool(summed)]


def recurrent(net: Net) -> list[str]:
    """An LSTM whose first output is left out, after a Clip with an input left out."""
    clipped = net.node("Clip", [net.input([4, "N", 3]), "", net.initializer(1.0, "one")])
    names = [clipped, net.weight([1, 8, 3]), net.weight([1, 8, 2])]
    _, state, cell = net.nodes_of("LSTM", names, [[4, 1, "N", 2], [1, "N", 2], [1, "N", 2]], hidden_size=2)
    net.nodes[-1].output[0] = ""
    return [net.node("Clip", [state, "", net.initializer(0.1, "tenth")]), net.relu(cell)]


def parts(net: Net) -> list[str]:
    """Several outputs of one node, read at different depths."""
    first, second = net.split(net.relu(net.conv(net.input([2, 3, 4, 4]), 6)), [2, 4])
    return [net.conv(net.relu(second), 3), net.add(first, net.conv(second, 2))]


def whole_numbers(net: Net) -> list[str]:
    """A shape computed in the graph, and indices."""
    data = net.relu(net.input(["N", 3, 4]))
    shape = net.node("Shape", [data], [3], kind=TensorProto.INT64)
    flat = net.node("Reshape", [data, net.constant([-1])], ["K"])
    best = net.node("ArgMax", [data], ["N", 3, 1], kind=TensorProto.INT64, axis=2)
    return [net.node("Reshape", [flat, shape], ["N", 3, 4]), best]


def branches(net: Net) -> list[str]:
    """An If that captures activations and a weight."""
    data = net.input([2, 4])
    hidden, other = net.relu(net.gemm(data, 5)), net.node("Tanh", [data])
    weight = net.weight([4, 5])
    total = net.reduce(hidden, [0, 1], keepdims=False)
    large = net.node("Greater", [total, net.initializer(0.5, "limit")], kind=TensorProto.BOOL)
    bodies = {
        "then_branch": [helper.make_node("MatMul", [other, weight], ["then_branch"])],
        "else_branch": [helper.make_node("Add", [hidden, hidden], ["else_branch"])],
    }
    graphs = {
        name: helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, net.kind, [2, 5])])
        for name, nodes in bodies.items()
    }
    return [net.relu(net.node("If", [large], [2, 5], kind=net.kind, **graphs)), large]


NETWORKS: list[Callable[[Net], list[str]]] = [residual, recurrent, parts, whole_numbers, branches]


def cut(model: onnx.ModelProto, inputs: Mapping[str, Array], place: int) -> tuple[dict[str, Array], onnx.ModelProto]:
    """The outputs of the second half on what the first makes, and the second half."""
    nodes, outputs = model.graph.node, [value.name for value in model.graph.output]
    made = {name for node in nodes[:place] for name in node.output if name} | set(inputs)
    needed = {name for node in nodes[place:] for name in (*node.input, *captured(node))} | set(outputs)
    between = sorted(made & needed)
    known = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in inputs.items()}
    first = segment(model, known, between)
    read = {value.name: inputs[value.name] for value in first.graph.input}
    found = {**{name: inputs[name] for name in between if name in inputs}}
    if first.graph.output:
        found |= run(first, read, optimised=False)
    kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in found.items()}
    second = segment(model, kinds, outputs)
    read = {value.name: found[value.name] for value in second.graph.input}
    if second.graph.output:
        found |= run(second, read, optimised=False)
    return {name: found[name] for name in outputs}, second


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
@pytest.mark.parametrize(
    "options",
    [{}, {"listed": True}, {"opset": 11, "ir_version": 3}, {"kind": TensorProto.FLOAT16}, {"constants": True}],
    ids=["plain", "listed", "ir 3", "float16", "constants"],
)
def test_two_halves_make_a_whole(make: Callable[[Net], list[str]], options: dict[str, int]) -> None:
    half = options.get("kind") == TensorProto.FLOAT16 and make is not recurrent  # there is no such LSTM on the CPU
    net = Net(**{**options, "kind": TensorProto.FLOAT16 if half else TensorProto.FLOAT})  # type: ignore[arg-type]
    model = net.build(*make(net))
    text = model.SerializeToString(deterministic=True)
    inputs = feeds(model)
    whole = run(model, inputs, optimised=False)
    for place in range(len(model.graph.node) + 1):
        halves, second = cut(model, inputs, place)
        assert len(second.graph.node) <= len(model.graph.node) - place
        # Between two nodes of float16, ONNX Runtime keeps float32; where the cut is, it rounds.
        assert_close(whole, halves, 5e-3 if half else 0.0)
    assert model.SerializeToString(deterministic=True) == text


def names_of(part: onnx.ModelProto) -> tuple[list[str], list[str], list[str]]:
    """Operators, inputs and initializers."""
    graph = part.graph
    return (
        [node.op_type for node in graph.node],
        [value.name for value in graph.input],
        [tensor.name for tensor in graph.initializer],
    )


def test_only_what_is_needed() -> None:
    net = Net()
    hidden = net.relu(net.conv(net.input([1, 3, 4, 4]), 4))
    model = net.build(net.conv(hidden, 2), net.conv(hidden, 5))
    part = segment(model, {hidden: 1, "x_0": 1}, ["conv_2"])
    assert names_of(part) == (["Conv"], [hidden], ["w_2", "b_2"])
    assert [value.name for value in part.graph.output] == ["conv_2"]


def test_a_node_with_an_output_left_out_is_not_needed_for_it() -> None:
    net = Net()
    model = net.build(*recurrent(net))
    (state,) = (node.output[1] for node in model.graph.node if node.op_type == "LSTM")
    assert names_of(segment(model, {state: 1}, ["clip_1"])) == (["Clip"], [state], ["tenth"])


def test_what_is_given_is_not_computed_and_what_is_wanted_twice_made_once() -> None:
    net = Net()
    model = net.build(net.relu(net.relu(net.input([2]))))
    part = segment(model, {"relu_0": 1}, ["relu_1", "relu_0", "relu_1"])
    assert names_of(part) == (["Relu"], ["relu_0"], [])
    assert [value.name for value in part.graph.output] == ["relu_1"]
    assert not segment(model, {"relu_0": 1}, ["relu_0"]).graph.output


def test_an_output_given_of_a_node_that_others_are_wanted_of() -> None:
    net = Net()
    model = net.build(*parts(net))
    first, second = next(node.output for node in model.graph.node if node.op_type == "Split")
    inputs = feeds(model)
    part = segment(model, {"x_0": 1, first: 1}, [second, "add_0"])
    assert names_of(part)[1] == ["x_0"]  # the node makes both
    got = run(part, inputs, optimised=False)
    whole = run(segment(model, {"x_0": 1}, [second, "add_0"]), inputs, optimised=False)
    for name, value in whole.items():
        np.testing.assert_array_equal(got[name], value)


def test_an_initializer_may_be_given_or_wanted() -> None:
    net = Net()
    model = net.build(net.conv(net.input([1, 3, 4, 4]), 4))
    part = segment(model, {"x_0": 1, "w_0": 1}, ["conv_0"])
    assert names_of(part) == (["Conv"], ["x_0", "w_0"], ["b_0"])
    inputs = feeds(model)
    got = run(part, {**inputs, "w_0": net.array("w_0")}, optimised=False)
    np.testing.assert_array_equal(got["conv_0"], run(model, inputs, optimised=False)["conv_0"])
    np.testing.assert_array_equal(run(segment(model, {}, ["w_0"]), {})["w_0"], net.array("w_0"))


def test_sparse_initializers_come_along() -> None:
    net = Net()
    weight = net.weight([4, 3])
    model = net.build(net.node("MatMul", [net.relu(net.input([2, 4])), weight], [2, 3]))
    (dense,) = model.graph.initializer
    values = numpy_helper.from_array(np.array([1, -2, 3], np.float32), weight)
    places = numpy_helper.from_array(np.array([0, 4, 11], np.int64), "places")
    del model.graph.initializer[:]
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, list(dense.dims)))
    inputs = feeds(model)
    part = segment(model, {"relu_0": 1}, ["matmul_0"])
    got = run(part, {"relu_0": np.maximum(inputs["x_0"], 0)})
    np.testing.assert_array_equal(got["matmul_0"], run(model, inputs)["matmul_0"])


def test_local_functions_come_along() -> None:
    net = Net()
    net.imports["local"] = 1
    model = net.build(net.relu(net.input([2])))
    model.graph.node[0].op_type, model.graph.node[0].domain = "Twice", "local"
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    model.functions.append(helper.make_function("local", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    got = run(segment(model, {"x_0": 1}, ["relu_0"]), {"x_0": np.ones(2, np.float32)})
    np.testing.assert_array_equal(got["relu_0"], [2, 2])
