"""Operators as matrix products, against what ONNX Runtime computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from graphprune.ir.graph import Graph
from graphprune.ir.layers.forms import FORMS, output_rows, places_of
from tests.oracles import run

Array = npt.NDArray[Any]


def node_model(
    op: str, data: Array, stored: list[Array | None], outputs: int = 1, **attributes: Any
) -> onnx.ModelProto:
    """A model of one node that reads the data and stored tensors."""
    names = [f"stored_{index}" if value is not None else "" for index, value in enumerate(stored)]
    made = [f"y_{index}" for index in range(outputs)]
    kind = helper.np_dtype_to_tensor_dtype(data.dtype)
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *names], made, **attributes)],
        "one",
        [helper.make_tensor_value_info("x", kind, data.shape)],
        [helper.make_tensor_value_info(name, kind, None) for name in made],
        [numpy_helper.from_array(v, n) for v, n in zip(stored, names, strict=True) if v is not None],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def product(model: onnx.ModelProto, data: Array, places: Array) -> Array:
    """Rows times matrix, shape (rows, channels); the weight is demanded to come back from the matrix as it was."""
    graph = Graph(model)
    (node,) = graph.main
    form, weight = FORMS[node.op], np.asarray(graph.value(node.inputs[1]))
    matrix = form.matrix(node.attributes, weight)
    back = form.weight(node.attributes, matrix, weight.shape)
    assert back.dtype == weight.dtype
    np.testing.assert_array_equal(back, weight)
    rows = form.rows(node.attributes, weight.shape, data, places)
    assert rows.shape[1:] == matrix.shape[:2]
    made = np.einsum("ngk,gko->ngo", rows.astype(np.float64), matrix.astype(np.float64))
    return np.asarray(made.reshape(len(rows), -1))


def check(op: str, data: Array, stored: list[Array | None], bias: Array | float = 0.0, **attributes: Any) -> None:
    """Compare at some of the places, and at all of them."""
    model = node_model(op, data, stored, **attributes)
    output, form = run(model, {"x": data}, optimised=False)["y_0"], FORMS[op]
    available = places_of(form, output.shape)
    some = np.sort(np.random.default_rng(0).choice(available, -(-available // 3), replace=False))
    for places in (some, np.arange(available)):
        made, wanted = product(model, data, places) + bias, output_rows(form, output, places)
        np.testing.assert_allclose(made, wanted, rtol=1e-5, atol=1e-5 * np.abs(output).max())
    axis = form.channel_axis % output.ndim
    flat = np.moveaxis(output, axis, -1).reshape(-1, output.shape[axis])
    np.testing.assert_array_equal(output_rows(form, output, np.arange(available)), flat)


def check_conv(extents: tuple[int, ...], kernel: tuple[int, ...], op: str = "Conv", **attributes: Any) -> None:
    group = attributes.setdefault("group", 1)
    inputs, outputs = 2 * group, 3 * group
    shape = (outputs, inputs // group) if op == "Conv" else (inputs, outputs // group)
    bias = random(outputs)
    check(op, random(2, inputs, *extents), [random(*shape, *kernel, seed=1), bias], bias, **attributes)


@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"strides": [2, 3]},
        {"dilations": [2, 1]},
        {"pads": [1, 0, 2, 3]},
        {"strides": [3, 1], "dilations": [1, 3], "pads": [0, 2, 1, 1]},
        {"auto_pad": "VALID", "strides": [1, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 3]},
        {"auto_pad": "SAME_LOWER"},
    ],
)
def test_convolutions(attributes: dict[str, Any], group: int) -> None:
    check_conv((8, 9), (3, 2), group=group, **attributes)


@pytest.mark.parametrize(
    ("extents", "kernel", "attributes"),
    [
        ((9,), (3,), {"strides": [2], "pads": [2, 0]}),
        ((9,), (4,), {"auto_pad": "SAME_UPPER", "group": 2}),
        ((5, 4, 6), (2, 3, 1), {"pads": [0, 1, 2, 1, 0, 0], "strides": [1, 2, 2]}),
        ((5, 4, 6), (3, 1, 2), {"dilations": [2, 1, 3], "group": 2}),
        ((1, 1), (1, 1), {}),
        ((4, 4), (4, 4), {}),
    ],
)
def test_convolutions_of_any_rank(
    extents: tuple[int, ...], kernel: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    check_conv(extents, kernel, **attributes)


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_convolutions(multiplier: int) -> None:
    weight = random(4 * multiplier, 1, 3, 3)
    check("Conv", random(3, 4, 7, 7), [weight], group=4, pads=[1, 1, 1, 1], strides=[2, 2])


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"strides": [2, 3]},
        {"strides": [2, 3], "output_padding": [1, 2]},
        {"pads": [1, 0, 0, 1], "strides": [2, 2]},
        {"pads": [3, 1, 4, 2], "strides": [3, 2]},  # more than the kernel reaches
        {"dilations": [2, 3], "pads": [0, 1, 2, 0]},
        {"dilations": [2, 1], "strides": [2, 3], "output_padding": [1, 1]},
        {"auto_pad": "VALID", "strides": [2, 1]},
    ],
)
def test_transposed_convolutions(attributes: dict[str, Any], group: int) -> None:
    check_conv((5, 4), (3, 2), "ConvTranspose", group=group, **attributes)


@pytest.mark.parametrize(
    ("extents", "kernel", "attributes"),
    [
        ((6,), (4,), {"strides": [2], "pads": [1, 1]}),
        ((6,), (3,), {"strides": [3], "output_padding": [2], "group": 2}),
        ((3, 2, 4), (2, 3, 2), {"strides": [2, 1, 2]}),
    ],
)
def test_transposed_convolutions_of_any_rank(
    extents: tuple[int, ...], kernel: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    check_conv(extents, kernel, "ConvTranspose", **attributes)


@settings(max_examples=120)
@given(st.data())
def test_random_convolutions(data: st.DataObject) -> None:
    rank, op = data.draw(st.integers(1, 2)), data.draw(st.sampled_from(["Conv", "ConvTranspose"]))

    def several(low: int, high: int, count: int = rank) -> list[int]:
        return data.draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    kernel, extents, strides, dilations = several(1, 4), several(1, 8), several(1, 3), several(1, 3)
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations, "group": data.draw(st.integers(1, 3))}
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = several(0, 3, 2 * rank)
    if op == "Conv":
        attributes["pads"] = pads
        assume(all(e + pads[i] + pads[i + rank] >= reach[i] for i, e in enumerate(extents)))
    else:
        attributes["pads"] = pads
        # ONNX Runtime takes an output_padding below the stride alone.
        attributes["output_padding"] = [data.draw(st.integers(0, step - 1)) for step in strides]
        assume(
            all(
                (e - 1) * strides[i] + reach[i] + attributes["output_padding"][i] > pads[i] + pads[i + rank]
                for i, e in enumerate(extents)
            )
        )
    check_conv(tuple(extents), tuple(kernel), op, **attributes)


@pytest.mark.parametrize("alpha", [1.0, 0.3, -2.0])
@pytest.mark.parametrize("turned", [0, 1])
def test_gemm(turned: int, alpha: float) -> None:
    weight, bias = random(*((5, 7) if turned else (7, 5))), random(5)
    check("Gemm", random(4, 7), [weight, bias], 0.5 * bias, transB=turned, alpha=alpha, beta=0.5)


@pytest.mark.parametrize("shape", [(4, 7), (2, 3, 7), (2, 1, 7), (2, 3, 2, 7)])
def test_matrix_products(shape: tuple[int, ...]) -> None:
    check("MatMul", random(*shape), [random(7, 5)])


def test_half_precision() -> None:
    data, weight = random(2, 4, 5, 5).astype(np.float16), random(6, 2, 3, 3).astype(np.float16)
    model = node_model("Conv", data, [weight], group=2)
    output = run(model, {"x": data}, optimised=False)["y_0"]
    made, wanted = product(model, data, np.arange(9)), output_rows(FORMS["Conv"], output, np.arange(9))
    np.testing.assert_allclose(made, wanted, atol=0.02, rtol=0)


def test_double_precision() -> None:
    data, weight = random(3, 4).astype(np.float64) / 3, random(4, 2).astype(np.float64) / 7
    model = node_model("Gemm", data, [weight], alpha=0.3)
    output = run(model, {"x": data}, optimised=False)["y_0"]
    np.testing.assert_allclose(product(model, data, np.arange(1)), output, rtol=1e-7)  # alpha is a float32


def test_brain_floats() -> None:
    weight = random(6, 2, 3, 3).astype(helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16))
    for op in ("Conv", "ConvTranspose"):
        matrix = FORMS[op].matrix({"group": 2}, weight)
        np.testing.assert_array_equal(FORMS[op].weight({"group": 2}, matrix, weight.shape), weight)


# -- recurrent operators -----------------------------------------------------------------------------------------


def sigmoid(values: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-values)))


def lstm(gates: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
    enters, leaves, stays, cell = np.split(gates, 4, axis=-1)
    cells = sigmoid(stays) * state[1] + sigmoid(enters) * np.tanh(cell)
    return sigmoid(leaves) * np.tanh(cells), cells


def gru(gates: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
    update, _, hidden = np.split(gates, 3, axis=-1)
    return (1 - sigmoid(update)) * np.tanh(hidden) + sigmoid(update) * state[0], state[1]


def rnn(gates: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
    return np.tanh(gates), state[1]


STEPS = {"LSTM": (lstm, 4), "GRU": (gru, 3), "RNN": (rnn, 1)}


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", list(STEPS))
def test_inputs_of_recurrent_operators(op: str, direction: str) -> None:
    # With no weight on the state, the gates are what the input's weight makes of the input.
    step, gates = STEPS[op]
    steps, samples, inputs, hidden, directions = 4, 3, 5, 2, 1 + (direction == "bidirectional")
    data, weight = random(steps, samples, inputs), random(directions, gates * hidden, inputs)
    state = np.zeros((directions, gates * hidden, hidden), np.float32)
    model = node_model(op, data, [weight, state], hidden_size=hidden, direction=direction)
    products = product(model, data, np.arange(1)).reshape(steps, samples, directions, -1)
    wanted = run(model, {"x": data}, optimised=False)["y_0"]
    for number in range(directions):
        backwards = direction == "reverse" or number == 1
        now = np.zeros((samples, hidden)), np.zeros((samples, hidden))
        for place in range(steps)[:: -1 if backwards else 1]:
            now = step(products[place, :, number], now)
            np.testing.assert_allclose(wanted[place, number], now[0], rtol=1e-4, atol=1e-6)


def test_recurrent_inputs_with_samples_in_front() -> None:
    data, weight = (
        random(3, 4, 5),
        random(1, 2, 5),
    )  # samples, steps, inputs: only ONNX's own reference knows the layout
    state = np.zeros((1, 2, 2), np.float32)
    model = node_model("RNN", data, [weight, state], hidden_size=2, layout=1)
    (wanted,) = ReferenceEvaluator(model).run(None, {"x": data})
    made = np.tanh(product(model, data, np.arange(4))).reshape(3, 4, 1, 2)
    np.testing.assert_allclose(made, wanted, rtol=1e-5, atol=1e-6)
