"""Attention in one node: heads and head dimensions go, with the attributes that count them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphprune.ir.coupling.units import Coupling
from graphprune.ir.surgery import remove
from tests.nets import Extent, Net
from tests.oracles import (
    assert_close,
    assert_masked,
    coupled,
    feeds,
    random_removal,
    reasons,
    removal,
    run,
    units_on,
)

STEPS, INPUTS, OUTPUTS = 5, 7, 3


def assert_cut(coupling: Coupling) -> None:
    """Demand what is promised of random removals, and that zeros in all weights of what goes do the same."""
    assert_masked(coupling)
    original = coupling.graph.proto
    inputs = feeds(original)
    for seed, fraction in enumerate([0.3, 0.7, None]):
        removed = random_removal(coupling, fraction, seed)
        zeroed = onnx.ModelProto()
        zeroed.CopyFrom(original)
        for tensor in zeroed.graph.initializer:
            keep = coupling.keeps(tensor.name, removed)
            if keep is not None and tensor.data_type == TensorProto.FLOAT:
                tensor.CopyFrom(numpy_helper.from_array(np.where(keep, numpy_helper.to_array(tensor), 0), tensor.name))
        assert_close(run(zeroed, inputs), run(remove(coupling, removed)[0], inputs))


def counts(coupling: Coupling) -> list[int]:
    """Units of every group."""
    return sorted(len(group.units) for group in coupling.groups)


def attributes(model: onnx.ModelProto, op: str) -> dict[str, Any]:
    """Attributes of the one node of that type."""
    (node,) = (node for node in model.graph.node if node.op_type == op)
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def projected(net: Net, heads: int, size: int, *, split: bool, data: str = "", steps: int = STEPS) -> str:
    """A projection to heads and head dimensions, merged or on axes of their own."""
    made = net.linear(data or net.input([2, steps, INPUTS]), heads * size)
    if not split:
        return made
    apart = net.reshape(made, [0, 0, heads, size], [2, steps, heads, size])
    return net.transpose(apart, [0, 2, 1, 3])


def merged(net: Net, data: str) -> str:
    """Heads and head dimensions back on one axis."""
    if len(net.shapes[data]) == 3:
        return data
    _, heads, steps, size = net.shapes[data]
    turned = net.transpose(data, [0, 2, 1, 3])
    return net.reshape(turned, [0, 0, int(heads) * int(size)], [2, steps, int(heads) * int(size)])


def output_of(net: Net, query: str, heads: int, size: int) -> list[Extent]:
    """Shape of the output of attention."""
    split = len(net.shapes[query]) == 4
    return [2, heads, STEPS, size] if split else [2, STEPS, heads * size]


# -- ONNX ------------------------------------------------------------------------------------------------------


def attention(
    net: Net, heads: int = 4, served: int = 4, size: int = 6, value_size: int = 3, *, split: bool = False, **more: Any
) -> str:
    names = [
        projected(net, count, width, split=split)
        for count, width in ((heads, size), (served, size), (served, value_size))
    ]
    if not split:
        more.update(q_num_heads=heads, kv_num_heads=served)
    return net.node("Attention", names, output_of(net, names[0], heads, value_size), **more)


def onnx_net() -> Net:
    return Net(23, ir_version=11)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(("heads", "served"), [(4, 4), (6, 3), (4, 1), (1, 1)])
def test_heads_and_head_dimensions_go(split: bool, heads: int, served: int) -> None:
    net = onnx_net()
    model = net.build(net.linear(merged(net, attention(net, heads, served, split=split)), OUTPUTS))
    coupling = coupled(model)
    expected = {(4, 4): [3, 4, 6], (6, 3): [3, 3, 6], (4, 1): [3, 4, 6], (1, 1): [3, 6]}
    assert counts(coupling) == expected[heads, served]
    assert_cut(coupling)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("more", [{}, {"scale": 0.7}, {"is_causal": 1}, {"softcap": 2.0}])
def test_the_scale_that_head_dimensions_made_is_written_out(split: bool, more: dict[str, Any]) -> None:
    net = onnx_net()
    coupling = coupled(net.build(net.linear(merged(net, attention(net, split=split, **more)), OUTPUTS)))
    assert_cut(coupling)
    (sizes,) = (group.units for group in coupling.groups if len(group.units) == 6)
    pruned, _ = remove(coupling, removal(coupling, sizes[:4].tolist()))
    assert attributes(pruned, "Attention")["scale"] == pytest.approx(more.get("scale", 6**-0.5))


def test_the_numbers_of_heads_are_written() -> None:
    net = onnx_net()
    coupling = coupled(net.build(net.linear(attention(net, 6, 3), OUTPUTS)))
    keys, output = (np.concatenate(coupling.along(*place)) for place in (("w_1", 1), ("w_3", 0)))
    served = np.intersect1d(keys, output)
    pruned, _ = remove(coupling, removal(coupling, served[:1].tolist()))
    found = attributes(pruned, "Attention")
    assert (found["q_num_heads"], found["kv_num_heads"]) == (4, 2)
    assert "scale" not in found


@pytest.mark.parametrize("shape", [[STEPS, STEPS], [1, STEPS, STEPS], [2, 1, STEPS, STEPS], [4, STEPS, STEPS]])
@pytest.mark.parametrize("boolean", [False, True])
def test_masks_lose_the_heads_that_they_hold(shape: list[int], boolean: bool) -> None:
    net = onnx_net()
    mask = net.initializer(net.random.normal(size=shape) > -1 if boolean else net.random.normal(size=shape), "mask")
    names = [*(projected(net, 4, 6, split=True) for _ in range(3)), mask]
    made = net.node("Attention", names, [2, 4, STEPS, 6])
    coupling = coupled(net.build(net.linear(merged(net, made), OUTPUTS)))
    assert counts(coupling) == [4, 6, 6]
    assert_cut(coupling)
    if shape[0] == 4:
        assert set(units_on(coupling, mask, 0)) == set(units_on(coupling, "attention_0", 1))


@pytest.mark.parametrize("split", [False, True])
def test_caches_that_are_inputs_hold_everything(split: bool) -> None:
    net = onnx_net()
    names = [projected(net, 4, 6, split=split) for _ in range(3)]
    past = [net.input([2, 4, 3, 6], name) for name in ("past_key", "past_value")]
    numbers = {} if split else {"q_num_heads": 4, "kv_num_heads": 4}
    shapes: list[list[Extent]] = [output_of(net, names[0], 4, 6), [2, 4, STEPS + 3, 6], [2, 4, STEPS + 3, 6]]
    made, *present = net.nodes_of("Attention", [*names, "", *past], shapes, **numbers)
    coupling = coupled(net.build(net.linear(merged(net, made), OUTPUTS), *present))
    assert coupling.units == 0
    assert reasons(coupling)["w_1", 1] == "graph input 'past_key' keeps its shape"


def test_caches_that_are_computed_lose_heads_and_head_dimensions() -> None:
    """What is cached for another layer, and the scores, carry the same units."""
    net = onnx_net()
    names = [projected(net, 4, 6, split=False) for _ in range(3)]
    past = [projected(net, 4, 6, split=True) for _ in range(2)]
    total = 2 * STEPS
    shapes: list[list[Extent]] = [[2, STEPS, 24], [2, 4, total, 6], [2, 4, total, 6], [2, 4, STEPS, total]]
    made, key, value, scores = net.nodes_of("Attention", [*names, "", *past], shapes, q_num_heads=4, kv_num_heads=4)
    scores = net.add(scores, other_scores(net, key), op="Mul")
    again = net.node("MatMul", [net.node("Softmax", [scores], axis=-1), value], [2, 4, STEPS, 6])
    coupling = coupled(net.build(net.linear(made, OUTPUTS), net.linear(merged(net, again), OUTPUTS)))
    assert counts(coupling) == [4, 6, 6]
    assert_cut(coupling)


def other_scores(net: Net, key: str) -> str:
    """Scores of other queries against cached keys."""
    turned = net.transpose(key, [0, 1, 3, 2])
    return net.node("MatMul", [projected(net, 4, 6, split=True), turned], [2, 4, STEPS, 2 * STEPS])


def test_attention_over_inputs_is_frozen_with_the_reason() -> None:
    net = onnx_net()
    names = [projected(net, 4, 6, split=True), net.input([2, 4, STEPS, 6]), net.input([2, 4, STEPS, 6])]
    made = net.node("Attention", names, [2, 4, STEPS, 6])
    coupling = coupled(net.build(net.linear(merged(net, made), OUTPUTS)))
    assert coupling.units == 0
    assert "graph input 'x_1' keeps its shape" in reasons(coupling).values()


# -- ONNX Runtime ------------------------------------------------------------------------------------------------


def runtime_net() -> Net:
    net = Net()
    net.imports["com.microsoft"] = 1
    return net


def runtime(net: Net, op: str, names: list[str], shape: list[Extent], **more: Any) -> str:
    return net.node(op, names, shape, domain="com.microsoft", **more)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("more", [{}, {"unidirectional": 1}, {"scale": 0.7}])
def test_multi_head_attention(biased: bool, more: dict[str, Any]) -> None:
    net = runtime_net()
    names = [projected(net, 4, size, split=False) for size in (6, 6, 3)]
    if biased:
        names.append(net.vector(24 + 24 + 12, "bias"))
    made = runtime(net, "MultiHeadAttention", names, [2, STEPS, 12], num_heads=4, **more)
    coupling = coupled(net.build(net.linear(made, OUTPUTS)))
    assert counts(coupling) == [3, 4, 6]
    assert_cut(coupling)


def test_multi_head_attention_with_masks() -> None:
    net = runtime_net()
    names = [projected(net, 4, 6, split=False) for _ in range(3)]
    padding = net.initializer(np.array([[1, 1, 1, 1, 0]] * 2, np.int32), "padding")
    bias = net.initializer(net.random.normal(size=(1, 4, STEPS, STEPS)), "scores")
    made = runtime(net, "MultiHeadAttention", [*names, "", padding, bias], [2, STEPS, 24], num_heads=4)
    coupling = coupled(net.build(net.linear(made, OUTPUTS)))
    assert counts(coupling) == [4, 6, 6]
    assert len(set(units_on(coupling, bias, 1))) == 4
    assert_cut(coupling)


def test_packed_queries_keys_and_values_are_frozen() -> None:
    net = runtime_net()
    packed = net.reshape(net.linear(net.input([2, STEPS, INPUTS]), 72), [0, 0, 4, 3, 6], [2, STEPS, 4, 3, 6])
    made = runtime(net, "MultiHeadAttention", [packed], [2, STEPS, 24], num_heads=4)
    coupling = coupled(net.build(net.linear(made, OUTPUTS)))
    assert coupling.units == 0
    text = "com.microsoft.MultiHeadAttention reads packed or cached queries, keys and values"
    assert reasons(coupling)["w_0", 1] == text


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize(("heads", "served"), [(4, 4), (6, 3), (4, 1)])
def test_group_query_attention_loses_heads(rotated: bool, heads: int, served: int) -> None:
    net, size = runtime_net(), 16
    names = [projected(net, count, size, split=False) for count in (heads, served, served)]
    names += ["", "", net.initializer(np.array([STEPS - 1] * 2, np.int32)), net.initializer(np.int32(STEPS))]
    more = {}
    if rotated:
        names += [net.initializer(net.random.normal(size=(STEPS, size // 2)), name) for name in ("cos", "sin")]
        more = {"do_rotary": 1}
    shapes: list[list[Extent]] = [[2, STEPS, heads * size], *[[2, served, STEPS, size]] * 2]
    made, *_ = net.nodes_of(
        "GroupQueryAttention", names, shapes, domain="com.microsoft", num_heads=heads, kv_num_heads=served, **more
    )
    coupling = coupled(net.build(net.linear(made, OUTPUTS)))
    assert counts(coupling) == [served if served > 1 else heads]
    assert_cut(coupling)


@pytest.mark.parametrize("sizes", [None, [24, 24, 12]])
def test_attention_that_projects_by_itself(sizes: list[int] | None) -> None:
    net = runtime_net()
    data = net.relu(net.linear(net.input([2, STEPS, INPUTS]), 10))
    columns = sum(sizes) if sizes else 72
    more = {} if sizes is None else {"qkv_hidden_sizes": sizes}
    width = sizes[2] if sizes else 24
    names = [data, net.weight([10, columns], fan_in=10), net.vector(columns)]
    made = runtime(net, "Attention", names, [2, STEPS, width], num_heads=4, **more)
    coupling = coupled(net.build(net.linear(made, OUTPUTS)))
    assert counts(coupling) == sorted([4, width // 4, 10])
    assert_cut(coupling)


def test_attention_that_projects_by_itself_with_a_cache_keeps_head_dimensions() -> None:
    net = runtime_net()
    names = [net.input([2, STEPS, INPUTS]), net.weight([INPUTS, 72]), net.vector(72), ""]
    key, value = (net.unsqueeze(projected(net, 4, 6, split=True), [0]) for _ in range(2))
    names.append(net.concat(key, value, axis=0))
    shapes: list[list[Extent]] = [[2, STEPS, 24], [2, 2, 4, 2 * STEPS, 6]]
    made, present = net.nodes_of("Attention", names, shapes, domain="com.microsoft", num_heads=4)
    coupling = coupled(net.build(net.linear(made, OUTPUTS), net.reduce(present, [2])))
    assert coupling.units == 0
    net.outputs.clear()
    coupling = coupled(net.build(net.linear(made, OUTPUTS)))
    assert 4 in counts(coupling)
    assert_cut(coupling)


# -- rotation ----------------------------------------------------------------------------------------------------


def angles(net: Net, size: int) -> list[str]:
    steps = np.arange(STEPS)[:, None] / 10.0 ** np.linspace(0, 1, size // 2)
    return [net.initializer(function(steps), name) for function, name in ((np.cos, "cos"), (np.sin, "sin"))]


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("more", [{}, {"interleaved": 1}])
def test_rotated_queries_and_keys_lose_heads(split: bool, own: bool, more: dict[str, Any]) -> None:
    net = Net(23, ir_version=11)
    net.imports["com.microsoft"] = 1
    places = net.initializer(np.array([list(range(STEPS))] * 2), "places")
    cache = angles(net, 6)
    query, key, value = (projected(net, 4, size, split=split) for size in (6, 6, 3))
    names = [places, *cache] if own else [*cache, places]
    domain = "com.microsoft" if own else ""
    if not split and not own:
        more = {**more, "num_heads": 4}
    turned = [net.node("RotaryEmbedding", [data, *names], domain=domain, **more) for data in (query, key)]
    numbers = {} if split else {"q_num_heads": 4, "kv_num_heads": 4}
    made = net.node("Attention", [*turned, value], output_of(net, query, 4, 3), **numbers)
    coupling = coupled(net.build(net.linear(merged(net, made), OUTPUTS)))
    assert counts(coupling) == [3, 4]
    assert_cut(coupling)


def test_rotated_head_dimensions_are_frozen_with_the_reason() -> None:
    net = onnx_net()
    places = net.initializer(np.array([list(range(STEPS))] * 2), "places")
    turned = net.node("RotaryEmbedding", [projected(net, 1, 6, split=False), *angles(net, 6), places], num_heads=1)
    coupling = coupled(net.build(net.linear(turned, OUTPUTS)))
    assert coupling.units == 0
    text = "RotaryEmbedding turns head dimensions in pairs, by angles that all heads share"
    assert reasons(coupling)["w_0", 1] == reasons(coupling)["w_1", 0] == text
