"""Shapes known from what reads a tensor."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from onnx import TensorProto

from graphprune.ir.graph import Graph
from graphprune.ir.shapes.readers import demanded_shapes
from tests.nets import Net


def transposed(net: Net, data: str) -> str:
    return net.node("ConvTranspose", [data, net.weight([6, 2, 3, 3])], ["N", 4, 6, 6], group=2)


@pytest.mark.parametrize(
    ("reader", "shape"),
    [
        (lambda net, data: net.conv(data, 4, 3), (None, 6, None, None)),
        (lambda net, data: net.conv(data, 4, 3, group=2), (None, 6, None, None)),
        (lambda net, data: net.depthwise(data), (None, 6, None, None)),
        (transposed, (None, 6, None, None)),
    ],
    ids=["Conv", "grouped", "depthwise", "ConvTranspose"],
)
def test_convolutions(reader: Callable[[Net, str], str], shape: tuple[int | None, ...]) -> None:
    assert behind_a_mystery([2, 6, 4, 4], reader) == shape


@pytest.mark.parametrize(
    ("weight", "attributes", "shape"),
    [
        ([6, 4], {}, (None, 6)),
        ([4, 6], {"transB": 1}, (None, 6)),
        ([6, 4], {"transA": 1}, (6, None)),
        ([4, 6], {"transA": 1, "transB": 1}, (6, None)),
    ],
)
def test_matrix_products(weight: list[int], attributes: dict[str, int], shape: tuple[int | None, ...]) -> None:
    def reader(net: Net, data: str) -> str:
        return net.node("Gemm", [data, net.weight(weight)], [6, 4], **attributes)

    assert behind_a_mystery([6, 6], reader) == shape


def behind_a_mystery(
    extents: list[int | str], reader: Callable[[Net, str], str]
) -> tuple[int | str | None, ...] | None:
    """Shape found of what an operator makes that ONNX does not know."""
    net = Net()
    net.imports["my.own"] = 1
    made = net.node("Mystery", [net.input(extents)], domain="my.own")
    return Graph(net.build(reader(net, made))).shape(made)


def test_only_the_activation_is_told_of_and_only_by_onnx_s_own_operators() -> None:
    net = Net()
    net.imports["my.own"] = 1
    first = net.conv(net.input(["N", 3, 4, 4]), 6)
    net.node("Conv", [first, net.weight([2, 6, 3, 3])], domain="my.own")
    graph = onnx.GraphProto(node=net.nodes, initializer=net.initializers)
    (found,) = demanded_shapes(graph, graph.node).values()
    assert (found.name, found.type.tensor_type.elem_type) == ("x_0", TensorProto.FLOAT)


def test_what_is_known_counts_more_than_what_is_demanded() -> None:
    net = Net()
    hidden = net.relu(net.conv(net.input([2, 3, 4, 4]), 6))
    assert Graph(net.build(net.conv(hidden, 2))).shape(hidden) == (2, 6, 4, 4)
