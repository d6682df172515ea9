"""The module as a whole: names, modes, inputs, errors, and the way back to ONNX."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch")

from graphprune.errors import GraphPruneError, ModelError, RecipeError, UnsupportedOperatorError  # noqa: E402
from graphprune.finetune import to_onnx, to_torch  # noqa: E402
from graphprune.ir.model import from_proto, save  # noqa: E402
from graphprune.ir.tensors import array, float_tensors  # noqa: E402
from tests import small  # noqa: E402
from tests.nets import Net  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


def build(nodes, inputs, outputs, initializers, opset=17, **options):
    def infos(entries):
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in entries]

    tensors = [numpy_helper.from_array(value, name) for name, value in initializers.items()]
    graph = helper.make_graph(nodes, "net", infos(inputs), infos(outputs), tensors, **options)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.fixture
def small_net():
    """Return Conv-BN-Relu-Dropout-Gemm, with dotted names, a float Constant node, and metadata."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    weights = {
        "conv.weight": normal(4, 2, 3, 3),
        "conv_weight": normal(4),
        "bn.scale": normal(4),
        "bn.bias": normal(4),
        "bn.mean": normal(4),
        "bn.var": np.abs(normal(4)) + 0.5,
        "half": np.array(0.5, np.float32),
        "ratio": np.array(0.25, np.float32),
        "shape": np.array([0, -1], np.int64),
        "type": normal(64, 3),
    }
    nodes = [
        helper.make_node("Conv", ["x.in", "conv.weight", "conv_weight"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "bn.scale", "bn.bias", "bn.mean", "bn.var"], ["b"], momentum=0.8),
        helper.make_node("Relu", ["b"], ["r"]),
        helper.make_node("Dropout", ["r", "ratio"], ["d"]),
        helper.make_node("Mul", ["d", "half"], ["m"]),
        helper.make_node("Reshape", ["m", "shape"], ["f"]),
        helper.make_node("Constant", [], ["bias"], value=numpy_helper.from_array(normal(3))),
        helper.make_node("Gemm", ["f", "type", "bias"], ["y"]),
    ]
    model = build(nodes, [("x.in", ["N", 2, 4, 4])], [("y", ["N", 3]), ("r", ["N", 4, 4, 4])], weights)
    helper.set_model_props(model, {"made by": "a test"})
    return model


@pytest.fixture
def batch():
    return np.random.default_rng(1).standard_normal((6, 2, 4, 4)).astype(np.float32)


def test_parameters_and_buffers_keep_their_onnx_names(small_net):
    module = to_torch(small_net)
    assert not module.training
    weights = {module.initializer_names[name] for name, _ in module.named_parameters()}
    assert weights == {"conv.weight", "conv_weight", "bn.scale", "bn.bias", "type", "bias"}
    floats = {name for name, _ in module.named_parameters()} | set(module.state_dict())
    assert set(module.initializer_names) == floats
    assert set(module.initializer_names.values()) == set(float_tensors(small_net))
    for name in weights:
        expected = array(float_tensors(small_net)[name])
        assert module.parameter_of(name).detach().numpy().tobytes() == expected.tobytes()
    for name in ("bn.mean", "shape", "no such"):
        with pytest.raises(KeyError):
            module.parameter_of(name)


def test_several_outputs_equal_onnxruntime(small_net, batch, run_ort, run_torch, relative_error):
    feeds = {"x.in": batch}
    assert relative_error(run_ort(small_net, feeds), run_torch(to_torch(small_net), feeds)) < 1e-5


def test_inputs_by_position_and_by_name(small_net, batch):
    module = to_torch(small_net)
    x = torch.from_numpy(batch)
    assert torch.equal(module(x)[0], module(**{"x.in": x})[0])
    for args, names in [((), {}), ((x, x), {}), ((x,), {"x.in": x}), ((), {"other": x})]:
        with pytest.raises(TypeError, match=r"input"):
            module(*args, **names)


