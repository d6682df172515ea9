"""Settings and paths that all tests share."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ZOO = Path(__file__).resolve().parents[1] / ".." / "shared" / "zoo"

# Test processes side by side share the cores: threads of NumPy and torch, one for each core in each of them, wait for
# one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    for library in ("OPENBLAS", "OMP"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")

# The same examples on every machine and in every run; how long one takes depends on the machine alone.
settings.register_profile(
    "graphprune", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("graphprune")

# A shell starts jobs in the background with Ctrl-C ignored, and so would every program that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep measured times out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def zoo() -> Path:
    """The folder of real models and data; the test is skipped where it is absent."""
    if not (ZOO / "zoo.py").is_file():
        pytest.skip("needs the real models and data in ../shared/zoo, which are not part of the repository")
    return ZOO


def pytest_collection_finish() -> None:
    """Let the collector pass over all that the tests are made of, which it would look through each time it runs."""
    gc.collect()
    gc.freeze()
