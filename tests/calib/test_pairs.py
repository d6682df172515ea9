"""What layers lack, measured on two models side by side, against whole runs of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from operator import add

import numpy as np
import onnx
import pytest

from graphprune.calib import pairs
from graphprune.calib.moments import SecondMoments, second_moments
from graphprune.calib.pairs import JUDGE, Batch, Pair, measure_rows
from graphprune.ir.coupling.resizing import SAME, Resized, freed, resized
from graphprune.ir.coupling.walk import couple
from graphprune.ir.graph import Graph
from graphprune.ir.layers.forms import output_rows, places_of
from graphprune.ir.layers.layer import Layer, find_layers
from graphprune.ir.segment import segment
from graphprune.ir.surgery import remove
from graphprune.passes.canonicalize import canonicalize
from graphprune.recovery.repair import kept_outputs
from tests.measure import editable, replaced
from tests.nets import Extent, Net
from tests.oracles import Array, coupled, feeds, removal, run, units_on


def network(batch: Extent = "N") -> onnx.ModelProto:
    """Convolutions of every kind with a residual, a transposed one, and products of matrices."""
    net = Net(seed=3)
    stem = net.relu(net.conv(net.input([batch, 3, 6, 6]), 6, 3))
    inner = net.relu(net.depthwise(net.relu(net.conv(stem, 6, 1))))
    summed = net.relu(net.add(net.conv(inner, 6, 3, group=2, bias=False), stem))
    larger = net.node("ConvTranspose", [summed, net.weight([6, 4, 2, 2])], [batch, 4, 12, 12], strides=[2, 2])
    flat = net.flatten(net.pool(net.relu(larger)))
    return net.build(net.linear(net.gemm(flat, 5, alpha=0.5), 3))


def perturbed(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    random = np.random.default_rng(seed)
    arrays = {
        name: value + random.normal(0, 0.1, value.shape).astype(value.dtype)
        for name, value in editable(model).items()
        if value.dtype.kind == "f"
    }
    return replaced(model, **arrays)


def batches_of(model: onnx.ModelProto, sizes: Sequence[int]) -> list[Batch]:
    return [feeds(model, seed, size) for seed, size in enumerate(sizes)]


def tensors(model: onnx.ModelProto, batch: Batch, names: Sequence[str]) -> Batch:
    """Tensors anywhere in the model, from a run of it all."""
    part = segment(model, dict.fromkeys(batch, onnx.TensorProto.FLOAT), names)
    return {**batch, **run(part, {value.name: batch[value.name] for value in part.graph.input})}


def direct(
    original: onnx.ModelProto,
    draft: onnx.ModelProto,
    layers: tuple[Layer, Layer],
    batches: Sequence[Batch],
    kept: Array | None = None,
    change: Resized = SAME,
) -> SecondMoments:
    """The moments at all places, without anything that is kept from layer to layer."""
    before, after = layers
    found = []
    for batch in batches:
        was = tensors(original, batch, [before.total])[before.total]
        now = tensors(draft, change.cut_feeds(batch), [after.data, after.total])
        places = np.arange(places_of(after.form, was.shape))
        weight = editable(draft)[after.weight]
        rows = after.form.rows(after.node.attributes, weight.shape, now[after.data], places)
        wanted = output_rows(after.form, was, places)
        wanted = wanted if kept is None else wanted[:, kept]
        errors = wanted - output_rows(after.form, now[after.total], places)
        found.append(second_moments(rows, errors.reshape(*rows.shape[:2], -1)))
    return reduce(add, found)


def assert_same(left: SecondMoments, right: SecondMoments, tolerance: float = 1e-5) -> None:
    assert left.count == right.count
    for one, other in ((left.gram, right.gram), (left.cross, right.cross), (left.energy, right.energy)):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(np.abs(other).max(), 1.0))


def walk(
    pair: Pair, kept: Callable[[Layer], Array | None] = lambda layer: None
) -> list[tuple[Layer, Layer, SecondMoments]]:
    """Measure all layers in turn."""
    found = []
    befores = {layer.output: layer for layer in find_layers(Graph(pair.original.proto))}
    for after in find_layers(Graph(pair.draft.proto)):
        before = befores[after.output]
        pair.advance(after)
        found.append((before, after, reduce(add, pair.measure(before, after, kept(before), 0))))
    return found


def test_a_draft_that_is_the_original_lacks_nothing() -> None:
    model = network()
    found = walk(Pair(model, model, batches_of(model, [4, 4])))
    assert len(found) == 7
    for _, _, moments in found:
        assert not moments.energy.any()
        assert not moments.cross.any()
        assert np.trace(moments.gram[0]) > 0


@pytest.mark.parametrize("sizes", [[5], [3, 3, 2], [1, 4, 2, 3, 1]])
def test_what_layers_of_a_draft_lack(sizes: list[int]) -> None:
    model = network()
    draft, batches = perturbed(model), batches_of(network(), sizes)
    for before, after, moments in walk(Pair(model, draft, batches)):
        assert moments.energy.all()
        assert_same(moments, direct(model, draft, (before, after), batches))


def test_a_batch_of_fixed_size() -> None:
    model = network(1)
    draft, batches = perturbed(model), batches_of(model, [1] * 6)
    for before, after, moments in walk(Pair(model, draft, batches)):
        assert_same(moments, direct(model, draft, (before, after), batches))


def test_every_fourth_batch_judges() -> None:
    model = network()
    draft, batches = perturbed(model), batches_of(model, [2] * 9)
    pair = Pair(model, draft, batches)
    before, after = find_layers(Graph(model))[0], find_layers(Graph(draft))[0]
    fitted, judge = pair.measure(before, after, None, 0)
    assert_same(judge, direct(model, draft, (before, after), batches[JUDGE - 1 :: JUDGE]))
    assert_same(fitted + judge, direct(model, draft, (before, after), batches))
    (alone,) = Pair(model, draft, batches[: JUDGE - 1]).measure(before, after, None, 0)
    assert_same(alone, direct(model, draft, (before, after), batches[: JUDGE - 1]))


@pytest.mark.parametrize("memory", [0, 20_000, 60_000])
def test_what_is_kept_from_layer_to_layer_changes_nothing(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    draft, batches = perturbed(model), batches_of(model, [4, 4, 3])
    plenty = Pair(model, draft, batches)
    wanted = walk(plenty)
    assert set(plenty.draft.known[0]) == {wanted[-1][1].data}  # all else is behind
    monkeypatch.setattr(pairs, "MEMORY", memory)
    little = Pair(model, draft, batches)
    for (_, _, one), (_, _, other) in zip(wanted, walk(little), strict=True):
        assert_same(one, other)
    held = sum(value.nbytes for batch in little.draft.known for value in batch.values())
    assert held <= memory or list(little.draft.known[0]) == ["x_0"]


def test_weights_behind_the_last_layer_passed_may_still_change() -> None:
    model = network()
    draft, batches = onnx.ModelProto.FromString(model.SerializeToString()), batches_of(model, [3, 3])
    pair = Pair(model, draft, batches)
    for before, after in zip(find_layers(Graph(model)), find_layers(Graph(draft)), strict=True):
        pair.advance(after)
        tensor = next(t for t in draft.graph.initializer if t.name == after.weight)
        tensor.CopyFrom(onnx.numpy_helper.from_array(1.1 * onnx.numpy_helper.to_array(tensor), tensor.name))
        (moments,) = pair.measure(before, after, None, 0)
        assert moments.energy.any()
        assert_same(moments, direct(model, draft, (before, after), batches))


def test_channels_that_went_are_not_lacking() -> None:
    coupling = coupled(network())
    original = coupling.graph.proto
    units = [*units_on(coupling, "w_0", 0)[:2], *units_on(coupling, "w_4", 1)[:1], *units_on(coupling, "w_5", 0)[1:3]]
    removed = removal(coupling, units)
    draft, _ = remove(coupling, removed)
    batches, lost = batches_of(original, [3, 4]), 0
    for before, after, moments in walk(Pair(original, draft, batches), lambda x: kept_outputs(coupling, removed, x)):
        kept = kept_outputs(coupling, removed, before)
        lost += kept is not None
        assert_same(moments, direct(original, draft, (before, after), batches, kept))
    assert lost >= 3


def test_a_sum_that_is_seen_in_one_of_the_models_alone_is_not_compared() -> None:
    model = network()
    draft, batches = perturbed(model), batches_of(model, [3, 3])
    before, after = (find_layers(Graph(proto))[3] for proto in (model, draft))
    assert before.total != before.output
    ends = replace(before, total=before.output), replace(after, total=after.output)
    (moments,) = Pair(model, draft, batches).measure(before, ends[1], None, 0)
    assert_same(moments, direct(model, draft, ends, batches))


def test_rows_alone() -> None:
    model = network()
    batches = batches_of(model, [2] * 5)
    pair = Pair(model, model, batches)
    for layer in find_layers(Graph(model)):
        pair.advance(layer)
        parts = measure_rows(pair.draft, layer, 0)
        assert len(parts) == 2
        assert_same(reduce(add, parts), direct(model, model, (layer, layer), batches))


def test_places_are_drawn_when_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    draft, batches = perturbed(model), batches_of(model, [3, 3])
    monkeypatch.setattr(pairs, "FEWEST_ROWS", 60)
    monkeypatch.setattr(pairs, "ROWS_PER_COLUMN", 1)
    before, after = find_layers(Graph(model))[0], find_layers(Graph(draft))[0]
    pair = Pair(model, draft, batches)
    (one,), (same,), (other,) = (pair.measure(before, after, None, seed) for seed in (0, 0, 1))
    assert one.count == 60
    assert_same(one, same, 0.0)
    assert not np.allclose(one.gram, other.gram)
    every = direct(model, draft, (before, after), batches)
    np.testing.assert_allclose(one.energy / one.count, every.energy / every.count, rtol=0.5)


def test_inputs_that_lost_positions() -> None:
    net = Net()
    data, state = net.input([1, 4], "x"), net.input([1, 8], "h")
    new = net.node("Tanh", [net.add(net.linear(data, 8), net.linear(state, 8, bias=False))])
    graph = Graph(canonicalize(net.build(net.linear(new, 3), new)))
    free = freed(graph, [f"h={new}"])
    coupling = couple(graph, free.names, free.states)
    removed = removal(coupling, units_on(coupling, "h", 1)[2:5])
    draft, _ = remove(coupling, removed)
    change, batches = resized(coupling, removed), batches_of(graph.proto, [1] * 3)
    found = walk(Pair(graph.proto, draft, batches, change=change), lambda x: kept_outputs(coupling, removed, x))
    assert [moments.gram.shape[1] for _, _, moments in found] == [5, 6, 6]
    for before, after, moments in found:
        kept = kept_outputs(coupling, removed, before)
        assert_same(moments, direct(graph.proto, draft, (before, after), batches, kept, change))


# -- recurrent networks ------------------------------------------------------------------------------------------


def recurrent() -> onnx.ModelProto:
    """A step of a network whose states the caller hands in, with a batch of 1."""
    net = Net(seed=1)
    hidden = net.relu(net.linear(net.input([3, 1, 4]), 5))
    names = [hidden, net.weight([1, 24, 5]), net.weight([1, 24, 6]), net.initializer(np.ones((1, 48)), "both"), ""]
    names += [net.input([1, 1, 6], "state"), net.input([1, 1, 6], "cell")]
    outputs = net.nodes_of("LSTM", names, [[3, 1, 1, 6], [1, 1, 6], [1, 1, 6]], hidden_size=6)
    return net.build(net.linear(net.squeeze(outputs[0], [1]), 2), *outputs[1:])


def test_inputs_of_recurrent_layers() -> None:
    model = recurrent()
    draft, batches = perturbed(model), batches_of(model, [1] * 5)
    (first, lstm, last) = walk(Pair(model, draft, batches))
    for before, after, moments in (first, last):
        assert_same(moments, direct(model, draft, (before, after), batches))
    before, after, moments = lstm
    gates = []
    for batch in batches:
        data = [tensors(proto, batch, [before.data])[before.data].reshape(3, 5) for proto in (model, draft)]
        was, now = (x @ editable(p)[before.weight][0].T for x, p in zip(data, (model, draft), strict=True))
        gates.append(second_moments(data[1][:, None], (was - now)[:, None]))
    assert_same(moments, reduce(add, gates))


def test_a_recurrent_layer_that_lost_units() -> None:
    coupling = coupled(recurrent())
    units = units_on(coupling, "w_0", 1)[:2]
    removed = removal(coupling, units)
    draft, _ = remove(coupling, removed)
    batches = batches_of(coupling.graph.proto, [1] * 3)
    found = walk(Pair(coupling.graph.proto, draft, batches), lambda x: kept_outputs(coupling, removed, x))
    assert [moments.gram.shape[1] for _, _, moments in found] == [5, 4, 7]
    assert not found[0][2].energy.any()
    assert found[1][2].energy.all()
