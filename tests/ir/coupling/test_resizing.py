"""Graph inputs and outputs that may lose positions: what is tied to them, and what the smaller model computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto

from graphprune.errors import RecipeError
from graphprune.ir.coupling.resizing import SAME, Freed, freed, resized
from graphprune.ir.coupling.units import BoolArray, Coupling
from graphprune.ir.coupling.walk import couple
from graphprune.ir.graph import Graph
from graphprune.ir.surgery import remove
from graphprune.passes.canonicalize import canonicalize
from graphprune.verify.masking import masked
from tests.nets import Net
from tests.oracles import assert_close, assert_legal, assert_reproduces, feeds, random_removal, reasons, run, sliced

Array = npt.NDArray[Any]
STEPS = 4


# -- networks: each with the names of its state's input and output ----------------------------------------------


def lstm() -> onnx.ModelProto:
    """An LSTM whose two states come and go in one tensor, hidden state first, as speech models keep them."""
    net = Net()
    data, state = net.input([1, 1, 4], "x"), net.input([2, 1, 6], "state")
    hidden, cell = net.split(state, [1, 1], axis=0)
    names = [data, net.weight([1, 24, 4]), net.weight([1, 24, 6]), net.vector(48), "", hidden, cell]
    bias = net.initializer(net.array(names[3])[None], "bias")
    names[3] = bias
    _, hidden, cell = net.nodes_of("LSTM", names, [[1, 1, 1, 6], [1, 1, 6], [1, 1, 6]], hidden_size=6)
    return net.build(net.linear(hidden, 3), net.concat(hidden, cell, axis=0))


def conv_cache() -> onnx.ModelProto:
    """A causal convolution over the last two columns of the call before and those of this one."""
    net = Net()
    cache = net.input([1, 8, 2], "cache")
    joined = net.concat(cache, net.relu(net.conv(net.input([1, 3, 5], "x"), 8)), axis=2)
    result = net.node("Conv", [joined, net.weight([2, 8, 3])], [1, 2, 5], kernel_shape=[3])
    return net.build(result, net.slice(joined, {2: (5, 7, 1)}))


def elman() -> onnx.ModelProto:
    """A recurrent cell of matrix products: nothing in the graph ties unit j of the old state to that of the new."""
    net = Net()
    data, state = net.input([1, 4], "x"), net.input([1, 8], "h")
    new = net.node("Tanh", [net.add(net.linear(data, 8), net.linear(state, 8, bias=False))])
    return net.build(net.linear(new, 3), new)


def classifier() -> onnx.ModelProto:
    net = Net()
    return net.build(net.gemm(net.relu(net.gemm(net.input(["N", 5], "x"), 8)), 10))


def outputs(model: onnx.ModelProto) -> list[str]:
    return [value.name for value in model.graph.output]


def free(model: onnx.ModelProto, *asked: str) -> Coupling:
    """Couple the canonical form with these names freed."""
    graph = Graph(canonicalize(model))
    found = freed(graph, asked)
    return couple(graph, found.names, found.states)


# -- oracles -----------------------------------------------------------------------------------------------------


def places(coupling: Coupling, removed: BoolArray, name: str) -> dict[int, list[int] | list[list[int]]]:
    """The positions that stay of a tensor, by axis."""
    keep = coupling.keeps(name, removed)
    if keep is None:
        return {}
    return {
        axis: [place for place in range(keep.shape[axis]) if keep.take(place, axis=axis).any()]
        for axis in range(keep.ndim)
        if keep.shape[axis] > 1
    }


def cut(values: Mapping[str, Array], coupling: Coupling, removed: BoolArray) -> dict[str, Array]:
    """Take what stays of every tensor."""
    return {name: sliced(value, places(coupling, removed, name)) for name, value in values.items()}


def prove(coupling: Coupling, removed: BoolArray, inputs: Mapping[str, Array]) -> onnx.ModelProto:
    """Demand that the pruned model, fed what stays of the inputs, gives what stays of the masked original's outputs."""
    assert_legal(coupling, removed)
    pruned, kept = remove(coupling, removed)
    onnx.checker.check_model(pruned, full_check=True)
    expected = run(masked(coupling, removed), inputs, optimised=False)
    assert_close(cut(expected, coupling, removed), run(pruned, cut(inputs, coupling, removed)))
    change = resized(coupling, removed)
    assert_close(change.cut_feeds(inputs), cut(inputs, coupling, removed))
    listed = change.cut_outputs(list(expected), list(expected.values()))
    assert_close(dict(zip(expected, listed, strict=True)), cut(expected, coupling, removed))
    assert_reproduces(coupling.graph.proto, pruned, kept)
    return pruned


