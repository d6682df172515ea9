"""If, Loop and Scan in torch: outputs, weights in bodies, and their way back."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

torch = pytest.importorskip("torch")

from graphprune.errors import ModelError, UnsupportedOperatorError  # noqa: E402
from graphprune.finetune import to_onnx, to_torch  # noqa: E402
from tests.bodies import in_branches, in_loop  # noqa: E402
from tests.nets import Net  # noqa: E402
from tests.oracles import feeds, run  # noqa: E402

RNG = np.random.default_rng(5)


def network():
    net = Net()
    return net.build(net.gemm(net.relu(net.gemm(net.input(["N", 4]), 5)), 3))


def parsed(text, **weights):
    """Return a model from its text, with initializers."""
    model = parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    return model


def tensors(given):
    return {name: torch.from_numpy(np.asarray(value)) for name, value in given.items()}


def assert_same(model, given, module=None):
    """Demand ONNX Runtime's outputs to 1e-5."""
    got = (module or to_torch(model))(**tensors(given))
    for want, have in zip(run(model, given).values(), got if isinstance(got, tuple) else (got,), strict=True):
        np.testing.assert_allclose(have.detach().numpy(), want, rtol=1e-5, atol=1e-5)


def twisted(module):
    """Change every weight, each by another factor."""
    with torch.no_grad():
        for place, parameter in enumerate(module.parameters()):
            parameter.mul_(1.1 + place / 7)


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("wrap", [in_branches, in_loop])
def test_a_network_in_a_body(wrap, flag, tmp_path):
    model = wrap(network())
    given = {**feeds(network(), 1, batch=4), **({"flag": np.array(flag)} if wrap is in_branches else {})}
    module = to_torch(model)
    assert_same(model, given, module)
    to_onnx(module, tmp_path / "same.onnx")
    assert onnx.load(tmp_path / "same.onnx") == model
    module(**tensors(given)).square().sum().backward()
    reached = {name for name, parameter in module.named_parameters() if parameter.grad is not None}
    prefix = ("then_" if flag else "else_") if wrap is in_branches else "in_"
    assert reached == {name for name, _ in module.named_parameters() if name.startswith(prefix)}
    assert len(reached) == 4
    twisted(module)
    to_onnx(module, tmp_path / "twisted.onnx")
    assert_same(onnx.load(tmp_path / "twisted.onnx"), given, module)


NESTED = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3] x, bool p, bool q) => (float[N, 3] y, float[N, 3] z) {
    h = MatMul (x, w)
    z = Relu (h)
    y = If (p) <
        then_branch = outer_then () => (float[N, 3] a) {
            k = Constant <value = float[3] {1, 2, 3}> ()
            b = Mul (h, k)
            a = If (q) <
                then_branch = inner_then () => (float[N, 3] c) {
                    k2 = Constant <value = float[3] {4, 5, 6}> ()
                    d = Add (b, k2)
                    c = Add (d, z)
                },
                else_branch = inner_else () => (float[N, 3] f) {
                    unread = Neg (b)
                    f = Identity (b)
                }
            >
        },
        else_branch = outer_else () => (float[N, 3] e) {
            k3 = Constant <value = float[3] {7, 8, 9}> ()
            e = Sub (h, k3)
        }
    >
}
"""


@pytest.mark.parametrize("p", [True, False])
@pytest.mark.parametrize("q", [True, False])
def test_branches_in_branches_read_what_stands_around_them(p, q, tmp_path):
    model = parsed(NESTED, w=RNG.standard_normal((3, 3)).astype(np.float32))
    given = {"x": RNG.standard_normal((2, 3)).astype(np.float32), "p": np.array(p), "q": np.array(q)}
    module = to_torch(model)
    for _ in range(2):  # what a body reads is still there the next time
        assert_same(model, given, module)
    assert set(module.initializer_names.values()) == {"w", "k", "k2", "k3"}
    twisted(module)
    to_onnx(module, tmp_path / "out.onnx")
    assert_same(onnx.load(tmp_path / "out.onnx"), given, module)
    assert_same(onnx.load(tmp_path / "out.onnx"), given, copy.deepcopy(module))


def test_bodies_may_use_a_name_again(tmp_path):
    """Names of two branches may be the same: their weights are two."""

    def branch(name, value):
        made = [helper.make_tensor_value_info("made", TensorProto.FLOAT, ["N", 2])]
        stored = numpy_helper.from_array(np.array(value, np.float32), "w")
        nodes = [helper.make_node("Mul", ["x", "w"], ["made"])]
        return helper.make_graph(nodes, name, [], made, [stored])

    node = helper.make_node("If", ["flag"], ["y"], then_branch=branch("a", [2, 3]), else_branch=branch("b", [5, 7]))
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])]
    infos.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])]
    model = helper.make_model(helper.make_graph([node], "g", infos, outputs), ir_version=8)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 17))
    module = to_torch(model)
    assert sorted(module.initializer_names.values()) == ["w", "w_1"]
    twisted(module)
    to_onnx(module, tmp_path / "out.onnx")
    for flag in (True, False):
        given = {"x": np.ones((1, 2), np.float32), "flag": np.array(flag)}
        assert_same(model, given)
        assert_same(onnx.load(tmp_path / "out.onnx"), given, module)


LOOP = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[2] x, int64 count) => (float[2] last, float[I, 2] every) {
    last, every = Loop (count, , x) <
        body = step (int64 i, bool going, float[2] s) => (bool goes_on, float[2] t, float[2] u) {
            scaled = Mul (s, w)
            number = Cast <to = 1> (i)
            t = Add (scaled, number)
            u = Mul (t, t)
            sum = ReduceSum <keepdims = 0> (t)
            limit = Constant <value_float = 30.0> ()
            goes_on = Less (sum, limit)
        }
    >
}
"""


