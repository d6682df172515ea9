"""Whether a model comes out slower with exit code 0: the command on every model of ../shared/zoo, timed once more.

    python benchmarks/zoo.py [MODEL ...] [--samples N] [--runs N]

Every model is pruned at --target 0.5, --target 0.9 and --channels 0.25, with calibration samples of the zoo, in a
process of its own. The file written is then timed against the original again, with more runs than the command makes.
"slower!" marks a file that this second timing proves to be slower although the command's exit code was 0.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from graphprune import Recipe
from graphprune.analysis import source_for
from graphprune.api import as_model
from graphprune.calib.calls import one_call
from graphprune.verify.latency import compare_latency

ZOO = Path(__file__).resolve().parents[2] / "shared" / "zoo"
SETTINGS = (("--target", "0.5"), ("--target", "0.9"), ("--channels", "0.25"))
HEADINGS = ("model", "setting", "exit code", "seconds", "latency", "again", "95 % interval", "verdict")


def main() -> None:
    parser = argparse.ArgumentParser(description="Look for models that come out slower with exit code 0.")
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--runs", type=int, default=200)
    given = parser.parse_args()
    if not ZOO.is_dir():
        raise SystemExit(f"no zoo at {ZOO}: the models and data of this benchmark are not in the project")
    print("| " + " | ".join(HEADINGS) + " |\n" + "| --- " * len(HEADINGS) + "|", flush=True)
    for name in given.models or sorted(path.stem for path in (ZOO / "models").glob("*.onnx")):
        with tempfile.TemporaryDirectory() as folder:
            samples = Path(folder) / "calib.npz"
            zoo = [sys.executable, str(ZOO / "zoo.py"), "calib", name, "-n", str(given.samples), "-o", str(samples)]
            subprocess.run(zoo, check=True, capture_output=True)
            for setting in SETTINGS:
                cells = row(ZOO / "models" / f"{name}.onnx", setting, samples, given.runs)
                print(f"| {name} | {' '.join(setting)} | " + " | ".join(cells) + " |", flush=True)


def row(path: Path, setting: tuple[str, ...], samples: Path, runs: int) -> list[str]:
    """Run the command once, time what it wrote, and return the cells."""
    out = samples.parent / "out.onnx"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "graphprune", str(path), *setting, "--calib", str(samples), "-o", str(out)]
    start = time.perf_counter()
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if not out.exists():
        why = done.stderr.strip().splitlines()
        return [str(done.returncode), f"{seconds:.0f}", "", "", "", why[0] if why else ""]
    ledger = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    inputs = one_call(source_for(as_model(path), Recipe(target=0.0), samples))
    again = compare_latency(path, out, inputs, runs=runs, budget_seconds=30)
    low, high = again.ratio_ci
    verdict = f"{again.verdict}!" if again.verdict == "slower" and done.returncode == 0 else again.verdict
    ratio = ledger["latency"]["ratio"]
    return [
        str(done.returncode),
        f"{seconds:.0f}",
        f"{ratio:.3f}",
        f"{again.ratio:.3f}",
        f"[{low:.3f}, {high:.3f}]",
        verdict,
    ]


if __name__ == "__main__":
    main()