def test_the_given_model_is_neither_shared_nor_changed(small_net, batch, tmp_path):
    before = small_net.SerializeToString(deterministic=True)
    module = to_torch(from_proto(small_net))
    with torch.no_grad():
        module.parameter_of("type").zero_()
    to_onnx(module, tmp_path / "out.onnx")
    assert small_net.SerializeToString(deterministic=True) == before


def test_round_trip_untrained_is_the_same_file(small_net, tmp_path):
    save(small_net, tmp_path / "in.onnx")
    written = to_onnx(to_torch(tmp_path / "in.onnx"), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "in.onnx").read_bytes()
    assert written == (tmp_path / "out.onnx").stat().st_size


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16])
@pytest.mark.parametrize("raw", [True, False])
def test_every_float_type_goes_through_to_the_bit(dtype, raw, tmp_path):
    values = np.random.default_rng(0).standard_normal((3, 4))
    numbers = values.astype(helper.tensor_dtype_to_np_dtype(dtype))
    packed = numpy_helper.from_array(numbers, "w")
    tensor = packed if raw else helper.make_tensor("w", dtype, (3, 4), values.ravel())
    inputs = [helper.make_tensor_value_info("x", dtype, ["N", 3])]
    outputs = [helper.make_tensor_value_info("y", dtype, ["N", 4])]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", inputs, outputs, [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    module = to_torch(model)
    to_onnx(module, tmp_path / "same.onnx")
    assert onnx.load(tmp_path / "same.onnx").graph.initializer[0] == tensor
    with torch.no_grad():
        module.parameter_of("w").mul_(2)
    to_onnx(module, tmp_path / "double.onnx")
    doubled = onnx.load(tmp_path / "double.onnx").graph.initializer[0]
    assert doubled.data_type == dtype
    assert array(doubled).tobytes() == (array(tensor) * numbers.dtype.type(2)).tobytes()


def test_trained_weights_reach_the_file_and_nothing_else_changes(
    small_net, batch, tmp_path, run_ort, run_torch, relative_error
):
    module = to_torch(small_net).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        module(torch.from_numpy(batch))[0].square().mean().backward()
        optimizer.step()
    module.eval()
    to_onnx(module, tmp_path / "out.onnx")
    written = onnx.load(tmp_path / "out.onnx")
    feeds = {"x.in": batch}
    assert relative_error(run_ort(tmp_path / "out.onnx", feeds), run_torch(module, feeds)) < 1e-5
    changed = {name for name, t in float_tensors(written).items() if t != float_tensors(small_net)[name]}
    # Batch statistics take out the convolution's bias, so that its gradient is nothing but rounding.
    changed.discard("conv_weight")
    assert changed == {"conv.weight", "bn.scale", "bn.bias", "bn.mean", "bn.var", "type", "bias"}
    for name, tensor in float_tensors(written).items():
        tensor.CopyFrom(float_tensors(small_net)[name])
    assert written == small_net


def test_external_data_stays_external(tmp_path):
    weight = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = build([node], [("x", ["N", 32])], [("y", ["N", 32])], {"w": weight})
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    onnx.save_model(model, tmp_path / "in" / "m.onnx", save_as_external_data=True, location="m.data")
    module = to_torch(tmp_path / "in" / "m.onnx")
    with torch.no_grad():
        module.parameter_of("w").add_(1)
    to_onnx(module, tmp_path / "out" / "m.onnx")
    assert (tmp_path / "out" / "m.onnx.data").stat().st_size == weight.nbytes
    again = to_torch(tmp_path / "out" / "m.onnx")
    assert torch.equal(again.parameter_of("w"), torch.from_numpy(weight + 1))


