"""Pruning and training in turns: what goes adds up, zeros stay, and bad trainings are named."""

from __future__ import annotations

import gc
import json
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

torch = pytest.importorskip("torch")

from graphprune import EquivalenceError, ModelError, Recipe, RecipeError, prune  # noqa: E402
from graphprune.building import Draft  # noqa: E402
from graphprune.errors import UnsupportedOperatorError  # noqa: E402
from graphprune.finetune import GraphModule, to_proto, trim  # noqa: E402
from graphprune.ir.cost import count_macs  # noqa: E402
from graphprune.kept import composed, demand_same  # noqa: E402
from graphprune.rounds import parts  # noqa: E402
from tests import small  # noqa: E402
from tests.architectures.networks import NETWORKS, exported  # noqa: E402
from tests.commands import BY_RULE, BY_RULE_OPTIONS, QUICK, command  # noqa: E402
from tests.measure import editable, replaced  # noqa: E402
from tests.nets import Net  # noqa: E402
from tests.oracles import feeds, run, values  # noqa: E402

MODEL = small.network()
CALIB = small.calibration(MODEL, samples=64)
CALLS: list[int] = []

Array = npt.NDArray[Any]


def nothing(module: GraphModule) -> None:
    """Train nothing."""


def shaken(module: GraphModule) -> None:
    """Change every weight by a little, those that are zero too."""
    torch.manual_seed(len(CALLS))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)


def to_zero_outputs(module: GraphModule) -> None:
    """Learn, by the optimizer most in use, to say nothing."""
    CALLS.append(sum(parameter.numel() for parameter in module.parameters()))
    assert module.training
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01, weight_decay=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        module(torch.from_numpy(CALIB["image"])).square().mean().backward()
        optimizer.step()


def fails(module: GraphModule) -> None:
    raise ValueError("no such data")


def leaves(module: GraphModule) -> None:
    sys.exit(0)


def yields(module: GraphModule) -> Iterator[int]:
    diverges(module)
    yield 1


async def waits(module: GraphModule) -> None:
    diverges(module)


def diverges(module: GraphModule) -> None:
    with torch.no_grad():
        next(iter(module.parameters())).fill_(float("nan"))


def recipe(**given: Any) -> Recipe:
    return Recipe(**{**BY_RULE, "runs": 2, **given})


@pytest.mark.parametrize("recover", [True, False], ids=["recover", "plain"])
@pytest.mark.parametrize("structural", ["auto", 0.0, 1.0])
def test_the_target_is_reached_in_equal_shares(structural: float | str, recover: bool) -> None:
    asked = recipe(target=0.8, structural=structural, recover=recover, rounds=3)
    pruned, ledger = prune(MODEL, asked, CALIB, finetune=shaken)
    assert len(ledger.rounds) == 3
    shares = [found.nonzero / ledger.weights.before for found in ledger.rounds]
    # Removed units take more than what was asked for with them; the next round goes on from there.
    for number, share in enumerate(shares, 1):
        assert 0.2 ** (number / 3) - 0.15 < share <= 0.2 ** (number / 3)
    assert ledger.weights.nonzero == np.count_nonzero(np.concatenate([v.ravel() for v in values(pruned).values()]))
    assert 0.8 <= ledger.weights.sparsity < 0.9
    assert any(group.removed for group in ledger.groups) == (structural != 0)
    assert ledger.equivalence.max_rel < 1e-4
    after = values(pruned)
    for name in ledger.kept.keys() & after.keys():  # normalisation is folded
        for axis, kept in ledger.kept[name].items():
            assert after[name].shape[int(axis)] == len(kept)
    assert all(np.count_nonzero(after[name] == 0) >= count for name, count in ledger.zeroed.items())
    drops = [(found.before, found.after) for found in ledger.rounds]
    assert all(None not in pair for pair in drops) if recover else drops == [(None, None)] * 3


@pytest.mark.parametrize(
    ("amount", "rounds"), [({"macs": 0.4}, 2), ({"target": 0.5}, 2), ({"target": 0.6}, 3)], ids=str
)
def test_layers_that_pruning_gives_a_bias_go_through_rounds(amount: dict[str, float], rounds: int) -> None:
    net, random = Net(), np.random.default_rng(0)
    first, middle, last = (
        net.constant(random.standard_normal(shape).astype(np.float32) / 4, name)
        for name, shape in (("first", (12, 16)), ("middle", (16, 16)), ("last", (16, 4)))
    )
    data = net.input(["N", 12])
    for weight in (first, middle, middle):  # the same twice
        data = net.relu(net.node("MatMul", [data, weight], ["N", 16]))
    model = net.build(net.node("MatMul", [data, last], ["N", 4]))
    asked = Recipe(**amount, rounds=rounds, runs=2, max_latency_ratio=1e3)  # type: ignore[arg-type]
    _, ledger = prune(model, asked, feeds(model, 0, 64), finetune=shaken)
    assert all(gate.ok for gate in ledger.gates)
    assert asked.macs is None or ledger.macs.after <= (1 - asked.macs) * ledger.macs.before
    # Training fills all of the biases that pruning makes, and they count.
    assert asked.target is None or asked.target <= ledger.weights.sparsity < asked.target + 0.1