def steps(model: onnx.ModelProto, states: Mapping[str, str], given: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    """Run a model step by step, and feed back what it says of its states; other inputs change from step to step."""
    fed = dict(given)
    for step in range(STEPS):
        results = run(model, fed, optimised=False)
        yield results
        fed = {
            name: results[states[name]] if name in states else np.roll(value, step + 1, -1) * 1.1
            for name, value in fed.items()
        }


STATEFUL = [(lstm, "state"), (conv_cache, "cache"), (elman, "h")]


# -- what may go -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "state"), STATEFUL)
@pytest.mark.parametrize("seed", range(3))
def test_a_smaller_state_fed_back_equals_the_masked_original(make: Any, state: str, seed: int) -> None:
    model = make()
    result = outputs(model)[1]
    coupling = free(model, f"{state}={result}")
    inputs = feeds(model, seed)
    removed = random_removal(coupling, 0.5, seed)
    assert removed.any()
    pruned = prove(coupling, removed, inputs)
    assert places(coupling, removed, state) == places(coupling, removed, result) != {}
    original = steps(masked(coupling, removed), {state: result}, inputs)
    smaller = steps(pruned, {state: result}, cut(inputs, coupling, removed))
    for expected, got in zip(original, smaller, strict=True):
        assert_close(cut(expected, coupling, removed), got, tolerance=1e-4)


@pytest.mark.parametrize(("make", "state"), [(lstm, "state"), (conv_cache, "cache")])
def test_the_graph_itself_ties_old_and_new_state(make: Any, state: str) -> None:
    model = make()
    coupling = free(model, state, outputs(model)[1])
    removed = random_removal(coupling, 0.5, 1)
    assert places(coupling, removed, state) == places(coupling, removed, outputs(model)[1]) != {}


@pytest.mark.parametrize(("make", "state"), [(lstm, "state"), (conv_cache, "cache")])
def test_a_state_freed_on_one_side_only_stays_because_of_the_other(make: Any, state: str) -> None:
    model = make()
    result = outputs(model)[1]
    kept_in, kept_out = f"graph input {state!r} keeps its shape", f"graph output {result!r} keeps its shape"
    assert kept_in in reasons(free(model, result)).values()
    assert kept_out in reasons(free(model, state)).values()
    assert {kept_in, kept_out}.isdisjoint(reasons(free(model, state, result)).values())


def test_states_that_nothing_ties_go_apart_unless_they_are_named_together() -> None:
    model = elman()
    result = outputs(model)[1]
    apart, together = free(model, "h", result), free(model, f"h={result}")
    assert (apart.units, together.units) == (16, 8)
    assert not set(apart.ids["h"][0].ravel()) & set(apart.ids[result][0].ravel())
    prove(apart, random_removal(apart, 0.5, 3), feeds(model))


def test_classes_and_features_may_go_where_the_user_says_so() -> None:
    model = classifier()
    (logits,) = outputs(model)
    assert free(model).units == 8
    assert free(model, logits).units == 18
    coupling = free(model, "x", logits)
    assert coupling.units == 23
    for seed in range(3):
        removed = random_removal(coupling, 0.5, seed)
        pruned = prove(coupling, removed, feeds(model, seed))
        shapes = {
            value.name: [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
            for value in (*pruned.graph.input, *pruned.graph.output)
        }
        assert shapes == {
            "x": ["N", len(places(coupling, removed, "x").get(1, range(5)))],
            logits: ["N", len(places(coupling, removed, logits).get(1, range(10)))],
        }


def test_positions_that_hold_no_weights_are_no_units() -> None:
    net = Net()
    model = net.build(net.relu(net.input([2, 6], "x")))
    assert free(model, "x", *outputs(model)).units == 0


def test_dynamic_axes_stay() -> None:
    net = Net()
    model = net.build(net.linear(net.input(["N", "T", 4], "x"), 3))
    coupling = free(model, "x")
    assert [ids.shape for ids in coupling.ids["x"]] == [(1, 1, 4)]
    assert coupling.units == 4


def test_an_output_that_is_an_input_too_loses_the_same() -> None:
    net = Net()
    data = net.input([1, 6], "x")
    model = net.build(net.linear(data, 3), data)
    coupling = free(model, "x")
    assert (free(model).units, coupling.units) == (0, 6)
    prove(coupling, random_removal(coupling, 0.5, 0), feeds(model))


# -- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["nothing", "w_0", "state=", "x=state", "state=gemm", "="])
def test_a_name_that_is_no_input_or_output_is_refused(asked: str) -> None:
    model = lstm()
    with pytest.raises(RecipeError, match="no graph input or output") as caught:
        freed(Graph(model), [asked])
    for name in ("x", "state", *outputs(model), repr(asked)):
        assert name in str(caught.value)


def test_a_state_of_two_shapes_is_refused() -> None:
    model = lstm()
    with pytest.raises(RecipeError, match="cannot be fed back") as caught:
        freed(Graph(model), [f"x={outputs(model)[1]}"])
    assert "[1, 1, 4] and [2, 1, 6]" in str(caught.value)


def test_names_may_hold_the_sign_of_a_state() -> None:
    net = Net()
    state = net.input([1, 4], "a=b")
    net.nodes.append(onnx.helper.make_node("Tanh", [state], [net._made("c=d", [1, 4], TensorProto.FLOAT)]))
    graph = Graph(net.build("c=d"))
    assert freed(graph, ["a=b", "c=d"]) == Freed(frozenset({"a=b", "c=d"}))
    assert freed(graph, ["a=b=c=d"]) == Freed(frozenset({"a=b", "c=d"}), (("a=b", "c=d"),))


def test_by_default_everything_keeps_its_shape() -> None:
    model = classifier()
    inputs = feeds(model)
    assert freed(Graph(model), []) == Freed()
    assert SAME.cut_feeds(inputs) == inputs
    coupling = free(model)
    change = resized(coupling, random_removal(coupling, 0.5, 0))
    assert (change.inputs, change.outputs) == ({}, {})