def test_batch_statistics_train_and_update_the_running_ones(small_net, batch):
    module = to_torch(small_net).train()
    buffers = dict(module.named_buffers())
    mean, variance = buffers["bn_mean"].clone(), buffers["bn_var"].clone()
    x = torch.from_numpy(batch)
    module(x)
    weight, bias = module.parameter_of("conv.weight"), module.parameter_of("conv_weight")
    conv = torch.nn.functional.conv2d(x, weight, bias, padding=1).detach()
    spread, centre = torch.var_mean(conv, dim=[0, 2, 3], correction=0)
    torch.testing.assert_close(buffers["bn_mean"], 0.8 * mean + 0.2 * centre)
    torch.testing.assert_close(buffers["bn_var"], 0.8 * variance + 0.2 * spread)
    settled = buffers["bn_mean"].clone()
    module.eval()(x)
    assert torch.equal(buffers["bn_mean"], settled)


@pytest.mark.parametrize("opset", [10, 13])
def test_dropout_acts_in_training_mode_only(one_node, opset):
    x = np.ones((100, 100), np.float32)
    ratio = np.array(0.25, np.float32)
    model = one_node("Dropout", [x, ratio] if opset >= 12 else [x], opset=opset, outputs=2)
    if opset < 12:
        model.graph.node[0].attribute.append(helper.make_attribute("ratio", 0.25))
    module = to_torch(model)
    y, mask = module(torch.from_numpy(x))
    assert torch.equal(y, torch.from_numpy(x))
    assert mask.all()
    torch.manual_seed(0)
    y, mask = module.train()(torch.from_numpy(x))
    assert abs(float(mask.float().mean()) - 0.75) < 0.02
    torch.testing.assert_close(y, mask / 0.75)


def test_batch_normalization_that_trains_by_itself(one_node, run_ort, run_torch, relative_error):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 3, 5)).astype(np.float32)
    parts = [rng.uniform(0.5, 1, 3).astype(np.float32) for _ in range(4)]
    model = one_node("BatchNormalization", [x, *parts], outputs=3, training_mode=1, momentum=0.7, fixed=range(1, 5))
    assert relative_error(run_ort(model, {"x0": x}), run_torch(to_torch(model), {"x0": x})) < 1e-5


def test_weights_behind_identity_and_listed_as_inputs():
    """Exporters share equal statistics through Identity, and old ones list initializers as graph inputs."""
    ones = np.ones(2, np.float32)
    nodes = [
        helper.make_node("Identity", ["mean"], ["also mean"]),
        helper.make_node("BatchNormalization", ["x", "scale", "bias", "also mean", "var"], ["y"]),
    ]
    weights = {"scale": ones, "bias": ones, "mean": ones * 0, "var": ones}
    model = build(nodes, [("x", ["N", 2]), ("scale", [2])], [("y", ["N", 2])], weights)
    module = to_torch(model)
    assert module.input_names == ("x",)
    assert {name for name, _ in module.named_parameters()} == {"scale", "bias"}


def test_a_copied_or_pickled_module_still_runs_and_writes(small_net, batch, tmp_path):
    module = to_torch(small_net)
    copied = copy.deepcopy(module)
    torch.save(module, tmp_path / "module.pt")
    loaded = torch.load(tmp_path / "module.pt", weights_only=False)
    for other in (copied, loaded):
        assert torch.equal(other(torch.from_numpy(batch))[0], module(torch.from_numpy(batch))[0])
        to_onnx(other, tmp_path / "out.onnx")
        assert onnx.load(tmp_path / "out.onnx") == small_net


