"""Structural rounds: the smaller module computes what the masked one did, and its training goes on."""

from __future__ import annotations

import io

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from graphprune.errors import CalibrationError, ModelError, RecipeError  # noqa: E402
from graphprune.finetune import GraphModule, Masks, Pruner, Schedule, to_onnx, to_torch, trim  # noqa: E402
from graphprune.finetune.optimizers import cut  # noqa: E402
from graphprune.ir.cost import count_weights  # noqa: E402
from graphprune.ir.coupling.walk import couple  # noqa: E402
from graphprune.ir.graph import Graph  # noqa: E402
from graphprune.ir.surgery import take  # noqa: E402
from graphprune.ir.tensors import array  # noqa: E402
from graphprune.passes.canonicalize import canonicalize  # noqa: E402
from tests import small  # noqa: E402
from tests.nets import Net  # noqa: E402
from tests.oracles import feeds, masked_by_kept, run, sliced  # noqa: E402

OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=3e-3, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "lbfgs": lambda p: torch.optim.LBFGS(p, max_iter=2, line_search_fn="strong_wolfe"),
}


def residual():
    return small.network()


def grouped():
    """Input channels that go differ from one group of the convolution to the next."""
    net = Net(seed=2)
    data = net.block(net.input(["N", 3, 6, 6], "image"), 8)
    data = net.relu(net.conv(data, 12, 3, group=2))
    return net.build(net.gemm(net.flatten(net.pool(data)), 5))


def concatenated():
    net = Net()
    data = net.input(["N", 3, 6, 6], "image")
    left, right = net.block(data, 8), net.relu(net.conv(data, 6, 3))
    data = net.relu(net.conv(net.concat(left, right), 10, 1))
    return net.build(net.gemm(net.flatten(net.pool(data)), 5))


def depthwise():
    net = Net(constants=True)
    data = net.block(net.input(["N", 2, 6, 6], "image"), 12)
    data = net.relu(net.batch_norm(net.depthwise(data, bias=False)))
    data = net.relu(net.conv(data, 10, 1))
    return net.build(net.linear(net.squeeze(net.global_pool(data), [2, 3]), 5))


def dropped(opset=17):
    net = Net(opset)
    data = net.dropout(net.relu(net.gemm(net.input(["N", 6], "image"), 16)))
    return net.build(net.gemm(net.dropout(net.relu(net.gemm(data, 12))), 5))


NETS = {"residual": residual, "grouped": grouped, "concat": concatenated, "depthwise": depthwise, "dropout": dropped}


def samples(model, count=32, seed=1):
    (found,) = feeds(model, seed, count).values()
    return found


def advance(module, optimizer, x, y, steps, pruner=None):
    losses = []
    for _ in range(steps):

        def closure():
            optimizer.zero_grad()
            loss = (module(x) - y).square().mean()
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
        if pruner is not None:
            pruner.step()
    return losses


def evaluated(module, x):
    training = module.training
    module.eval()
    with torch.no_grad():
        found = module(torch.from_numpy(x)).numpy()
    module.train(training)
    return found


def written(module, path):
    to_onnx(module, path)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    return model


def goal(model, seed=2):
    x = samples(model)
    return torch.from_numpy(x), torch.from_numpy(
        np.random.default_rng(seed).normal(size=(len(x), 5)).astype(np.float32)
    )


def assert_same(expected, got):
    assert expected.shape == got.shape
    assert np.linalg.norm(expected - got) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", ["momentum", "adam", "rmsprop"])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("options", [{"channels": 0.4, "criterion": "l1"}, {}], ids=["fraction", "rule"])
