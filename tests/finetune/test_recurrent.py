"""LSTM, GRU and RNN in all their forms equal ONNX Runtime's, or the specification's own implementation."""

from __future__ import annotations

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

torch = pytest.importorskip("torch")

from graphprune.errors import UnsupportedOperatorError  # noqa: E402
from graphprune.finetune import to_torch  # noqa: E402
from graphprune.finetune.operators import recurrent  # noqa: E402

RNG = np.random.default_rng(4)
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, WIDTH, HIDDEN = 5, 3, 4, 6
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def inputs(op, direction="forward", *, bias=True, lengths=None, states=True, peepholes=False):
    count, gates = DIRECTIONS[direction], GATES[op]
    given = [
        normal(STEPS, BATCH, WIDTH),
        normal(count, gates * HIDDEN, WIDTH) * 0.5,
        normal(count, gates * HIDDEN, HIDDEN) * 0.5,
    ]
    given.append(normal(count, 2 * gates * HIDDEN) * 0.5 if bias else None)
    given.append(None if lengths is None else np.array(lengths, np.int32))
    given += [normal(count, BATCH, HIDDEN) if states else None] * (2 if op == "LSTM" else 1)
    return [*given, normal(count, 3 * HIDDEN)] if peepholes else given


@pytest.fixture
def same(one_node, run_ort, run_torch, relative_error):
    """Return a function that demands ONNX Runtime's outputs to 1e-5."""

    def run(op, given, **options):
        model = one_node(op, given, outputs=3 if op == "LSTM" else 2, hidden_size=HIDDEN, **options)
        feeds = {"x0": given[0]}
        assert relative_error(run_ort(model, feeds), run_torch(to_torch(model), feeds)) < 1e-5

    return run