def test_a_training_that_changes_nothing_is_noted() -> None:
    asked = recipe(target=0.5, rounds=2)
    given = [prune(MODEL, asked, CALIB, finetune=training)[1] for training in (nothing, shaken)]
    assert [["changed no weight" in note for note in ledger.notes].count(True) for ledger in given] == [2, 0]
    assert [record.changed for record in given[0].rounds] == [0, 0]
    # Zeros stay, whatever a training does.
    assert all(0 < record.changed <= record.nonzero for record in given[1].rounds)


def test_a_useless_result_says_so_and_what_may_help() -> None:
    said = [
        [
            note
            for note in prune(MODEL, recipe(target=0.97, recover=False), CALIB, finetune=train)[1].notes
            if "useless" in note
        ]
        for train in (None, to_zero_outputs)
    ]
    assert ["without fine-tuning" in note and "--finetune" in note for note in said[0]] == [True]
    assert ["without fine-tuning" not in note and "longer" in note for note in said[1]] == [True]
    assert not any("useless" in note for note in prune(MODEL, recipe(target=0.1), CALIB)[1].notes)


def test_a_fraction_of_the_macs_is_saved_in_equal_shares() -> None:
    seen: list[int] = []

    def count(module: GraphModule) -> None:
        seen.append(count_macs(to_proto(module), {"image": CALIB["image"][:1].shape}))

    _, ledger = prune(MODEL, recipe(macs=0.7, rounds=2), CALIB, finetune=count)
    first, second = (found / ledger.macs.before for found in seen)
    assert 0.3**0.5 - 0.15 < first <= 0.3**0.5
    assert 0.3 - 0.15 < second <= 0.3
    assert [gate.name for gate in ledger.gates if gate.ok] == ["macs", "max-latency-ratio"]
    assert ledger.zeroed == {}


@pytest.mark.parametrize("amount", [{"macs": 0.3}, {"speedup": 1.01}], ids=str)
def test_what_training_kills_goes_whatever_asked_for_units(amount: dict[str, float]) -> None:
    def kill(module: GraphModule) -> None:
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if parameter.dim() == 1:
                    parameter[0] = -1e3
                    killed.append(name)

    killed: list[str] = []
    _, ledger = prune(MODEL, recipe(target=0.5, **amount), CALIB, finetune=kill)
    assert killed
    assert ledger.weights.after < ledger.rounds[-1].weights


def test_a_training_is_given_the_pruned_model_and_changes_what_comes_out() -> None:
    CALLS.clear()
    _, untrained = prune(MODEL, recipe(target=0.6), CALIB)
    trained, ledger = prune(MODEL, recipe(target=0.6, rounds=2), CALIB, finetune=to_zero_outputs)
    assert len(CALLS) == 2
    assert CALLS[1] <= CALLS[0] <= ledger.weights.before
    assert ledger.fidelity.relative_l2 > 0.5 > untrained.fidelity.relative_l2  # it has learnt to say nothing
    assert ledger.recovery is not None
    assert ledger.recovery.measured_l2 > 0.5, "what is measured is the trained model"
    onnx.checker.check_model(trained, full_check=True)


NAMES = "resnet_basic inception shufflenet_v1 shufflenet_v2 mobilenet_v3 unet".split()


@pytest.mark.parametrize("name", NAMES)
def test_what_goes_round_by_round_adds_up(name: str) -> None:
    model = exported(name, "script")
    asked = recipe(channels=0.6, rounds=3, recover=False)
    _, ledger = prune(model, asked, [NETWORKS[name].feeds()], finetune=nothing)
    once = prune(model, recipe(channels=0.6, recover=False), [NETWORKS[name].feeds()])[1]
    counts = [len(group.removed) for group in ledger.groups]
    assert counts == [len(group.removed) for group in once.groups], "as many go as in one round"
    assert sum(counts) > 8
    assert ledger.equivalence.max_rel < 1e-4


