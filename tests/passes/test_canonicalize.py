"""The canonical form computes the same, and folds what it may and nothing else."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from onnx import TensorProto, helper, numpy_helper

from graphprune.passes.canonicalize import canonicalize
from graphprune.passes.fold import fold
from tests.measure import Array, editable
from tests.nets import Net
from tests.oracles import assert_close, feeds, run
from tests.strategies import graphs

VALUE = helper.make_tensor_value_info


def form(model: onnx.ModelProto, fold_weights: bool) -> onnx.ModelProto:
    """Canonicalize, and where weights may change fold normalisations."""
    result = canonicalize(model)
    return fold(result) if fold_weights else result


def canonical(model: onnx.ModelProto, *, fold_weights: bool) -> onnx.ModelProto:
    """Canonicalize, and demand what always holds: same outputs, same interface, original unchanged, idempotent."""
    before = model.SerializeToString(deterministic=True)
    result = form(model, fold_weights)
    assert model.SerializeToString(deterministic=True) == before, "the original was changed"
    onnx.checker.check_model(result, full_check=True)
    assert list(result.graph.output) == list(model.graph.output)
    stored = {tensor.name for tensor in model.graph.initializer}
    assert [v for v in result.graph.input if v.name not in {t.name for t in result.graph.initializer}] == [
        value for value in model.graph.input if value.name not in stored
    ]
    assert (result.ir_version, list(result.opset_import)) == (model.ir_version, list(model.opset_import))
    assert list(result.metadata_props) == list(model.metadata_props)
    inputs = feeds(model, 7, 3)
    assert_close(run(model, inputs), run(result, inputs), 1e-5 if fold_weights else 1e-6)
    again = form(result, fold_weights)
    assert again.SerializeToString(deterministic=True) == result.SerializeToString(deterministic=True)
    return result


def test_dropout_stays_where_a_model_is_trained_further() -> None:
    net = Net()
    same = net.node("Identity", [net.dropout(net.relu(net.gemm(net.input(["N", 4]), 6)))])
    model = net.build(net.gemm(same, 3))
    assert ops(canonicalize(model, dropout=False)) == ["Gemm", "Relu", "Dropout", "Gemm"]
    assert ops(canonicalize(model)) == ["Gemm", "Relu", "Gemm"]
    inputs = feeds(model)
    assert_close(run(model, inputs), run(canonicalize(model, dropout=False), inputs))


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def assert_weights_kept(model: onnx.ModelProto, result: onnx.ModelProto) -> None:
    """Demand every float weight that the outputs depend on, under its name, bit by bit."""
    before, after = editable(model), editable(result)
    needed = {value.name for value in model.graph.output}
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input[:1] if node.op_type == "Dropout" else node.input)
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            before[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    for name, value in before.items():
        if value.dtype.kind == "f" and name in needed:
            assert after[name].tobytes() == value.tobytes(), name


@given(model=graphs())
def test_random_graphs_keep_their_outputs_and_their_weights(model: onnx.ModelProto) -> None:
    assert_weights_kept(model, canonical(model, fold_weights=False))
    canonical(model, fold_weights=True)


@pytest.mark.parametrize("opset", [9, 11, 13, 18, 21])
def test_constant_nodes_become_initializers_and_shape_arithmetic_is_folded(opset: int) -> None:
    net = Net(opset, constants=True)
    data = net.input([2, 4, 6, 6])
    weight = net.constant(np.random.default_rng(0).normal(size=(5, 4, 1, 1)).astype(np.float32), "weight")
    data = net.node("Conv", [data, weight], [2, 5, 6, 6], kernel_shape=[1, 1])
    shape = net.node("Shape", [data], [4], kind=TensorProto.INT64)
    lead = net.node("Gather", [shape, net.constant(np.array([0]))], [1], kind=TensorProto.INT64)
    joined = net.node("Concat", [lead, net.constant(np.array([-1]))], [2], kind=TensorProto.INT64, axis=0)
    model = net.build(net.node("Reshape", [data, joined], [2, 180]))
    result = canonical(model, fold_weights=False)
    assert ops(result) == ["Conv", "Reshape"]
    assert_weights_kept(model, result)
    arrays = editable(result)
    assert arrays[result.graph.node[1].input[1]].tolist() == [2, -1]
    assert len(arrays) == 2


def test_a_target_that_repeats_a_free_batch_is_a_constant() -> None:
    net = Net()
    data = net.relu(net.input(["N", 4, 6, 6]))
    shape = net.node("Shape", [data], [4], kind=TensorProto.INT64)
    lead = net.node("Gather", [shape, net.constant(np.array([0]))], [1], kind=TensorProto.INT64)
    joined = net.node("Concat", [lead, net.constant(np.array([-1]))], [2], kind=TensorProto.INT64, axis=0)
    model = net.build(net.node("Reshape", [data, joined], ["N", 144]))
    result = canonical(model, fold_weights=True)
    assert ops(result) == ["Relu", "Reshape"]
    assert editable(result)[result.graph.node[1].input[1]].tolist() == [0, -1]
    assert run(result, feeds(model, batch=5))["reshape_0"].shape == (5, 144)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("value_float", 2.5), ("value_floats", [2.5, -1.0, 0.5, 3.0]), ("value_int", 2), ("value_ints", [1, 2, 3, 4])],
)
def test_every_form_of_constant(attribute: str, value: object) -> None:
    constant = helper.make_node("Constant", [], ["c"], **{attribute: value})
    kind = TensorProto.FLOAT if "float" in attribute else TensorProto.INT64
    graph = helper.make_graph(
        [constant, helper.make_node("Cast", ["c"], ["f"], to=TensorProto.FLOAT), helper.make_node("Mul", "xf", ["y"])],
        "constants",
        [VALUE("x", TensorProto.FLOAT, ["N", 4])],
        [VALUE("y", TensorProto.FLOAT, ["N", 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    result = canonical(model, fold_weights=False)
    assert "Constant" not in ops(result)
    found = {tensor.name: tensor.data_type for tensor in result.graph.initializer}
    assert found in ({"c": kind}, {"f": TensorProto.FLOAT})


def test_a_constant_that_is_an_output_and_read_too() -> None:
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(4, np.float32)))
    graph = helper.make_graph(
        [constant, helper.make_node("Add", ["x", "c"], ["y"])],
        "constant_output",
        [VALUE("x", TensorProto.FLOAT, ["N", 4])],
        [VALUE("c", TensorProto.FLOAT, [4]), VALUE("y", TensorProto.FLOAT, ["N", 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert sorted(ops(canonical(model, fold_weights=True))) == ["Add", "Identity"]


@pytest.mark.parametrize(("ir_version", "listed"), [(3, True), (8, True), (8, False)])
def test_initializers_listed_as_inputs(ir_version: int, listed: bool) -> None:
    net = Net(8, ir_version=ir_version, listed=listed)
    model = net.build(net.gemm(net.flatten(net.block(net.input(["N", 3, 4, 4]), 5)), 3))
    stored = {tensor.name for tensor in model.graph.initializer}
    assert len(model.graph.input) == 1 + (len(stored) if listed else 0)
    for fold_weights in (False, True):
        result = canonical(model, fold_weights=fold_weights)
        stored = {tensor.name for tensor in result.graph.initializer}
        names = [value.name for value in result.graph.input]
        assert set(names) - stored == {"x_0"}
        assert set(names) & stored == (stored if ir_version < 4 else set())
        assert len(names) == len(set(names))


def test_identities_and_idle_dropouts_go_and_outputs_keep_their_names() -> None:
    net = Net()
    data = net.node("Identity", [net.node("Identity", [net.input(["N", 4])])])
    hidden = net.dropout(net.relu(net.gemm(data, 5)))
    model = net.build(net.node("Identity", [net.gemm(hidden, 3)]), net.node("Dropout", [hidden]))
    result = canonical(model, fold_weights=False)
    assert ops(result) == ["Gemm", "Relu", "Gemm", "Identity", "Dropout"]


def test_branches_read_what_an_identity_hands_on() -> None:
    value = VALUE("r", TensorProto.FLOAT, ["N", 4])
    branch = helper.make_graph([helper.make_node("Neg", ["same"], ["r"])], "then", [], [value])
    other = helper.make_graph([helper.make_node("Abs", ["same"], ["r"])], "else", [], [value])
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=other),
    ]
    graph = helper.make_graph(
        nodes,
        "captured",
        [VALUE("x", TensorProto.FLOAT, ["N", 4]), VALUE("flag", TensorProto.BOOL, [])],
        [VALUE("y", TensorProto.FLOAT, ["N", 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    result = canonical(model, fold_weights=False)
    (chosen,) = result.graph.node
    assert [list(a.g.node[0].input) for a in chosen.attribute] == [["x"], ["x"]]


def test_dead_nodes_and_initializers_go() -> None:
    net = Net()
    data = net.input(["N", 3, 4, 4])
    hidden = net.relu(net.conv(data, 5, 3))
    net.conv(net.conv(hidden, 7, 3), 2, 1)  # leads nowhere
    net.initializer(np.ones(1000), "forgotten")
    model = net.build(net.conv(hidden, 2, 1))
    result = canonical(model, fold_weights=False)
    assert ops(result) == ["Conv", "Relu", "Conv"]
    assert set(editable(result)) == {"w_0", "b_0", "w_3", "b_3"}


# -- BatchNormalization ------------------------------------------------------------------------------------------


def scaled(model: onnx.ModelProto) -> tuple[Array, Array]:
    """The exact weight and bias of the model's first convolution and the normalisation behind it."""
    arrays = {name: value.astype(np.float64) for name, value in editable(model).items()}
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    norm = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    scale, shift, mean, variance = (arrays[name] for name in norm.input[1:])
    (epsilon,) = (attribute.f for attribute in norm.attribute if attribute.name == "epsilon")
    factor = scale / np.sqrt(variance + epsilon)
    weight = arrays[conv.input[1]]
    bias = arrays[conv.input[2]] if len(conv.input) > 2 else np.zeros_like(mean)
    return weight * factor.reshape(-1, *[1] * (weight.ndim - 1)), factor * (bias - mean) + shift