@pytest.fixture
def looped(monkeypatch):
    """Count loops over steps."""
    made = []
    loop = recurrent._loop
    monkeypatch.setattr(recurrent, "_loop", lambda *args: made.append(args) or loop(*args))
    return made


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lengths", [None, [5, 2, 3]])
@pytest.mark.parametrize("states", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_fused_and_step_by_step(same, looped, monkeypatch, op, direction, bias, lengths, states, fused):
    if not fused:
        monkeypatch.setitem(recurrent.FUSED, op, lambda call, directions: None)
    options = {"linear_before_reset": 1} if op == "GRU" else {}
    given = inputs(op, direction, bias=bias, lengths=lengths, states=states)
    same(op, given, direction=direction, **options)
    assert len(looped) == (0 if fused else DIRECTIONS[direction])


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("lengths", [None, [5, 1, 3]])
def test_what_torch_has_no_kernel_for(same, looped, direction, lengths):
    same("GRU", inputs("GRU", direction, lengths=lengths), direction=direction)
    same("LSTM", inputs("LSTM", direction, lengths=lengths, peepholes=True), direction=direction)
    same("LSTM", inputs("LSTM", direction, lengths=lengths), direction=direction, input_forget=1)
    assert len(looped) == 3 * DIRECTIONS[direction]


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("peepholes", [False, True])
def test_clipping(same, op, peepholes):
    same(op, inputs(op, peepholes=peepholes and op == "LSTM"), clip=0.3)
    if op == "GRU":
        same(op, inputs(op), clip=0.3, linear_before_reset=1)


@pytest.mark.parametrize("op", GATES)
def test_sequences_of_full_length_take_the_fused_kernel(same, looped, op):
    same(op, inputs(op, lengths=[STEPS] * BATCH), **({"linear_before_reset": 1} if op == "GRU" else {}))
    assert not looped


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_sequence_of_no_steps(same, op, direction):
    same(op, inputs(op, direction, lengths=[5, 0, 2]), direction=direction)


ACTIVATIONS = [
    ("Affine", 0.5, 0.2),
    ("Elu", 0.7, None),
    ("HardSigmoid", 0.3, 0.4),
    ("LeakyRelu", 0.2, None),
    ("Relu", None, None),
    ("ScaledTanh", 0.8, 0.6),
    ("Softplus", None, None),
    ("Softsign", None, None),
    ("ThresholdedRelu", 0.3, None),
]


@pytest.mark.parametrize(("name", "alpha", "beta"), ACTIVATIONS)
@pytest.mark.parametrize("op", GATES)
def test_other_activations(same, op, name, alpha, beta):
    names = [name, *DEFAULTS[op][1:]]
    options = {"activation_alpha": [alpha]} if alpha is not None else {}
    options |= {"activation_beta": [beta]} if beta is not None else {}
    same(op, inputs(op), activations=names, **options)


@pytest.mark.parametrize("name", ["Elu", "HardSigmoid", "LeakyRelu"])
def test_defaults_of_other_activations(same, name):
    same("GRU", inputs("GRU"), activations=["Sigmoid", name])


def test_activations_of_each_direction(same):
    names, alphas = ["HardSigmoid", "Tanh", "LeakyRelu", "Sigmoid", "Elu", "Tanh"], [0.3, 0.1, 0.7]
    same("LSTM", inputs("LSTM", "bidirectional"), direction="bidirectional", activations=names, activation_alpha=alphas,
         activation_beta=[0.4])  # fmt: skip
    same("RNN", inputs("RNN", "bidirectional"), direction="bidirectional", activations=["Relu", "Tanh"])


def test_activations_that_torch_has_a_kernel_for(same, looped):
    same("RNN", inputs("RNN", "bidirectional"), direction="bidirectional", activations=["Relu", "Relu"])
    same("LSTM", inputs("LSTM"), activations=["sigmoid", "TANH", "tanh"])
    assert not looped


@pytest.mark.parametrize(("names", "word"), [(["Sigmoid", "Swish"], "swish"), (["Affine", "Tanh"], "activation_alpha")])
def test_an_activation_that_is_not_known_is_named(one_node, names, word):
    with pytest.raises(UnsupportedOperatorError, match=rf"(?s)GRU.*{word}"):
        to_torch(one_node("GRU", inputs("GRU"), hidden_size=HIDDEN, activations=names))


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_batch_first_is_the_same_with_axes_swapped(one_node, run_torch, relative_error, op, direction):
    """ONNX Runtime refuses layout 1."""
    given, outputs = inputs(op, direction, lengths=[5, 2, 4]), 3 if op == "LSTM" else 2
    options = {"outputs": outputs, "hidden_size": HIDDEN, "direction": direction}
    expected = run_torch(to_torch(one_node(op, given, **options)), {"x0": given[0]})
    swapped = [value.swapaxes(0, 1) if k in (0, 5, 6) else value for k, value in enumerate(given)]
    swapped = [None if value is None else np.ascontiguousarray(value) for value in swapped]
    y, *states = run_torch(to_torch(one_node(op, swapped, layout=1, **options)), {"x0": swapped[0]})
    found = [y.transpose(1, 2, 0, 3), *(state.swapaxes(0, 1) for state in states)]
    assert relative_error(expected, found) < 1e-6


def test_batch_first_equals_the_reference(one_node, run_torch, relative_error):
    given = [np.ascontiguousarray(normal(BATCH, STEPS, WIDTH)), *inputs("LSTM", states=False)[1:4]]
    model = one_node("LSTM", given, outputs=3, hidden_size=HIDDEN, layout=1)
    expected = ReferenceEvaluator(model).run(None, {"x0": given[0]})
    found = run_torch(to_torch(model), {"x0": given[0]})
    assert relative_error(expected[1:], found[1:]) < 1e-5


def test_outputs_that_nobody_asks_for(one_node, run_ort, run_torch, relative_error):
    """An output without a name is not taken for the input that is left out behind it."""
    given = inputs("LSTM")
    model = one_node("LSTM", given, outputs=3, hidden_size=HIDDEN)
    model.graph.node[0].output[0] = ""
    del model.graph.output[0]
    again = model.graph.node.add()
    again.CopyFrom(one_node("LSTM", given, outputs=3, hidden_size=HIDDEN).graph.node[0])
    again.input[5] = ""
    again.output[:] = ["again", "h", "c"]
    again.name = "again"
    model.graph.output.add().CopyFrom(one_node("LSTM", given, outputs=3, hidden_size=HIDDEN).graph.output[0])
    model.graph.output[-1].name = "again"
    feeds = {"x0": given[0]}
    assert relative_error(run_ort(model, feeds), run_torch(to_torch(model), feeds)) < 1e-5