def test_the_smaller_module_is_the_masked_one_and_trains_on(net, name, options, tmp_path):
    model = NETS[net]()
    module = to_torch(model)
    module.train()
    torch.manual_seed(0)
    x, y = goal(model)
    optimizer = OPTIMIZERS[name](module.parameters())
    advance(module, optimizer, x, y, 12)
    before = written(module, tmp_path / "before.onnx")
    old = {known: getattr(module, torch_name) for torch_name, known in module.initializer_names.items()}
    states = {known: dict(optimizer.state.get(value, {})) for known, value in old.items()}
    order = [id(value) for value in optimizer.param_groups[0]["params"]]
    places = {known: order.index(id(value)) for known, value in old.items() if id(value) in order}

    trimmed = trim(module, samples(model), align="off", optimizer=optimizer, **options)

    assert 0 < trimmed.removed < trimmed.units
    inputs = feeds(model, 3, 4)
    (image,) = inputs.values()
    (expected,) = run(masked_by_kept(before, trimmed.kept), inputs).values()
    assert_same(expected, evaluated(module, image))
    after = written(module, tmp_path / "after.onnx")
    (got,) = run(after, inputs).values()
    assert_same(got, evaluated(module, image))
    assert (trimmed.weights_before, trimmed.weights_after) == (count_weights(before), count_weights(after))

    now = {known: getattr(module, torch_name) for torch_name, known in module.initializer_names.items()}
    assert set(now) == set(old)
    assert trimmed.kept.keys() & places.keys()
    for known, value in now.items():
        kept = trimmed.kept.get(known, {})
        assert (value is old[known]) == (not kept)
        assert np.array_equal(value.detach().numpy(), sliced(old[known].detach().numpy(), kept))
        if known not in places:
            continue
        assert optimizer.param_groups[0]["params"][places[known]] is value
        assert np.array_equal(value.grad.numpy(), sliced(old[known].grad.numpy(), kept))
        assert optimizer.state[value].keys() == states[known].keys()
        for key, entry in states[known].items():
            whole = entry.shape == old[known].shape
            assert np.array_equal(optimizer.state[value][key].numpy(), sliced(entry.numpy(), kept) if whole else entry)
    assert set(optimizer.state) == set(optimizer.param_groups[0]["params"])
    losses = advance(module, optimizer, x, y, 25)
    assert losses[-1] < losses[0]


def test_ragged_rows_of_a_grouped_convolution_are_cut_as_surgery_cuts_them():
    model = grouped()
    module = to_torch(model)
    rows = trim(module, samples(model), channels=0.4, criterion="l1", align="off").kept["w_1"][1]
    assert rows[0] != rows[-1]  # the choice differs from group to group
    keep = np.argsort(np.random.default_rng(0).random((6, 4, 1)), axis=1) < 2
    values = torch.arange(72.0).reshape(6, 4, 3)
    assert np.array_equal(cut(values, keep).numpy(), take(values.numpy(), keep))


def test_normalisation_and_dropout_go_on_training(tmp_path):
    net = Net()
    data = net.dropout(net.block(net.input(["N", 3, 6, 6], "image"), 8))
    model = net.build(net.gemm(net.flatten(net.pool(data)), 5))
    module = to_torch(model)
    module.train()
    trim(module, samples(model), channels=0.25, align="off")
    assert module.training
    ops = [node.op_type for node in module.model.proto.graph.node]
    assert ops.count("BatchNormalization") == ops.count("Dropout") == 1
    running = dict(module.named_buffers())["mean_0"]
    assert running.shape == (6,)
    start = running.clone()
    x = torch.from_numpy(samples(model))
    torch.manual_seed(0)
    first, second = module(x), module(x)
    assert not torch.equal(first, second)
    assert (dict(module.named_buffers())["mean_0"] != start).all()


