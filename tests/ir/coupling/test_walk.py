"""Coupling: the worked cases, with the units and groups that they must have."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphprune.calib.run import calibrate, probes_for
from graphprune.calib.sources import input_specs, open_source
from graphprune.ir.coupling.units import FROZEN
from graphprune.ir.coupling.walk import couple
from graphprune.ir.graph import Graph
from graphprune.ir.rules import RULES
from graphprune.ir.surgery import remove
from graphprune.passes import compensate, criteria, sparsify
from graphprune.verify.masking import masked
from tests.nets import Net
from tests.oracles import (
    all_groups,
    assert_close,
    assert_exact,
    check_removal,
    coupled,
    feeds,
    random_removal,
    reasons,
    removal,
    run,
    units_on,
)


def test_a_hidden_layer_is_one_group() -> None:
    net = Net()
    data = net.input(["N", 3])
    coupling = assert_exact(net.build(net.gemm(net.relu(net.gemm(data, 6)), 4)))
    assert all_groups(coupling) == {(("w_0", 0), ("b_0", 0), ("w_1", 1)): 6}
    assert reasons(coupling) == {
        ("w_0", 1): "graph input 'x_0' keeps its shape",
        ("w_1", 0): "graph output 'gemm_1' keeps its shape",
    }


def test_option_a_residual_puts_old_channels_in_the_middle_of_new_ones() -> None:
    net = Net()
    data = net.input(["N", 3, 8, 8])
    narrow, inner, wide, last = (
        net.weight(shape, name)
        for shape, name in [
            ((16, 3, 3, 3), "narrow"),
            ((32, 16, 3, 3), "inner"),
            ((32, 32, 3, 3), "wide"),
            ((5, 32, 1, 1), "last"),
        ]
    )
    first = net.relu(net.conv(data, 16, 3, weight=narrow, bias=False))
    branch = net.conv(
        net.relu(net.conv(first, 32, 3, stride=2, weight=inner, bias=False)), 32, 3, weight=wide, bias=False
    )
    far = 2**63 - 1
    shortcut = net.pad(net.slice(first, {2: (0, far, 2), 3: (0, far, 2)}), {1: (8, 8)})
    coupling = assert_exact(net.build(net.conv(net.relu(net.add(shortcut, branch)), 5, weight=last, bias=False)))
    old = units_on(coupling, "narrow_0", 0)
    stage = units_on(coupling, "wide_0", 0)
    assert stage[8:24] == old
    assert units_on(coupling, "last_0", 1) == stage
    assert len(set(stage)) == 32
    assert FROZEN not in stage
    assert not set(stage[:8] + stage[24:]) & set(old)
    assert all_groups(coupling) == {
        (("narrow_0", 0), ("inner_0", 1), ("wide_0", 0), ("last_0", 1)): 16,
        (("inner_0", 0), ("wide_0", 1)): 32,
        (("wide_0", 0), ("last_0", 1)): 16,
    }


def test_option_a_residual_loses_padding_with_its_channels() -> None:
    net = Net()
    data = net.input(["N", 3, 4, 4])
    first = net.relu(net.conv(data, 4, bias=False))
    joined = net.add(net.pad(first, {1: (2, 2)}), net.conv(first, 8, 3, bias=False))
    coupling = coupled(net.build(net.conv(joined, 3)))
    stage = units_on(coupling, "w_1", 0)
    pruned = check_removal(
        coupling, removal(coupling, [stage[0], stage[1], stage[2], stage[7]]), feeds(coupling.graph.proto)
    )
    pads = next(t for t in pruned.graph.initializer if t.name.startswith("graphprune_constant"))
    assert onnx.numpy_helper.to_array(pads).tolist() == [0, 0, 0, 0, 0, 1, 0, 0]


def test_squeeze_excite_joins_the_gate_with_what_it_gates() -> None:
    net = Net()
    data = net.input(["N", 3, 4, 4])
    made = net.gate(net.relu(net.conv(data, 8)), 2)
    coupling = assert_exact(net.build(net.conv(made, 3)))
    channels = units_on(coupling, "w_0", 0)
    assert len(set(channels)) == 8
    assert units_on(coupling, "w_1", 1) == channels, "what the gate is computed from"
    assert units_on(coupling, "w_2", 0) == channels, "the gate"
    assert units_on(coupling, "w_3", 1) == channels, "what reads the gated"
    assert sorted(all_groups(coupling).values()) == [2, 8]


def test_flatten_repeats_each_channel() -> None:
    net = Net()
    data = net.input(["N", 1, 3, 3])
    coupling = assert_exact(net.build(net.gemm(net.flatten(net.relu(net.conv(data, 4))), 2)))
    channels = units_on(coupling, "w_0", 0)
    assert units_on(coupling, "w_1", 1) == [unit for unit in channels for _ in range(9)]


def test_flatten_of_channels_last_interleaves_them() -> None:
    net = Net()
    data = net.input(["N", 1, 3, 3])
    turned = net.transpose(net.relu(net.conv(data, 4)), [0, 2, 3, 1])
    coupling = assert_exact(net.build(net.gemm(net.flatten(turned), 2)))
    assert units_on(coupling, "w_1", 1) == units_on(coupling, "w_0", 0) * 9


def test_dense_blocks_keep_their_channels_apart() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 4, bias=False))
    for _ in range(3):
        data = net.concat(data, net.relu(net.conv(data, 2, 3, bias=False)))
    coupling = assert_exact(net.build(net.conv(data, 3)))
    whole = [unit for name in ("w_0", "w_1", "w_2", "w_3") for unit in units_on(coupling, name, 0)]
    assert len(set(whole)) == 10
    assert units_on(coupling, "w_4", 1) == whole
    assert units_on(coupling, "w_3", 1) == whole[:8]
    assert units_on(coupling, "w_1", 1) == whole[:4]


def test_grouped_convolutions_are_balanced_and_not_joined() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8))
    coupling = assert_exact(net.build(net.conv(net.relu(net.conv(data, 4, 3, group=2)), 3)))
    inputs, outputs = units_on(coupling, "w_0", 0), units_on(coupling, "w_1", 0)
    assert len({*inputs, *outputs}) == 12
    assert [parts.tolist() for parts in coupling.balances] == [
        [inputs[:4], inputs[4:]],
        [outputs[:2], outputs[2:]],
    ]


def test_a_one_channel_convolution_is_no_depthwise_one() -> None:
    net = Net()
    data = net.input(["N", 1, 6, 6])
    coupling = assert_exact(net.build(net.conv(net.relu(net.conv(data, 6, 3)), 3)))
    assert len(set(units_on(coupling, "w_0", 0)) - {FROZEN}) == 6


def test_depthwise_outputs_go_with_their_inputs() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 4))
    coupling = assert_exact(net.build(net.conv(net.relu(net.depthwise(data, 2)), 3)))
    inputs = units_on(coupling, "w_0", 0)
    assert len(set(inputs)) == 4
    assert units_on(coupling, "w_1", 0) == [unit for unit in inputs for _ in range(2)]
    assert coupling.balances == ()


def test_shufflenet_units_of_the_second_version_are_exact() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8))
    for _ in range(2):
        kept, changed = net.split(data, [4, 4])
        changed = net.relu(net.conv(changed, 4))
        changed = net.relu(net.conv(net.depthwise(changed), 4))
        data = net.shuffle(net.concat(kept, changed), 2)
    coupling = assert_exact(net.build(net.conv(data, 3)))
    inner = units_on(coupling, "w_1", 0)
    assert len(set(inner)) == 4, "channels inside the branch meet no shuffle"
    assert FROZEN not in units_on(coupling, "w_0", 0)


def test_a_shuffle_is_a_permutation_of_units() -> None:
    net = Net()
    data = net.shuffle(net.relu(net.conv(net.input(["N", 3, 4, 4]), 6)), 2)
    coupling = assert_exact(net.build(net.conv(data, 3)))
    first, second = units_on(coupling, "w_0", 0), units_on(coupling, "w_1", 1)
    assert second == [first[place] for place in (0, 3, 1, 4, 2, 5)]


def test_one_weight_used_twice_has_one_set_of_units() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 6))
    weight = net.weight([6, 6, 1, 1], "both")
    data = net.relu(net.conv(data, 6, weight=weight))
    data = net.relu(net.conv(data, 6, weight=weight))
    coupling = assert_exact(net.build(net.conv(data, 2)))
    assert units_on(coupling, "both_0", 0) == units_on(coupling, "both_0", 1) == units_on(coupling, "w_0", 0)
    assert sorted(all_groups(coupling).values()) == [6]


def test_one_weight_side_by_side_joins_both_outputs() -> None:
    net = Net()
    left, right = net.input(["N", 3, 4, 4]), net.input(["N", 3, 4, 4])
    weight = net.weight([6, 3, 1, 1], "both")
    made = [net.relu(net.conv(data, 6, weight=weight)) for data in (left, right)]
    coupling = assert_exact(net.build(*(net.conv(data, 2) for data in made)))
    assert units_on(coupling, "w_0", 1) == units_on(coupling, "w_1", 1) == units_on(coupling, "both_0", 0)


def test_one_initializer_in_different_roles() -> None:
    net = Net()
    data = net.input(["N", 5])
    tied = net.weight([5, 8], "tied")
    hidden = net.relu(net.node("MatMul", [data, tied], ["N", 8]))
    back = net.node("MatMul", [hidden, net.transpose(tied, [1, 0])], ["N", 5])
    coupling = assert_exact(net.build(back))
    assert len(set(units_on(coupling, "tied_0", 1)) - {FROZEN}) == 8
    assert units_on(coupling, "tied_0", 0) == [FROZEN] * 5


@pytest.mark.parametrize("grouped_first", [False, True])
def test_one_weight_in_a_plain_and_in_a_grouped_convolution(grouped_first: bool) -> None:
    net = Net()
    data = net.input(["N", 3, 4, 4])
    weight = net.weight([4, 2, 3, 3], "both")
    narrow, wide = net.relu(net.conv(data, 2)), net.relu(net.conv(data, 4))
    made = {}
    for group, source in ((2, wide), (1, narrow))[:: 1 if grouped_first else -1]:
        made[group] = net.conv(source, 4, 3, weight=weight, group=group)
    coupling = assert_exact(net.build(net.conv(made[1], 2), net.conv(made[2], 2)))
    narrow_units = units_on(coupling, "w_0", 0)
    assert units_on(coupling, "w_1", 0) == narrow_units * 2


def test_a_grouped_weight_that_is_computed_with_elsewhere_is_frozen() -> None:
    net = Net()
    data = net.input(["N", 3, 4, 4])
    weight = net.weight([4, 2, 1, 1], "both")
    wide = net.relu(net.conv(data, 4))
    made = net.conv(net.relu(net.conv(wide, 4, group=2, weight=weight)), 2)
    halved = net.node("Mul", [weight, net.initializer(0.5, "half")])
    coupling = coupled(net.build(made, net.conv(net.input(["N", 2, 4, 4]), 4, weight=halved)))
    assert coupling.units == 0
    assert reasons(coupling)["both_0", 1] == "Mul joins axes split differently"


def test_a_bias_shared_by_two_layers_joins_them() -> None:
    net = Net()
    data = net.input(["N", 3, 4, 4])
    bias = net.vector(6, "shared")
    made = [net.relu(net.node("Conv", [data, net.weight([6, 3, 1, 1]), bias], ["N", 6, 4, 4])) for _ in range(2)]
    coupling = assert_exact(net.build(*(net.conv(one, 2) for one in made)))
    assert units_on(coupling, "w_0", 0) == units_on(coupling, "w_1", 0)
    assert coupling.units == 6


# -- what is left alone, and why -----------------------------------------------------------------------------


def test_inputs_and_outputs_are_frozen_with_reasons() -> None:
    net = Net()
    first, second = net.input(["N", 3, 4, 4]), net.input(["N", 6, 4, 4])
    added = net.add(net.conv(first, 6), second)
    coupling = coupled(net.build(net.conv(net.relu(added), 4)))
    assert coupling.units == 0
    assert coupling.groups == ()
    assert reasons(coupling) == {
        ("w_0", 0): "graph input 'x_1' keeps its shape",
        ("w_0", 1): "graph input 'x_0' keeps its shape",
        ("w_1", 0): "graph output 'conv_1' keeps its shape",
        ("w_1", 1): "graph input 'x_1' keeps its shape",
    }


def test_an_inner_tensor_that_is_an_output_is_frozen() -> None:
    net = Net()
    hidden = net.relu(net.gemm(net.input(["N", 3]), 6))
    coupling = coupled(net.build(net.gemm(hidden, 2), hidden))
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 0] == "graph output 'relu_0' keeps its shape"


def test_an_unknown_operator_freezes_what_it_touches_and_no_more() -> None:
    net = Net()
    net.imports["my.own"] = 1
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 6))
    before = net.relu(net.conv(data, 5))
    made = net.node("Mystery", [before], ["N", 7, 4, 4], domain="my.own", name="the mystery")
    after = net.relu(net.conv(made, 8))
    model = net.build(net.conv(after, 2))
    # Nobody but the exporter knows what comes out of it.
    model.graph.value_info.append(helper.make_tensor_value_info(made, TensorProto.FLOAT, net.shapes[made]))
    coupling = coupled(model)
    assert sorted(all_groups(coupling)) == [(("w_0", 0), ("b_0", 0), ("w_1", 1)), (("w_2", 0), ("b_2", 0), ("w_3", 1))]
    found = {(d.tensor, d.axis): (d.positions, d.reason) for d in coupling.declined}
    for key, positions in ((("w_1", 0), 5), (("w_2", 1), 7)):
        count, reason = found[key]
        assert count == positions
        assert (reason.node, reason.op) == ("the mystery", "my.own.Mystery")
        assert reason.text == "no rule for operator my.own.Mystery"


def test_a_tensor_of_unknown_rank_freezes_its_readers() -> None:
    net = Net()
    net.imports["my.own"] = 1
    made = net.node("Mystery", [net.relu(net.gemm(net.input(["N", 3]), 6))], ["N", 7], domain="my.own")
    coupling = coupled(net.build(net.linear(net.relu(net.linear(made, 8)), 2)))
    assert coupling.units == 0
    assert reasons(coupling)["w_1", 1] == "a tensor of unknown rank meets MatMul"


def test_an_operator_of_another_domain_is_not_taken_for_onnx_s_own() -> None:
    net = Net()
    net.imports["my.own"] = 1
    hidden = net.node("Relu", [net.gemm(net.input(["N", 3]), 6)], domain="my.own")
    coupling = coupled(net.build(net.gemm(hidden, 2)))
    assert coupling.units == 0
    assert "no rule for operator my.own.Relu" in reasons(coupling).values()


@pytest.mark.parametrize("op", ["GatherElements", "CumSum", "TopK", "LSTM", "LayerNormalization", "NonZero"])
def test_operators_that_mix_positions_have_no_elementwise_rule(op: str) -> None:
    rule = RULES.get(op)
    assert rule is None or rule.couple not in (RULES["Relu"].couple, RULES["Add"].couple)


def branches(captured: str) -> dict[str, Any]:
    """Both branches of an If that read a tensor around them; what they make has the same name in both."""

    def branch(name: str, op: str) -> onnx.GraphProto:
        node = helper.make_node(op, [captured], ["made"])
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info("made", TensorProto.FLOAT, None)])

    return {"then_branch": branch("then", "Relu"), "else_branch": branch("else", "Neg")}


def with_if(captured_of: str) -> onnx.ModelProto:
    """Two hidden layers; an If captures the first one's output, or its weight."""
    net = Net()
    data = net.input(["N", 3])
    flag = net.input([], "flag")
    net.kinds[flag] = TensorProto.BOOL
    weight = net.weight([6, 3], "caught")
    hidden = net.node("Gemm", [data, weight], ["N", 6], transB=1)
    second = net.gemm(net.relu(net.gemm(net.relu(hidden), 5)), 2)
    captured = hidden if captured_of == "activation" else weight
    chosen = net.node("If", [flag], net.shapes[captured], kind=TensorProto.FLOAT, name="the if", **branches(captured))
    return net.build(second, chosen)


