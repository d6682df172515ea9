"""Einsum: letters that pass, that are contracted, and that are frozen."""

from __future__ import annotations

import pytest

from graphprune.passes import sparsify
from tests.nets import Extent, Net
from tests.oracles import all_groups, assert_exact, assert_masked, coupled, reasons, units_on


def einsum(net: Net, equation: str, *names: str, shape: list[Extent]) -> str:
    return net.node("Einsum", list(names), shape, equation=equation)


@pytest.mark.parametrize("equation", ["bsi,io->bso", "bsi, io -> bso", "...i,io->...o", "b...i,io->b...o"])
def test_a_matrix_product(equation: str) -> None:
    net = Net()
    hidden = net.relu(net.linear(net.input([2, 3, 4]), 6))
    model = net.build(einsum(net, equation, hidden, net.weight([6, 5], fan_in=6), shape=[2, 3, 5]))
    if "." in equation or " " in equation:  # the check by hand reads plain equations only
        model.graph.node[-1].attribute[0].s = b"bsi,io->bso"
        assert coupled(model).units == 6
        model.graph.node[-1].attribute[0].s = equation.encode()
        coupling = coupled(model)
    else:
        coupling = assert_exact(model)
    assert all_groups(coupling) == {(("w_0", 1), ("b_0", 0), ("w_1", 0)): 6}
    (_, contraction) = coupling.contractions
    assert (contraction.data, contraction.weight) == (0, 1)
    assert (contraction.data_axis, contraction.weight_axis, contraction.output_axis) == (2, 0, 1)


def test_outputs_of_a_product_go() -> None:
    net = Net()
    data = net.input(["N", 3, 4])
    hidden = net.relu(einsum(net, "bsi,oi->bso", data, net.weight([6, 4]), shape=["N", 3, 6]))
    coupling = assert_exact(net.build(net.linear(hidden, 2)))
    assert all_groups(coupling) == {(("w_0", 0), ("w_1", 0)): 6}


def test_a_weight_on_the_left() -> None:
    net = Net()
    hidden = net.relu(net.conv(net.input([2, 3, 4, 4]), 6))
    coupling = assert_exact(net.build(einsum(net, "oc,bchw->bohw", net.weight([5, 6]), hidden, shape=[2, 5, 4, 4])))
    assert units_on(coupling, "w_1", 1) == units_on(coupling, "w_0", 0)
    contraction = coupling.contractions[-1]
    assert (contraction.data, contraction.weight, contraction.data_axis, contraction.weight_axis) == (1, 0, 1, 1)


def test_two_letters_summed_over_at_once() -> None:
    """Heads and head dimensions, merged by the weight of the output, are masked on two axes of one input."""
    net = Net()
    data = net.input([2, 5, 4])
    split = einsum(net, "bsi,ihd->bshd", data, net.weight([4, 3, 6], fan_in=4), shape=[2, 5, 3, 6])
    merged = einsum(net, "bshd,hdo->bso", net.relu(split), net.weight([3, 6, 2], fan_in=18), shape=[2, 5, 2])
    coupling = assert_exact(net.build(merged))
    assert all_groups(coupling) == {(("w_0", 1), ("w_1", 0)): 3, (("w_0", 2), ("w_1", 1)): 6}
    assert [(c.data_axis, c.weight_axis) for c in coupling.contractions[1:]] == [(2, 0), (3, 1)]


def attention(net: Net) -> str:
    """Attention as TensorFlow writes it: heads and head dimensions as letters of their own."""
    data = net.input([2, 5, 4])
    query, key, value = (
        einsum(net, "bsi,ihd->bshd", data, net.weight([4, 3, 6], fan_in=4), shape=[2, 5, 3, 6]) for _ in range(3)
    )
    scores = einsum(net, "bqhd,bkhd->bhqk", query, key, shape=[2, 3, 5, 5])
    soft = net.node("Softmax", [scores], axis=-1)
    mixed = einsum(net, "bhqk,bkhd->bqhd", soft, value, shape=[2, 5, 3, 6])
    return einsum(net, "bqhd,hdo->bqo", mixed, net.weight([3, 6, 2], fan_in=18), shape=[2, 5, 2])


def test_attention_in_letters_loses_heads_and_head_dimensions() -> None:
    net = Net()
    model = net.build(attention(net))
    coupling = coupled(model)
    assert all_groups(coupling) == {
        (("w_0", 1), ("w_1", 1), ("w_2", 1), ("w_3", 0)): 3,
        (("w_0", 2), ("w_1", 2)): 6,
        (("w_2", 2), ("w_3", 1)): 6,
    }
    assert_masked(coupling)


def test_a_letter_of_three_operands() -> None:
    net = Net()
    hidden = [net.relu(net.linear(net.input(["N", 4]), 6)) for _ in range(2)]
    made = einsum(net, "bi,bi,io->bo", *hidden, net.weight([6, 2], fan_in=6), shape=["N", 2])
    coupling = assert_exact(net.build(made))
    assert all_groups(coupling) == {(("w_0", 1), ("b_0", 0), ("w_1", 1), ("b_1", 0), ("w_2", 0)): 6}


