"""A user's own loop with one more line: zeros by the schedule, exactly as many, and zero to the bit ever after."""

from __future__ import annotations

import copy
import io

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from graphprune.errors import ModelError, RecipeError  # noqa: E402
from graphprune.finetune import Masks, Pruner, Schedule, to_onnx, to_torch  # noqa: E402
from graphprune.finetune.magnitude import smallest, whole_number  # noqa: E402
from graphprune.ir.tensors import array  # noqa: E402
from tests import small  # noqa: E402
from tests.nets import Net  # noqa: E402

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=1e-2),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-2),
    "adam_foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.005, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.02, weight_decay=1e-2),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0, weight_decay=1e-2),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01, weight_decay=1e-2),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.02, weight_decay=1e-2),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01, weight_decay=1e-2),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.05, t0=3, weight_decay=1e-2),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.005),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
    "lbfgs_wolfe": lambda p: torch.optim.LBFGS(p, max_iter=3, line_search_fn="strong_wolfe"),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.02, weight_decay=1e-2),
    "muon": lambda p: torch.optim.Muon([w for w in p if w.dim() == 2], lr=0.02, weight_decay=0.1),
}


def perceptron(seed=0, widths=(8, 16, 3), **options):
    net = Net(seed=seed, **options)
    data = net.input(["N", widths[0]], "x")
    for width in widths[1:-1]:
        data = net.relu(net.gemm(data, width))
    return net.build(net.gemm(data, widths[-1]))


def batches(steps, seed=0, width=8):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(32, width, generator=generator)
        yield x, (x[:, :1] * x[:, 1:2] - x[:, 2:5])


def advance(module, optimizer, pruner, data, check=lambda: None):
    """The loop of the README."""
    losses = []
    for x, y in data:

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = (module(x) - y).square().mean()
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
        pruner.step()
        check()
    return losses


def bits(tensor):
    """The bits of float32 numbers, so that -0.0 is not 0.0."""
    return tensor.detach().contiguous().view(torch.int32)


def names_of(module):
    return list(module.initializer_names.values())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_stay_zero_to_the_bit_on_every_optimizer(name, tmp_path):
    if name in ("adafactor", "muon") and not hasattr(torch.optim, {"adafactor": "Adafactor", "muon": "Muon"}[name]):
        pytest.skip(f"this version of torch has no {name}")
    module = to_torch(perceptron())
    module.train()
    optimizer = OPTIMIZERS[name](module.parameters())
    pruner = Pruner(module, Schedule(0.8, begin=2, end=14, frequency=3), optimizer)
    start = {key: value.clone() for key, value in module.state_dict().items()}
    seen = {key: zeros.clone() for key, zeros in pruner.masks.zeros.items()}
    held = []

    def check():
        for key, zeros in pruner.masks.zeros.items():
            weight = module.parameter_of(key)
            assert (bits(weight)[zeros] == 0).all()
            assert (zeros | ~seen[key]).all()  # what was zero is zero
            seen[key] = zeros.clone()
            for value in optimizer.state.get(weight, {}).values():
                if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                    assert (bits(value)[zeros] == 0).all()
        held.append(pruner.sparsity)

    losses = advance(module, optimizer, pruner, batches(20), check)
    total = 8 * 16 + 16 * 3
    assert held == [whole_number(pruner.schedule.at(step), total) / total for step in range(1, 21)]
    assert losses[-1] < losses[0]
    for torch_name, key in module.initializer_names.items():
        alive = ~pruner.masks.zeros[key] if key in pruner.masks.zeros else slice(None)
        now = getattr(module, torch_name).detach()
        if name != "muon" or now.dim() == 2:
            assert (now[alive] != start[torch_name][alive]).any()
    to_onnx(module, tmp_path / "out.onnx")
    stored = {tensor.name: array(tensor) for tensor in onnx.load(tmp_path / "out.onnx").graph.initializer}
    for key, zeros in pruner.masks.zeros.items():
        assert np.array_equal(stored[key].view(np.int32) == 0, zeros.numpy())


def test_without_the_optimizer_zeros_hold_too():
    module = to_torch(perceptron())
    optimizer = OPTIMIZERS["adam"](module.parameters())
    pruner = Pruner(module, Schedule(0.7, begin=4, end=4))
    advance(module, optimizer, pruner, batches(10), lambda: None)
    assert pruner.sparsity == whole_number(0.7, 176) / 176
    assert all((bits(module.parameter_of(key))[zeros] == 0).all() for key, zeros in pruner.masks.zeros.items())


