"""Surgery: the key test on random graphs, and what it must not touch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphprune.ir.coupling.walk import couple
from graphprune.ir.graph import Graph
from graphprune.ir.surgery import remove, slice_tensor, take
from graphprune.verify.equivalence import check_equivalence
from tests.nets import Net
from tests.oracles import (
    assert_close,
    assert_exact,
    assert_reproduces,
    assert_untouched,
    check_removal,
    coupled,
    feeds,
    random_removal,
    removal,
    run,
    units_on,
)
from tests.strategies import STAGES, Stage, fractions, graphs, seeds


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
@settings(max_examples=25)
@given(data=st.data(), fraction=fractions(), seed=seeds(), spare=st.booleans())
def test_pruned_equals_masked_on_random_graphs(
    stage: Stage, data: st.DataObject, fraction: float | None, seed: int, spare: bool
) -> None:
    model = data.draw(graphs(stage))
    coupling = coupled(model)
    inputs = feeds(model, seed)
    assert_close(run(model, inputs), run(coupling.graph.proto, inputs))
    assert_untouched(coupling)
    removed = random_removal(coupling, fraction, seed, spare_groups=spare)
    if removed.any():
        check_removal(coupling, removed, inputs)


@settings(max_examples=60)
@given(model=graphs(), fraction=fractions(), seed=seeds())
def test_what_was_cut_can_be_cut_again(model: onnx.ModelProto, fraction: float | None, seed: int) -> None:
    coupling = coupled(model)
    pruned, _ = remove(coupling, random_removal(coupling, 0.4, seed))
    again = coupled(pruned)
    removed = random_removal(again, fraction, seed)
    if removed.any():
        check_removal(again, removed, feeds(model, seed))


def test_check_equivalence_measures_nothing_but_rounding() -> None:
    net = Net()
    model = net.build(net.gemm(net.flatten(net.block(net.input(["N", 3, 4, 4]), 8)), 5))
    coupling = coupled(model)
    removed = random_removal(coupling, 0.5, 0)
    pruned, _ = remove(coupling, removed)
    assert check_equivalence(coupling, removed, pruned, feeds(model), threads=1).relative_l2 < 1e-6


# -- without canonicalization --------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [8, 9, 17])
def test_a_graph_as_it_came(opset: int) -> None:
    net = Net(opset, listed=True)
    data = net.relu(net.batch_norm(net.conv(net.input(["N", 3, 4, 4]), 6)))
    flat = net.reshape(net.dropout(net.node("Identity", [data])), [-1, 96], ["N", 96])
    model = net.build(net.gemm(flat, 3))
    coupling = couple(Graph(model))
    pruned = check_removal(coupling, removal(coupling, units_on(coupling, "w_0", 0)[:4]), feeds(model))
    assert len(pruned.graph.node) == len(model.graph.node)
    listed = {value.name: value for value in pruned.graph.input}
    assert set(listed) == {"x_0", *(t.name for t in pruned.graph.initializer)} - (
        {"graphprune_constant_0"} if opset > 8 else set()
    )
    assert [d.dim_value for d in listed["w_0"].type.tensor_type.shape.dim] == [2, 3, 1, 1]


# -- shapes that the exporter noted --------------------------------------------------------------------------


def test_noted_shapes_are_patched() -> None:
    net = Net()
    data = net.input(["N", 3, 4, 4])
    hidden = net.relu(net.conv(data, 6))
    flat = net.flatten(hidden)
    model = net.build(net.gemm(flat, 3))
    for name in ("conv_0", hidden, flat):
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, net.shapes[name]))
    coupling = coupled(model)
    pruned = check_removal(coupling, removal(coupling, units_on(coupling, "w_0", 0)[:4]), feeds(model))
    noted = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in pruned.graph.value_info
    }
    assert noted == {"conv_0": ["N", 2, 4, 4], hidden: ["N", 2, 4, 4], flat: ["N", 32]}


def test_a_note_without_a_shape_stays() -> None:
    net = Net()
    model = net.build(net.conv(net.relu(net.conv(net.input(["N", 3, 4, 4]), 6)), 2))
    note = model.graph.value_info.add(name="relu_0")
    note.type.tensor_type.elem_type = TensorProto.FLOAT
    assert_exact(model)


# -- element types -------------------------------------------------------------------------------------------


def test_half_precision_is_sliced_bit_for_bit() -> None:
    net = Net(kind=TensorProto.FLOAT16)
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8, 3))
    model = net.build(net.gemm(net.flatten(net.relu(net.conv(data, 6))), 3))
    # Half precision keeps 11 bits, and ORT sums a different number of terms in another order.
    assert_exact(model, tolerance=5e-3)


def test_bfloat16_is_sliced_bit_for_bit() -> None:
    net = Net(kind=TensorProto.BFLOAT16)
    weights = [net.weight([8, 4], fan_in=4), net.vector(8), net.weight([3, 8], fan_in=8)]
    wide = [net.node("Cast", [name], kind=TensorProto.FLOAT, to=TensorProto.FLOAT) for name in weights]
    data = net.input(["N", 4])
    net.kinds[data] = TensorProto.FLOAT
    hidden = net.relu(net.node("Gemm", [data, *wide[:2]], ["N", 8], transB=1))
    model = net.build(net.node("Gemm", [hidden, wide[2]], ["N", 3], transB=1))
    coupling = assert_exact(model)
    removed = removal(coupling, units_on(coupling, weights[0], 0)[1:6])
    pruned, kept = remove(coupling, removed)
    assert_reproduces(coupling.graph.proto, pruned, kept)
    for name, axis in ((weights[0], 0), (weights[1], 0), (weights[2], 1)):
        tensor = next(t for t in pruned.graph.initializer if t.name == name)
        assert tensor.data_type == TensorProto.BFLOAT16
        bits = net.array(name).view(np.uint16)
        assert np.array_equal(
            np.asarray(numpy_helper.to_array(tensor)).view(np.uint16), bits.take([0, 6, 7], axis=axis)
        )


def test_nan_and_negative_zero_keep_their_bits() -> None:
    held = np.array([[-0.0, 1.0], [np.nan, 2.0], [3.0, 4.0]], np.float32)
    held.view(np.uint32)[1, 0] = 0x7FC12345
    tensor = numpy_helper.from_array(held, "t")
    got = numpy_helper.to_array(slice_tensor(tensor, np.array([[True], [True], [False]])))
    assert got.tobytes() == held[:2].tobytes()


@pytest.mark.parametrize("packed", [False, True])
def test_data_in_typed_fields_is_sliced_too(packed: bool) -> None:
    held = np.arange(6, dtype=np.float32).reshape(3, 2)
    tensor = helper.make_tensor("t", TensorProto.FLOAT, [3, 2], held.tobytes() if packed else held.ravel(), raw=packed)
    got = numpy_helper.to_array(slice_tensor(tensor, np.array([[True], [False], [True]])))
    assert got.tolist() == [[0, 1], [4, 5]]


def test_take_pushes_ragged_rows_together() -> None:
    held = np.arange(24).reshape(4, 3, 2)
    keep = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1], [0, 0, 0]], dtype=bool)[:, :, None]
    expected = [held[0, [0, 1]], held[1, [1, 2]], held[2, [0, 2]]]
    assert np.array_equal(take(held, keep), np.stack(expected))


def test_take_of_a_rectangle_that_is_no_product_of_its_counts() -> None:
    held = np.arange(12).reshape(3, 4)
    rows, columns = np.array([True, False, True]), np.array([False, True, True, False])
    keep = rows[:, None] & columns[None]
    assert np.array_equal(take(held, keep), held[np.ix_([0, 2], [1, 2])])


# -- names ---------------------------------------------------------------------------------------------------


def test_new_constants_take_no_name_that_is_there() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 2, 2], "graphprune_constant_0"), 6))
    flat = net.reshape(data, [-1, 24], ["N", 24])
    taken = net.initializer(np.ones(3), "graphprune_constant_0_")
    model = net.build(net.add(net.gemm(flat, 3), taken))
    coupling = assert_exact(model)
    pruned, _ = remove(coupling, removal(coupling, units_on(coupling, "w_0", 0)[:1]))
    names = [t.name for t in pruned.graph.initializer] + ["graphprune_constant_0"]
    assert len(names) == len(set(names))


def test_equal_constants_are_stored_once() -> None:
    net = Net()
    data = net.input(["N", 3, 2, 2])
    made = [net.gemm(net.reshape(net.relu(net.conv(data, 6)), [-1, 24], ["N", 24]), 3) for _ in range(2)]
    coupling = coupled(net.build(*made))
    gone = [units_on(coupling, name, 0)[0] for name in ("w_0", "w_2")]
    pruned, _ = remove(coupling, removal(coupling, gone))
    assert [t.name for t in pruned.graph.initializer if t.data_type == TensorProto.INT64] == ["graphprune_constant_0"]


def test_shape_constants_that_a_subgraph_reads_stay() -> None:
    net = Net()
    data, flag = net.input(["N", 3, 2, 2]), net.input([], "flag")
    net.kinds[flag] = TensorProto.BOOL
    constant = net.constant(np.array([-1, 24]))
    flat = net.reshape(net.relu(net.conv(data, 6)), [], ["N", 24], constant=constant)

    def branch(op: str) -> onnx.GraphProto:
        value = helper.make_tensor_value_info(op, TensorProto.INT64, [2])
        return helper.make_graph([helper.make_node(op, [constant], [op])], op, [], [value])

    chosen = net.node("If", [flag], [2], kind=TensorProto.INT64, then_branch=branch("Neg"), else_branch=branch("Abs"))
    coupling = coupled(net.build(net.gemm(flat, 3), chosen))
    inputs = {"x_0": np.ones((2, 3, 2, 2), np.float32), "flag": np.array(True)}
    pruned = check_removal(coupling, removal(coupling, units_on(coupling, "w_0", 0)[:2]), inputs)
    assert run(pruned, inputs)[chosen].tolist() == [1, -24]


# -- notes of the exporter -----------------------------------------------------------------------------------


@pytest.mark.parametrize("noted", ["relu_0", "w_0", "b_0"])
def test_a_note_of_another_rank_is_dropped(noted: str) -> None:
    net = Net()
    model = net.build(net.gemm(net.relu(net.gemm(net.input(["N", 3]), 6)), 2))
    model.graph.value_info.append(helper.make_tensor_value_info(noted, net.kind, [1, 6, 1]))
    model.graph.value_info.append(helper.make_tensor_value_info("gemm_0", net.kind, ["N", 6]))
    onnx.checker.check_model(model)
    coupling = couple(Graph(model))
    pruned, _ = remove(coupling, removal(coupling, units_on(coupling, "w_0", 0)[:2]))
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in pruned.graph.value_info}
    assert shapes == {"gemm_0": [0, 4]}
    onnx.checker.check_model(pruned, full_check=True)
