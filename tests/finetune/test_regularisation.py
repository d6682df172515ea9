"""What Han et al. 2015 add to training: penalties on what may be zeroed, Dropout that shrinks, frozen layers."""

from __future__ import annotations

import math

import onnx
import pytest

torch = pytest.importorskip("torch")

from graphprune.errors import RecipeError  # noqa: E402
from graphprune.finetune import (  # noqa: E402
    Pruner,
    Schedule,
    connections,
    dropout_ratios,
    frozen,
    l1_penalty,
    l2_penalty,
    to_onnx,
    to_torch,
    trim,
)
from tests import small  # noqa: E402
from tests.nets import Net  # noqa: E402
from tests.oracles import feeds  # noqa: E402


def samples(model, count=32):
    (found,) = feeds(model, 1, count).values()
    return found


# -- penalties ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("penalty", "power"), [(l1_penalty, 1), (l2_penalty, 2)])
def test_penalties_are_of_the_weights_that_may_be_zeroed(penalty, power):
    module = to_torch(small.network())
    pruner = Pruner(module, Schedule(0.5))
    weights = {name: module.parameter_of(name) for name in pruner.masks.zeros}
    expected = 0.01 * sum((weight.detach().double().abs() ** power).sum() for weight in weights.values())
    found = penalty(module, 0.01)
    assert found.item() == pytest.approx(float(expected), rel=1e-5)
    found.backward()
    for name, weight in weights.items():
        zeros = pruner.masks.zeros[name]
        assert (weight.grad[zeros] == 0).all()
        assert (weight.grad[~zeros] != 0).all()
        slope = 0.01 * weight.detach().sign() if power == 1 else 0.02 * weight.detach()
        assert torch.allclose(weight.grad, slope, rtol=1e-6)
    held = {id(weight) for weight in weights.values()}
    assert all(value.grad is None for value in module.parameters() if id(value) not in held)


def test_l1_shrinks_and_follows_a_trim():
    model = small.network()
    module = to_torch(model)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    start = l1_penalty(module, 1.0).item()
    for _ in range(5):
        optimizer.zero_grad()
        l1_penalty(module, 0.01).backward()
        optimizer.step()
    assert l1_penalty(module, 1.0).item() < start
    trim(module, samples(model), channels=0.5, align="off", optimizer=optimizer)
    left = sum(value.detach().abs().sum().item() for value in module.parameters() if value.dim() > 1)
    assert l1_penalty(module, 1.0).item() == pytest.approx(left, rel=1e-5)


@pytest.mark.parametrize("strength", [-1.0, float("nan")])
def test_a_penalty_below_zero_is_refused(strength):
    with pytest.raises(RecipeError, match="strength must be at least 0"):
        l1_penalty(to_torch(small.network()), strength)


# -- Dropout -----------------------------------------------------------------------------------------------------


def dropped(form, opset=17):
    """Dropout in front of the second and of the third layer, and behind the last."""
    net = Net(opset)
    data = net.input(["N", 6], "x")
    shared = net.initializer(0.4, "shared") if form == "shared" else ""

    def drop(data):
        if form == "attribute":
            return net.node("Dropout", [data], ratio=0.4)
        if form == "left out":
            return net.node("Dropout", [data])
        return net.node("Dropout", [data, shared or net.initializer(0.4, "ratio")])

    data = drop(net.relu(net.gemm(data, 16)))
    data = net.reshape(drop(net.relu(net.gemm(data, 12))), [0, -1], ["N", 12])
    return net.build(drop(net.gemm(data, 5)))


def share_dropped(module, x, place):
    """How much of a Dropout's input becomes zero in training."""
    module.train()
    step = [step for step in module.steps if step.function.__name__ == "dropout"][place]
    values = {name: getattr(module, torch_name) for torch_name, name in module.initializer_names.items()}
    values[step.inputs[0]] = torch.ones(100_000)
    step.run(values, True)
    return (values[step.outputs[0]] == 0).double().mean().item()


@pytest.mark.parametrize(
    ("form", "opset", "ratio"),
    [("input", 17, 0.4), ("shared", 13, 0.4), ("attribute", 11, 0.4), ("left out", 17, 0.5), ("left out", 9, 0.5)],
)
def test_dropout_follows_the_connections_that_are_left(form, opset, ratio, tmp_path):
    module = to_torch(dropped(form, opset))
    torch.manual_seed(0)
    before = connections(module)
    assert before.counts == {"w_0": 96, "w_1": 192, "w_2": 60}
    assert before.ratios == pytest.approx({"dropout_0": ratio, "dropout_1": ratio, "dropout_2": ratio})
    optimizer = torch.optim.Adam(module.parameters())
    pruner = Pruner(module, Schedule(0.5), optimizer, targets={"w_1": 0.75, "w_2": 0.2})
    expected = {
        "dropout_0": ratio * math.sqrt(0.25),  # w_1 reads what it leaves
        "dropout_1": ratio * math.sqrt(0.8),  # w_2, through the Reshape
        "dropout_2": ratio * math.sqrt(0.8),  # w_2 makes what it reads; nothing reads what it leaves
    }
    weights = {id(value) for value in module.parameters()}
    for _ in range(2):  # from the same beginning, the same again
        assert dropout_ratios(module, before) == pytest.approx(expected, rel=1e-6)
    assert connections(module).ratios == pytest.approx(expected, rel=1e-6)
    assert {id(value) for value in module.parameters()} == weights
    for place, chance in enumerate(expected.values()):
        assert share_dropped(module, None, place) == pytest.approx(chance, abs=0.01)
    pruner.step()
    to_onnx(module, tmp_path / "out.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"), full_check=True)
    again = to_torch(tmp_path / "out.onnx")
    assert connections(again).ratios == pytest.approx(expected, rel=1e-6)
    assert list(again.state_dict()) == list(module.state_dict())