def test_a_module_of_other_precision_writes_the_graphs_own(small_net, tmp_path):
    to_onnx(to_torch(small_net).double(), tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx") == small_net


@pytest.mark.parametrize(
    ("op_type", "domain", "attributes"),
    [
        ("Relu", "com.acme", {}),
        ("Unique", "", {}),
        ("MaxPool", "", {"kernel_shape": [2, 2], "two": True}),
        ("AveragePool", "", {"kernel_shape": [2, 2], "dilations": [2, 2]}),
        ("Cast", "", {"to": TensorProto.STRING}),
        ("FusedMatMul", "com.microsoft", {"transBatchA": 1}),
        ("FusedConv", "com.microsoft", {"activation": "Swish"}),
        ("MultiHeadAttention", "com.microsoft", {"num_heads": 2}),
        ("Attention", "com.microsoft", {"num_heads": 2, "do_rotary": 1}),
        ("GroupQueryAttention", "com.microsoft", {"smooth_softmax": 1}),
        ("RotaryEmbedding", "com.microsoft", {"is_packed_batching": 1}),
        ("QLinearSigmoid", "com.microsoft", {}),
    ],
)
def test_what_it_cannot_run_is_refused_at_once(op_type, domain, attributes):
    made = ["y", "indices"] if attributes.pop("two", False) else ["y"]
    node = helper.make_node(op_type, ["x"], made, name="odd one", domain=domain, **attributes)
    model = build([node], [("x", [1, 1, 4, 4])], [("y", list("NCHW"))], {}, opset=19)
    model.opset_import.extend(helper.make_opsetid(name, 1) for name in ("com.acme", "com.microsoft"))
    with pytest.raises(UnsupportedOperatorError) as caught:
        to_torch(model)
    for word in (op_type, domain or "ai.onnx", "odd one", "why: ", "what to do: "):
        assert word in str(caught.value)


def test_rounded_numbers_are_refused_with_what_to_do():
    node = helper.make_node("QLinearSigmoid", ["x"], ["y"], domain="com.microsoft")
    model = build([node], [("x", [1])], [("y", [1])], {})
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(UnsupportedOperatorError, match="train the float model"):
        to_torch(model)


def test_models_that_cannot_be_read(small_net, tmp_path):
    with pytest.raises(RecipeError):
        to_torch(tmp_path / "missing.onnx")
    node = helper.make_node("Relu", ["x"], ["y"])
    with pytest.raises(ModelError, match="operator set 6"):
        to_torch(build([node], [("x", [1])], [("y", [1])], {}, opset=6))
    with pytest.raises(RecipeError):
        to_onnx(to_torch(small_net), tmp_path / "no folder" / "out.onnx")


def test_modules_that_cannot_be_written(small_net, tmp_path):
    with pytest.raises(TypeError):
        to_onnx(torch.nn.Linear(2, 2), tmp_path / "out.onnx")
    module = to_torch(small_net)
    module.parameter_of("type").data[0, 0] = float("nan")
    with pytest.raises(ModelError, match="diverged"):
        to_onnx(module, tmp_path / "out.onnx")
    module.parameter_of("type").requires_grad_(False)  # as `frozen` does
    with pytest.raises(ModelError, match="diverged"):
        to_onnx(module, tmp_path / "out.onnx")
    module.parameter_of("type").data = torch.zeros(2, 2)
    with pytest.raises(ModelError, match="shape"):
        to_onnx(module, tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


def test_without_torch_the_error_says_what_to_install():
    code = "import sys; sys.modules['torch'] = None\nimport graphprune.finetune"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "TorchMissingError" in done.stderr
    assert "pip install graphprune[torch]" in done.stderr
    assert issubclass(__import__("graphprune.finetune").finetune.TorchMissingError, GraphPruneError)


def test_statistics_that_overflowed_are_not_written(tmp_path):
    module = to_torch(small.network())
    module.train()
    module(torch.full((4, 2, 6, 6), torch.inf))
    with pytest.raises(ModelError, match="infinite or not a number"):
        to_onnx(module, tmp_path / "out.onnx")


def test_infinities_that_were_there_are_written(tmp_path):
    net = Net()
    mask = net.initializer(np.array([[0, -np.inf, 0, 0]]), "mask")
    model = net.build(net.node("Add", [net.gemm(net.input(["N", 3]), 4), mask], ["N", 4]))
    to_onnx(to_torch(model), tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx") == model
