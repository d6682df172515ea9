"""Two processes that train one model: the user's function runs in both, and both end up with the same zeros."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from graphprune import RecipeError  # noqa: E402
from graphprune.ranks import Channel  # noqa: E402
from tests import small  # noqa: E402
from tests.commands import BY_RULE_OPTIONS, QUICK  # noqa: E402
from tests.oracles import values  # noqa: E402

TRAINING = """
import os

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel


def train(module):
    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    parallel = DistributedDataParallel(module)
    optimizer = torch.optim.Adam(parallel.parameters(), lr=0.01, weight_decay=0.01)
    torch.manual_seed(rank)  # every process has data of its own
    for _ in range(5):
        optimizer.zero_grad()
        parallel(torch.randn(8, 2, 6, 6)).square().mean().backward()
        optimizer.step()
    torch.save(module.state_dict(), f"weights_{rank}.pt")
"""


def torchrun(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(here), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, "-m", "graphprune", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=100,
    )


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch cannot run in several processes")
def test_a_training_function_runs_under_torchrun_unchanged(tmp_path: Path) -> None:
    (tmp_path / "parallel_training.py").write_text(TRAINING)
    path, data = small.write(tmp_path, samples=64)
    asked = ("--target", "0.7", "--finetune", "parallel_training:train", "--rounds", "2")
    found = torchrun(tmp_path, path, "--calib", data, *asked, *BY_RULE_OPTIONS, *QUICK)
    assert found.returncode == 0, found.stderr
    assert found.stderr.count("zeroed") == found.stderr.count("wrote") == 1, "one process reports"
    ledger = json.loads((tmp_path / "net.pruned.json").read_text())
    assert len(ledger["rounds"]) == 2
    first, second = (torch.load(tmp_path / f"weights_{rank}.pt") for rank in range(2))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    pruned = values(onnx.load(tmp_path / "net.pruned.onnx"))
    for name, count in ledger["zeroed"].items():
        assert np.count_nonzero(pruned[name] == 0) >= count


def test_processes_of_another_kind_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    with pytest.raises(RecipeError, match="torchrun"):
        Channel()