def test_one_shot_prunes_at_once_the_smallest_of_all():
    module = to_torch(perceptron())
    weights = {name: module.parameter_of(name).detach().clone() for name in names_of(module)}
    pruner = Pruner(module, Schedule(0.6))
    assert list(pruner.masks.zeros) == ["w_0", "w_1"]  # biases never
    every = torch.cat([weights[name].abs().flatten() for name in pruner.masks.zeros])
    gone = torch.cat([zeros.flatten() for zeros in pruner.masks.zeros.values()])
    assert gone.sum() == whole_number(0.6, len(every))
    assert every[gone].max() <= every[~gone].min()
    for name, weight in weights.items():
        zeros = pruner.masks.zeros.get(name, torch.zeros_like(weight, dtype=torch.bool))
        assert torch.equal(module.parameter_of(name).detach(), weight.masked_fill(zeros, 0.0))


def test_layer_by_layer_and_targets_of_single_layers():
    schedule = Schedule(0.5, initial=0.25, end=4, frequency=2)
    by_layer = Pruner(to_torch(perceptron()), schedule, scope="layer")
    for _ in range(4):
        by_layer.step()
    assert by_layer.sparsity_by_layer == {"w_0": 0.5, "w_1": 0.5}
    pruner = Pruner(
        to_torch(perceptron(widths=(8, 16, 16, 3))), schedule, targets={"w_1": 0.125, "w_2": Schedule(0.75)}
    )
    assert pruner.sparsity_by_layer == {"w_0": 0.25, "w_1": 0.125, "w_2": 0.75}
    for _ in range(4):
        pruner.step()
    assert pruner.sparsity_by_layer == {"w_0": 0.5, "w_1": 0.125, "w_2": 0.75}
    assert pruner.sparsity == (64 + 32 + 36) / (128 + 256 + 48)


def test_how_many_are_zero_is_exact_where_magnitudes_are_the_same():
    net = Net()
    data = net.input(["N", 6], "x")
    weight = net.initializer(np.where(np.arange(24).reshape(6, 4) % 2, 1.0, -1.0).astype(np.float32), "w")
    module = to_torch(net.build(net.node("MatMul", [data, weight], ["N", 4])))
    for step, share in enumerate((0.3, 0.5, 0.77, 0.9)):
        pruner = Pruner(module, Schedule(share))
        count = whole_number(share, 24)
        assert int(pruner.masks.zeros["w"].sum()) == count, step
        assert pruner.masks.zeros["w"].flatten()[:count].all()  # the first of those that are as small
        assert (bits(module.parameter_of("w")).flatten()[:count] == 0).all()  # +0.0 where -1.0 was
        pruner.remove()


@pytest.mark.parametrize(
    ("share", "total", "count"), [(0.5, 5, 2), (0.5, 7, 3), (0.55, 90, 49), (0.0, 9, 0), (0.1, 4, 0), (0.99, 100, 99)]
)
def test_halves_are_rounded_down(share, total, count):
    assert whole_number(share, total) == count


def test_the_smallest_of_several_tensors():
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(7, 5, generator=generator), torch.randn(11, generator=generator, dtype=torch.float64)]
    weights[0][0, 0] = weights[0][1, 1] = 0.3
    zeros = [torch.zeros(7, 5, dtype=torch.bool), torch.zeros(11, dtype=torch.bool)]
    zeros[0][2, 2] = True
    flat = np.concatenate([np.abs(weight.numpy().astype(np.float64)).ravel() for weight in weights])
    flat[12] = -1
    for count in range(1, 47):
        expected = np.zeros(46, dtype=bool)
        expected[np.argsort(flat, kind="stable")[:count]] = True
        found = torch.cat([part.flatten() for part in smallest(weights, zeros, count)])
        assert np.array_equal(found.numpy(), expected), count


def test_zeros_of_a_pruned_file_stay_and_count():
    module = to_torch(perceptron())
    first = Pruner(module, Schedule(0.5))
    earlier = {name: zeros.clone() for name, zeros in first.masks.zeros.items()}
    again = to_torch(module.model)
    again.load_state_dict(module.state_dict())
    pruner = Pruner(again, Schedule(0.7, begin=2, end=2))
    assert pruner.sparsity == 0.5
    optimizer = OPTIMIZERS["momentum"](again.parameters())
    advance(again, optimizer, pruner, batches(4))
    assert pruner.sparsity == whole_number(0.7, 176) / 176
    assert all((pruner.masks.zeros[name] | ~zeros).all() for name, zeros in earlier.items())