def test_dropout_follows_units_that_are_removed():
    model = dropped("input")
    module = to_torch(model)
    before = connections(module)
    trim(module, samples(model), channels=0.25)
    found = dropout_ratios(module, before)
    assert found["dropout_0"] == pytest.approx(0.4 * math.sqrt(12 * 9 / (16 * 12)), rel=1e-6)
    assert found["dropout_1"] == pytest.approx(0.4 * math.sqrt(9 / 12), rel=1e-6)


def test_no_dropout_nothing_to_set():
    module = to_torch(small.network())
    assert dropout_ratios(module, connections(module)) == {}


def test_connections_of_another_time_are_refused():
    module = to_torch(dropped("input"))
    first = connections(module)
    pruner = Pruner(module, Schedule(0.5))
    later = connections(module)
    pruner.remove()
    with torch.no_grad():
        module.parameter_of("w_1").fill_(1.0)
    with pytest.raises(RecipeError, match=r"more connections than before(.|\n)*192"):
        dropout_ratios(module, later)
    assert connections(module).ratios == first.ratios


# -- frozen layers -----------------------------------------------------------------------------------------------


def mixed():
    """Two convolutions, a Gemm, and a MatMul with an Add behind it."""
    net = Net()
    data = net.relu(net.batch_norm(net.conv(net.input(["N", 2, 6, 6], "image"), 6, 3)))
    data = net.flatten(net.pool(net.relu(net.depthwise(data))))
    return net.build(net.linear(net.relu(net.gemm(data, 8)), 5))


KINDS = {"convolutional": ["b_0", "b_1", "w_0", "w_1"], "fully connected": ["b_2", "b_3", "w_2", "w_3"]}


@pytest.mark.parametrize("kind", KINDS)
def test_layers_of_one_kind_stay_while_the_others_train(kind):
    model = mixed()
    module = to_torch(model)
    x, y = torch.from_numpy(samples(model)), torch.zeros(32, 5)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)

    def advance():
        for _ in range(3):
            optimizer.zero_grad(set_to_none=False)  # zeros: momentum and decay would go on
            (module(x) - y).square().mean().backward()
            optimizer.step()

    advance()
    start = {name: getattr(module, key).detach().clone() for key, name in module.initializer_names.items()}
    with frozen(module, kind) as names:
        assert sorted(names) == KINDS[kind]
        advance()
    for key, name in module.initializer_names.items():
        value = getattr(module, key)
        if isinstance(value, torch.nn.Parameter):
            assert torch.equal(value.detach(), start[name]) == (name in names)
            assert value.requires_grad
    advance()
    assert all((module.parameter_of(name) != start[name]).any() for name in names)


def test_in_turns_with_pruning_and_trimming():
    model = mixed()
    module = to_torch(model)
    module.train()
    x, y = torch.from_numpy(samples(model)), torch.zeros(32, 5)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    pruner = Pruner(module, Schedule(0.6, end=12, frequency=3), optimizer)
    for turn in range(4):
        with frozen(module, ("convolutional", "fully connected")[turn % 2]):
            for _ in range(3):
                optimizer.zero_grad()
                (module(x) - y).square().mean().backward()
                optimizer.step()
                pruner.step()
            if turn == 1:
                assert pruner.trim(samples(model), channels=0.25, align="off").removed
        assert all(value.requires_grad for value in module.parameters())
    assert pruner.sparsity == pytest.approx(0.6, abs=0.01)
    zeros = pruner.masks.zeros
    assert all((module.parameter_of(name)[found] == 0).all() for name, found in zeros.items())


def test_what_the_user_froze_stays_frozen_and_errors_let_go():
    module = to_torch(mixed())
    module.parameter_of("w_0").requires_grad_(False)
    with frozen(module, "convolutional") as names:
        assert sorted(names) == ["b_0", "b_1", "w_1"]
    with pytest.raises(RuntimeError, match="Expected 3D"), frozen(module, "convolutional"):
        module(torch.zeros(1, 7))
    assert [name for name in KINDS["convolutional"] if not module.parameter_of(name).requires_grad] == ["w_0"]
    with (
        pytest.raises(RecipeError, match="'convolutional' or 'fully connected', not 'recurrent'"),
        frozen(module, "recurrent"),
    ):
        pass
