"""Axes that a Reshape splits: shuffles, heads and head dimensions, projections taken apart."""

from __future__ import annotations

import numpy as np
import pytest

from graphprune.ir.coupling.units import Coupling
from graphprune.ir.surgery import remove
from graphprune.passes.choice import queues
from graphprune.passes.criteria import score
from tests.nets import Extent, Net
from tests.oracles import assert_exact, check_removal, coupled, feeds, reasons, removal, units_on


def operators(coupling: Coupling, gone: list[int]) -> list[str]:
    pruned, _ = remove(coupling, removal(coupling, gone))
    return [node.op_type for node in pruned.graph.node]


# -- shuffles --------------------------------------------------------------------------------------------------


def shuffled(net: Net, groups: int = 3, channels: int = 12, batch: Extent = "N") -> str:
    return net.shuffle(net.relu(net.conv(net.input([batch, 3, 4, 4]), channels)), groups)


@pytest.mark.parametrize("batch", ["N", None, 1, 2])
@pytest.mark.parametrize("groups", [2, 3, 4])
def test_a_shuffle_permutes_units(groups: int, batch: Extent) -> None:
    net = Net()
    coupling = assert_exact(net.build(net.conv(net.relu(shuffled(net, groups, batch=batch)), 2)), batch=2)
    before = units_on(coupling, "w_0", 0)
    assert len(set(before)) == 12
    assert units_on(coupling, "w_1", 1) == np.reshape(before, (groups, -1)).T.ravel().tolist()


def test_a_shuffle_of_which_no_rectangle_stays_becomes_one_gather() -> None:
    net = Net()
    coupling = coupled(net.build(net.conv(shuffled(net), 2)))
    units = units_on(coupling, "w_0", 0)
    assert operators(coupling, units[:1]) == ["Conv", "Relu", "Gather", "Conv"]
    check_removal(coupling, removal(coupling, [units[0], units[1], units[6]]), feeds(coupling.graph.proto))


def test_a_shuffle_of_which_a_rectangle_stays_is_patched() -> None:
    net = Net()
    coupling = coupled(net.build(net.conv(shuffled(net), 2)))
    units = units_on(coupling, "w_0", 0)
    moves = ["Reshape", "Transpose", "Reshape"]
    assert operators(coupling, [*units[:2], *units[4:6], *units[8:10]]) == ["Conv", "Relu", *moves, "Conv"]


@pytest.mark.parametrize("known", [2, 3, 5, 30])
def test_an_open_extent_is_not_taken_for_the_known_one_beside_it(known: int) -> None:
    net = Net()
    apart = net.reshape(net.linear(net.input([known, "N", 4]), 6), [known, 0, 2, 3], [known, "N", 2, 3])
    turned = net.reshape(apart, [-1, known, 6], ["N", known, 6])  # nothing moves where N is as long as the known one
    assert_exact(net.build(net.linear(turned, 3)), batch=7)


def test_moves_that_put_everything_back_stay_only_where_all_between_are_rectangles() -> None:
    net = Net()
    apart = net.reshape(net.relu(net.linear(net.input(["N", 3]), 8)), [0, 4, 2], ["N", 4, 2])
    further = net.reshape(apart, [0, 2, 2, 2], ["N", 2, 2, 2])
    coupling = coupled(net.build(net.gemm(net.flatten(further), 3)))
    units = units_on(coupling, "w_0", 1)
    check_removal(coupling, removal(coupling, units[:2]), feeds(coupling.graph.proto))  # 3 x 2 stay, and no cuboid
    assert operators(coupling, units[:2]) == ["MatMul", "Add", "Relu", "Gather", "Gemm"]
    assert "Gather" not in operators(coupling, units[:4])


def test_shuffles_in_a_row() -> None:
    net = Net()
    data = net.shuffle(net.batch_norm(shuffled(net)), 2)
    coupling = assert_exact(net.build(net.conv(net.relu(net.shuffle(data, 6)), 2)))
    assert coupling.units == 12


def test_grouped_convolutions_before_and_behind_a_shuffle() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8))
    data = net.shuffle(net.relu(net.conv(data, 12, group=2)), 2)
    data = net.relu(net.conv(net.depthwise(data), 8, group=2))
    coupling = assert_exact(net.build(net.conv(data, 2)))
    assert coupling.units == 8 + 12 + 8