def test_sparsity_and_what_the_ledger_calls_sparsity(tmp_path):
    module = to_torch(small.network())
    pruner = Pruner(module, Schedule(0.8))
    to_onnx(module, tmp_path / "out.onnx")
    stored = [array(t) for t in onnx.load(tmp_path / "out.onnx").graph.initializer]
    floats = [values for values in stored if values.dtype == np.float32]
    of_all = 1 - sum(np.count_nonzero(values) for values in floats) / sum(values.size for values in floats)
    prunable = sum(zeros.numel() for zeros in pruner.masks.zeros.values())
    assert prunable < sum(values.size for values in floats)
    assert of_all == pytest.approx(pruner.sparsity * prunable / sum(values.size for values in floats), abs=1e-12)


class WithLoss(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.inner(x) * self.scale


def test_a_module_around_the_graph():
    graph = to_torch(perceptron())
    module = WithLoss(graph)
    optimizer = OPTIMIZERS["adam"](module.parameters())
    pruner = Pruner(module, Schedule(0.5, end=6, frequency=2), optimizer)
    assert pruner.graph is graph
    advance(module, optimizer, pruner, batches(8))
    assert pruner.sparsity == 0.5
    assert module.scale != 1


def test_compiled():
    if not torch._dynamo.is_dynamo_supported():
        pytest.skip("torch.compile is not there for this version of Python")
    graph = to_torch(perceptron())
    module = torch.compile(graph, backend="eager")
    optimizer = OPTIMIZERS["adam"](module.parameters())
    pruner = Pruner(module, Schedule(0.5, end=6, frequency=2), optimizer)
    compiled = advance(module, optimizer, pruner, batches(8))
    plain = to_torch(perceptron())
    other = OPTIMIZERS["adam"](plain.parameters())
    assert compiled == advance(plain, other, Pruner(plain, Schedule(0.5, end=6, frequency=2), other), batches(8))
    assert torch.equal(graph.parameter_of("w_0"), plain.parameter_of("w_0"))


def saved(*objects):
    """What a fresh process would read."""
    file = io.BytesIO()
    torch.save([thing.state_dict() for thing in objects], file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", ["momentum", "nesterov", "adam", "amsgrad", "rmsprop", "lbfgs"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_an_interrupted_run_resumes_to_the_same_result(name, order):
    def make():
        module = to_torch(small.network())
        module.train()
        optimizer = OPTIMIZERS[name](module.parameters())
        schedule = Schedule(0.8, initial=0.1, end=17, frequency=4)
        return module, optimizer, Pruner(module, schedule, optimizer, targets={"w_1": 0.3})

    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(8, 2, 6, 6, generator=generator), torch.zeros(8, 5)) for _ in range(20)]
    straight, optimizer, pruner = make()
    advance(straight, optimizer, pruner, data)
    first = make()
    advance(*first, data[:10])
    states = saved(*first)
    module, optimizer, second = made = make()
    for place in order:
        made[place].load_state_dict(states[place])
    assert second.steps == 10
    advance(module, optimizer, second, data[10:])
    for key, value in straight.state_dict().items():
        assert torch.equal(module.state_dict()[key], value), key
    assert all(torch.equal(zeros, pruner.masks.zeros[key]) for key, zeros in second.masks.zeros.items())
    assert second.sparsity == pruner.sparsity


def test_frozen_weights_are_held_too():
    module = to_torch(perceptron())
    module.parameter_of("w_0").requires_grad_(False)
    optimizer = OPTIMIZERS["adam"](module.parameters())
    pruner = Pruner(module, Schedule(0.5), optimizer)
    assert not module.parameter_of("w_0").requires_grad
    advance(module, optimizer, pruner, batches(2))
    module.parameter_of("w_0").requires_grad_(True)
    advance(module, optimizer, pruner, batches(2))
    assert (module.parameter_of("w_0").grad[pruner.masks.zeros["w_0"]] == 0).all()
    assert (module.parameter_of("w_0").grad[~pruner.masks.zeros["w_0"]] != 0).any()