@pytest.mark.parametrize("opset", [8, 9, 13, 15, 21])
@pytest.mark.parametrize("kind", ["bias", "no bias", "grouped", "depthwise", "one dimension"])
def test_normalisation_is_folded_exactly(opset: int, kind: str) -> None:
    net = Net(opset)
    data = net.input(["N", 4, 6] if kind == "one dimension" else ["N", 4, 6, 6])
    group = {"grouped": 2, "depthwise": 4}.get(kind, 1)
    data = net.batch_norm(net.conv(data, 8, 3, group=group, bias=kind in ("bias", "grouped")))
    model = net.build(net.relu(data))
    result = canonical(model, fold_weights=True)
    assert ops(result) == ["Conv", "Relu"]
    (conv, _) = result.graph.node
    weight, bias = scaled(model)
    arrays = editable(result)
    assert list(arrays) == list(conv.input[1:])
    # Computed in double precision and rounded once.
    assert arrays[conv.input[1]].tobytes() == weight.astype(np.float32).tobytes()
    assert arrays[conv.input[2]].tobytes() == bias.astype(np.float32).tobytes()
    kept = canonical(model, fold_weights=False)
    assert ops(kept) == ["Conv", "BatchNormalization", "Relu"]
    assert_weights_kept(model, kept)