def test_a_unit_of_shuffle_net_v2() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8))
    for _ in range(2):
        left, right = net.split(data, [4, 4])
        right = net.relu(net.conv(net.depthwise(net.relu(net.conv(right, 6))), 4))
        data = net.shuffle(net.concat(left, right), 2)
    coupling = assert_exact(net.build(net.conv(data, 2)))
    assert coupling.units == 8 + 2 * (6 + 4)  # one for every position that there is: nothing is tied by the shuffle


@pytest.mark.parametrize("groups", [2, 4])
def test_a_shuffle_whose_halves_are_taken_at_once(groups: int) -> None:
    """As in the original ShuffleNet v2: the batch is merged with the pairs, and each half is picked by an index."""
    net = Net()
    data = net.relu(net.conv(net.input([1, 3, 2, 3]), 8))
    pairs = net.reshape(data, [4, 2, 6], [4, 2, 6])
    turned = net.reshape(net.transpose(pairs, [1, 0, 2]), [2, 1, 4, 2, 3], [2, 1, 4, 2, 3])
    halves = [net.node("Gather", [turned, net.constant(np.array(index))], [1, 4, 2, 3], axis=0) for index in (0, 1)]
    made = net.concat(halves[0], net.relu(net.conv(halves[1], 3)))
    coupling = assert_exact(net.build(net.conv(made, 2)))
    units = units_on(coupling, "w_0", 0)
    assert len(set(units)) == 8
    assert units_on(coupling, "w_1", 1) == units[1::2]
    assert units_on(coupling, "w_2", 1)[:4] == units[::2]


def test_moves_that_are_no_shuffle_of_one_axis() -> None:
    net = Net()
    data = net.relu(net.conv(net.input([1, 3, 2, 2]), 8))
    # [1, 2, 4, 2, 2] -> [1, 4, 2, 2, 2]: rows of channels change places with columns of pixels
    turned = net.transpose(net.reshape(data, [1, 2, 4, 2, 2], [1, 2, 4, 2, 2]), [0, 2, 3, 1, 4])
    made = net.reshape(turned, [1, 8, 2, 2], [1, 8, 2, 2])
    coupling = assert_exact(net.build(net.conv(made, 2)))
    units = units_on(coupling, "w_0", 0)
    assert units == units[:4] * 2
    assert units_on(coupling, "w_1", 1) == [unit for unit in units[:4] for _ in range(2)]


def test_what_is_used_between_the_moves_of_a_shuffle_keeps_rows_and_columns() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 2, 2]), 6))
    apart = net.reshape(data, [0, 2, 3, 2, 2], ["N", 2, 3, 2, 2])
    scaled = net.add(apart, net.initializer(net.random.uniform(0.5, 2, (2, 1, 1, 1)), "scale"), op="Mul")
    turned = net.transpose(scaled, [0, 2, 1, 3, 4])
    coupling = assert_exact(net.build(net.conv(net.reshape(turned, [0, 6, 2, 2], ["N", 6, 2, 2]), 2)))
    assert coupling.units == 2 + 3
    assert len(coupling.along("w_0", 0)) == 2


def test_pixel_shuffle_ties_the_pixels_of_a_channel() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 3, 2]), 12))
    apart = net.reshape(data, [0, 3, 2, 2, 3, 2], ["N", 3, 2, 2, 3, 2])
    turned = net.transpose(apart, [0, 1, 4, 2, 5, 3])
    coupling = assert_exact(net.build(net.conv(net.reshape(turned, [0, 3, 6, 4], ["N", 3, 6, 4]), 2)))
    units = units_on(coupling, "w_0", 0)
    assert units == [unit for unit in units[::4] for _ in range(4)]
    assert coupling.units == 3


# -- heads -----------------------------------------------------------------------------------------------------


def attended(net: Net, query: str, key: str, value: str, size: int) -> str:
    """Attention of [N, heads, T, size] tensors, merged again."""
    heads = int(net.shapes[query][1])
    turned = net.transpose(key, [0, 1, 3, 2])
    weights = net.node("Softmax", [net.node("MatMul", [query, turned], ["N", heads, 5, 5])], axis=-1)
    mixed = net.node("MatMul", [weights, value], ["N", heads, 5, size])
    width = heads * size
    return net.reshape(net.transpose(mixed, [0, 2, 1, 3]), [0, 5, width], ["N", 5, width])


def heads_of(net: Net, data: str, heads: int, size: int) -> str:
    apart = net.reshape(data, [0, 5, heads, size], ["N", 5, heads, size])
    return net.transpose(apart, [0, 2, 1, 3])


