"""Several processes: the same training function under torchrun, and the same zeros in all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

torch = pytest.importorskip("torch")

from graphprune.finetune import to_torch  # noqa: E402
from tests import small  # noqa: E402
from tests.finetune.training import data, train  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What two processes have in the end, over gloo on this machine."""
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("this build of torch has no torch.distributed with gloo")
    folder = tmp_path_factory.mktemp("processes")
    onnx.save(small.network(), folder / "net.onnx")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    program = [str(ROOT / "tests" / "finetune" / "training.py"), str(folder)]
    done = subprocess.run(
        [*launcher, *program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_masks_and_weights_are_the_same_in_every_process(results):
    first, second = results
    assert_equal(first["zeros"], second["zeros"])
    assert first["sparsity"] == second["sparsity"] == pytest.approx(0.8, abs=1e-3)
    assert_equal(first["weights"], second["weights"])
    for name, zeros in first["zeros"].items():
        assert (first["weights"][name].view(torch.int32)[zeros] == 0).all()


def test_the_training_function_is_the_one_of_a_single_process(results):
    pruner = train(to_torch(small.network()), data())
    assert pruner.sparsity == results[0]["sparsity"]
    assert pruner.masks.zeros.keys() == results[0]["zeros"].keys()


def test_masks_are_the_first_process_s_where_weights_have_drifted_apart(results):
    first, second = results
    assert_equal(first["apart"], second["apart"])
    for name, zeros in first["apart"].items():
        weights = [result["differ"][name] for result in results]
        assert all((weight.view(torch.int32)[zeros] == 0).all() for weight in weights)
        assert (weights[0][~zeros] != weights[1][~zeros]).all()


def test_rounds_keep_the_same_shapes_in_every_process(results):
    first, second = (result["rounds"] for result in results)
    sizes = [sum(value.numel() for value in found.values()) for found in first]
    assert sizes[0] > sizes[1] > sizes[2]
    for one, other in zip(first, second, strict=True):
        assert_equal(one, other)