def test_one_round_that_trains_nothing_is_as_none() -> None:
    asked = {"target": 0.7, "recover": False, "criterion": "l2", "structural": 0.5}
    plain, expected = prune(MODEL, recipe(**asked), CALIB)
    trained, found = prune(MODEL, recipe(**asked), CALIB, finetune=nothing)
    assert found.kept == expected.kept
    assert found.zeroed == expected.zeroed
    assert found.groups == expected.groups
    for one, other in zip(run(plain, CALIB).values(), run(trained, CALIB).values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)  # normalisation is folded in the second


def test_dead_units_go_after_the_last_training() -> None:
    def kills(module: GraphModule) -> None:
        with torch.no_grad():
            weight = module.parameter_of("w_3")
            weight[:3] = 0
            module.parameter_of("b_3")[:3] = 0

    hidden = values(MODEL)["w_3"].shape
    _, ledger = prune(MODEL, recipe(target=0.05, structural="auto"), CALIB, finetune=kills)
    (group,) = [group for group in ledger.groups if ("w_3", 0) in group.axes]
    assert hidden[0] == group.size
    assert len(group.removed) >= 3
    assert ledger.equivalence.max_rel < 1e-4


@pytest.mark.parametrize("rounds", [1, 4])
def test_every_round_leaves_the_same_share(rounds: int) -> None:
    found = list(parts(recipe(target=0.9, channels=0.5, rounds=rounds, finetune="a:b")))
    assert len(found) == rounds
    assert found[-1].target == pytest.approx(0.9, abs=1e-12)
    left = [1 - (part.target or 0) for part in found]
    assert left == pytest.approx([0.1 ** (number / rounds) for number in range(1, rounds + 1)])
    assert found[-1].channels == pytest.approx(0.5)


