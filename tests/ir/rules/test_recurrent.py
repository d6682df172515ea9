"""LSTM, GRU, RNN: hidden units are removed from every gate, direction, state and reader, exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphprune.ir.coupling.walk import couple
from graphprune.ir.graph import Graph
from graphprune.ir.surgery import remove
from graphprune.passes.canonicalize import canonicalize
from graphprune.verify.masking import masked

STEPS, BATCH, INPUTS, HIDDEN, OUTPUTS = 5, 2, 6, 8, 3
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def network(op: str, *, directions: int = 1, peephole: bool = False, layout: int = 0, **attributes: Any) -> Any:
    """MatMul - Relu - recurrent layer - MatMul over every step, and the last state as a second branch."""
    rng = np.random.default_rng(1)
    gates = GATES[op]
    shapes = {
        "first": (4, INPUTS),
        "W": (directions, gates * HIDDEN, INPUTS),
        "R": (directions, gates * HIDDEN, HIDDEN),
        "B": (directions, 2 * gates * HIDDEN),
        "state": (BATCH, directions, HIDDEN) if layout else (directions, BATCH, HIDDEN),
        "last": (directions * HIDDEN, OUTPUTS),
        "last_state": (HIDDEN, OUTPUTS),
    }
    names = ["features", "W", "R", "B", "", "state"]
    if op == "LSTM":
        shapes["cell"] = shapes["state"]
        names.append("cell")
        if peephole:
            shapes["P"] = (directions, 3 * HIDDEN)
            names.append("P")
    values = {name: rng.standard_normal(shape).astype(np.float32) * 0.5 for name, shape in shapes.items()}
    if directions == 2:
        attributes["direction"] = "bidirectional"
    if layout:
        attributes["layout"] = 1
    steps, batch = (BATCH, STEPS) if layout else (STEPS, BATCH)
    order = [0, 1, 2, 3] if layout else [0, 2, 1, 3]
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["product"]),
        helper.make_node("Relu", ["product"], ["features"]),
        helper.make_node(op, names, ["Y", "Y_h"], hidden_size=HIDDEN, name="layer", **attributes),
        helper.make_node("Transpose", ["Y"], ["by_step"], perm=order),
        helper.make_node("Reshape", ["by_step", "merged"], ["joined"]),
        helper.make_node("MatMul", ["joined", "last"], ["y"]),
        helper.make_node("MatMul", ["Y_h", "last_state"], ["y_state"]),
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in values.items()]
    merged = np.array([steps, batch, directions * HIDDEN], np.int64)
    initializers.append(numpy_helper.from_array(merged, "merged"))
    graph = helper.make_graph(
        nodes,
        "recurrent",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [steps, batch, 4])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [steps, batch, OUTPUTS]),
            helper.make_tensor_value_info("y_state", TensorProto.FLOAT, [*shapes["state"][:2], OUTPUTS]),
        ],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def outputs(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    return list(ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x}))


CASES: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {}),
    ("LSTM", {"directions": 2}),
    ("LSTM", {"peephole": True}),
    ("LSTM", {"directions": 2, "peephole": True, "input_forget": 1}),
    ("GRU", {}),
    ("GRU", {"directions": 2, "linear_before_reset": 1}),
    ("GRU", {"direction": "reverse"}),
    ("RNN", {"directions": 2}),
    ("RNN", {"activations": ["Relu"]}),
]


@pytest.mark.parametrize(("op", "options"), CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_removing_hidden_units_equals_masking_them(op: str, options: dict[str, Any], seed: int) -> None:
    model = canonicalize(network(op, **options))
    coupling = couple(Graph(model))
    sizes = {group.name: len(group.units) for group in coupling.groups}
    assert sorted(sizes.values()) == [INPUTS, HIDDEN]
    rng = np.random.default_rng(seed)
    removed = np.zeros(coupling.units, dtype=np.bool_)
    for group in coupling.groups:
        removed[rng.choice(group.units, len(group.units) // 2, replace=False)] = True
    pruned, kept = remove(coupling, removed)
    onnx.checker.check_model(pruned, full_check=True)
    x = rng.standard_normal([d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]).astype(np.float32)
    for mine, expected, before in zip(
        outputs(pruned, x), outputs(masked(coupling, removed), x), outputs(model, x), strict=True
    ):
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-6)
        assert not np.allclose(mine, before, atol=1e-3)  # what was removed mattered
    shapes = {tensor.name: list(tensor.dims) for tensor in pruned.graph.initializer}
    directions = options.get("directions", 1)
    assert shapes["W"] == [directions, GATES[op] * HIDDEN // 2, INPUTS // 2]
    assert shapes["R"] == [directions, GATES[op] * HIDDEN // 2, HIDDEN // 2]
    assert shapes["B"] == [directions, GATES[op] * HIDDEN]
    assert shapes["state"] == [directions, BATCH, HIDDEN // 2]
    assert len(kept["R"][1]) == GATES[op] * HIDDEN // 2


def test_batch_first_layout_is_coupled_alike() -> None:
    """ONNX Runtime does not run layout 1, so the shapes are checked alone."""
    coupling = couple(Graph(canonicalize(network("LSTM", layout=1))))
    assert sorted(len(group.units) for group in coupling.groups) == [INPUTS, HIDDEN]
    removed = np.zeros(coupling.units, dtype=np.bool_)
    for group in coupling.groups:
        removed[group.units[::2]] = True
    pruned, _ = remove(coupling, removed)
    onnx.checker.check_model(pruned, full_check=True)
    assert {t.name: list(t.dims) for t in pruned.graph.initializer}["state"] == [BATCH, 1, HIDDEN // 2]


def test_a_state_that_is_a_graph_input_freezes_the_units() -> None:
    model = network("GRU")
    (state,) = [tensor for tensor in model.graph.initializer if tensor.name == "state"]
    model.graph.initializer.remove(state)
    model.graph.input.append(helper.make_tensor_value_info("state", TensorProto.FLOAT, [1, BATCH, HIDDEN]))
    coupling = couple(Graph(canonicalize(model)))
    assert [len(group.units) for group in coupling.groups] == [INPUTS]
    assert "graph input 'state' keeps its shape" in {declined.reason.text for declined in coupling.declined}


def test_computed_weights_freeze_the_node() -> None:
    model = network("RNN")
    (weight,) = [tensor for tensor in model.graph.initializer if tensor.name == "R"]
    model.graph.initializer.remove(weight)
    model.graph.input.append(helper.make_tensor_value_info("R", TensorProto.FLOAT, [1, HIDDEN, HIDDEN]))
    coupling = couple(Graph(canonicalize(model)))
    assert coupling.groups == ()
    assert "the weights of RNN are computed" in {declined.reason.text for declined in coupling.declined}
