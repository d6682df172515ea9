"""Shapes of ONNX Runtime's own operators, against those that it computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphprune.ir.graph import Graph
from graphprune.ir.shapes.inference import skeleton
from graphprune.ir.shapes.stand_ins import STAND_INS, with_stand_ins
from tests.nets import Net
from tests.oracles import feeds, run

Build = Callable[[Net], None]


def own(net: Net, op: str, names: list[str], outputs: int = 1, domain: str = "com.microsoft", **more: object) -> None:
    """A node whose outputs, of shapes that nobody is told, are all read again."""
    net.imports[domain] = net.imports.get(domain, 1)
    made = net.nodes_of(op, names, [[]] * outputs, domain=domain, kind=TensorProto.FLOAT, **more)
    for name in made:
        net.output(net.node("Identity", [name]))


def heads(net: Net, *widths: int) -> list[str]:
    return [net.input([2, 5, width]) for width in widths]


def embedding(net: Net) -> None:
    words = net.constant(np.array([[0, 1, 2]] * 2, np.int32), "words")
    tables = [net.weight([extent, 6]) for extent in (4, 3)]
    own(net, "EmbedLayerNormalization", [words, "", *tables, "", net.vector(6), net.vector(6)], 2)
    net.outputs.pop()  # an index of the mask, of integers
    net.nodes.pop()


def group_query(net: Net) -> None:
    numbers = [net.initializer(np.array([4, 4], np.int32)), net.initializer(np.int32(5))]
    names = [*heads(net, 64, 32, 32), "", "", *numbers]
    own(net, "GroupQueryAttention", names, num_heads=4, kv_num_heads=2)


CASES: dict[tuple[str, str], list[Build]] = {
    ("", "GroupNormalization"): [
        lambda net: own(
            net, "GroupNormalization", [net.input(["N", 6, 3]), net.vector(6), net.vector(6)], domain="", num_groups=2
        )
    ],
    ("com.microsoft", "Attention"): [
        lambda net: own(net, "Attention", [*heads(net, 7), net.weight([7, 72]), net.vector(72)], num_heads=4),
        lambda net: own(
            net, "Attention", [*heads(net, 7), net.weight([7, 60]), net.vector(60)], num_heads=4,
            qkv_hidden_sizes=[24, 24, 12],
        ),
    ],
    ("com.microsoft", "BiasGelu"): [lambda net: own(net, "BiasGelu", [*heads(net, 6), net.vector(6)])],
    ("com.microsoft", "EmbedLayerNormalization"): [embedding],
    ("com.microsoft", "FastGelu"): [lambda net: own(net, "FastGelu", heads(net, 6))],
    ("com.microsoft", "FusedConv"): [
        lambda net: own(
            net, "FusedConv", [net.input([2, 3, 6, 6]), net.weight([4, 3, 3, 3])], strides=[2, 2], kernel_shape=[3, 3],
            activation="LeakyRelu", activation_params=[0.1],
        )
    ],
    ("com.microsoft", "FusedGemm"): [
        lambda net: own(
            net, "FusedGemm", [net.input([5, 2]), net.weight([4, 5])], transA=1, transB=1, activation="Relu"
        )
    ],
    ("com.microsoft", "FusedMatMul"): [
        lambda net: own(net, "FusedMatMul", [*heads(net, 6), net.weight([7, 6])], transB=1),
        lambda net: own(net, "FusedMatMul", heads(net, 6, 7), transA=1),
        lambda net: own(net, "FusedMatMul", [net.weight([4, 6]), net.weight([6, 7])], alpha=0.5),
    ],
    ("com.microsoft", "Gelu"): [lambda net: own(net, "Gelu", heads(net, 6))],
    ("com.microsoft", "GroupQueryAttention"): [group_query],
    ("com.microsoft", "MultiHeadAttention"): [
        lambda net: own(net, "MultiHeadAttention", heads(net, 24, 24, 12), num_heads=4)
    ],
    ("com.microsoft", "QuickGelu"): [lambda net: own(net, "QuickGelu", heads(net, 6))],
    ("com.microsoft", "RotaryEmbedding"): [
        lambda net: own(
            net, "RotaryEmbedding",
            [*heads(net, 24), net.initializer(np.array([0])), net.weight([5, 3]), net.weight([5, 3])],
        )
    ],
    ("com.microsoft", "SkipLayerNormalization"): [
        lambda net: own(net, "SkipLayerNormalization", [*heads(net, 6, 6), net.vector(6), net.vector(6)])
    ],
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): [
        lambda net: own(net, "SkipSimplifiedLayerNormalization", [*heads(net, 6, 6), net.vector(6)])
    ],
}  # fmt: skip


def built(build: Build) -> onnx.ModelProto:
    """The model, whose outputs are told no shape."""
    net = Net(21)
    build(net)
    graph = helper.make_graph(
        net.nodes,
        "net",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, net.shapes[name]) for name in net.inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in net.outputs],
        net.initializers,
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in net.imports.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


QUANTISED = ("QLinear", "QGemm", "DynamicQuantize", "MatMulInteger")
"""Beginnings of the names of operators that tests/ir/rules/test_quantization.py runs."""


def test_every_stand_in_is_tried() -> None:
    assert set(CASES) == {key for key in STAND_INS if not key[1].startswith(QUANTISED)}


@pytest.mark.parametrize("key", CASES, ids="-".join)
def test_shapes_are_those_that_onnx_runtime_computes(key: tuple[str, str]) -> None:
    for build in CASES[key]:
        model = built(build)
        for name, value in run(model, feeds(model)).items():
            found = Graph(model).shape(name)
            assert found is not None, name
            assert tuple(2 if extent == "N" else extent for extent in found) == value.shape


def test_a_model_without_them_is_left_as_it_is() -> None:
    net = Net()
    bare = skeleton(net.build(net.relu(net.input([2, 3]))))
    assert with_stand_ins(bare) is bare


def test_a_local_function_of_the_same_name_is_no_operator_of_onnx_runtime() -> None:
    model = built(lambda net: own(net, "Gelu", [net.input([2, 3])]))
    body = [helper.make_node("ReduceSum", ["a"], ["b"], keepdims=0)]
    model.functions.append(
        helper.make_function("com.microsoft", "Gelu", ["a"], ["b"], body, [helper.make_opsetid("", 21)])
    )
    assert Graph(model).shape("identity_0") == ()