@pytest.mark.parametrize("captured_of", ["activation", "weight"])
def test_what_a_subgraph_captures_that_cannot_be_looked_into_is_frozen(captured_of: str) -> None:
    model = with_if(captured_of)  # not canonical: names are not unique
    coupling = couple(Graph(model))
    assert all_groups(coupling) == {(("w_0", 0), ("b_0", 0), ("w_1", 1)): 5}
    declined = {(d.tensor, d.axis): d.reason for d in coupling.declined}
    assert declined["caught_0", 0].node == "the if"
    assert declined["caught_0", 0].op == "If"
    inputs = {"x_0": np.ones((2, 3), np.float32), "flag": np.array(True)}
    check_removal(coupling, removal(coupling, [0, 3]), inputs)


def test_a_local_function_of_another_operator_set_is_frozen() -> None:
    net = Net()
    net.imports["my.own"] = 1
    hidden = net.node("Twice", [net.gemm(net.input(["N", 3]), 6)], ["N", 6], domain="my.own")
    net.output(net.gemm(hidden, 2))
    twice = helper.make_function(
        "my.own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 13)]
    )
    model = net.build()
    model.functions.append(twice)
    coupling = coupled(model)
    assert coupling.units == 0
    assert "no rule for operator my.own.Twice" in reasons(coupling).values()