@pytest.mark.parametrize("order", ["3hd", "h3d"])
@pytest.mark.parametrize("taken", ["Gather", "Split", "Slice"])
def test_queries_keys_and_values_of_one_projection(order: str, taken: str) -> None:
    net = Net()
    packed = net.linear(net.input(["N", 5, 8]), 3 * 2 * 4)
    shape, turn = ([3, 2, 4], [2, 0, 3, 1, 4]) if order == "3hd" else ([2, 3, 4], [3, 0, 2, 1, 4])
    apart = net.transpose(net.reshape(packed, [0, 5, *shape], ["N", 5, *shape]), turn)  # [3, N, 2, 5, 4]
    if taken == "Gather":
        parts = [
            net.node("Gather", [apart, net.constant(np.array(index))], ["N", 2, 5, 4], axis=0) for index in range(3)
        ]
    elif taken == "Split":
        parts = [net.squeeze(part, [0]) for part in net.split(apart, [1, 1, 1], axis=0)]
    else:
        parts = [net.squeeze(net.slice(apart, {0: (index, index + 1, 1)}), [0]) for index in range(3)]
    coupling = assert_exact(net.build(net.linear(attended(net, *parts, size=4), 3)))
    sizes = sorted(len(group.units) for group in coupling.groups)
    assert sizes == [2, 4, 4]  # heads, dimensions of queries and keys, dimensions of values
    assert len(coupling.balances) == 1  # of which equal numbers go, as they lie in one tensor
    heads = next(group for group in coupling.groups if len(group.units) == 2)
    pruned, _ = remove(coupling, removal(coupling, heads.units[:1].tolist()))
    (weight, *_) = (tensor for tensor in pruned.graph.initializer if tensor.name == "w_0")
    assert list(weight.dims) == [8, 12]


def test_grouped_queries_share_keys_and_values() -> None:
    net = Net()
    data = net.input(["N", 5, 8])
    query = heads_of(net, net.linear(data, 4 * 3), 4, 3)
    shared = []
    for _ in range(2):
        key = net.unsqueeze(heads_of(net, net.linear(data, 2 * 3), 2, 3), [2])
        shape = net.constant(np.array([1, 1, 2, 1, 1]))
        repeated = net.node("Expand", [key, shape], ["N", 2, 2, 5, 3])
        shared.append(net.reshape(repeated, [0, 4, 5, 3], ["N", 4, 5, 3]))
    coupling = assert_exact(net.build(net.linear(attended(net, query, *shared, size=3), 3)))
    sizes = {group.axes[:2]: len(group.units) for group in coupling.groups}
    assert sizes[("w_0", 1), ("b_0", 0)] in (2, 3)
    found = {frozenset(name for name, _ in group.axes): len(group.units) for group in coupling.groups}
    everywhere = frozenset({"w_0", "b_0", "w_1", "b_1", "w_2", "b_2", "w_3"})
    assert found[everywhere] == 2  # heads of keys and values, with all queries that they serve
    assert found[frozenset({"w_0", "b_0", "w_3"})] == 2  # the same query of every such head
    assert found[frozenset({"w_0", "b_0", "w_1", "b_1"})] == 3  # dimensions of queries and keys
    assert found[frozenset({"w_2", "b_2", "w_3"})] == 3  # dimensions of values


def test_rotary_embeddings_tie_the_two_halves_of_a_head() -> None:
    net = Net()
    data = net.input(["N", 5, 8])
    angles = net.random.uniform(0, 3, (1, 1, 5, 2))
    cosine, sine = (net.initializer(np.concatenate([f(angles)] * 2, axis=-1), "angle") for f in (np.cos, np.sin))

    def rotated(name: str) -> str:
        left, right = (net.slice(name, {3: (low, low + 2, 1)}) for low in (0, 2))
        turned = net.concat(net.node("Neg", [right]), left, axis=3)
        return net.add(net.add(name, cosine, op="Mul"), net.add(turned, sine, op="Mul"))

    query, key, value = (heads_of(net, net.linear(data, 3 * 4), 3, 4) for _ in range(3))
    coupling = assert_exact(net.build(net.linear(attended(net, rotated(query), rotated(key), value, 4), 3)))
    assert sorted(len(group.units) for group in coupling.groups) == [2, 3, 4]
    _, dimensions = coupling.along("w_0", 1)
    assert dimensions[:4].tolist() == [dimensions[0], dimensions[1]] * 2