def test_what_the_rule_takes_are_the_inactive_ones():
    """Network Trimming: more than one standard deviation above the mean; measured on the weights as they are now."""
    net = Net(seed=3)
    data = net.input(["N", 6], "x")
    model = net.build(net.gemm(net.relu(net.gemm(data, 12)), 5))
    module = to_torch(model)
    bias = module.parameter_of("b_0")
    with torch.no_grad():
        bias.zero_()
        bias[[2, 7]] = -2.0  # training has made them hardly ever active
        bias[5] = -50.0
    x = samples(model, 200)
    with torch.no_grad():
        hidden = torch.from_numpy(x) @ module.parameter_of("w_0").t() + bias
    zeros = (hidden <= 0).double().mean(0).numpy()
    above = np.flatnonzero(zeros > zeros.mean() + zeros.std())
    assert {2, 5, 7} & set(above)
    trimmed = trim(module, x, align="off")
    assert trimmed.kept["w_0"][0] == [unit for unit in range(12) if unit not in above]
    (dead,) = (trim(to_torch(model), x, dead_only=True),)
    assert dead.removed == 0
    assert dead.proof is None


@pytest.mark.parametrize("criterion", ["apoz", "activation", "l2", "taylor", "random"])
def test_criteria_that_order_units(criterion):
    model = residual()
    module = to_torch(model)
    trimmed = trim(module, samples(model), channels=0.25, criterion=criterion, align="off")
    assert trimmed.removed == 16 // 4 + 8 // 4 + 12 // 4


def test_convolutions_keep_widths_that_kernels_like():
    model = residual()
    module = to_torch(model)
    trim(module, samples(model), channels=0.3, align=4)
    assert module.parameter_of("w_0").shape[0] == 12
    assert module.parameter_of("w_1").shape[0] == 8  # none: 6 is no multiple
    assert module.parameter_of("w_3").shape[0] == 9


def with_dead(bias=True):
    """Unit 1 of the hidden layer is the constant 0.7, unit 4 is read by nothing, unit 6 is never active."""
    net = Net(seed=1)
    data = net.input(["N", 6], "x")
    hidden = net.relu(net.gemm(data, 8))
    model = net.build(net.linear(hidden, 5, bias=bias))
    module = to_torch(model)
    with torch.no_grad():
        module.parameter_of("w_0")[1] = 0
        module.parameter_of("b_0")[1] = 0.7
        module.parameter_of("w_1")[4] = 0
        module.parameter_of("b_0")[6] = -100
    return model, module


@pytest.mark.parametrize("bias", [True, False])
def test_dead_units_go_without_a_trace(bias, tmp_path):
    model, module = with_dead(bias)
    x = samples(model)
    module.train()
    optimizer = OPTIMIZERS["adam"](
        [{"params": [module.parameter_of("w_0"), module.parameter_of("b_0")]}, {"params": [module.parameter_of("w_1")]}]
    )
    if bias:
        optimizer.add_param_group({"params": [module.parameter_of("b_1")]})
    expected = evaluated(module, x)
    trimmed = trim(module, x, dead_only=True, optimizer=optimizer)
    assert trimmed.kept["w_0"] == {0: [0, 2, 3, 5, 7]}
    assert_same(expected, evaluated(module, x))
    (got,) = run(written(module, tmp_path / "out.onnx"), {"x": x}).values()
    assert_same(expected, got)
    trained = {id(value) for group in optimizer.param_groups for value in group["params"]}
    assert trained == {id(value) for value in module.parameters()}
    start = [value.detach().clone() for value in module.parameters()]
    losses = advance(module, optimizer, torch.from_numpy(x), torch.zeros(len(x), 5), 10)
    assert losses[-1] < losses[0]
    assert all((value != before).any() for value, before in zip(module.parameters(), start, strict=True))
    if not bias:  # the new one is in the group of the layer's weight
        assert len(optimizer.param_groups[1]["params"]) == 2


def test_a_constant_unit_goes_into_a_bias_that_another_weight_shares_no_object_with():
    model, module = with_dead()
    bias = module.parameter_of("b_1")
    before = bias.detach().clone()
    trim(module, samples(model), dead_only=True)
    assert module.parameter_of("b_1") is bias
    assert (bias.detach() - before).abs().max() > 0.01


