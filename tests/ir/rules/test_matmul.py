"""Gemm and MatMul: transposed or not, with weights on either side, batched, attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from graphprune.ir.coupling.units import FROZEN, Coupling
from graphprune.ir.surgery import remove
from graphprune.verify.masking import masked
from tests.nets import Extent, Net
from tests.oracles import (
    all_groups,
    assert_close,
    assert_exact,
    assert_masked,
    assert_reproduces,
    coupled,
    feeds,
    random_removal,
    reasons,
    run,
    units_on,
)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("opset", [9, 13])
def test_gemm(transposed: bool, opset: int) -> None:
    net = Net(opset)
    hidden = net.relu(net.gemm(net.input(["N", 4]), 6, transposed=transposed, alpha=0.5, beta=2.0))
    coupling = assert_exact(net.build(net.gemm(hidden, 3, transposed=transposed)))
    axis = 0 if transposed else 1
    assert units_on(coupling, "w_1", 1 - axis) == units_on(coupling, "w_0", axis)


@pytest.mark.parametrize("shape", [(6,), (1, 6), (1,), (1, 1), (), (2, 6), (2, 1)])
def test_gemm_with_any_bias(shape: tuple[int, ...]) -> None:
    net = Net()
    data = net.input([2, 4])
    bias = net.initializer(net.random.normal(size=shape), "bias")
    hidden = net.relu(net.node("Gemm", [data, net.weight([4, 6]), bias], [2, 6]))
    coupling = assert_exact(net.build(net.gemm(hidden, 3)))
    assert coupling.units == 6


def test_gemm_whose_weight_comes_first_and_is_transposed() -> None:
    net = Net()
    data = net.input([4, 3])
    hidden = net.relu(net.node("Gemm", [net.weight([4, 6]), data], [6, 3], transA=1))
    coupling = assert_exact(net.build(net.node("MatMul", [net.weight([2, 6]), hidden], [2, 3])))
    assert units_on(coupling, "w_0", 1) == units_on(coupling, "w_1", 1)
    assert [(c.data, c.weight, c.weight_axis, c.output_axis) for c in coupling.contractions] == [
        (1, 0, 0, 1),
        (1, 0, 1, 0),
    ]


def test_gemm_of_a_transposed_activation() -> None:
    net = Net()
    hidden = net.relu(net.linear(net.input([2, 4]), 6))
    turned = net.transpose(hidden, [1, 0])
    coupling = assert_exact(net.build(net.node("Gemm", [turned, net.weight([6, 3])], [2, 3], transA=1)))
    assert coupling.units == 6


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_matmul_on_the_last_axis(rank: int) -> None:
    net = Net()
    data = net.input(["N", *[3] * (rank - 2), 4])
    coupling = assert_exact(net.build(net.linear(net.relu(net.linear(data, 6)), 3)))
    assert all_groups(coupling) == {(("w_0", 1), ("b_0", 0), ("w_1", 0)): 6}


def test_a_weight_for_every_batch() -> None:
    net = Net()
    data = net.input([5, 3, 4])
    first, second = net.weight([5, 4, 6], fan_in=4), net.weight([5, 6, 2], fan_in=6)
    hidden = net.relu(net.node("MatMul", [data, first], [5, 3, 6]))
    coupling = assert_exact(net.build(net.node("MatMul", [hidden, second], [5, 3, 2])))
    assert units_on(coupling, first, 2) == units_on(coupling, second, 1)
    assert units_on(coupling, first, 0) == [FROZEN] * 5


def test_rows_of_a_weight_on_the_left_pass_through() -> None:
    net = Net()
    data = net.input([2, 4, 3])
    left, right = net.weight([6, 4], fan_in=4), net.weight([5, 6], fan_in=6)
    hidden = net.relu(net.node("MatMul", [left, data], [2, 6, 3]))
    coupling = assert_exact(net.build(net.node("MatMul", [right, hidden], [2, 5, 3])))
    assert units_on(coupling, left, 0) == units_on(coupling, right, 1)


def test_matmul_with_a_vector_is_frozen() -> None:
    net = Net()
    hidden = net.relu(net.linear(net.input([2, 4]), 6))
    coupling = coupled(net.build(net.node("MatMul", [hidden, net.vector(6)], [2])))
    assert coupling.units == 0
    assert "MatMul with a vector" in reasons(coupling).values()


def attention(heads: int = 3, size: int = 4, *, softmax: bool = True) -> tuple[onnx.ModelProto, Coupling]:
    net = Net()
    width = heads * size
    data = net.input(["N", 5, 8])

    def split(name: str, order: list[int]) -> str:
        return net.transpose(net.reshape(name, [0, 5, heads, size], ["N", 5, heads, size]), order)

    query, key, value = (net.linear(data, width) for _ in range(3))
    product = net.node("MatMul", [split(query, [0, 2, 1, 3]), split(key, [0, 2, 3, 1])], ["N", heads, 5, 5])
    if softmax:
        product = net.node("Softmax", [product], axis=-1)
    mixed = net.node("MatMul", [product, split(value, [0, 2, 1, 3])], ["N", heads, 5, size])
    merged = net.reshape(net.transpose(mixed, [0, 2, 1, 3]), [0, 5, width], ["N", 5, width])
    model = net.build(net.linear(merged, 2))
    return model, coupled(model)


def test_attention_joins_queries_with_keys_and_values_with_the_output() -> None:
    _, coupling = attention()
    assert all_groups(coupling) == {
        (("w_0", 1), ("b_0", 0), ("w_1", 1), ("b_1", 0), ("w_2", 1), ("b_2", 0), ("w_3", 0)): 3,  # heads
        (("w_0", 1), ("b_0", 0), ("w_1", 1), ("b_1", 0)): 4,  # dimensions of queries and keys
        (("w_2", 1), ("b_2", 0), ("w_3", 0)): 4,  # dimensions of values
    }
    heads, sizes = coupling.along("w_0", 1)
    assert heads.reshape(3, 4).tolist() == [[unit] * 4 for unit in heads[::4]]
    assert sizes.reshape(3, 4).tolist() == [sizes[:4].tolist()] * 3
    assert [units.tolist() for units in coupling.along("w_1", 1)] == [heads.tolist(), sizes.tolist()]


@pytest.mark.parametrize("seed", range(4))
def test_attention_equals_the_masked_original(seed: int) -> None:
    # No weight reads the queries, so zeros in weights cannot stand for the masks here.
    model, coupling = attention()
    removed = random_removal(coupling, 0.5, seed)
    pruned, kept = remove(coupling, removed)
    onnx.checker.check_model(pruned, full_check=True)
    inputs = feeds(model)
    assert_close(run(masked(coupling, removed), inputs), run(pruned, inputs))
    assert_reproduces(coupling.graph.proto, pruned, kept)


def test_attention_equals_weights_cut_by_hand() -> None:
    model, coupling = attention(softmax=False)
    removed = random_removal(coupling, None, 0)
    by_hand = onnx.ModelProto()
    by_hand.CopyFrom(model)
    for tensor in by_hand.graph.initializer:
        for axis in range(len(tensor.dims)):
            lost = coupling.lost(tensor.name, axis, removed)
            if lost is not None:
                array = np.array(onnx.numpy_helper.to_array(tensor))
                np.moveaxis(array, axis, 0)[lost] = 0
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    pruned, _ = remove(coupling, removed)
    inputs = feeds(model)
    assert_close(run(by_hand, inputs), run(pruned, inputs))


def test_a_contracted_axis_that_comes_from_an_input_is_frozen() -> None:
    net = Net()
    hidden = net.relu(net.linear(net.input(["N", 5, 8]), 6))
    other = net.input(["N", 6, 3])
    coupling = coupled(net.build(net.node("MatMul", [hidden, other], ["N", 5, 3])))
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 1] == "graph input 'x_1' keeps its shape"


def test_weights_of_integers_are_sliced_with_the_others() -> None:
    net = Net(21)
    hidden = net.relu(net.linear(net.input(["N", 4]), 6))
    for kind in (onnx.TensorProto.INT4, onnx.TensorProto.INT8):
        stored = net.initializer(net.random.integers(-7, 8, (6, 2)), "stored", kind)
        wide = net.node("Cast", [stored], kind=onnx.TensorProto.FLOAT, to=onnx.TensorProto.FLOAT)
        net.output(net.node("MatMul", [hidden, wide], ["N", 2]))
    coupling = assert_exact(net.build())
    assert units_on(coupling, "stored", 0) == units_on(coupling, "w_0", 1)


def test_positions_that_no_weight_carries_are_no_units() -> None:
    net = Net()
    data = net.input(["N", 5, 4])
    query, key = (net.pad(net.linear(data, 6), {2: (0, 2)}) for _ in range(2))
    product = net.node("MatMul", [query, net.transpose(key, [0, 2, 1])], ["N", 5, 5])
    coupling = coupled(net.build(product))
    assert coupling.units == 6
    assert sum(len(group.units) for group in coupling.groups) == 6
    assert units_on(coupling, query, 2)[6:] == [FROZEN] * 2


# -- transposed, batched, between activations --------------------------------------------------------------------


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("right", [False, True])
def test_gemm_of_two_activations(left: bool, right: bool) -> None:
    net = Net()
    first = net.relu(net.node("MatMul", [net.weight([6, 4]), net.input([4, 3])], [6, 3]))  # units along rows
    second = net.relu(net.gemm(net.input([5, 4]), 6))  # units along columns
    names = [first if left else net.transpose(first, [1, 0]), second if right else net.transpose(second, [1, 0])]
    made = net.node("Gemm", [*names, net.vector(5)], [3, 5], transA=int(left), transB=int(right), alpha=0.5)
    coupling = coupled(net.build(made))
    assert all_groups(coupling) == {(("w_0", 0), ("w_1", 0), ("b_0", 0)): 6}
    assert_masked(coupling)


@pytest.mark.parametrize(("shape", "other"), [([2, 3], [2, 3]), ([2, 3], [3]), ([1, 3], [2, 1]), ([], [2, 3])])
def test_batches_are_broadcast(shape: list[int], other: list[int]) -> None:
    net = Net()
    left = net.relu(net.linear(net.input([*shape, 5, 4]), 6))
    right = net.relu(net.node("MatMul", [net.weight([6, 4]), net.input([*other, 4, 7])], [*other, 6, 7]))
    made = net.node("MatMul", [left, right], [2, 3, 5, 7])
    coupling = coupled(net.build(made))
    assert all_groups(coupling) == {(("w_0", 1), ("b_0", 0), ("w_1", 0)): 6}
    assert_masked(coupling)


def test_batch_axes_of_both_operands_are_the_same_units() -> None:
    net = Net()
    left, right = (net.relu(net.conv(net.input([2, 3, 4, 4]), 6)) for _ in range(2))
    coupling = assert_exact(net.build(net.conv(net.node("MatMul", [left, right], [2, 6, 4, 4]), 2)))
    assert units_on(coupling, "w_0", 0) == units_on(coupling, "w_1", 0) == units_on(coupling, "w_2", 1)


def fused(net: Net, op: str, names: list[str], shape: list[Extent], **attributes: Any) -> str:
    net.imports["com.microsoft"] = 1
    return net.node(op, names, shape, domain="com.microsoft", **attributes)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("right", [False, True])
def test_fused_matmul_reads_operands_transposed(left: bool, right: bool) -> None:
    net = Net()
    rows = net.relu(net.linear(net.input([2, 5, 4]), 6))
    weight = net.weight([7, 6] if right else [6, 7], fan_in=6)
    data = net.transpose(rows, [0, 2, 1]) if left else rows
    made = fused(net, "FusedMatMul", [data, weight], [2, 5, 7], transA=int(left), transB=int(right), alpha=0.3)
    coupling = assert_exact(net.build(net.linear(net.relu(made), 2)))
    assert units_on(coupling, "w_1", 1 if right else 0) == units_on(coupling, "w_0", 1)
    assert units_on(coupling, "w_1", 0 if right else 1) == units_on(coupling, "w_2", 0)
    assert coupling.units == 13


def test_fused_matmul_of_queries_and_keys() -> None:
    net = Net()
    query, key = (net.linear(net.input([2, 3, 5, 4]), 6) for _ in range(2))
    coupling = coupled(net.build(fused(net, "FusedMatMul", [query, key], [2, 3, 5, 5], transB=1, alpha=0.4)))
    assert all_groups(coupling) == {(("w_0", 1), ("b_0", 0), ("w_1", 1), ("b_1", 0)): 6}
    assert_masked(coupling)


def test_fused_matmul_that_moves_its_batch_is_frozen() -> None:
    net = Net()
    query, key = (net.linear(net.input([5, 2, 4]), 6) for _ in range(2))
    made = fused(net, "FusedMatMul", [query, net.transpose(key, [1, 2, 0])], [2, 5, 5], transBatchA=1)
    coupling = coupled(net.build(made))
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 1] == "com.microsoft.FusedMatMul moves its batch axes"


def test_fused_gemm_applies_an_activation() -> None:
    net = Net()
    names = [net.input([2, 4]), net.weight([6, 4]), net.vector(6)]
    hidden = fused(net, "FusedGemm", names, [2, 6], transB=1, activation="Relu")
    coupling = assert_exact(net.build(fused(net, "FusedGemm", [hidden, net.weight([6, 3])], [2, 3], activation="Tanh")))
    assert all_groups(coupling) == {(("w_0", 0), ("b_0", 0), ("w_1", 0)): 6}
