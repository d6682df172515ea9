"""Zeros put by pruning stay zero to the bit, whatever optimizer trains."""

from __future__ import annotations

import copy
import gc
import weakref

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch")

from graphprune.errors import ModelError, RecipeError  # noqa: E402
from graphprune.finetune import Masks, to_onnx, to_torch  # noqa: E402
from graphprune.ir.tensors import array  # noqa: E402

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
}


class Restless(torch.optim.Optimizer):
    """Moves every weight by 1, whatever its gradient."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(1.0)


@pytest.fixture
def pruned():
    """Return a two-layer network with half of the weights of `w1` at zero, one of them -0.0, and its ledger."""
    rng = np.random.default_rng(0)
    w1, w2 = (rng.standard_normal(shape).astype(np.float32) for shape in ((8, 16), (16, 3)))
    w1[np.abs(w1) < np.median(np.abs(w1))] = 0
    w1[tuple(np.argwhere(w1 == 0)[0])] = -0.0
    w2[0, 0] = 0  # not put there by pruning
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(w1, "w1"), numpy_helper.from_array(w2, "w2")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model, {"zeroed": {"w1": int((w1 == 0).sum())}}


def train(module, optimizer, steps=20):
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randn(32, 8, generator=generator)).sub(1).square().mean().backward()
        optimizer.step()


def initializer(path, name):
    return next(array(tensor) for tensor in onnx.load(path).graph.initializer if tensor.name == name)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_stay_without_a_call_in_the_loop(pruned, name, tmp_path):
    model, ledger = pruned
    module = to_torch(model)
    Masks.from_ledger(module, ledger)
    zeros = module.parameter_of("w1").detach() == 0
    before = module.parameter_of("w1").detach().clone()
    train(module, OPTIMIZERS[name](module.parameters()))
    after = module.parameter_of("w1").detach()
    assert (after[zeros] == 0).all()
    assert (after[~zeros] != before[~zeros]).all()
    assert module.parameter_of("w2")[0, 0] != 0
    to_onnx(module, tmp_path / "out.onnx")
    written = initializer(tmp_path / "out.onnx", "w1")
    assert (written[zeros.numpy()] == 0).all()


def test_state_from_before_the_masks_does_not_reach_the_network_or_the_file(pruned, tmp_path):
    model, ledger = pruned
    module = to_torch(model)
    zeros = module.parameter_of("w1").detach() == 0
    optimizer = OPTIMIZERS["adam"](module.parameters())
    start = {name: value.clone() for name, value in module.state_dict().items()}
    train(module, optimizer, 3)
    module.load_state_dict(start)
    Masks.from_ledger(module, ledger)
    train(module, optimizer, 3)
    assert (module.parameter_of("w1")[zeros] != 0).any()  # what the last step left behind
    to_onnx(module, tmp_path / "out.onnx")
    assert (initializer(tmp_path / "out.onnx", "w1")[zeros.numpy()] == 0).all()
    train(module, optimizer, 1)
    module(torch.zeros(1, 8))
    assert (module.parameter_of("w1")[zeros] == 0).all()


def test_attached_to_any_optimizer_zeros_are_back_after_each_step(pruned):
    model, ledger = pruned
    module = to_torch(model)
    masks = Masks.from_ledger(module, ledger)
    zeros = masks.zeros["w1"]
    optimizer = Restless(module.parameters())
    handle = masks.attach(optimizer)
    optimizer.step()
    assert (module.parameter_of("w1")[zeros] == 0).all()
    handle.remove()
    optimizer.step()
    assert (module.parameter_of("w1")[zeros] == 1).all()


def test_two_forward_passes_before_one_backward_pass(pruned):
    """Setting the zeros again must not look to autograd like a change of the weights."""
    model, ledger = pruned
    module = to_torch(model)
    Masks.from_ledger(module, ledger)
    (module(torch.ones(2, 8)).sum() + module(torch.zeros(2, 8)).sum()).backward()
    assert (module.parameter_of("w1").grad[module.parameter_of("w1") == 0] == 0).all()


def test_gradients_that_are_not_finite_are_masked_too(pruned):
    model, ledger = pruned
    module = to_torch(model)
    masks = Masks.from_ledger(module, ledger)
    (module(torch.full((2, 8), torch.inf)).sum()).backward()
    assert (module.parameter_of("w1").grad[masks.zeros["w1"]] == 0).all()


def test_a_copy_is_free_of_the_masks(pruned):
    model, ledger = pruned
    module = to_torch(model)
    masks = Masks.from_ledger(module, ledger)
    copied = copy.deepcopy(module)
    assert copied.constraints == []
    train(copied, OPTIMIZERS["sgd"](copied.parameters()))
    assert (copied.parameter_of("w1")[masks.zeros["w1"]] != 0).any()
    assert (module.parameter_of("w1")[masks.zeros["w1"]] == 0).all()


def test_removed_masks_let_go(pruned):
    model, ledger = pruned
    module = to_torch(model)
    masks = Masks.from_ledger(module, ledger)
    optimizer = OPTIMIZERS["sgd"](module.parameters())
    masks.attach(optimizer)
    zeros = masks.zeros["w1"]
    masks.remove()
    assert module.constraints == []
    assert masks.zeros == {}
    train(module, optimizer)
    assert (module.parameter_of("w1")[zeros] != 0).any()


def test_ledgers_that_do_not_fit(pruned):
    model, ledger = pruned
    module = to_torch(model)
    with pytest.raises(RecipeError, match="zeroed"):
        Masks.from_ledger(module, {})
    with pytest.raises(ModelError, match="no weight"):
        Masks.from_ledger(module, {"zeroed": {"w3": 1}})
    with pytest.raises(ModelError, match="fewer zeros"):
        Masks.from_ledger(module, {"zeroed": {"w1": ledger["zeroed"]["w1"] + 1}})
    assert module.constraints == []
    assert Masks.from_ledger(module, {"zeroed": {"w2": 0}}).zeros == {}


def test_masks_do_not_keep_a_module_alive(pruned):
    """torch keeps hooks of gradients where Python's garbage collector does not look."""
    model, ledger = pruned
    module = to_torch(model)
    Masks.from_ledger(module, ledger)
    gone = weakref.ref(module)
    module(torch.ones(2, 8)).sum().backward()
    del module
    gc.collect()
    assert gone() is None


