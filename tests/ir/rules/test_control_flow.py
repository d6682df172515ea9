"""If, Loop and Scan: what is inside is pruned, and what crosses the boundary goes together or stays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import assume, given
from onnx import TensorProto, helper

from graphprune.calib.run import calibrate, probes_for
from graphprune.calib.sources import input_specs, open_source
from graphprune.ir.bodies import FIRST_OPEN
from graphprune.ir.cost import count_weights, weights_left
from graphprune.ir.coupling.units import Coupling
from graphprune.passes.canonicalize import canonicalize
from graphprune.passes.choice import queues
from graphprune.passes.compensate import plan
from graphprune.passes.criteria import score
from graphprune.passes.trim import by_fraction
from tests.bodies import Body, choose, flagged, in_branches, in_loop, loop_body, take_in
from tests.nets import Extent, Net
from tests.oracles import (
    Feeds,
    all_groups,
    assert_exact,
    check_removal,
    coupled,
    feeds,
    random_removal,
    reasons,
    removal,
    units_on,
)
from tests.strategies import fractions, graphs, seeds


def for_both(model: onnx.ModelProto) -> Coupling:
    """Demand exactness whichever branch is taken."""
    inputs = feeds(model)
    assert_exact(model, inputs={**inputs, "flag": np.array(False)})
    return assert_exact(model, inputs={**inputs, "flag": np.array(True)})


# -- If ----------------------------------------------------------------------------------------------------------


def conv_branch(seed: int, data: str, hidden: int, channels: int = 6) -> onnx.GraphProto:
    """Two convolutions, whose names are the same in all branches."""
    body = Body(seed)
    inner = body.node(
        "Conv", [data, body.weight([hidden, 4, 3, 3], "w"), body.weight([hidden], "b")], "c", pads=[1] * 4
    )
    outer = body.node("Conv", [body.node("Relu", [inner], "r"), body.weight([channels, hidden, 1, 1], "v")], "o")
    return body.build(outer)


def with_branches() -> onnx.ModelProto:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 5, 5]), 4))
    chosen = choose(net, flagged(net), conv_branch(0, data, 5), conv_branch(1, data, 7), ["N", 6, 5, 5])
    return net.build(net.conv(net.relu(chosen), 2))


def test_branches_are_pruned_inside_and_their_outputs_go_together() -> None:
    coupling = for_both(with_branches())
    assert {frozenset(axes): size for axes, size in all_groups(coupling).items()} == {
        frozenset({("w_0", 0), ("b_0", 0), ("w", 1), ("w_2", 1)}): 4,  # captured by both
        frozenset({("w", 0), ("b", 0), ("v", 1)}): 7,
        frozenset({("w_2", 0), ("b_2", 0), ("v_1", 1)}): 5,  # names that the other branch has, too
        frozenset({("v", 0), ("v_1", 0), ("w_1", 1)}): 6,  # joined with the If's output
    }


def test_all_weights_of_bodies_are_counted_once() -> None:
    model = with_branches()
    coupling = coupled(model)
    assert count_weights(model) == count_weights(coupling.graph.proto)
    assert weights_left(coupling, np.zeros(coupling.units, np.bool_)) == count_weights(model)


def test_nested_branches() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 5, 5]), 4))
    flag, other = flagged(net), flagged(net, "other")
    outer = Body(2)
    branches = {"then_branch": conv_branch(0, data, 5), "else_branch": conv_branch(1, data, 7)}
    result = outer.node("If", [other], "inner", **branches)
    chosen = choose(net, flag, outer.build(outer.node("Relu", [result], "s")), conv_branch(3, data, 3), ["N", 6, 5, 5])
    model = net.build(net.conv(chosen, 2))
    for taken in (False, True):
        inputs = {**feeds(model), "other": np.array(taken), "flag": np.array(True)}
        coupling = assert_exact(model, inputs=inputs)
    assert_exact(model, inputs={**inputs, "flag": np.array(False)})
    assert sorted(all_groups(coupling).values()) == [3, 4, 5, 6, 7]


def test_a_branch_that_hands_on_what_is_around_it() -> None:
    net = Net()
    data = net.gemm(net.input(["N", 3]), 6)
    same, other = Body(0), Body(1)
    first = same.build(same.node("Identity", [data], "same"))
    second = other.build(other.gemm(data, "w", [6, 6], "made"))
    model = net.build(net.gemm(choose(net, flagged(net), first, second, ["N", 6]), 2))
    coupling = for_both(model)
    # What the Gemm makes is what it reads, where the other branch is taken: one unit.
    ((axes, size),) = all_groups(coupling).items()
    assert (set(axes), size) == ({("w_0", 0), ("b_0", 0), ("w", 0), ("w", 1), ("w_1", 1)}, 6)


def test_a_weight_that_a_branch_shares_with_the_graph_around_it() -> None:
    net = Net()
    data = net.input(["N", 3])
    weight = net.weight([5, 3], "shared")
    hidden = net.relu(net.node("Gemm", [data, weight], ["N", 5], transB=1))
    body, other = Body(0), Body(1)
    again = body.node("Tanh", [body.node("Gemm", [data, weight], "again", transB=1)], "t")
    first = body.build(body.gemm(again, "v", [2, 5], "o"))
    second = other.build(other.gemm(data, "w", [2, 3], "o"))
    model = net.build(net.gemm(hidden, 2), choose(net, flagged(net), first, second, ["N", 2]))
    coupling = for_both(model)
    assert all_groups(coupling) == {(("shared_0", 0), ("w_0", 1), ("v", 1)): 5}


def test_branches_of_different_rank_freeze_what_they_make() -> None:
    net = Net()
    data = net.gemm(net.input(["N", 3]), 6)
    one, other = Body(0), Body(1)
    first = one.build(one.node("Unsqueeze", [data, one.store(np.array([0]), "axes")], "o"))
    second = other.build(other.node("Relu", [data], "o"))
    chosen = net.node(
        "If", [flagged(net)], ["?"], kind=TensorProto.FLOAT, name="the if", then_branch=first, else_branch=second
    )
    weight = net.weight([6, 2], "w")
    made = net.node("MatMul", [chosen, weight], ["?"])
    net.outputs.append(net.node("ReduceSum", [made], [], keepdims=0))
    coupling = coupled(net.build())
    assert coupling.units == 0
    assert "the branches of If make different shapes" in reasons(coupling).values()


def test_an_unknown_operator_inside_freezes_what_it_touches_alone() -> None:
    net = Net()
    net.imports["my.own"] = 1
    data = net.relu(net.gemm(net.input(["N", 3]), 4))
    strange, plain = Body(0), Body(1)
    hidden = strange.gemm(strange.node("Relu", [strange.gemm(data, "a", [5, 4], "p")], "q"), "b", [6, 5], "r")
    odd = strange.node("Odd", [hidden], "s", domain="my.own")
    first = strange.build(strange.gemm(odd, "c", [2, 6], "t"))
    second = plain.build(plain.gemm(data, "d", [2, 4], "u"))
    coupling = coupled(net.build(choose(net, flagged(net), first, second, ["N", 2])))
    assert all_groups(coupling) == {(("w_0", 0), ("b_0", 0), ("a", 1), ("d", 1)): 4, (("a", 0), ("b", 1)): 5}
    assert "no rule for operator my.own.Odd" in reasons(coupling).values()


# -- Loop --------------------------------------------------------------------------------------------------------


def cell(body: Body, hidden: str, data: str, units: int = 5, inputs: int = 3) -> str:
    """An RNN cell of matrix products: tanh(W x + R h + b)."""
    product = body.gemm(data, "w", [units, inputs], "product")
    recurrent = body.gemm(hidden, "r", [units, units], "recurrent")
    summed = body.node("Add", [body.node("Add", [product, recurrent], "sum"), body.weight([units], "b")], "biased")
    return body.node("Tanh", [summed], "next")


def initial(net: Net, kind: str) -> str:
    if kind == "input":
        return net.input([2, 5], "state")
    if kind == "initializer":
        return net.initializer(np.linspace(-1, 1, 10).reshape(2, 5), "start")
    return net.node("ConstantOfShape", [net.constant([2, 5])], [2, 5], kind=TensorProto.FLOAT)


def looped(net: Net, start: str, body: onnx.GraphProto, shapes: list[list[Extent]], times: int = 3) -> list[str]:
    count = net.initializer(np.array(times), "times")
    kind = TensorProto.FLOAT
    return net.nodes_of("Loop", [count, "", start], shapes, kind=kind, name="the loop", body=body)


@pytest.mark.parametrize("kind", ["filled", "initializer"])
def test_the_hidden_units_of_a_loop_shrink(kind: str) -> None:
    net = Net()
    data = net.input([2, 3])
    start = initial(net, kind)
    body = loop_body(0, ["hidden"])
    (final, steps) = looped(
        net,
        start,
        body.build("goes_on", cell(body, "hidden", data), body.node("Identity", ["next"], "step")),
        [[2, 5], [3, 2, 5]],
    )
    model = net.build(net.gemm(final, 2), net.linear(steps, 4))
    coupling = assert_exact(model)
    (group,) = all_groups(coupling).items()
    axes, size = group
    assert size == 5
    assert {("w", 0), ("r", 0), ("r", 1), ("b", 0), ("w_0", 1)} <= set(axes)
    assert (("start", 1) in axes) == (kind == "initializer")
    pruned = check_removal(coupling, removal(coupling, [0, 3]), feeds(model))
    assert {t.name: list(t.dims) for t in pruned.graph.initializer}["r"] == [3, 3]


def _halves_swapped(net: Net, data: str) -> str:
    left, right = net.split(data, [4, 4])
    return net.concat(net.relu(right), left)


CELLS: dict[str, tuple[Callable[[Net, str], str], int]] = {
    "residual": (lambda net, data: net.add(data, net.conv(net.relu(net.conv(data, 6, 3)), 8)), 8),
    "shuffle": (lambda net, data: net.shuffle(data, 2), 4),  # 0, 4, 1, 5, ...: each place is every other's in time
    "halves": (_halves_swapped, 4),
    "gate": (lambda net, data: net.gate(data, 4), 8),
    "grouped": (lambda net, data: net.conv(data, 8, 3, group=2), 8),
    "depthwise": (lambda net, data: net.depthwise(data), 8),
}
"""What keeps the shape of a state of eight channels, and how many units these are then."""


@pytest.mark.parametrize("name", CELLS)
def test_the_channels_that_a_loop_carries(name: str) -> None:
    build, units = CELLS[name]
    net, inner = Net(), Net(seed=1)
    start = net.relu(net.conv(net.input([2, 3, 4, 4]), 8, 3))
    inner._made("state", [2, 8, 4, 4])
    after = build(inner, "state")
    body = loop_body(0, ["state"])
    take_in(body, inner, ["state"])
    graph = body.build("goes_on", body.node("Tanh", [f"inner_{after}"], "next"), body.node("Relu", ["next"], "step"))
    final, steps = looped(net, start, graph, [[2, 8, 4, 4], [3, 2, 8, 4, 4]])
    flat = net.reshape(steps, [-1, 8, 4, 4], [6, 8, 4, 4])
    coupling = assert_exact(net.build(net.conv(net.relu(final), 2), net.conv(flat, 2)))
    sizes = {frozenset(axes): size for axes, size in all_groups(coupling).items()}
    assert sum(size for axes, size in sizes.items() if ("w_0", 0) in axes) == units


def test_a_state_that_the_caller_hands_in_is_frozen() -> None:
    net = Net()
    data = net.input([2, 3])
    start = initial(net, "input")
    body = loop_body(0, ["hidden"])
    (final,) = looped(net, start, body.build("goes_on", cell(body, "hidden", data)), [[2, 5]])
    coupling = coupled(net.build(net.gemm(final, 2)))
    assert coupling.units == 0
    assert "graph input 'state' keeps its shape" in reasons(coupling).values()


def test_hidden_layers_inside_a_loop_shrink_whatever_the_state() -> None:
    net = Net()
    start = net.input(["N", 5], "state")
    body = loop_body(0, ["hidden"])
    wide = body.node("Relu", [body.gemm("hidden", "up", [8, 5], "u")], "wide")
    (final,) = looped(net, start, body.build("goes_on", body.gemm(wide, "down", [5, 8], "d")), [["N", 5]])
    coupling = assert_exact(net.build(final))
    assert all_groups(coupling) == {(("up", 0), ("down", 1)): 8}


def test_a_state_that_grows_is_frozen() -> None:
    net = Net()
    data = net.input([2, 3])
    hidden = net.gemm(data, 4)
    body = loop_body(0, ["past"])
    longer = body.build("goes_on", body.node("Concat", ["past", hidden], "longer", axis=1))
    (final,) = looped(net, hidden, longer, [[2, 16]])
    net.outputs.append(net.node("ReduceMax", [final], [], keepdims=0))
    coupling = coupled(net.build())
    assert coupling.graph.shape("past") == (2, None)
    assert coupling.units == 0
    assert "Loop does not keep the shape of 'past'" in reasons(coupling).values()


def test_a_state_that_swaps_places_with_another_is_tied_to_it() -> None:
    net = Net()
    one, other = net.gemm(net.input([2, 3]), 4), net.gemm(net.input([2, 3]), 4)
    body = loop_body(0, ["left", "right"])
    outputs = body.node("Identity", ["right"], "new_left"), body.node("Tanh", ["left"], "new_right")
    count = net.initializer(np.array(3), "times")
    results = net.nodes_of(
        "Loop", [count, "", one, other], [[2, 4]] * 2, kind=TensorProto.FLOAT, body=body.build("goes_on", *outputs)
    )
    coupling = assert_exact(net.build(*(net.gemm(result, 2) for result in results)))
    assert list(all_groups(coupling).values()) == [4]


def test_a_loop_in_a_branch() -> None:
    net = Net()
    data = net.input([2, 3])
    inner, outer, plain = loop_body(0, ["hidden"]), Body(1), Body(2)
    graph = inner.build("goes_on", cell(inner, "hidden", data))
    outer.store(np.array(3), "times")
    zeros = outer.node("ConstantOfShape", [outer.store(np.array([2, 5]), "shape")], "zeros")
    outer.nodes.append(helper.make_node("Loop", ["times", "", zeros], ["final"], body=graph))
    second = plain.build(plain.gemm(data, "w", [5, 3], "o"))
    model = net.build(net.gemm(choose(net, flagged(net), outer.build("final"), second, [2, 5]), 2))
    coupling = for_both(model)
    assert list(all_groups(coupling).values()) == [5]


def test_a_sequence_that_is_carried_is_left_alone() -> None:
    net = Net()
    hidden = net.gemm(net.input([2, 3]), 4)
    net.nodes.append(helper.make_node("SequenceEmpty", [], ["none"]))
    body = loop_body(0, ["items"])
    graph = body.build("goes_on", body.node("SequenceInsert", ["items", hidden], "more"))
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    graph.input[2].type.CopyFrom(kind)
    graph.output[1].type.CopyFrom(kind)
    net.initializer(np.array(3), "times")
    net.nodes.append(helper.make_node("Loop", ["times", "", "none"], ["all"], body=graph))
    made = net._made("stacked", [6, 4])
    net.nodes.append(helper.make_node("ConcatFromSequence", ["all"], [made], axis=0))
    deep = net.relu(net.gemm(hidden, 5))
    model = net.build(net.gemm(made, 2), net.gemm(deep, 2))
    coupling = assert_exact(model)
    assert list(all_groups(coupling).values()) == [5]
    assert "no rule for operator SequenceInsert" in reasons(coupling).values()


# -- Scan --------------------------------------------------------------------------------------------------------


def scanned(net: Net, sequence: str, *, axis: int, stacked: int) -> list[str]:
    """Run an RNN cell along an axis of a sequence [., ., 3] of batches of two; stack its states."""
    body = Body(0, ["hidden", "element"])
    graph = body.build(cell(body, "hidden", "element"), body.node("Identity", ["next"], "step"))
    start = initial(net, "filled")
    length = net.shapes[sequence][axis]
    steps: list[Extent] = [2, 5]
    steps.insert(stacked % 3, length)
    attributes = {"num_scan_inputs": 1, "scan_input_axes": [axis], "scan_output_axes": [stacked]}
    return net.nodes_of("Scan", [start, sequence], [[2, 5], steps], name="the scan", body=graph, **attributes)


@pytest.mark.parametrize(("shape", "axis", "stacked"), [([4, 2, 3], 0, 0), ([2, 4, 3], 1, 1), ([2, 4, 3], -2, -2)])
def test_the_hidden_units_of_a_scan_shrink(shape: list[int], axis: int, stacked: int) -> None:
    net = Net()
    final, steps = scanned(net, net.linear(net.input([*shape[:2], 4]), 3), axis=axis, stacked=stacked)
    coupling = assert_exact(net.build(net.gemm(final, 2), net.linear(steps, 4)))
    assert sorted(all_groups(coupling).values()) == [3, 5]
    assert units_on(coupling, "r", 0) == units_on(coupling, "r", 1) == units_on(coupling, "w", 0)


def test_the_axis_that_is_scanned_stays() -> None:
    net = Net()
    data = net.linear(net.input([2, 3, 6]), 4)
    turned = net.transpose(data, [2, 0, 1])  # what the product makes is run along
    final, steps = scanned(net, turned, axis=0, stacked=0)
    coupling = coupled(net.build(net.gemm(final, 2), steps))
    assert set(units_on(coupling, "w_0", 1)) == {-1}
    assert "Scan runs along the axis" in reasons(coupling).values()


# -- dead units ----------------------------------------------------------------------------------------------------


def test_a_unit_that_only_its_own_past_moves_is_not_dead() -> None:
    net = Net()
    data = net.input([2, 3])
    body = loop_body(0, ["hidden"])
    gemm = body.node("Gemm", [data, body.store(np.zeros((5, 3)), "w")], "product", transB=1)
    graph = body.build("goes_on", body.node("Add", ["hidden", body.node("Exp", [gemm], "e")], "next"))
    (final,) = looped(net, initial(net, "initializer"), graph, [[2, 5]])
    coupling = coupled(net.build(net.gemm(final, 2)))
    assert coupling.units == 5
    assert not score(coupling, {}, "apoz").dead.any()


def test_random_removals_of_a_deep_mix() -> None:
    net = Net()
    data = net.linear(net.input([2, 4, 4]), 3)
    final, steps = scanned(net, data, axis=1, stacked=1)
    one, other = Body(4), Body(5)
    first = one.build(one.gemm(one.node("Relu", [one.gemm(final, "a", [7, 5], "p")], "q"), "c", [6, 7], "s"))
    second = other.build(other.gemm(final, "d", [6, 5], "s"))
    chosen = choose(net, flagged(net), first, second, [2, 6])
    model = net.build(net.gemm(chosen, 2), net.linear(steps, 2))
    coupling = coupled(model)
    for seed in range(4):
        inputs: Feeds = {**feeds(model, seed), "flag": np.array(seed % 2 == 0)}
        check_removal(coupling, random_removal(coupling, 0.5, seed), inputs)


# -- measured from outside ------------------------------------------------------------------------------------------


def test_what_bodies_compute_is_not_measured_and_not_repaired() -> None:
    model = with_branches()
    coupling = coupled(model)
    probes = probes_for(coupling)
    assert {probe.tensor for probe in probes} == {"relu_0", "relu_1"}  # captured, and behind the If
    whole_feeds = {"x_0": np.stack([feeds(model, seed)["x_0"] for seed in range(2)]), "flag": np.array([True, False])}
    statistics = calibrate(coupling.graph, probes, open_source(whole_feeds, input_specs(model)))
    scores = score(coupling, statistics, "apoz")
    assert set(scores.criteria) == {"apoz", "activation"}
    removed = by_fraction(coupling, queues(coupling, scores), 0.5)
    assert set(plan(coupling, removed, statistics)) == {"conv_1"}


# -- any graph inside ----------------------------------------------------------------------------------------------


@given(model=graphs(), fraction=fractions(), seed=seeds())
def test_any_graph_is_pruned_in_branches_as_it_is_outside(
    model: onnx.ModelProto, fraction: float | None, seed: int
) -> None:
    assume(model.opset_import[0].version >= FIRST_OPEN)
    outside, inside = coupled(model), coupled(in_branches(model))
    assert sorted(all_groups(inside).values()) == sorted(2 * list(all_groups(outside).values()))
    removed = random_removal(inside, fraction, seed)
    for taken in (True, False):
        if removed.any():
            check_removal(inside, removed, {**feeds(model, seed), "flag": np.array(taken)})


@given(model=graphs(), fraction=fractions(), seed=seeds())
def test_any_graph_is_pruned_in_a_loop_as_it_is_outside(
    model: onnx.ModelProto, fraction: float | None, seed: int
) -> None:
    assume(model.opset_import[0].version >= 11)  # before, Loop has to carry something
    outside, inside = coupled(model), coupled(in_loop(model))
    canonical = inside.graph.proto
    assert canonicalize(canonical).SerializeToString(deterministic=True) == canonical.SerializeToString(
        deterministic=True
    )
    assert sorted(all_groups(inside).values()) == sorted(all_groups(outside).values())
    removed = random_removal(inside, fraction, seed)
    if removed.any():
        check_removal(inside, removed, feeds(model, seed))