def test_part_of_an_axis_may_be_frozen() -> None:
    net = Net()
    data = net.input(["N", 3, 4, 4])
    both = net.concat(net.relu(net.conv(data, 4)), data)
    coupling = assert_exact(net.build(net.conv(both, 2)))
    units = units_on(coupling, "w_1", 1)
    assert units[4:] == [FROZEN] * 3
    assert len(set(units[:4])) == 4
    (declined,) = [d for d in coupling.declined if (d.tensor, d.axis) == ("w_1", 1)]
    assert declined.positions == 3


def test_the_last_position_of_an_axis_is_frozen() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 4))
    one, others = net.split(data, [1, 3])
    coupling = assert_exact(net.build(net.conv(one, 2), net.conv(others, 2)))
    assert units_on(coupling, "w_0", 0)[0] == FROZEN
    assert len(set(units_on(coupling, "w_0", 0)[1:])) == 3
    assert "Split leaves the axis one position" in [d.reason.text for d in coupling.declined if d.tensor == "w_0"]


def test_a_dynamic_channel_axis_is_frozen() -> None:
    net = Net()
    data = net.input(["N", 3, "H", "W"])
    hidden = net.relu(net.conv(data, 4))
    merged = net.reshape(hidden, [0, -1], ["N", "K"])
    coupling = coupled(net.build(merged))
    assert coupling.units == 0