def test_masks_are_cut_along():
    model = residual()
    module = to_torch(model)
    module.train()
    x, y = goal(model)
    masks = Masks(module, [])
    with torch.no_grad():
        module.parameter_of("w_2")[:, 3] = 0
    other = Masks(module, ["w_2"])
    optimizer = OPTIMIZERS["adam"](module.parameters())
    pruner = Pruner(module, Schedule(0.7, end=8, frequency=4), optimizer)
    advance(module, optimizer, x, y, 6, pruner)
    zeros = {name: found.clone() for name, found in pruner.masks.zeros.items()}
    whole = other.zeros["w_2"].clone()
    trimmed = pruner.trim(samples(model), channels=0.3, align="off")
    assert trimmed.kept
    for name, found in pruner.masks.zeros.items():
        assert np.array_equal(found.numpy(), sliced(zeros[name].numpy(), trimmed.kept.get(name, {})))
        assert (module.parameter_of(name)[found] == 0).all()
    assert np.array_equal(other.zeros["w_2"].numpy(), sliced(whole.numpy(), trimmed.kept["w_2"]))
    assert masks.zeros == {}
    advance(module, optimizer, x, y, 1, pruner)
    for name, found in pruner.masks.zeros.items():
        assert (module.parameter_of(name).grad[found] == 0).all()  # hooks are on the new parameters
    advance(module, optimizer, x, y, 3, pruner)
    assert pruner.steps == 10
    total = sum(found.numel() for found in pruner.masks.zeros.values())
    assert pruner.sparsity == round(0.7 * total) / total  # of the weights that are left


def test_a_constant_sparsity_is_seen_to_again_after_a_trim():
    model = residual()
    module = to_torch(model)
    pruner = Pruner(module, Schedule.constant(0.5, end=10, frequency=2))
    start = pruner.sparsity
    pruner.trim(samples(model), channels=0.5, align="off")
    assert pruner.sparsity < start
    pruner.step()
    pruner.step()
    assert pruner.sparsity == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_an_interrupted_run_with_a_trim_resumes_to_the_same_result(name, tmp_path):
    model = depthwise()
    x, y = goal(model)
    schedule = Schedule(0.6, initial=0.1, end=20, frequency=5)

    def begin(source):
        module = to_torch(source)
        module.train()
        optimizer = OPTIMIZERS[name](module.parameters())
        return module, optimizer, Pruner(module, schedule, optimizer)

    def first_half():
        module, optimizer, pruner = begin(model)
        advance(module, optimizer, x, y, 8, pruner)
        assert pruner.trim(samples(model), channels=0.3, align="off").removed
        advance(module, optimizer, x, y, 4, pruner)
        return module, optimizer, pruner

    straight, optimizer, pruner = first_half()
    advance(straight, optimizer, x, y, 12, pruner)
    module, *others = first_half()
    file = io.BytesIO()
    to_onnx(module, tmp_path / "checkpoint.onnx")
    torch.save([thing.state_dict() for thing in others], file)
    file.seek(0)
    again, optimizer, later = begin(tmp_path / "checkpoint.onnx")
    assert list(again.state_dict()) == list(module.state_dict())
    for thing, state in zip((optimizer, later), torch.load(file, weights_only=True), strict=True):
        thing.load_state_dict(state)
    advance(again, optimizer, x, y, 12, later)
    for key, value in straight.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    assert later.sparsity == pruner.sparsity > 0.59


