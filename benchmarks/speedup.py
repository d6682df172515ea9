"""What --speedup reaches: asked, predicted, measured, and against as many multiply-accumulates at other widths.

    python benchmarks/speedup.py [MODEL ...] [--speedup S] [--threads N] [--runs N]

Models are squeezenet11_imagenet, mobilenet_v2_imagenet and resnet20_cifar10 of ../shared/zoo, pruned with 256 of their
calibration samples; and vgg19 and resnet50, the topologies inside the onnx package, with random weights and plain
removal. "Unaligned" is the original with the same share of every group removed, whatever widths that leaves, at the
same multiply-accumulates; it and the result are timed against each other.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from graphprune import GraphPruneError, Recipe, prune
from graphprune.analysis import source_for
from graphprune.api import as_model
from graphprune.calib.calls import one_call
from graphprune.ir.cost import count_macs
from graphprune.ir.coupling.walk import couple
from graphprune.ir.graph import Graph
from graphprune.ir.surgery import remove
from graphprune.passes.canonicalize import canonicalize
from graphprune.passes.choice import queues
from graphprune.passes.criteria import score
from graphprune.passes.trim import by_fraction
from graphprune.verify.kernel_times import shapes_of
from graphprune.verify.latency import Latency, compare_latency
from tests.light import light

ZOO = Path(__file__).resolve().parents[2] / "shared" / "zoo"
IN_ZOO = ("squeezenet11_imagenet", "mobilenet_v2_imagenet", "resnet20_cifar10")
LIGHT = ("vgg19", "resnet50")
SAMPLES = 256
HEADINGS = (
    "model",
    "before, ms",
    "after, ms",
    "predicted",
    "measured",
    "95 % interval",
    "MACs before / after",
    "measured / MACs",
    "unaligned, ms",
    "result / unaligned",
    "95 % interval",
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what --speedup reaches.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(IN_ZOO + LIGHT)}; default all")
    parser.add_argument("--speedup", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=50)
    given = parser.parse_args()
    there = IN_ZOO if ZOO.is_dir() else ()
    print("| " + " | ".join(HEADINGS) + " |\n" + "| --- " * len(HEADINGS) + "|", flush=True)
    for name in given.models or (*there, *LIGHT):
        try:
            cells = row(name, given.speedup, given.threads, given.runs)
        except GraphPruneError as error:
            cells = [str(error).splitlines()[0]]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def row(name: str, speedup: float, threads: int, runs: int) -> list[str]:
    """Prune one model, time it, and return its cells."""
    with tempfile.TemporaryDirectory() as folder:
        if name in LIGHT:
            model, calib, plain = light(name, narrow={}), None, {"recover": False, "criterion": "l1"}
        else:
            model, calib, plain = onnx.load(str(ZOO / "models" / f"{name}.onnx")), samples(name, Path(folder)), {}
        pruned, ledger = prune(model, Recipe(speedup=speedup, threads=threads, runs=runs, **plain), calib)
    assert ledger.speed is not None
    feeds = one_call(source_for(as_model(model), Recipe(target=0.0), None))
    other = unaligned(model, ledger.macs.after, shapes_of(feeds))
    against = compare_latency(other, pruned, feeds, threads=threads, runs=runs)
    latency, less = ledger.latency, ledger.macs.before / ledger.macs.after
    return [
        f"{latency.before_ms:.3f}",
        f"{latency.after_ms:.3f}",
        f"{ledger.speed.predicted:.3f}",
        f"{1 / latency.ratio:.3f}",
        interval(latency, inverse=True),
        f"{less:.3f}",
        f"{1 / latency.ratio / less:.3f}",
        f"{against.before_ms:.3f}",
        f"{against.ratio:.3f}",
        interval(against),
    ]


def interval(latency: Latency, *, inverse: bool = False) -> str:
    low, high = latency.ratio_ci
    return f"[{1 / high:.3f}, {1 / low:.3f}]" if inverse else f"[{low:.3f}, {high:.3f}]"


def samples(name: str, folder: Path) -> Path:
    """Write calibration inputs of a model of the zoo."""
    path = folder / "calib.npz"
    command = [sys.executable, str(ZOO / "zoo.py"), "calib", name, "-n", str(SAMPLES), "-o", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


def unaligned(model: onnx.ModelProto, macs: int, shapes: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    """Return the model without the smallest share of every group that leaves at most so many multiply-accumulates."""
    coupling = couple(Graph(canonicalize(as_model(model).proto)))
    order = queues(coupling, score(coupling, {}, "l1"))

    def without(fraction: float) -> onnx.ModelProto:
        return remove(coupling, by_fraction(coupling, order, fraction))[0]

    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (low, middle) if count_macs(without(middle), shapes) <= macs else (middle, high)
    return without(high)


if __name__ == "__main__":
    main()