def test_channels_of_a_network_with_dynamic_rows_and_columns_go() -> None:
    net = Net()
    data = net.input(["N", 3, "H", "W"])
    hidden = net.relu(net.batch_norm(net.conv(net.relu(net.conv(data, 6, 3)), 4, 3, stride=1)))
    coupling = assert_exact(net.build(net.gemm(net.flatten(net.global_pool(hidden)), 2)), batch=5)
    assert sorted(all_groups(coupling).values()) == [4, 6]


def test_coupling_changes_nothing_of_the_model() -> None:
    net = Net()
    model = net.build(net.conv(net.relu(net.conv(net.input(["N", 3, 4, 4]), 4)), 2))
    before = model.SerializeToString(deterministic=True)
    couple(Graph(model))
    assert model.SerializeToString(deterministic=True) == before


def test_groups_hold_every_unit_once() -> None:
    net = Net()
    data = net.block(net.input(["N", 3, 8, 8]), 8)
    data = net.gate(net.concat(data, net.block(data, 4)), 3)
    coupling = coupled(net.build(net.conv(data, 2)))
    assert sorted(int(unit) for group in coupling.groups for unit in group.units) == list(range(coupling.units))


def test_weights_that_an_unknown_operator_reads_are_declined_too() -> None:
    net = Net()
    net.imports["my.own"] = 1
    weight = net.weight([6, 4], "theirs")
    hidden = net.node("Mystery", [net.input(["N", 4]), weight], ["N", 6], domain="my.own")
    coupling = coupled(net.build(hidden))
    assert reasons(coupling) == {("theirs_0", axis): "no rule for operator my.own.Mystery" for axis in (0, 1)}