def test_heads_merged_with_the_batch() -> None:
    """As in torch.nn.MultiheadAttention: [T, B, E] to [T, B * heads, size]."""
    net = Net()
    data = net.input([5, 2, 8])

    def rows(name: str) -> str:
        return net.transpose(net.reshape(name, [5, 2 * 3, 4], [5, 6, 4]), [1, 0, 2])

    query, key, value = (rows(net.linear(data, 12)) for _ in range(3))
    product = net.node("MatMul", [query, net.transpose(key, [0, 2, 1])], [6, 5, 5])
    mixed = net.node("MatMul", [net.node("Softmax", [product], axis=-1), value], [6, 5, 4])
    merged = net.reshape(net.transpose(mixed, [1, 0, 2]), [5, 2, 12], [5, 2, 12])
    coupling = assert_exact(net.build(net.linear(merged, 3)))
    assert sorted(len(group.units) for group in coupling.groups) == [3, 4, 4]


def test_heads_merged_with_a_dynamic_batch_stay_and_their_dimensions_go() -> None:
    net = Net()
    data = net.input([5, "N", 8])

    def rows(name: str) -> str:
        return net.transpose(net.reshape(name, [5, -1, 4], [5, "M", 4]), [1, 0, 2])

    query, key, value = (rows(net.linear(data, 12)) for _ in range(3))
    product = net.node("MatMul", [query, net.transpose(key, [0, 2, 1])], ["M", 5, 5])
    mixed = net.node("MatMul", [net.node("Softmax", [product], axis=-1), value], ["M", 5, 4])
    merged = net.reshape(net.transpose(mixed, [1, 0, 2]), [5, -1, 12], [5, "N", 12])
    coupling = assert_exact(net.build(net.linear(merged, 3)))
    assert sorted(len(group.units) for group in coupling.groups) == [4, 4]


def test_normalising_over_the_dimensions_of_a_head_leaves_whole_heads() -> None:
    net = Net()
    apart = heads_of(net, net.linear(net.input(["N", 5, 8]), 12), 3, 4)
    mean = net.reduce(apart, [-1])
    merged = net.reshape(net.transpose(net.add(apart, mean, op="Sub"), [0, 2, 1, 3]), [0, 5, 12], ["N", 5, 12])
    coupling = assert_exact(net.build(net.linear(merged, 3)))
    assert sorted(len(group.units) for group in coupling.groups) == [3]


def test_a_slab_of_which_one_position_is_used_keeps_its_axis_rectangular() -> None:
    net = Net()
    data = net.conv(net.input(["N", 3, 2, 2]), 9)
    apart = net.reshape(data, [0, 3, 3, 4], ["N", 3, 3, 4])  # merged pixels: no shuffle
    slab = net.node("Gather", [apart, net.constant(np.array(2))], ["N", 3, 4], axis=1)
    one = net.node("Gather", [slab, net.constant(np.array([2]))], ["N", 1, 4], axis=1)
    coupling = assert_exact(net.build(net.gemm(net.flatten(one), 3)))
    (balance,) = coupling.balances
    assert balance.shape == (3, 3)


# -- whole groups ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [False, True])
def test_group_normalisation_as_torch_exports_it_loses_whole_groups(dynamic: bool) -> None:
    net = Net()
    rows: list[Extent] = ["H", "W"] if dynamic else [4, 4]
    data = net.relu(net.conv(net.input(["N", 3, *rows]), 8))
    groups = net.reshape(data, [0, 4, -1], ["N", 4, "L" if dynamic else 32])
    ones, zeros = (net.initializer(np.full(4, value), "norm") for value in (1.0, 0.0))
    normal = net.node("InstanceNormalization", [groups, ones, zeros])
    shape = net.node("Shape", [data], [4], kind=7) if dynamic else ""
    back = net.reshape(normal, [0, 8, 4, 4], ["N", 8, *rows], constant=shape)
    scale = net.initializer(net.random.uniform(0.5, 2, (8, 1, 1)), "scale")
    model = net.build(net.conv(net.add(back, scale, op="Mul"), 2))
    coupling = coupled(model)
    assert_exact(model)
    units = units_on(coupling, "w_0", 0)
    assert units == [unit for unit in units[::2] for _ in range(2)]
    assert coupling.units == 4