@pytest.mark.parametrize("module_first", [True, False])
@pytest.mark.parametrize("schedule", [Schedule(0.5), Schedule.constant(0.5, end=9, frequency=9)], ids=["once", "again"])
def test_what_step_0_would_zero_is_not_taken_from_a_run_that_is_resumed(schedule, module_first, tmp_path):
    model = residual()
    module = to_torch(model)
    pruner = Pruner(module, schedule)
    pruner.trim(samples(model), channels=0.5, align="off")
    assert pruner.sparsity < 0.48
    to_onnx(module, tmp_path / "checkpoint.onnx")
    again = to_torch(tmp_path / "checkpoint.onnx")
    later = Pruner(again, schedule)
    assert later.sparsity == pytest.approx(0.5, abs=1e-3)
    if module_first:
        again.load_state_dict(module.state_dict())
    later.load_state_dict(pruner.state_dict())
    assert later.sparsity == pruner.sparsity
    for key, value in module.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_several_rounds_and_optimizers_down_to_a_small_network():
    model = concatenated()
    module = to_torch(model)
    module.train()
    x, y = goal(model)
    matrices = [value for value in module.parameters() if value.dim() > 1]
    vectors = [value for value in module.parameters() if value.dim() == 1]
    optimizers = [torch.optim.SGD(matrices, lr=0.01, momentum=0.9), torch.optim.Adam(vectors, lr=1e-3)]
    pruner = Pruner(module, Schedule(0.5, end=30, frequency=5), optimizers)
    sizes = [count_weights(module.model.proto)]
    for _ in range(3):
        for _ in range(8):
            for optimizer in optimizers:
                optimizer.zero_grad()
            (module(x) - y).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
            pruner.step()
        sizes.append(pruner.trim(samples(model), channels=0.2, align="off").weights_after)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.6 * sizes[0]
    held = [{id(value) for value in optimizer.param_groups[0]["params"]} for optimizer in optimizers]
    assert held[0] | held[1] == {id(value) for value in module.parameters()}


@pytest.mark.parametrize("name", ["adafactor", "lbfgs"])
def test_optimizers_that_remember_other_shapes(name):
    if name == "adafactor" and not hasattr(torch.optim, "Adafactor"):
        pytest.skip("this version of torch has no Adafactor")
    model = residual()
    module = to_torch(model)
    module.train()
    x, y = goal(model)
    optimizer = OPTIMIZERS[name](module.parameters())
    advance(module, optimizer, x, y, 4)
    trimmed = trim(module, samples(model), channels=0.25, align="off", optimizer=optimizer)
    assert trimmed.removed
    if name == "adafactor":
        state = optimizer.state[module.parameter_of("w_3")]
        rows = module.parameter_of("w_3").shape
        assert (state["row_var"].shape, state["col_var"].shape) == ((rows[0], 1), (1, rows[1]))
    losses = advance(module, optimizer, x, y, 8)
    assert losses[-1] < losses[0]


class Whitening(torch.optim.SGD):
    """Remembers a matrix of its own for every weight."""

    def step(self, closure=None):
        result = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["preconditioner"] = torch.eye(parameter.shape[0] + 1)
        return result


def test_what_cannot_be_trimmed_is_said_and_nothing_is_changed(tmp_path):
    model = residual()
    module = to_torch(model)
    module.train()
    x, y = goal(model)
    optimizer = Whitening(module.parameters(), lr=1e-3)
    advance(module, optimizer, x, y, 1)
    start = written(module, tmp_path / "before.onnx")
    with pytest.raises(RecipeError, match=r"cannot be cut along(.|\n)*Whitening, 'preconditioner'"):
        trim(module, samples(model), channels=0.25, align="off", optimizer=optimizer)
    for options, words in [
        ({"channels": 1.0}, "channels must be"),
        ({"criterion": "obs", "channels": 0.5}, "criterion must be one of"),
        ({"criterion": "l1"}, "nothing says how many go"),
        ({"channels": 0.5, "dead_only": True}, "both say what goes"),
        ({"align": 0}, "align must be"),
    ]:
        with pytest.raises(RecipeError, match=words):
            trim(module, samples(model), **options)
    with pytest.raises(CalibrationError, match="needs inputs"):
        trim(module, None)
    with pytest.raises(CalibrationError):
        trim(module, {"other": samples(model)})
    assert written(module, tmp_path / "after.onnx") == start
    with torch.no_grad():
        module.parameter_of("w_0")[0] = torch.nan
    with pytest.raises(ModelError, match="diverged"):
        trim(module, samples(model))