def test_masks_that_nobody_keeps_hold_still(pruned):
    model, ledger = pruned
    module = to_torch(model)
    zeros = Masks.from_ledger(module, ledger).zeros["w1"].clone()
    gc.collect()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    assert (module.parameter_of("w1")[zeros] == 0).all()


@pytest.mark.parametrize("names", [{"w1": 64, "w3": 1}, {"w1": 65}], ids=["unknown", "fewer"])
def test_masks_that_cannot_be_made_leave_nothing_behind(pruned, names):
    module = to_torch(pruned[0])
    with pytest.raises(ModelError):
        Masks.from_ledger(module, {"zeroed": names})
    assert module.constraints == []
    module(torch.ones(2, 8)).sum().backward()
    zeros = module.parameter_of("w1") == 0
    assert (module.parameter_of("w1").grad[zeros] != 0).any()


def test_zeros_of_other_shapes_are_refused_and_the_old_ones_hold(pruned):
    model, ledger = pruned
    module = to_torch(model)
    masks = Masks.from_ledger(module, ledger)
    for given in ({"w1": torch.ones(3, 3, dtype=torch.bool)}, {"w2": torch.ones(16, 3, dtype=torch.bool)}):
        with pytest.raises(ModelError, match="no zeros of a weight that is held"):
            masks.hold(given)
    module(torch.ones(2, 8))
    assert list(masks.zeros) == ["w1"]


def test_a_functional_call_brings_weights_of_its_own(pruned):
    model, ledger = pruned
    module = to_torch(model)
    Masks.from_ledger(module, ledger)
    given = {name: torch.ones_like(value) for name, value in module.named_parameters()}
    assert (torch.func.functional_call(module, given, (torch.ones(2, 8),)) == 8 * 16).all()


def test_a_weight_that_is_computed_of_others_is_said(pruned):
    model, ledger = pruned
    module = to_torch(model)
    Masks.from_ledger(module, ledger)
    torch.nn.utils.parametrizations.weight_norm(module, "w1")
    with pytest.raises(ModelError, match=r"parametrized(.|\n)*w1"):
        module(torch.ones(2, 8))


def test_integers_of_a_quantised_model_need_no_mask(pruned):
    model, ledger = pruned
    stored = numpy_helper.from_array(np.zeros((2, 2), np.int8), "integers")
    model.graph.initializer.append(stored)
    masks = Masks.from_ledger(to_torch(model), {"zeroed": {**ledger["zeroed"], "integers": 4}})
    assert list(masks.zeros) == ["w1"]