def test_accounts_of_two_removals() -> None:
    first = {"a": {0: [0, 2, 3, 5]}, "b": {1: [1, 2]}, "g": {1: [[0], [1]]}}
    then = {"a": {0: [1, 3], 1: [0]}, "c": {0: [4]}, "g": {1: [[0], [0]]}}
    assert composed(first, then) == {  # type: ignore[arg-type]
        "a": {0: [2, 5], 1: [0]},
        "b": {1: [1, 2]},
        "c": {0: [4]},
        "g": {1: [[0], [1]]},
    }
    draft = Draft(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [])))
    for name in "ag":
        draft.model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1), name))
    demand_same({"a": {0: [1]}, "g": {1: [[0]]}}, {"a": {0: [1]}, "g": {1: [[1]]}, "gone": {0: [1]}}, draft)
    with pytest.raises(EquivalenceError, match="axis 0 of 'a'"):
        demand_same({"a": {0: [1]}}, {"a": {0: [2]}}, draft)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"epochs": 3}, "--finetune distill"),
        ({"epochs": 3, "finetune": "a:b"}, "--finetune distill"),
        ({"rounds": 0, "finetune": "a:b"}, "--rounds"),
        ({"epochs": 0, "finetune": "distill"}, "--epochs"),
        ({"finetune": "nonsense"}, "--finetune"),
        ({"finetune": "a:b", "rounds": 2, "pack": "auto"}, "--rounds 1"),
        ({"finetune": "a:b", "rounds": 2, "speedup": 2.0}, "--rounds 1"),
        ({"finetune": "a:b", "rounds": 2, "allow_resize": ("y",)}, "--rounds 1"),
        ({"finetune": "a:b", "target": None, "max_drop": 0.1}, "--target"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_for(given: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Recipe(**{"target": 0.5, **given})


def test_rounds_need_a_training() -> None:
    with pytest.raises(RecipeError, match="--finetune"):
        prune(MODEL, recipe(target=0.5, rounds=2), CALIB)


@pytest.mark.parametrize(
    ("training", "error", "words"),
    [
        (fails, RecipeError, "ValueError: no such data"),
        (diverges, ModelError, "diverged"),
        (leaves, RecipeError, "SystemExit: 0"),
        (yields, RecipeError, "generator, and nothing in it has run"),
        (waits, RecipeError, "coroutine, and nothing in it has run"),
        (3, RecipeError, "is a int"),
    ],
    ids=["fails", "diverges", "leaves", "yields", "waits", "no function"],
)
def test_a_training_that_goes_wrong_is_named(
    training: Callable[[GraphModule], None], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        prune(MODEL, recipe(target=0.5), CALIB, finetune=training)


def test_a_model_that_torch_cannot_run_is_refused_before_it_is_pruned() -> None:
    net = Net(opset=18)
    hidden = net.relu(net.gemm(net.input(["N", 12]), 24))
    model = net.build(net.node("CenterCropPad", [net.gemm(hidden, 4), net.constant(np.array([3]))], ["N", 3], axes=[1]))
    called: list[GraphModule] = []
    with pytest.raises(UnsupportedOperatorError, match="CenterCropPad"):
        prune(model, recipe(target=0.5), feeds(model, 0, 64), finetune=called.append)
    assert not called


def test_branches_that_are_cut_off_stay_off() -> None:
    net = Net()
    data = net.relu(net.conv(net.input([1, 16, 24, 24]), 16, 3))
    for _ in range(3):
        data = net.relu(net.add(data, net.conv(net.relu(net.conv(data, 16, 3)), 16, 3)))
    model = net.build(net.conv(data, 4, 1))
    samples = [feeds(model, seed) for seed in range(16)]
    asked = Recipe(speedup=1.5, runs=10, max_latency_ratio=1e3)
    trained, ledger = prune(model, asked, samples, finetune=nothing)
    there = {tensor.name for tensor in trained.graph.initializer}
    assert ledger.speed is not None
    assert ledger.speed.branches or any(group.removed for group in ledger.groups)
    assert ledger.kept.keys() <= there
    assert len(ledger.rounds) == 1


def test_the_command_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own_training.py").write_text(
        "def train(module):\n    for weight in module.parameters():\n        weight.data *= 0.99\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    path, data = small.write(tmp_path, samples=64)
    given = (path, "--calib", data, "--target", "0.7", *BY_RULE_OPTIONS, *QUICK)
    found = command(capfd, *given, "--finetune", "own_training:train", "--rounds", "2")
    assert found.code == 0, found.err
    assert "round 2: trained" in found.err
    ledger = json.loads((tmp_path / "net.pruned.json").read_text())
    assert len(ledger["rounds"]) == 2
    assert ledger["recipe"]["finetune"] == "own_training:train"
    assert ledger["weights"]["sparsity"] >= 0.7
    missing = command(capfd, *given, "--finetune", "own_training:missing")
    assert missing.code == 2
    assert "the training function cannot be imported" in missing.err
    taught = command(capfd, *given, "--finetune", "distill", "--epochs", "2", "--json")
    assert taught.code == 0, taught.err
    (turn,) = json.loads(taught.out)["rounds"]
    assert turn["distillation"]["epochs"] == 2
    untaught = command(capfd, path, "--target", "0.7", "--finetune", "distill")
    assert untaught.code == 2
    assert "give --calib" in untaught.err


@pytest.mark.parametrize("recover", [True, False], ids=["recover", "plain"])
@pytest.mark.parametrize("rounds", [1, 2])
def test_zeros_that_were_there_before_count_and_training_does_not_undo_them(recover: bool, rounds: int) -> None:
    arrays = editable(MODEL)
    for name, array in arrays.items():
        if array.ndim == 1:
            array[:] = 0
        elif name != max(arrays, key=lambda other: arrays[other].size):  # most zeros are made in the largest
            array.ravel()[::3] = 0
    asked = recipe(target=0.5, structural=0, recover=recover, rounds=rounds)
    _, ledger = prune(replaced(MODEL, **arrays), asked, CALIB, finetune=shaken)
    assert 0.5 <= ledger.weights.sparsity < 0.5 + 0.05
    assert {gate.name: gate.ok for gate in ledger.gates}["target"]


def test_stored_numbers_that_are_not_trained_go_through_a_training() -> None:
    net = Net()
    hidden = net.gemm(net.input(["N", 6]), 16)
    mask = net.initializer(np.array([[0.0] * 15 + [-1e9]]), "mask")
    attended = net.node("Softmax", [net.node("Add", [hidden, mask], ["N", 16])], ["N", 16], axis=-1)
    model = net.build(net.gemm(attended, 5))
    asked = Recipe(target=0.4, runs=2, max_latency_ratio=1e3)
    pruned, ledger = prune(model, asked, feeds(model, 0, 64), finetune=shaken)
    assert ledger.weights.sparsity >= 0.4
    np.testing.assert_array_equal(values(pruned)["mask"], values(model)["mask"])


def test_a_training_that_changes_shapes_is_named() -> None:
    def cuts(module: GraphModule) -> None:
        trim(module, CALIB, channels=0.25, align="off")

    def loses(module: GraphModule) -> None:
        del module._parameters[next(name for name, _ in module.named_parameters())]

    for training in (cuts, loses):
        with pytest.raises(RecipeError, match=r"shape of a weight[\s\S]*between the trainings"):
            prune(MODEL, recipe(target=0.5), CALIB, finetune=training)


def test_no_module_is_left_behind() -> None:
    seen: list[weakref.ref[GraphModule]] = []
    prune(MODEL, recipe(target=0.5, rounds=2), CALIB, finetune=lambda module: seen.append(weakref.ref(module)))
    gc.collect()
    assert [reference() for reference in seen] == [None, None]