def test_extents_of_one_broadcast() -> None:
    net = Net()
    hidden = net.relu(net.linear(net.input([2, 3, 4]), 6))
    weight = net.weight([1, 6, 5], fan_in=6)
    coupling = assert_exact(net.build(einsum(net, "bsi,bio->bso", hidden, weight, shape=[2, 3, 5])))
    assert units_on(coupling, weight, 1) == units_on(coupling, "w_0", 1)


def test_without_an_arrow_the_letters_that_occur_once_pass() -> None:
    net = Net()
    hidden = net.relu(net.linear(net.input([2, 4]), 6))
    product = einsum(net, "zi,io", hidden, net.weight([6, 5], fan_in=6), shape=[5, 2])  # o before z
    coupling = coupled(net.build(net.node("MatMul", [net.weight([3, 5]), product], [3, 2])))
    assert all_groups(coupling) == {(("w_0", 1), ("b_0", 0), ("w_1", 0)): 6, (("w_1", 1), ("w_2", 1)): 5}
    assert_masked(coupling)


@pytest.mark.parametrize(
    ("equation", "shape", "text"),
    [
        ("bsi->bs", [2, 6], "Einsum sums one operand alone over 'i': its consumers cannot mask the position"),
        ("bii->bi", [2, 6], "Einsum takes a diagonal along 'i'"),
    ],
)
def test_sums_and_diagonals_of_one_operand_are_frozen(equation: str, shape: list[Extent], text: str) -> None:
    net = Net()
    hidden = net.relu(net.linear(net.input([2, 6, 4]), 6))
    coupling = coupled(net.build(einsum(net, equation, hidden, shape=shape)))
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 1] == text


def test_a_letter_that_nothing_passes_beside_is_frozen() -> None:
    net = Net()
    hidden = net.relu(net.gemm(net.input([1, 4]), 6))
    squares = einsum(net, "i,i->", net.squeeze(hidden, [0]), net.squeeze(hidden, [0]), shape=[])
    coupling = coupled(net.build(squares))
    assert coupling.units == 0
    assert reasons(coupling)["w_0", 0] == "Einsum sums over 'i' against operands without an axis that passes"


def test_the_product_of_an_activation_with_itself() -> None:
    net = Net()
    hidden = net.relu(net.linear(net.input([2, 4]), 6))
    coupling = coupled(net.build(einsum(net, "bi,bi->b", hidden, hidden, shape=[2])))
    assert coupling.units == 6
    assert_masked(coupling)


def test_what_a_graph_input_holds_is_frozen() -> None:
    net = Net()
    hidden = net.relu(net.linear(net.input([2, 4]), 6))
    coupling = coupled(net.build(einsum(net, "bi,io->bo", hidden, net.input([6, 3]), shape=[2, 3])))
    assert reasons(coupling)["w_0", 1] == "graph input 'x_1' keeps its shape"


def operand(net: Net, term: str, extents: dict[str, int]) -> str:
    """A tensor whose positions are all of them units: weights, moved by one number."""
    shape = [extents[letter] for letter in term]
    number = net.input([1] * len(term)) if term else net.input([])
    return net.relu(net.node("Add", [net.weight(shape, fan_in=4), number], list(shape)))


@pytest.mark.parametrize("seed", range(24))
def test_random_equations(seed: int) -> None:
    net = Net(seed=seed)
    letters = "abcde"
    extents = {letter: int(net.random.integers(2, 5)) for letter in letters}
    picked = [
        [letter for letter in letters if net.random.random() < 0.6] or ["a"] for _ in range(net.random.integers(2, 4))
    ]
    terms = ["".join(net.random.permutation(term)) for term in picked]
    shared = [letter for letter in letters if sum(letter in term for term in terms) > 1]
    summed = [letter for letter in shared if net.random.random() < 0.5]
    result = "".join(net.random.permutation([x for x in letters if x in "".join(terms) and x not in summed]))
    shape: list[Extent] = [extents[letter] for letter in result]
    made = einsum(net, f"{','.join(terms)}->{result}", *(operand(net, term, extents) for term in terms), shape=shape)
    weight = net.weight([*(extents[letter] for letter in result), 3], fan_in=8)
    coupling = coupled(net.build(einsum(net, f"{result},{result}z->z", made, weight, shape=[3])))
    for letter in set("".join(terms)):
        found = [
            units_on(coupling, f"w_{slot}", term.index(letter)) for slot, term in enumerate(terms) if letter in term
        ]
        assert all(units == found[0] for units in found)
        passes = letter in result or any(set(term) & set(result) for term in terms if letter in term)
        assert len(set(found[0])) == (extents[letter] if passes else 1)
    assert_masked(coupling)


def test_a_tensor_of_unknown_rank_is_frozen() -> None:
    net = Net()
    net.imports["elsewhere"] = 1
    unknown = net.node("Unknown", [net.input([2, 4])], [2, 6], domain="elsewhere")
    made = einsum(net, "bi,io->bo", unknown, net.weight([6, 5]), shape=[2, 5])
    coupling = coupled(net.build(net.gemm(made, 2)))
    assert reasons(coupling)["w_0", 1] == "a tensor of unknown rank meets Einsum"


def test_weights_may_be_zeroed() -> None:
    net = Net()
    model = net.build(attention(net))
    coupling = coupled(model)
    assert sparsify.zeroable(coupling.graph, coupling.contractions) == ["w_0", "w_1", "w_2", "w_3"]