# -- weights behind tensors of unknown rank -------------------------------------------------------------------


def unranked(net: Net, data: str) -> str:
    """Put an operator behind a tensor that ONNX knows nothing of; ONNX Runtime runs it."""
    net.imports["com.microsoft"] = 1
    return net.node("Trilu", [data], domain="com.microsoft")


def assert_zeroable_and_kept(model: onnx.ModelProto, *weights: str) -> None:
    """Demand that the weights may be zeroed, are said to be left alone, and stop nothing."""
    coupling = coupled(model)
    assert set(weights) <= set(sparsify.zeroable(coupling.graph, coupling.contractions))
    assert set(weights) <= {declined.tensor for declined in coupling.declined}
    inputs = feeds(model)
    statistics = calibrate(
        coupling.graph, probes_for(coupling), open_source(inputs, input_specs(model)), batch_size=2, threads=1
    )
    for criterion in criteria.CRITERIA:
        criteria.score(coupling, statistics, criterion)
    removed = random_removal(coupling, 0.5, 0)
    compensate.plan(coupling, removed, statistics)
    assert_close(run(masked(coupling, removed), inputs, optimised=False), run(remove(coupling, removed)[0], inputs))


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_dense_weights_behind_a_tensor_of_unknown_rank_are_zeroable(op: str) -> None:
    net = Net()
    hidden = unranked(net, net.gemm(net.relu(net.gemm(net.input(["N", 5]), 6)), 8))
    made = net.relu(net.node(op, [hidden, net.weight([8, 7], "first")], ["N", 7]))
    model = net.build(net.node(op, [made, net.weight([7, 3], "second")], ["N", 3]))
    assert_zeroable_and_kept(model, "w_1", "first_0", "second_0")


