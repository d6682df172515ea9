"""ScatterND: a slice assignment ties what is written to where it is written; anything else is frozen."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from tests.nets import Net
from tests.oracles import assert_exact, coupled, reasons, units_on


def grid(*places: list[int]) -> Any:
    return np.stack(np.meshgrid(*places, indexing="ij"), axis=-1).astype(np.int64)


def written(indices: Any, shape: list[int], **attributes: Any) -> onnx.ModelProto:
    """What two convolutions make of the data, a part of the first written over by the second."""
    net = Net()
    data = net.relu(net.conv(net.input([1, 3, 6], "x"), 8))
    updates = net.relu(net.conv(net.input([1, 3, shape[2]], "new"), shape[1]))
    both = net.node("ScatterND", [data, net.initializer(indices), updates], [1, 8, 6], **attributes)
    return net.build(net.conv(both, 2))


@pytest.mark.parametrize(
    ("places", "shape"),
    [
        (([0], list(range(8)), [2, 3]), [1, 8, 2]),  # a cache's columns: all channels
        (([0], [5, 1, -2], list(range(6))), [1, 3, 6]),  # some channels, in any order
        (([0], list(range(8))), [1, 8, 6]),  # the last axis not indexed
    ],
)
def test_an_update_goes_with_the_position_it_is_written_over(places: Any, shape: list[int]) -> None:
    coupling = assert_exact(written(grid(*places), shape))
    data, updates = units_on(coupling, "w_0", 0), units_on(coupling, "w_1", 0)
    assert updates == [data[place] for place in places[1]]
    assert len(set(data)) == 8


def test_a_single_position_written_over_stays() -> None:
    coupling = assert_exact(written(grid([0], [3], list(range(6))), [1, 1, 6]))
    data = units_on(coupling, "w_0", 0)
    assert data[3] == -1
    assert len(set(data)) == 8


def test_a_sum_is_tied_the_same_way() -> None:
    assert_exact(written(grid([0], list(range(8)), [2, 3]), [1, 8, 2], reduction="add"))


@pytest.mark.parametrize(
    "indices",
    [
        np.stack([np.zeros((1, 2, 6), np.int64), np.broadcast_to([[1], [1]], (1, 2, 6)), np.indices((1, 2, 6))[2]], -1),
        np.stack(
            [np.zeros((1, 2, 6), np.int64), (np.indices((1, 2, 6))[1:].sum(axis=0)) % 8, np.indices((1, 2, 6))[2]], -1
        ),
    ],
    ids=["twice the same", "a slant"],
)
def test_indices_that_are_no_rectangle_freeze_it(indices: Any) -> None:
    coupling = coupled(written(indices, [1, 2, 6]))
    assert "the indices of ScatterND are computed, or no rectangle" in reasons(coupling)["w_0", 0]


def test_computed_indices_freeze_it() -> None:
    net = Net()
    data = net.relu(net.conv(net.input([1, 3, 6], "x"), 8))
    places = net.node("Cast", [net.input([1, 8, 2, 3], "places")], kind=onnx.TensorProto.INT64, to=7)
    both = net.node("ScatterND", [data, places, net.input([1, 8, 2], "new")], [1, 8, 6])
    assert "indices of ScatterND are computed" in reasons(coupled(net.build(net.conv(both, 2))))["w_0", 0]
