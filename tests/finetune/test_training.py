"""Training: mixed precision, compilation, saving and resuming, and what is a weight at all."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import onnx
import pytest
from onnx import TensorProto

torch = pytest.importorskip("torch")

from graphprune.finetune import to_onnx, to_torch  # noqa: E402
from graphprune.ir.encoding.decoders import MARK  # noqa: E402
from graphprune.passes.encode import encode  # noqa: E402
from tests.nets import Net  # noqa: E402
from tests.oracles import feeds, run  # noqa: E402

STEPS = 5


def convolutional(opset=17):
    net = Net(opset)
    maps = net.input(["N", 3, 8, 8])
    for width in (6, 8):
        maps = net.pool(net.relu(net.batch_norm(net.conv(maps, width, 3))))
    return net.build(net.gemm(net.flatten(maps), 5))


def perceptron():
    net = Net()
    return net.build(net.gemm(net.relu(net.gemm(net.input(["N", 6]), 16)), 4))


def language_model(op="LSTM", **attributes):
    """Embedding, two recurrent layers and a word for every step: [steps, N] words to [steps, N, 7] scores."""
    net, gates = Net(), {"LSTM": 4, "GRU": 3}[op]
    words = net.input([STEPS, "N"], "words")
    net.kinds[words] = TensorProto.INT64
    state = net.node("Gather", [net.weight([7, 6], "embedding"), words], [STEPS, "N", 6], kind=TensorProto.FLOAT)
    for width in (8, 6):
        names = [net.weight([1, gates * width, int(net.shapes[state][2])], fan_in=4)]
        names += [
            net.weight([1, gates * width, width], fan_in=8),
            net.initializer(np.zeros((1, 2 * gates * width)), "b"),
        ]
        made = net.node(op, [state, *names], [STEPS, 1, "N", width], hidden_size=width, **attributes)
        state = net.squeeze(made, [1])
    return net.build(net.linear(state, 7))


def words(batch=4, seed=0):
    return {"words": np.random.default_rng(seed).integers(0, 7, (STEPS, batch))}


MODELS = {
    "convolutional": (convolutional, lambda: feeds(convolutional(), 1, batch=6)),
    "perceptron": (perceptron, lambda: feeds(perceptron(), 1, batch=6)),
    "fused LSTM": (language_model, words),
    "GRU step by step": (lambda: language_model("GRU"), words),
}


def made(name):
    """Return a module and inputs for it."""
    build, given = MODELS[name]
    return to_torch(build()), {key: torch.from_numpy(value) for key, value in given().items()}


def loss_of(module, inputs):
    scores = module(**inputs)
    return torch.nn.functional.cross_entropy(scores.flatten(0, -2), torch.arange(scores[..., 0].numel()) % 4)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_mixed_precision_computes_nearly_the_same_and_gives_gradients(name, training):
    module, inputs = made(name)
    exact = copy.deepcopy(module).train(training)
    exact_loss = loss_of(exact, inputs)
    exact_loss.backward()
    module.train(training)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores, loss = module(**inputs), loss_of(module, inputs)
    loss.backward()
    assert scores.isfinite().all()
    assert abs(float(loss.detach() - exact_loss.detach())) < 0.02 * float(exact_loss.detach())
    assert not torch.equal(loss, exact_loss)  # or nothing was rounded
    for (label, parameter), (_, other) in zip(module.named_parameters(), exact.named_parameters(), strict=True):
        assert parameter.grad.dtype is torch.float32
        cosine = torch.cosine_similarity(parameter.grad.flatten(), other.grad.flatten(), dim=0)
        # Batch statistics take out the bias in front of them, whose gradient is nothing but rounding.
        assert cosine > 0.98 or float(other.grad.norm()) < 1e-6, label
    for (label, buffer), (_, other) in zip(module.named_buffers(), exact.named_buffers(), strict=True):
        assert buffer.dtype is other.dtype, label


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [False, True])
def test_it_is_compiled_in_one_graph(name, training):
    torch.compiler.reset()  # of one function it keeps a few versions only, and every model is another
    module, inputs = made(name)
    module.train(training)
    compiled = torch.compile(copy.deepcopy(module), backend="eager", fullgraph=True)
    for _ in range(2):
        ours, theirs = module(**inputs), compiled(**inputs)
        assert torch.equal(ours, theirs)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for one, other in zip(module.parameters(), compiled.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    for one, other in zip(module.buffers(), compiled.buffers(), strict=True):
        assert torch.equal(one, other)


def train(module, optimizer, inputs, count):
    module.train()
    for _ in range(count):
        optimizer.zero_grad()
        loss_of(module, inputs).backward()
        optimizer.step()


@pytest.mark.parametrize("name", MODELS)
def test_a_run_that_is_saved_and_resumed_ends_where_the_other_does(name, tmp_path):
    module, inputs = made(name)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    train(module, optimizer, inputs, 2)
    torch.save({"module": module.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "run.pt")
    train(module, optimizer, inputs, 2)

    again, _ = made(name)
    resumed = torch.optim.Adam(again.parameters(), lr=0.01)
    saved = torch.load(tmp_path / "run.pt")
    assert {value.dtype for value in saved["module"].values()} == {torch.float32}
    again.load_state_dict(saved["module"])
    resumed.load_state_dict(saved["optimizer"])
    train(again, resumed, inputs, 2)
    for one, other in zip(module.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    to_onnx(module, tmp_path / "one.onnx")
    to_onnx(again, tmp_path / "other.onnx")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "other.onnx").read_bytes()
    given = {key: value.numpy() for key, value in inputs.items()}
    (expected,) = run(onnx.load(tmp_path / "one.onnx"), given).values()
    np.testing.assert_allclose(module.eval()(**inputs).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_copies_train_by_themselves(name):
    module, inputs = made(name)
    before = loss_of(module, inputs)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(loss_of(other, inputs), before)
        train(other, torch.optim.SGD(other.parameters(), lr=0.1), inputs, 3)
        assert loss_of(other.eval(), inputs) < before
        assert torch.equal(loss_of(module, inputs), before)


def test_what_an_exporter_stores_beside_the_weights_is_not_trained():
    net = Net()
    rows = net.input(["N", 3, 4])
    masked = net.add(rows, net.initializer(np.triu(np.full((3, 4), -np.inf), 1), "mask"))
    masked = net.add(masked, net.initializer(np.triu(np.full((3, 4), -1e9), 1), "large mask"))
    state = [net.initializer(np.zeros((1, 3, 2)), name) for name in ("state", "cell")]
    names = [net.weight([1, 8, 4]), net.weight([1, 8, 2]), "", "", *state]
    made = net.node("LSTM", [net.node("Softmax", [masked]), *names], ["N", 1, 3, 2], hidden_size=2)
    module = to_torch(net.build(made))
    assert {name for name, _ in module.named_parameters()} == {"w_0", "w_1"}
    assert {"mask", "large mask", "state", "cell"} <= set(module.initializer_names.values())


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.DOUBLE])
@pytest.mark.parametrize("density", [0.05, 0.5], ids=["gaps", "bitmap"])
def test_an_encoded_model_that_has_lost_its_mark_trains_what_is_stored(kind, density, tmp_path):
    """With the mark it is decoded when it is loaded; without, its decoder is interpreted."""
    net = Net(kind=kind)
    random = np.random.default_rng(0)
    weight = np.where(random.random((256, 64)) < density, random.standard_normal((256, 64)), 0)
    model = net.build(net.node("MatMul", [net.input(["N", 256]), net.initializer(weight, "w")], ["N", 64]))
    small, (encoding,) = encode(model)
    assert encoding.form == ("gaps" if density < 0.1 else "bitmap")
    assert [name for name, _ in to_torch(small).named_parameters()] == ["w"]
    del small.metadata_props[[entry.key for entry in small.metadata_props].index(MARK)]
    module, given = to_torch(small), feeds(model, 1)
    (name,) = (name for name, _ in module.named_parameters())
    assert name.endswith("values")
    (x,) = (torch.from_numpy(value) for value in given.values())
    np.testing.assert_allclose(module(x).detach().numpy(), next(iter(run(model, given).values())), rtol=1e-5, atol=1e-5)
    train_on = torch.optim.SGD(module.parameters(), lr=0.1)
    module(x).square().mean().backward()
    train_on.step()
    to_onnx(module, tmp_path / "tuned.onnx")
    (tuned,) = run(onnx.load(tmp_path / "tuned.onnx"), given).values()
    np.testing.assert_allclose(module(x).detach().numpy(), tuned, rtol=1e-5, atol=1e-5)
    assert not np.allclose(tuned, next(iter(run(model, given).values())), rtol=1e-3)
