"""What is hidden in a model is opened: functions, branches always taken, bodies, and the shapes inside them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphprune.ir.bodies import all_nodes, are_open
from graphprune.ir.cost import count_macs, count_weights
from graphprune.ir.graph import Graph
from graphprune.ir.rewriting.lifting import inline_branches, inline_functions, open_bodies, opened
from graphprune.passes.canonicalize import canonicalize
from graphprune.passes.fold import fold
from tests.bodies import Body, choose, flagged, in_branches, loop_body
from tests.nets import Net
from tests.oracles import all_groups, assert_close, assert_exact, feeds, run


def functions_net(opset: int = 17) -> onnx.ModelProto:
    """Linear layers, an activation with an attribute, and a function that calls another, called twice."""
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("my.own", 1)]
    leaky = helper.make_node("LeakyRelu", ["a"], ["b"])
    leaky.attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT))
    inner = helper.make_function("my.own", "Inner", ["a"], ["b"], [leaky], imports, ["slope"])
    weight = numpy_helper.from_array(np.random.default_rng(3).normal(size=(6, 6)).astype(np.float32))
    nodes = [
        helper.make_node("Inner", ["a"], ["t"], domain="my.own", slope=0.25),
        helper.make_node("Constant", [], ["w"], value=weight),
        helper.make_node("MatMul", ["t", "w"], ["c"]),
    ]
    outer = helper.make_function("my.own", "Outer", ["a"], ["c"], nodes, imports)
    net = Net(opset)
    net.imports["my.own"] = 1
    data = net.gemm(net.input(["N", 3]), 6)
    for _ in range(2):
        data = net.node("Outer", [data], ["N", 6], domain="my.own")
    result = net.gemm(data, 2)
    model = _with_functions(net, result, [inner, outer])
    onnx.checker.check_model(model, full_check=True)
    return model


def _with_functions(net: Net, output: str, functions: list[onnx.FunctionProto]) -> onnx.ModelProto:
    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, net.kinds[name], net.shapes[name])

    inputs = [value(name) for name in net.inputs]
    graph = helper.make_graph(net.nodes, "net", inputs, [value(output)], net.initializers)
    imports = [helper.make_opsetid(domain, version) for domain, version in net.imports.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=net.ir_version, functions=functions)


# -- local functions ---------------------------------------------------------------------------------------------


def test_local_functions_are_pruned_inside() -> None:
    model = functions_net()
    coupling = assert_exact(model)
    assert not coupling.graph.proto.functions
    assert list(all_groups(coupling).values()) == [6, 6, 6]
    assert count_weights(model) == count_weights(coupling.graph.proto) == 6 * 3 + 6 + 2 * 36 + 2 * 6 + 2


def test_a_function_of_another_version_is_left() -> None:
    model = functions_net()
    model.functions[0].opset_import[0].version = 16
    assert inline_functions(model) == 1
    assert [function.name for function in model.functions] == ["Inner"]
    assert "Inner" in [node.op_type for node in model.graph.node]


def test_functions_called_in_branches_are_inlined() -> None:
    twice = helper.make_function(
        "my.own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    net = Net()
    net.imports["my.own"] = 1
    data = net.gemm(net.input(["N", 3]), 6)
    one, other = Body(0), Body(1)
    first = one.build(one.node("Twice", [data], "o", domain="my.own"))
    second = other.build(other.node("Relu", [data], "o"))
    result = net.gemm(choose(net, flagged(net), first, second, ["N", 6]), 2)
    coupling = assert_exact(_with_functions(net, result, [twice]))
    assert list(all_groups(coupling).values()) == [6]


# -- names and initializers --------------------------------------------------------------------------------------


def clashing() -> onnx.ModelProto:
    """Both branches, and one inside, call their weights and results the same."""
    net = Net()
    data = net.input(["N", 3])
    flag = flagged(net)
    deep = [Body(seed) for seed in (1, 2)]
    branches = [body.build(body.gemm(data, "w", [4, 3], "o")) for body in deep]
    outer, other = Body(3), Body(4)
    inner = outer.node("If", [flag], "inner", then_branch=branches[0], else_branch=branches[1])
    first = outer.build(outer.gemm(inner, "v", [5, 4], "p"))
    second = other.build(other.gemm(data, "w", [5, 3], "p"))
    return net.build(net.gemm(choose(net, flag, first, second, ["N", 5]), 2))


def test_names_of_bodies_are_made_unique_and_their_initializers_lifted() -> None:
    model = clashing()
    assert not are_open(model)
    assert opened(model) is not model
    result = opened(model)
    assert are_open(result)
    stored = {tensor.name: list(tensor.dims) for tensor in result.graph.initializer}
    assert sorted(dims for name, dims in stored.items() if name[0] in "wv") == [[2, 5], [4, 3], [4, 3], [5, 3], [5, 4]]
    assert not any(graph.initializer for node in all_nodes(result) for a in node.attribute for graph in [a.g])
    for taken in (False, True):
        inputs = {**feeds(model), "flag": np.array(taken)}
        assert_close(run(model, inputs), run(result, inputs))
        assert_exact(model, inputs=inputs)


def test_nothing_to_open_leaves_a_model_as_it_is() -> None:
    net = Net()
    model = net.build(net.gemm(net.input(["N", 3]), 2))
    assert opened(model) is model
    assert (inline_functions(model), open_bodies(model), inline_branches(model)) == (0, 0, 0)


def test_an_initializer_that_a_branch_hands_out() -> None:
    net = Net()
    data = net.gemm(net.input(["N", 3]), 6)
    one, other = Body(0), Body(1)
    one.weight([6], "bias")
    branches = one.build("bias"), other.build(other.node("Constant", [], "none", value_floats=[0.0] * 6))
    model = net.build(net.gemm(net.add(data, choose(net, flagged(net), *branches, [6])), 2))
    for taken in (False, True):
        coupling = assert_exact(model, inputs={**feeds(model), "flag": np.array(taken)})
    ((axes, size),) = all_groups(coupling).items()
    assert size == 6
    assert ("bias", 0) in axes


# -- branches always taken ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", [True, False])
def test_the_branch_that_a_known_shape_selects_stands_in_the_place_of_the_if(taken: bool) -> None:
    net = Net()
    data = net.relu(net.gemm(net.input(["N", 3]), 6))
    extent = net.node("Gather", [net.node("Shape", [data], [2], kind=TensorProto.INT64), net.constant([1])], [1])
    flag = net.node("Equal", [extent, net.constant([6 if taken else 7])], [1], kind=TensorProto.BOOL)
    one, other = Body(0), Body(1)
    first = one.build(one.gemm(data, "one", [4, 6], "o"))
    second = other.build(other.gemm(data, "other", [4, 6], "o"))
    model = net.build(net.gemm(choose(net, flag, first, second, ["N", 4]), 2))
    coupling = assert_exact(model)
    assert [node.op for node in coupling.graph.nodes] == ["Gemm", "Relu", "Gemm", "Gemm"]
    assert {tensor.name for tensor in coupling.graph.proto.graph.initializer} >= {"one" if taken else "other"}
    assert sorted(all_groups(coupling).values()) == [4, 6]


def test_a_branch_inlined_settles_what_is_inside_it() -> None:
    net = Net()
    data = net.gemm(net.input(["N", 3]), 6)
    yes = net.initializer(np.array(True), "yes")
    inner = [Body(seed) for seed in (1, 2)]
    branches = [body.build(body.node(op, [data], "o")) for body, op in zip(inner, ("Relu", "Neg"), strict=True)]
    outer, other = Body(3), Body(4)
    inverse = outer.node("Not", [yes], "no")
    results = [outer.node("If", [inverse], "chosen", then_branch=branches[0], else_branch=branches[1])]
    first = outer.build(*results)
    model = net.build(choose(net, yes, first, other.build(other.node("Abs", [data], "o")), ["N", 6]))
    assert [node.op_type for node in canonicalize(model).graph.node] == ["Gemm", "Neg"]


def test_a_branch_that_gives_out_one_tensor_twice() -> None:
    net = Net()
    data = net.input(["N", 3])
    yes = net.initializer(np.array(True), "yes")
    one, other = Body(0), Body(1)
    made = one.node("Relu", [data], "o")
    attributes = {"then_branch": one.build(made, made), "else_branch": other.build(other.node("Neg", [data], "o"), "o")}
    model = net.build(*net.nodes_of("If", [yes], [["N", 3]] * 2, kind=TensorProto.FLOAT, **attributes))
    result = canonicalize(model)
    assert [node.op_type for node in result.graph.node] == ["Relu", "Identity"]
    inputs = feeds(model)  # ONNX Runtime loses the second one in the original
    for value in run(result, inputs).values():
        assert np.array_equal(value, np.maximum(inputs["x_0"], 0))


# -- shapes inside -----------------------------------------------------------------------------------------------


def test_shapes_of_states_hold_by_induction() -> None:
    net = Net()
    start = net.input(["N", 4, "L"], "start")
    body = loop_body(0, ["state", "sum"])
    longer = body.node("Concat", ["state", "state"], "longer", axis=2)
    more = body.node("Add", ["sum", "sum"], "more")
    graph = body.build("goes_on", longer, more, body.node("Relu", ["sum"], "step"))
    net.initializer(np.array(2), "times")
    total = net.input([4, 1], "total")
    net.nodes.append(helper.make_node("Loop", ["times", "", start, total], ["a", "b", "c"], body=graph))
    net.shapes.update(a=["N", 4, "M"], b=[4, 1], c=["T", 4, 1])
    net.kinds.update(dict.fromkeys("abc", TensorProto.FLOAT))
    graph_view = Graph(canonicalize(net.build("a", "b", "c")))
    assert graph_view.shape("state") == ("N", 4, None)
    assert graph_view.shape("sum") == graph_view.shape("more") == (4, 1)


def test_what_only_a_dead_node_of_a_body_reads_goes() -> None:
    net = Net()
    data = net.relu(net.conv(net.input([2, 3, 4, 4]), 6))
    net.conv(data, 4)  # read by nothing
    result = canonicalize(in_branches(net.build(net.conv(data, 2))))
    assert sum(node.op_type == "Conv" for node in all_nodes(result)) == 4
    assert sum(len(tensor.dims) == 4 for tensor in result.graph.initializer) == 4
    assert canonicalize(result).SerializeToString(deterministic=True) == result.SerializeToString(deterministic=True)


def test_values_do_not_pass_through_control_flow() -> None:
    """A counter starts at a constant, and a target is one of two constants: neither is known afterwards."""
    net = Net()
    data = net.input(["N", 4])
    kind = TensorProto.INT64
    one, other = Body(0, kinds={"t": kind}), Body(1, kinds={"t": kind})
    targets = [
        body.build(body.node("Constant", [], "t", value_ints=target))
        for body, target in ((one, [-1, 2]), (other, [-1, 4]))
    ]
    target = net.node("If", [flagged(net)], [2], kind=kind, then_branch=targets[0], else_branch=targets[1])
    made = net.node("Reshape", [data, target], ["A", "B"])
    net.output(made)
    body = loop_body(0, ["count"])
    body.kinds["count"] = body.kinds["next"] = kind
    graph = body.build("goes_on", body.node("Add", ["count", "iteration"], "next"))
    start = net.initializer(np.array(0), "zero")
    times = net.initializer(np.array(3), "times")
    final = net.node("Loop", [times, "", start], [], kind=kind, body=graph)
    filled = net.node("ConstantOfShape", [net.unsqueeze(final, [0])], ["C"], kind=TensorProto.FLOAT)
    model = net.build(filled)
    for taken in (False, True):
        inputs = {**feeds(model), "flag": np.array(taken)}
        assert_close(run(model, inputs), run(canonicalize(model), inputs))
    view = Graph(canonicalize(model))
    assert not any(isinstance(extent, int) for name in (made, filled) for extent in view.shape(name) or ())


def test_the_work_of_bodies_counts_as_often_as_it_is_done() -> None:
    net = Net()
    data = net.input([2, 3])
    body = loop_body(0, ["state"])
    graph = body.build("goes_on", body.gemm("state", "w", [3, 3], "next"))
    times = net.initializer(np.array(5), "times")
    kind = TensorProto.FLOAT
    final = net.node("Loop", [times, "", data], [2, 3], kind=kind, body=graph)
    one, other = Body(1), Body(2)
    branches = (
        one.build(one.gemm(final, "a", [4, 3], "o")),
        other.build(other.node("Concat", [final, data], "q", axis=1)),
    )
    branches[1].output[0].name = other.node("Slice", ["q", "from", "to", "axis"], "s")
    for name, place in (("from", 0), ("to", 4), ("axis", 1)):
        net.initializer(np.array([place]), name)
    branches[1].node.extend(other.nodes[1:])
    model = canonicalize(net.build(choose(net, flagged(net), *branches, [2, 4])))
    assert count_macs(model, {"x_0": (2, 3)}) == 5 * 2 * 3 * 3 + 2 * 3 * 4


def test_normalisation_is_folded_in_bodies_too() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 4))
    model = in_branches(net.build(net.relu(net.batch_norm(net.conv(data, 5, 3)))))
    result = fold(canonicalize(model))
    kinds = [node.op_type for node in all_nodes(result)]
    assert kinds.count("Conv") == 4
    assert "BatchNormalization" not in kinds
    for taken in (False, True):
        inputs = {**feeds(model), "flag": np.array(taken)}
        assert_close(run(model, inputs), run(result, inputs))