def test_whole_groups_in_front_of_a_grouped_convolution_go_equally_from_its_groups() -> None:
    net = Net()
    data = net.conv(net.input(["N", 3, 4, 4]), 8)
    apart = net.reshape(data, [0, 4, -1], ["N", 4, 32])
    ones, zeros = (net.initializer(np.full(4, value), "norm") for value in (1.0, 0.0))
    normal = net.reshape(net.node("InstanceNormalization", [apart, ones, zeros]), [0, 8, 4, 4], ["N", 8, 4, 4])
    coupling = assert_exact(net.build(net.conv(net.relu(net.conv(net.relu(normal), 8, 3, group=2)), 3)))
    units = units_on(coupling, "w_0", 0)
    assert len(set(units)) == 4
    found = queues(coupling, score(coupling, {}, "activation"))
    rounds = [step.units for queue in found for step in queue.steps if step.units[0] in units]
    assert len(rounds) == 2
    assert all(len(set(step) & set(units[:4])) == len(set(step) & set(units[4:])) == 1 for step in rounds)


def test_rows_and_columns_that_meet_in_some_parts_only_stay() -> None:
    net = Net()
    data = net.conv(net.input(["N", 3, 4, 4]), 4)
    apart = net.reshape(data, [0, 2, 2, 4, 4], ["N", 2, 2, 4, 4])
    scale = net.initializer(net.random.uniform(1, 2, (2, 1, 1, 1)))  # rows and columns apart
    back = net.reshape(net.add(apart, scale, op="Mul"), [0, 4, 4, 4], ["N", 4, 4, 4])
    order = net.constant(np.array([0, 3, 1, 2]))  # every row and column once in each half, but never the same two
    turned = net.node("Gather", [back, order], ["N", 4, 4, 4], axis=1)
    coupling = coupled(net.build(net.conv(turned, 4, group=2)))
    assert coupling.units == 0
    assert reasons(coupling)[("w_0", 0)].startswith("rows and columns of a split axis cut across parts")


def test_channels_and_pixels_laid_out_anew_leave_nothing_that_could_go() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 2, 2]), 6))
    made = net.reshape(data, [0, 4, 6], ["N", 4, 6])  # rows of one and a half channels
    coupling = coupled(net.build(net.linear(made, 3)))
    assert coupling.units <= 1
    assert not any(queue.most for queue in queues(coupling, score(coupling, {}, "activation")))


def test_a_shuffle_of_maps_of_open_extents() -> None:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, "H", "W"]), 6))
    shape = net.node("Shape", [data], [4], kind=7)
    batch, height, width = (
        net.node("Gather", [shape, net.constant(np.array([axis]))], [1], axis=0) for axis in (0, 2, 3)
    )
    apart = net.node("Concat", [batch, net.constant(np.array([2, 3])), height, width], [5], axis=0, kind=7)
    turned = net.transpose(net.reshape(data, [], ["N", 2, 3, "H", "W"], constant=apart), [0, 2, 1, 3, 4])
    merged = net.node("Concat", [batch, net.constant(np.array([6])), height, width], [4], axis=0, kind=7)
    made = net.reshape(turned, [], ["N", 6, "H", "W"], constant=merged)
    coupling = assert_exact(net.build(net.conv(made, 2)))
    assert len(set(units_on(coupling, "w_0", 0))) == 6


def test_heads_merged_with_a_dynamic_batch_while_keys_are_turned_around() -> None:
    """As torch writes the transposed keys of scaled_dot_product_attention: [N, h, T, d] to [N * h, T, d] and back."""
    net = Net()
    data = net.input(["N", 5, 8])
    query, key, value = (heads_of(net, net.linear(data, 12), 3, 4) for _ in range(3))
    merged = net.reshape(key, [-1, 5, 4], ["M", 5, 4])
    back = net.reshape(net.transpose(merged, [0, 2, 1]), [-1, 3, 4, 5], ["N", 3, 4, 5])
    product = net.node("MatMul", [query, back], ["N", 3, 5, 5])
    mixed = net.node("MatMul", [net.node("Softmax", [product], axis=-1), value], ["N", 3, 5, 4])
    made = net.reshape(net.transpose(mixed, [0, 2, 1, 3]), [0, 5, 12], ["N", 5, 12])
    coupling = assert_exact(net.build(net.linear(made, 3)))
    assert sorted(len(group.units) for group in coupling.groups) == [3, 4, 4]


def test_heads_that_stay_while_their_dimensions_go_are_told() -> None:
    net = Net()
    apart = heads_of(net, net.linear(net.input(["N", 5, 8]), 12), 3, 4)
    mean = net.reduce(apart, [1], keepdims=False)
    coupling = assert_exact(net.build(net.linear(mean, 3)))
    assert coupling.units == 4
    (told,) = (d for d in coupling.declined if (d.tensor, d.axis) == ("w_0", 1))
    assert told.positions == 0
    assert told.reason.op == "ReduceMean"
    assert told.reason.text.startswith("an axis that it is merged of stays: ReduceMean reduces over the axis")