def test_removed_it_lets_go():
    module = to_torch(perceptron())
    optimizer = OPTIMIZERS["momentum"](module.parameters())
    pruner = Pruner(module, Schedule(0.5), optimizer)
    zeros = pruner.masks.zeros["w_0"]
    pruner.remove()
    for x, y in batches(2):
        optimizer.zero_grad()
        (module(x) - y).square().mean().backward()
        optimizer.step()
    assert module.constraints == []
    assert (module.parameter_of("w_0")[zeros] != 0).any()


def test_what_it_cannot_prune_is_said():
    with pytest.raises(RecipeError, match="holds no modules made by to_torch"):
        Pruner(torch.nn.Linear(2, 2), Schedule(0.5))
    module = to_torch(perceptron())
    with pytest.raises(RecipeError, match="holds 2 modules"):
        Pruner(torch.nn.ModuleList([module, copy.deepcopy(module)]), Schedule(0.5))
    with pytest.raises(RecipeError, match="scope must be one of global, layer, not 'local'"):
        Pruner(module, Schedule(0.5), scope="local")
    with pytest.raises(RecipeError, match=r"no weight of this name(.|\n)*'b_0'(.|\n)*there are w_0, w_1"):
        Pruner(module, Schedule(0.5), targets={"b_0": 0.5})
    with pytest.raises(RecipeError, match="final must be"):
        Pruner(module, Schedule(0.5), targets={"w_0": 1.5})
    net = Net()
    with pytest.raises(RecipeError, match="no weight that may be zeroed"):
        Pruner(to_torch(net.build(net.relu(net.input(["N", 3])))), Schedule(0.5))
    with pytest.raises(RecipeError, match=r"must be a Schedule, not 0\.9"):
        Pruner(module, 0.9)
    with pytest.raises(RecipeError, match="an optimizer is a Parameter"):
        Pruner(module, Schedule(0.5), module.parameters())
    module.parameter_of("w_0").data[0, 0] = torch.nan
    with pytest.raises(ModelError, match="diverged"):
        Pruner(module, Schedule(0.5))
    assert module.constraints == []


def test_a_training_that_diverged_is_said():
    module = to_torch(perceptron())
    pruner = Pruner(module, Schedule(0.5, begin=1, end=1))
    with torch.no_grad():
        module.parameter_of("w_1")[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"the training diverged(.|\n)*w_1"):
        pruner.step()


def test_the_state_of_another_module_is_refused():
    state = Pruner(to_torch(perceptron()), Schedule(0.5)).state_dict()
    pruner = Pruner(to_torch(perceptron(widths=(8, 12, 3))), Schedule(0.5))
    with pytest.raises(ModelError, match=r"of another module(.|\n)*w_0(.|\n)*\(16, 8\) in the state, and \(12, 8\)"):
        pruner.load_state_dict(state)


def test_beside_masks_of_a_ledger():
    module = to_torch(perceptron())
    with torch.no_grad():
        module.parameter_of("w_0")[0] = 0
    masks = Masks.from_ledger(module, {"zeroed": {"w_0": 8}})
    optimizer = OPTIMIZERS["adam"](module.parameters())
    pruner = Pruner(module, Schedule(0.5, begin=2, end=2), optimizer)
    advance(module, optimizer, pruner, batches(4))
    assert (bits(module.parameter_of("w_0"))[masks.zeros["w_0"]] == 0).all()
    assert pruner.sparsity == 0.5


def test_after_it_has_let_go_nothing_is_pruned():
    module = to_torch(perceptron())
    pruner = Pruner(module, Schedule(0.5))
    pruner.remove()
    with torch.no_grad():
        module.parameter_of("w_0").fill_(1.0)
    pruner.step()
    pruner.trim({"x": np.ones((8, 8), np.float32)}, channels=0.25)
    module(torch.ones(1, 8))
    assert (module.parameter_of("w_0") == 1).all()


def test_a_weight_without_entries_is_not_sparse():
    net = Net()
    data = net.node("MatMul", [net.input(["N", 8], "x"), net.initializer(np.zeros((8, 0)), "none")], ["N", 0])
    other = net.node("MatMul", [net.input(["N", 8], "z"), net.initializer(np.ones((8, 4)), "w")], ["N", 4])
    pruner = Pruner(to_torch(net.build(data, other)), Schedule(0.5))
    assert pruner.sparsity_by_layer.get("none", 0) == 0
    assert pruner.sparsity == 0.5
