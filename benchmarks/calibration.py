"""Time and memory of pruning: calibration against plain inference, every pass, peak memory.

    python benchmarks/calibration.py [MODEL.onnx CALIB.npz] [--threads N] [--rounds N] [--batch N]

By default mobilenet_v2_imagenet with 256 samples from ../shared/zoo, where that is present. Calibration and plain ONNX
Runtime inference run on the same samples in the same batches, in turns; the ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from graphprune.api import as_model
from graphprune.calib.run import BATCH_SIZE, calibrate, probes_for
from graphprune.calib.sources import input_specs, open_source
from graphprune.ir.coupling.walk import couple
from graphprune.ir.graph import Graph
from graphprune.ir.session import open_session, run_session
from graphprune.passes.canonicalize import canonicalize

ZOO = Path(__file__).resolve().parents[2] / "shared" / "zoo"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure calibration and passes.")
    parser.add_argument("model", nargs="?")
    parser.add_argument("calibration", nargs="?")
    parser.add_argument("--threads", type=int, default=0, help="0 for all cores")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=BATCH_SIZE)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.model is None:
            model = str(ZOO / "models" / "mobilenet_v2_imagenet.onnx")
            calibration = str(Path(folder) / "calib.npz")
            command = [sys.executable, str(ZOO / "zoo.py"), "calib", "mobilenet_v2_imagenet", "-n", "256"]
            subprocess.run([*command, "-o", calibration], check=True, stdout=subprocess.DEVNULL)
        else:
            model, calibration = arguments.model, arguments.calibration
        calibration_cost(model, calibration, arguments.threads, arguments.rounds, arguments.batch)
        passes(model, calibration, folder)


def calibration_cost(model: str, calibration: str | None, threads: int, rounds: int, batch: int) -> None:
    original = as_model(model)
    coupling = couple(Graph(canonicalize(original.proto)))
    probes = probes_for(coupling)
    source = open_source(calibration, input_specs(original.proto))

    def plain() -> float:
        """Open a session and run the samples, as `calibrate` does."""
        start = time.perf_counter()
        session = open_session(model, threads=threads)
        for feeds in source.batches(batch):
            run_session(session, feeds)
        return time.perf_counter() - start

    def measured() -> float:
        start = time.perf_counter()
        calibrate(coupling.graph, probes, source, batch_size=batch, threads=threads)
        return time.perf_counter() - start

    plain(), measured()  # the first of each warms caches up
    rows = np.array([(plain(), measured()) for _ in range(rounds)])
    ratios = rows[:, 1] / rows[:, 0]
    print(f"{Path(model).name}: {source.samples} samples in batches of {batch}, {len(probes)} probes, {rounds} rounds")
    print(
        f"  plain inference {np.median(rows[:, 0]):.3f} s, calibration {np.median(rows[:, 1]):.3f} s, sessions included"
    )
    print(f"  ratio: median {np.median(ratios):.3f}, from {ratios.min():.3f} to {ratios.max():.3f}")


def passes(model: str, calibration: str | None, folder: str) -> None:
    output = Path(folder) / "pruned.onnx"
    arguments = [model, "--channels", "0.5", "-q", "-o", str(output)]
    if calibration:
        arguments += ["--calib", calibration]
    peak, idle = _peak(arguments), _peak(["--version"])
    ledger = json.loads(output.with_suffix(".json").read_text())
    print("seconds by pass (graphprune --channels 0.5):")
    for name, seconds in ledger["seconds"].items():
        print(f"  {name:14s} {seconds:8.3f}")
    size = Path(model).stat().st_size / 1e6
    print(f"peak memory {peak:.0f} MB for a model of {size:.1f} MB: {peak / size:.1f} x")
    rest = (peak - idle) / size
    print(f"  {idle:.0f} MB of it are Python and the imported packages; the rest is {rest:.1f} x the model")


def _peak(arguments: list[str]) -> float:
    """Peak memory of a run of the command, in megabytes (Linux: VmHWM of its own process)."""
    code = (
        "import sys, atexit\n"
        "def show():\n"
        "    print([l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')][0])\n"
        "atexit.register(show)\n"
        "from graphprune.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
