"""Kernels are told apart by what they do, measured once, and read from disk after that."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from graphprune.ir.graph import Graph
from graphprune.verify.cache import cache_path, read_times, write_times
from graphprune.verify.kernel_times import Kernel, KernelTimes, kernels_of, shapes_of
from tests.nets import Net
from tests.oracles import feeds


def network() -> onnx.ModelProto:
    """Two convolutions that are the same, one that is not, and a dense layer."""
    net = Net()
    data = net.conv(net.input([1, 32, 24, 24]), 32, 3)
    data = net.relu(net.conv(net.relu(data), 32, 3))
    return net.build(net.gemm(net.flatten(net.relu(net.conv(data, 4, 1))), 10))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def kernels(model: onnx.ModelProto) -> list[Kernel]:
    return kernels_of(Graph(model, shapes_of(feeds(model, batch=1))))


def test_nodes_with_weights_are_kernels_and_alike_ones_have_one_key() -> None:
    found = kernels(network())
    assert [kernel.node.op_type for kernel in found] == ["Conv", "Conv", "Conv", "Gemm"]
    keys = [kernel.key for kernel in found]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_times_are_measured_once_and_kept(cache: Path) -> None:
    first = KernelTimes(1)
    found = kernels(network())
    times = first.of(found)
    assert all(time > 0 for time in times)
    assert times[0] == times[1]
    assert times[0] > times[2], "72 times as many multiply-accumulates"
    assert [path.parent.parent for path in (first.path,)] == [cache]
    assert KernelTimes(1).known == {kernel.key: time for kernel, time in zip(found, times, strict=True)}
    assert KernelTimes(2).known == {}


def test_what_is_known_is_not_measured(cache: Path) -> None:
    found = kernels(network())
    write_times(KernelTimes(1).path, {kernel.key: 3.0 for kernel in found})
    assert KernelTimes(1).of(found) == [3.0] * 4
    assert list(cache.rglob("*.json")) == [KernelTimes(1).path]


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a": "b"}', '{"a": null}'])
def test_a_broken_cache_counts_as_empty(cache: Path, text: str) -> None:
    path = cache_path("kernels", "x")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert read_times(path) == {}
    write_times(path, {"a": 1.0})
    assert read_times(path) == {"a": 1.0}


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    times = KernelTimes(1)
    assert all(time > 0 for time in times.of(kernels(network())[2:]))
    assert not times.path.exists()


def test_convolutions_take_most_of_the_time(cache: Path) -> None:
    model = network()
    assert 0.5 < KernelTimes(1).share(model, feeds(model, batch=1)) <= 1


def test_of_a_model_without_weights_they_take_none(cache: Path) -> None:
    net = Net()
    model = net.build(net.relu(net.input([1, 8])))
    assert KernelTimes(1).share(model, feeds(model, batch=1)) == 0
