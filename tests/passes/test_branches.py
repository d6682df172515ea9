"""A branch that is cut off leaves what it was added to: as if its last layer gave nothing."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graphprune.ir.coupling.walk import couple
from graphprune.ir.graph import Graph
from graphprune.passes.branches import Branch, cut, find_branches
from graphprune.passes.canonicalize import canonicalize
from tests.nets import Net
from tests.oracles import assert_close, feeds, run


def residual(*, normalised: bool = False, relu: bool = True, blocks: int = 2) -> onnx.ModelProto:
    """A stem, blocks of two convolutions and a sum, and a head."""
    net = Net()
    stream = net.relu(net.conv(net.input(["N", 3, 8, 8]), 8, 3))
    for _ in range(blocks):
        inner = net.conv(net.relu(net.conv(stream, 12, 3)), 8, 3, bias=not normalised)
        inner = net.batch_norm(inner) if normalised else inner
        stream = net.add(stream, inner)
        stream = net.relu(stream) if relu else stream
    return net.build(net.conv(stream, 4, 1))


def branches(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Branch]]:
    coupling = couple(Graph(canonicalize(model)))
    return coupling.graph.proto, find_branches(coupling)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)])
def test_what_is_left_equals_a_last_layer_of_zeros(*, normalised: bool, relu: bool, which: tuple[int, ...]) -> None:
    model, found = branches(residual(normalised=normalised, relu=relu))
    assert len(found) == 2
    silent, short = onnx.ModelProto(), onnx.ModelProto()
    silent.CopyFrom(model)
    short.CopyFrom(model)
    chosen = [found[index] for index in which]
    graph = Graph(model)
    for tensor in silent.graph.initializer:
        for branch in chosen:
            (add,) = (node for node in graph.nodes if node.outputs[0] == branch.total)
            last = graph.producer[next(name for name in add.inputs if name != branch.rest)]
            if tensor.name in last.inputs[1:3]:  # weight and bias; scale and shift of a normalisation
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(tuple(tensor.dims), np.float32), tensor.name))
    cut(short, chosen)
    onnx.checker.check_model(short, full_check=True)
    assert len(short.graph.node) < len(model.graph.node) - 3 * len(chosen)
    inputs = feeds(model)
    assert_close(run(silent, inputs), run(short, inputs))


def test_a_branch_names_its_group() -> None:
    coupling = couple(Graph(canonicalize(residual())))
    for branch in find_branches(coupling):
        assert (branch.weight, 1) in coupling.groups[branch.group].axes


def projected() -> onnx.ModelProto:
    """The shortcut is a convolution too."""
    net = Net()
    stem = net.relu(net.conv(net.input(["N", 3, 8, 8]), 8, 3))
    inner = net.conv(net.relu(net.conv(stem, 12, 3)), 16, 3)
    return net.build(net.conv(net.relu(net.add(net.conv(stem, 16, 1), inner)), 4, 1))


def shared() -> onnx.ModelProto:
    """What is inside the branch is read outside, too."""
    net = Net()
    stem = net.relu(net.conv(net.input(["N", 3, 8, 8]), 8, 3))
    hidden = net.relu(net.conv(stem, 12, 3))
    total = net.add(stem, net.conv(hidden, 8, 3))
    return net.build(net.conv(total, 4, 1), net.conv(hidden, 4, 1))


def final() -> onnx.ModelProto:
    """The sum is an output of the model."""
    net = Net()
    stem = net.relu(net.conv(net.input(["N", 3, 8, 8]), 8, 3))
    return net.build(net.add(stem, net.conv(net.relu(net.conv(stem, 12, 3)), 8, 3)))


def broadcast() -> onnx.ModelProto:
    """What the branch is added to is smaller than the sum."""
    net = Net()
    stem = net.relu(net.conv(net.input(["N", 3, 8, 8]), 8, 3))
    inner = net.conv(net.relu(net.conv(stem, 12, 3)), 8, 3)
    return net.build(net.conv(net.add(net.input([1, 8, 1, 1]), inner), 4, 1))


def test_a_shortcut_with_weights_stays_what_it_is() -> None:
    model, (branch,) = branches(projected())
    short = onnx.ModelProto()
    short.CopyFrom(model)
    cut(short, [branch])
    assert [node.op_type for node in short.graph.node] == ["Conv", "Relu", "Conv", "Relu", "Conv"]


@pytest.mark.parametrize("make", [shared, final, broadcast])
def test_others_are_no_branches(make: object) -> None:
    assert callable(make)
    assert branches(make())[1] == []