@pytest.mark.parametrize(("op", "group"), [("Conv", 1), ("Conv", 2), ("Conv", 4), ("ConvTranspose", 1)])
def test_convolutions_behind_a_tensor_of_unknown_rank_are_zeroable(op: str, group: int) -> None:
    net = Net()
    hidden = unranked(net, net.conv(net.input(["N", 3, 4, 4]), 4))
    weight = net.weight([4, 4 // group, 1, 1], "first")
    model = net.build(net.node(op, [hidden, weight], ["N", 4, 4, 4], group=group))
    assert_zeroable_and_kept(model, "w_0", weight)


def test_a_weight_on_the_left_of_a_tensor_of_unknown_rank() -> None:
    net = Net()
    hidden = unranked(net, net.input([5, 4]))
    model = net.build(net.node("MatMul", [net.weight([6, 5]), hidden], [6, 4]))
    assert_zeroable_and_kept(model, "w_0")
    (found,) = coupled(model).contractions
    assert (found.data, found.weight, found.data_axis) == (1, 0, None)
    assert (found.weight_axis, found.output_axis) == (1, 0)


def test_a_vector_times_a_matrix_is_zeroable() -> None:
    net = Net()
    made = net.node("MatMul", [net.input([5]), net.weight([5, 6])], [6])
    model = net.build(net.node("MatMul", [made, net.vector(6, "vector")], []))
    assert_zeroable_and_kept(model, "w_0")
    assert len(coupled(model).contractions) == 1, "a vector is no matrix of weights"


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_weights_are_zeroable_even_where_the_bias_is_computed(op: str, gates: int) -> None:
    net = Net()
    weights = [net.weight([1, gates * 4, 3]), net.weight([1, gates * 4, 4])]
    bias = net.input([1, 2 * gates * 4])
    made = net.node(op, [net.input([5, "N", 3]), *weights, bias], [5, 1, "N", 4], hidden_size=4)
    assert_zeroable_and_kept(net.build(made), *weights)