def test_what_nothing_reads_goes_from_the_optimizer_too():
    net = Net()
    data = net.relu(net.gemm(net.input(["N", 6], "x"), 16))
    net.weight([7, 7], "idle")
    model = net.build(net.gemm(data, 5))
    module = to_torch(model)
    x, y = goal(model)
    idle = module.parameter_of("idle_0")
    optimizer = OPTIMIZERS["adam"](module.named_parameters())
    masks = Masks(module, ["idle_0", "w_0"])
    advance(module, optimizer, x, y, 2)
    trim(module, samples(model), channels=0.25, optimizer=optimizer)
    assert list(masks.zeros) == ["w_0"]
    held = optimizer.param_groups[0]["params"]
    assert all(value is not idle for value in held)
    assert [id(value) for value in held] == [id(value) for value in module.parameters()]
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in module.named_parameters()]
    assert idle not in optimizer.state
    advance(module, optimizer, x, y, 2)


def test_a_compiled_module_goes_over_to_the_smaller_graph():
    if not torch._dynamo.is_dynamo_supported():
        pytest.skip("torch.compile is not there for this version of Python")
    model = residual()
    module = to_torch(model)
    compiled = torch.compile(module, backend="eager")
    x, y = goal(model)
    optimizer = OPTIMIZERS["adam"](compiled.parameters())
    pruner = Pruner(compiled, Schedule(0.5, end=6, frequency=3), optimizer)
    advance(compiled, optimizer, x, y, 3, pruner)
    assert pruner.trim(samples(model), channels=0.25, align="off").removed
    with torch.no_grad():
        assert torch.equal(compiled(x), module(x))
    losses = advance(compiled, optimizer, x, y, 6, pruner)
    assert losses[-1] < losses[0]


def test_nothing_removed_changes_nothing():
    module = to_torch(dropped(11))
    before = module.model
    found = trim(module, samples(dropped()), channels=0.0)
    assert (found.removed, found.kept, found.weights_after) == (0, {}, found.weights_before)
    assert module.model is before


def test_any_source_of_inputs(tmp_path):
    model = dropped()
    x = samples(model)
    np.savez(tmp_path / "calib.npz", image=x)
    results = []
    for data in (
        x,
        torch.from_numpy(x),
        {"image": x},
        tmp_path / "calib.npz",
        lambda: [{"image": part} for part in np.split(x, 4)],
    ):
        module = to_torch(model)
        results.append(trim(module, data, channels=0.25).kept)
        assert isinstance(module, GraphModule)
    assert all(found == results[0] for found in results)


def test_values_written_are_those_of_the_module(tmp_path):
    model = dropped(11)
    module = to_torch(model)
    module.double()
    trim(module, samples(model), channels=0.25)
    assert all(value.dtype == torch.float64 for value in module.parameters())
    stored = {t.name: array(t) for t in written(module, tmp_path / "out.onnx").graph.initializer}
    assert np.array_equal(stored["w_0"], module.parameter_of("w_0").detach().numpy().astype(np.float32))


@pytest.mark.parametrize("options", [{}, {"channels": 0.5}], ids=["apoz", "channels"])
def test_only_the_groups_that_are_named_lose_units(options):
    model = residual()
    whole = trim(to_torch(model), samples(model), align="off", channels=0.5)
    groups = [group.name for group in couple(Graph(canonicalize(model, dropout=False))).groups]
    assert len(groups) > 1
    for name in groups:
        module = to_torch(model)
        trimmed = trim(module, samples(model), align="off", only=[name], **options)
        assert (name in trimmed.kept) == (trimmed.removed > 0)
        assert trimmed.removed < whole.removed
    with pytest.raises(RecipeError, match=r"(?s)no group 'nothing'.*there are w_0"):
        trim(to_torch(model), samples(model), only=["nothing"])
