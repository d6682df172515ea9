"""Picks by rank: candidates that are all but equal may change places, and nothing else may change."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from graphprune.errors import EquivalenceError
from graphprune.ir.surgery import remove
from graphprune.passes.canonicalize import canonicalize
from graphprune.verify.equivalence import check_equivalence
from graphprune.verify.masking import masked
from graphprune.verify.picks import with_same_picks
from tests.measure import editable, replaced
from tests.nets import Net
from tests.oracles import coupled, feeds, random_removal, run


def detector(op: str) -> onnx.ModelProto:
    """Scores of four candidates, all the same, and what the best of them are."""
    net = Net(13)
    hidden = net.relu(net.gemm(net.input([6, 3]), 8))
    row = net.random.normal(size=(1, 8))
    scores = net.node("Gemm", [hidden, net.initializer(np.repeat(row, 4, 0), "scores")], [6, 4], transB=1)
    if op == "TopK":
        count = net.constant(np.array([2]))
        _, places = net.nodes_of("TopK", [scores, count], [[6, 2], [6, 2]], axis=1)
    else:
        places = net.node(op, [scores], [6, 1], axis=1)
    net.kinds[places] = TensorProto.INT64
    net.output(places)
    boxes = net.node("GatherElements", [net.gemm(hidden, 4), places], net.shapes[places], axis=1)
    return net.build(net.gemm(boxes, 2), places)


@pytest.mark.parametrize("op", ["TopK", "ArgMax", "ArgMin"])
def test_other_picks_by_rounding_are_no_other_function(op: str) -> None:
    model = detector(op)
    coupling, inputs = coupled(model), feeds(model)
    removed = random_removal(coupling, 0.5, 0)
    pruned, _ = remove(coupling, removed)
    arrays = editable(pruned)
    arrays["scores"][2] *= 1 + 3e-6 * (1 if op != "ArgMin" else -1)
    rounded = replaced(pruned, **arrays)
    one, other = run(pruned, inputs), run(rounded, inputs)
    assert any(not np.allclose(one[name], other[name], rtol=1e-2) for name in one)
    assert check_equivalence(coupling, removed, rounded, inputs).relative_l2 < 1e-5
    for name in ("scores", "w_1", "w_2"):
        arrays = editable(pruned)
        arrays[name][:] *= 1.01
        with pytest.raises(EquivalenceError, match="masked original"):
            check_equivalence(coupling, removed, replaced(pruned, **arrays), inputs)


def test_picks_among_positions_that_go_are_left_to_each_model() -> None:
    net = Net(13)
    hidden = net.relu(net.gemm(net.input([4, 3]), 8))
    best = net.nodes_of("TopK", [hidden, net.constant(np.array([2]))], [[2, 8], [2, 8]], axis=0)[0]
    model = canonicalize(net.build(net.gemm(best, 2)))
    coupling, inputs = coupled(model), feeds(model)
    removed = random_removal(coupling, 0.5, 0)
    pruned, _ = remove(coupling, removed)
    original = masked(coupling, removed)
    same = with_same_picks(original, pruned, coupling, removed, inputs)
    assert same.before is original
    assert same.after is pruned
    assert same.picks == {}
    assert check_equivalence(coupling, removed, pruned, inputs).relative_l2 < 1e-5