def test_normalisations_in_a_row_are_all_folded() -> None:
    net = Net()
    model = net.build(net.batch_norm(net.batch_norm(net.conv(net.input(["N", 4, 5, 5]), 6, 3))))
    assert ops(canonical(model, fold_weights=True)) == ["Conv"]


def normed(shared: str) -> onnx.ModelProto:
    """A convolution and its normalisation that must not be folded, for a reason each."""
    net = Net(15)
    data = net.input([4, 6, 5, 5])
    outputs = []
    if shared == "weight":
        weight = net.weight([6, 6, 1, 1])
        data = net.relu(net.batch_norm(net.conv(data, 6, 1, weight=weight)))
        outputs = [net.conv(data, 6, 1, weight=weight)]
    elif shared == "bias":
        bias = net.vector(6)
        convs = [net.node("Conv", [data, net.weight([6, 6, 1, 1]), bias], kernel_shape=[1, 1]) for _ in range(2)]
        outputs = [net.batch_norm(convs[0]), convs[1]]
    elif shared == "readers":
        conv = net.conv(data, 6, 3)
        outputs = [net.add(net.batch_norm(conv), conv)]
    elif shared == "output":
        conv = net.conv(data, 6, 3)
        outputs = [conv, net.batch_norm(conv)]
    elif shared == "parameters":
        names = [net.vector(6, name, 0.5, 1.5) for name in ("scale", "shift", "mean", "var")]
        for _ in range(2):
            data = net.node("BatchNormalization", [net.conv(data, 6, 3), *names])
        outputs = [data]
    elif shared == "computed":
        conv = net.conv(data, 6, 3)
        scale = net.node("Abs", [net.vector(6, "scale")])
        names = [net.vector(6, name, 0.5, 1.5) for name in ("shift", "mean", "var")]
        outputs = [net.node("BatchNormalization", [conv, scale, *names])]
    elif shared == "relu":
        outputs = [net.batch_norm(net.relu(net.conv(data, 6, 3)))]
    elif shared == "product":
        outputs = [net.batch_norm(net.gemm(net.flatten(data), 5))]
    return net.build(*outputs)


@pytest.mark.parametrize("shared", ["weight", "bias", "readers", "output", "parameters", "computed", "relu", "product"])
def test_normalisation_that_must_not_be_folded_stays(shared: str) -> None:
    model = normed(shared)
    result = canonical(model, fold_weights=True)
    assert ops(result).count("BatchNormalization") == ops(model).count("BatchNormalization")
    assert_weights_kept(model, result)


def test_normalisation_by_the_batch_itself_stays() -> None:
    net = Net(15)
    data = net.conv(net.input([4, 6, 5, 5]), 6, 3)
    names = [net.vector(6, name, 0.5, 1.5) for name in ("scale", "shift", "mean", "var")]
    model = net.build(net.node("BatchNormalization", [data, *names]))
    model.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))
    result = fold(canonicalize(model))
    assert ops(result) == ["Conv", "BatchNormalization"]
    assert_weights_kept(model, result)


def test_fields_that_the_passes_do_not_know_are_kept() -> None:
    net = Net()
    model = net.build(net.relu(net.batch_norm(net.conv(net.input(["N", 3, 4, 4]), 5, 3))))
    model.producer_name, model.doc_string, model.model_version = "a trainer", "notes", 7
    model.metadata_props.add(key="labels", value="a,b,c")
    model.graph.doc_string = "of the graph"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    result = canonical(model, fold_weights=True)
    assert (result.producer_name, result.doc_string, result.model_version) == ("a trainer", "notes", 7)
    assert result.graph.doc_string == "of the graph"
