"""BatchNormalization for the time of a training: it changes nothing by itself, and folds without a trace."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from graphprune.errors import CalibrationError, RecipeError  # noqa: E402
from graphprune.finetune import Masks, normalised, to_onnx, to_proto, to_torch, trim  # noqa: E402
from graphprune.ir.tensors import array  # noqa: E402
from graphprune.passes.fold import fold  # noqa: E402
from tests import small  # noqa: E402
from tests.nets import Net  # noqa: E402
from tests.oracles import feeds, run  # noqa: E402

CLOSE = 2e-6
"""Relative error of float32 where scales are multiplied in and out again."""


def residual(seed=0, constants=False):
    net = Net(seed=seed, constants=constants)
    data = net.relu(net.conv(net.input(["N", 3, 8, 8], "image"), 8, 3))
    inner = net.conv(net.relu(net.conv(data, 12, 3)), 8, 3)
    return net.build(net.gemm(net.flatten(net.pool(net.relu(net.add(data, inner)))), 5))


def samples(model, count=64, seed=1):
    (found,) = feeds(model, seed, count).values()
    return found


def train(module, x, steps=20, rate=1e-3):
    module.train()
    goal = torch.from_numpy(np.random.default_rng(3).normal(size=(len(x), 5)).astype(np.float32))
    optimizer = torch.optim.SGD(module.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4)
    for _ in range(steps):
        optimizer.zero_grad()
        (module(torch.from_numpy(x)) - goal).square().mean().backward()
        optimizer.step()
    module.eval()


def evaluated(module, x):
    with torch.no_grad():
        return module(torch.from_numpy(x)).numpy()


def assert_close(expected, got):
    assert expected.shape == got.shape
    assert np.linalg.norm(expected - got) <= CLOSE * np.linalg.norm(expected)


@pytest.mark.parametrize("constants", [False, True])
def test_it_changes_nothing_by_itself(constants):
    model = residual(constants=constants)
    x, module = samples(model), to_torch(model)
    before, names = evaluated(module, x), dict(module.initializer_names)
    with normalised(module, x) as outputs:
        assert len(outputs) == 3
        assert_close(before, evaluated(module, x))
        kinds = [node.op_type for node in to_proto(module).graph.node]
        assert kinds.count("BatchNormalization") == 3
    assert_close(before, evaluated(module, x))
    assert module.initializer_names == names
    assert list(to_proto(module).graph.node) == list(model.graph.node)


@given(seed=st.integers(0, 100), steps=st.integers(1, 6))
def test_what_was_learnt_stays_when_it_is_folded(seed, steps):
    model = residual(seed)
    x, module = samples(model, 16), to_torch(model)
    with normalised(module, x):
        train(module, x, steps)
        learnt = evaluated(module, x)
    assert_close(learnt, evaluated(module, x))
    assert_close(learnt, next(iter(run(to_proto(module), {"image": x}).values())))


def test_in_training_a_batch_is_normalised_by_its_own_statistics():
    model = residual()
    x, module = torch.from_numpy(samples(model)), to_torch(model)
    with normalised(module, x.numpy()), torch.no_grad():
        apart = module.eval()(3 * x) - module(x)
        alike = module.train()(3 * x) - module(x)
    assert float(alike.norm()) < 0.1 * float(apart.norm())


def test_zeros_stay_zeros_to_the_bit(tmp_path):
    model = small.network()
    x, module = samples(model), to_torch(model)
    names = [node.input[1] for node in model.graph.node if node.op_type == "Conv"]
    with torch.no_grad():
        for name in names:
            module.parameter_of(name).view(-1)[::3] = 0
    masks = Masks(module, names)
    with normalised(module, x):
        train(module, x)
        masks.apply()
    to_onnx(module, tmp_path / "trained.onnx")
    for tensor in to_proto(module).graph.initializer:
        if tensor.name in names:
            assert not array(tensor).reshape(-1)[::3].any()


def test_units_may_go_while_it_lasts():
    model = residual()
    x, module = samples(model), to_torch(model)
    with normalised(module, x):
        train(module, x, steps=3)
        gone = trim(module, x, channels=0.5, align="off")
        train(module, x, steps=3)
        learnt = evaluated(module, x)
    assert gone.removed
    assert_close(learnt, evaluated(module, x))
    assert "BatchNormalization" not in {node.op_type for node in to_proto(module).graph.node}


def test_an_error_in_the_block_leaves_a_whole_module():
    model = residual()
    x, module = samples(model), to_torch(model)
    before = evaluated(module, x)
    with pytest.raises(KeyboardInterrupt), normalised(module, x):
        raise KeyboardInterrupt
    assert_close(before, evaluated(module, x))


def test_convolutions_that_are_normalised_already_are_left():
    model = small.network()
    x, bare, module = samples(model), to_torch(fold(model)), to_torch(model)
    with normalised(bare, x) as outputs:
        assert len(outputs) == 3
    with normalised(module, x) as outputs:
        assert len(outputs) == 2


def test_bad_input_is_named():
    net = Net()
    dense = to_torch(net.build(net.gemm(net.input(["N", 6], "image"), 5)))
    with pytest.raises(RecipeError, match="nothing to normalise"), normalised(dense, np.zeros((4, 6), np.float32)):
        pass
    module = to_torch(residual())
    with pytest.raises(CalibrationError, match="statistics"), normalised(module, None):
        pass
    with pytest.raises(CalibrationError), normalised(module, np.zeros((4, 2, 8, 8), np.float32)):
        pass


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError])
def test_a_training_that_breaks_off_leaves_the_graph_and_its_own_exception(failure):
    model = residual()
    x, module = samples(model), to_torch(model)
    saved = {name: value.clone() for name, value in module.state_dict().items()}

    def breaks_off():
        with normalised(module, x):
            module.parameter_of("w_0").data.fill_(float("nan"))
            raise failure

    with pytest.raises(failure):
        breaks_off()
    module.load_state_dict(saved)
    assert_close(run(model, {"image": x})[model.graph.output[0].name], evaluated(module, x))


def test_what_is_frozen_is_not_normalised():
    model = residual()
    x, module = samples(model), to_torch(model)
    before = module.parameter_of("w_0").detach().clone()
    module.parameter_of("w_0").requires_grad_(False)
    with normalised(module, x) as outputs:
        assert len(outputs) == 2
        train(module, x)
    assert torch.equal(module.parameter_of("w_0"), before)


def test_zeros_are_positive_when_it_ends():
    model = residual()
    x, module = samples(model), to_torch(model)
    module.parameter_of("w_0").data[:, 0] = 0
    Masks(module, ["w_0"])
    with normalised(module, x):
        for name, value in module.named_parameters():
            if name.endswith("_scale"):
                value.data.neg_()
    assert not torch.signbit(module.parameter_of("w_0")[:, 0]).any()