@pytest.mark.parametrize("count", [1, 3, 9])
def test_a_loop_ends_by_its_count_or_its_condition(count):
    model = parsed(LOOP, w=np.array([1.5, 2.0], np.float32))
    given = {"x": np.array([1.0, 0.5], np.float32), "count": np.array(count)}
    module = to_torch(model)
    assert_same(model, given, module)
    moved = tensors(given)

    def last(w):
        return torch.func.functional_call(module, {"w": w}, kwargs={**moved, "x": moved["x"].double()})

    assert torch.autograd.gradcheck(last, [module.double().parameter_of("w").detach().requires_grad_()])


def test_a_loop_that_does_not_run_is_named_where_it_stacks():
    model = parsed(LOOP, w=np.array([1.5, 2.0], np.float32))
    with pytest.raises(ModelError, match="does not run once"):
        to_torch(model)(**tensors({"x": np.ones(2, np.float32), "count": np.array(0)}))


SCAN = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[2, 4] x, float[2] s) => (float[2] last, float[2, 4] every) {
    last, every = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
                        scan_input_directions = [1], scan_output_directions = [%d],
        body = step (float[2] a, float[2] b) => (float[2] c, float[2] d) {
            e = Mul (a, w)
            c = Add (e, b)
            d = Tanh (c)
        }
    > (s, x)
}
"""


@pytest.mark.parametrize("back", [0, 1])
def test_a_scan_runs_along_any_axis_either_way(back):
    model = parsed(SCAN % back, w=np.array([0.5, 2.0], np.float32))
    given = {"x": RNG.standard_normal((2, 4)).astype(np.float32), "s": np.ones(2, np.float32)}
    assert_same(model, given)


def test_an_operator_in_a_branch_that_is_not_known_is_named():
    text = NESTED.replace("d = Add (b, k2)", "d, i, j, l = Unique (b)").replace("c = Add (d, z)", "c = Add (z, k2)")
    with pytest.raises(UnsupportedOperatorError, match="Unique"):
        to_torch(parsed(text, w=np.eye(3, dtype=np.float32)))


FUNCTION = """
<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
net (float[N, 3] x) => (float[N, 3] y) {
    h = own.scaled (x, w)
    y = own.scaled (h, w)
}
<domain: "own", opset_import: ["" : 17]>
scaled (x, w) => (y) {
    bias = Constant <value = float[3] {1, 2, 3}> ()
    p = Mul (x, w)
    y = Add (p, bias)
}
"""


def test_local_functions_are_opened_and_what_they_store_stays(tmp_path):
    model = parsed(FUNCTION, w=np.array([2, 3, 4], np.float32))
    given = {"x": RNG.standard_normal((2, 3)).astype(np.float32)}
    module = to_torch(model)
    assert_same(model, given, module)
    assert [name for name, _ in module.named_parameters()] == ["w"]
    to_onnx(module, tmp_path / "same.onnx")
    assert onnx.load(tmp_path / "same.onnx") == model
    twisted(module)
    to_onnx(module, tmp_path / "out.onnx")
    assert_same(onnx.load(tmp_path / "out.onnx"), given, module)
