"""Constants added to outputs, in the element type of the model."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from graphprune.ir.graph import Graph
from graphprune.ir.rewriting.bias import add_to_outputs
from tests.nets import Net
from tests.oracles import feeds, run


@pytest.mark.parametrize(
    ("op", "kind"),
    [
        ("Gemm", TensorProto.FLOAT),
        ("Gemm", TensorProto.FLOAT16),
        ("Gemm", TensorProto.DOUBLE),
        ("Conv", TensorProto.FLOAT),
        ("Conv", TensorProto.FLOAT16),
    ],
)
@pytest.mark.parametrize("computed", [False, True])
def test_a_new_bias_is_of_the_model_s_type(op: str, kind: int, computed: bool) -> None:
    net = Net(kind=kind)
    convolves = op == "Conv"
    data = net.input(["N", 3, 2, 2] if convolves else ["N", 3])
    weight = net.weight([4, 3, 1, 1] if convolves else [3, 4])
    if computed:
        weight = net.node("Neg", [weight])
    made = net.node(op, [data, weight], ["N", 4, 2, 2] if convolves else ["N", 4])
    model = net.build(made)
    inputs = feeds(model)
    before = run(model, inputs)[made]
    delta = np.array([0.5, -1.0, 2.0, 0.0])
    add_to_outputs(model, {made: delta})
    (bias,) = [t for t in model.graph.initializer if t.name == f"{made}_bias"]
    assert bias.data_type == kind
    assert numpy_helper.to_array(bias).tolist() == delta.tolist()
    expected = before + delta.reshape(-1, 1, 1) if convolves else before + delta
    np.testing.assert_allclose(run(model, inputs)[made].astype(np.float64), expected, rtol=1e-2, atol=1e-2)


def test_the_type_is_the_weight_s_where_that_of_the_output_is_not_known() -> None:
    net = Net(kind=TensorProto.FLOAT16)
    net.imports["my.own"] = 1
    active = net.node("Mystery", [net.input(["N", 3])], domain="my.own")
    made = net.node("Gemm", [active, net.node("Identity", [net.weight([3, 4])])], ["N", 4])
    model = net.build(net.node("Mystery", [made], domain="my.own"))
    assert made not in Graph(model).element_types
    add_to_outputs(model, {made: np.ones(4)})
    assert model.graph.initializer[-1].data_type == TensorProto.FLOAT16
