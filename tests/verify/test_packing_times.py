"""Times of products: measured once, kept on disk, and never trusted where the file is broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphprune.ir.graph import Graph
from graphprune.ir.packing import Site, find_sites
from graphprune.verify import packing_times
from graphprune.verify.cache import cache_path, read_times, write_times
from graphprune.verify.packing_times import PackingTimes
from tests.nets import Net
from tests.oracles import feeds

Where = tuple[Graph, Site]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(packing_times, "RUNS", 2)
    monkeypatch.setattr(packing_times, "SECONDS", 0.01)


def place(outputs: int = 48, batch: int = 2, kind: str = "gemm") -> Where:
    net = Net()
    if kind == "gemm":
        model = net.build(net.relu(net.gemm(net.relu(net.input(["N", 128])), outputs)))
    else:
        model = net.build(net.conv(net.relu(net.input(["N", 128, 3, 3])), outputs, 1))
    graph = Graph(model, {name: value.shape for name, value in feeds(model, batch=batch).items()})
    (site,) = find_sites(graph).values()
    return graph, site


@pytest.mark.parametrize("kind", ["gemm", "conv"])
def test_both_are_measured_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where = place(kind=kind)
    times = PackingTimes({}, threads=1)
    found = times.of(*where, 3, 12)
    assert len(found) == 2
    assert min(found) > 0
    monkeypatch.delattr(packing_times, "Bench")
    assert times.of(*where, 3, 12) == found
    assert PackingTimes({}, threads=1).of(*where, 3, 12) == found  # from the file
    with pytest.raises(NameError):
        PackingTimes({}, threads=2).of(*where, 3, 12)


def test_what_counts_is_shape_batch_groups_and_about_how_many_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def measure(_: PackingTimes, __: Graph, ___: Site, groups: int, count: int) -> tuple[float, float]:
        asked.append(count)
        return float(len(asked)), groups

    monkeypatch.setattr(PackingTimes, "_measure", measure)
    times = PackingTimes({}, threads=1)
    first = times.of(*place(), 3, 11)
    assert times.of(*place(), 3, 12) == first == (1.0, 3.0)
    assert asked == [12]  # a multiple of 128 / 64, and never fewer than asked for
    for where, groups, count in [(place(), 3, 13), (place(), 4, 12), (place(50), 3, 12), (place(batch=3), 3, 12)]:
        assert times.of(*where, groups, count) != first
    assert len(asked) == 5


def test_a_file_that_is_missing_or_broken_counts_for_nothing() -> None:
    path = cache_path("packing", "test")
    assert read_times(path) == {}
    write_times(path, {"a": 1.5})
    assert read_times(path) == {"a": 1.5}
    assert [other.name for other in path.parent.iterdir()] == [path.name]  # no draft is left
    for text in ("", "{", "[1]", '{"a": "b"}', '{"a": null}', "\udcff"):
        path.write_bytes(text.encode(errors="surrogateescape"))
        assert read_times(path) == {}


def test_times_are_kept_in_memory_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    times = PackingTimes({"x": np.zeros(1)}, threads=1)
    found = times.of(*place(), 3, 12)
    assert times.of(*place(), 3, 12) == found
    assert not times.path.exists()


def test_the_file_is_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_path("packing").parent == tmp_path / "graphprune"
    assert cache_path("packing", "1threads") != cache_path("packing", "2threads")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_path("packing").parent == tmp_path / "home" / ".cache" / "graphprune"
