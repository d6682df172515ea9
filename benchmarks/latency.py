"""How often latency verdicts are right: a model against itself, and against itself with a little more work.

    python benchmarks/latency.py [MODEL.onnx ...] [--threads N ...] [--rounds N] [--slowdown R] [--json OUT.json]
    python benchmarks/latency.py --record tests/verify/timings.npz [MODEL.onnx ...] [--pairs N]

By default models/digits.onnx, and resnet20_cifar10 from ../shared/zoo where that is present. The slower model is the
same one with a reduction and a product of vectors beside it, whose width is chosen until they take the share asked for;
how much they really take is measured by all rounds together, and printed. With --record no verdict is made: timings of
every model against itself are written, which tests/verify/test_power.py draws from.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from graphprune.api import as_model
from graphprune.calib.calls import one_call
from graphprune.calib.sources import input_specs, random_source
from graphprune.ir.session import Feeds
from graphprune.verify.latency import compare_latency
from graphprune.verify.statistics import paired_ratio
from graphprune.verify.timing import Bench, Setting

ROOT = Path(__file__).resolve().parents[1]
ZOO = ROOT / ".." / "shared" / "zoo" / "models"
WIDEST = 22
"""Logarithm of the largest width, to base 2."""
BLOCKS = 3
"""Blocks of a pair that are recorded: as many as a stage makes at most with the default --runs."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how often latency verdicts are right.")
    parser.add_argument("models", nargs="*")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--slowdown", type=float, default=1.05)
    parser.add_argument("--json")
    parser.add_argument("--record")
    parser.add_argument("--pairs", type=int, default=120)
    arguments = parser.parse_args()
    there = [path for path in (ROOT / "models" / "digits.onnx", ZOO / "resnet20_cifar10.onnx") if path.is_file()]
    models = [Path(path) for path in arguments.models] or there
    if arguments.record:
        record(models, arguments.threads, arguments.pairs, arguments.record)
        return
    rows = []
    for path in models:
        for threads in arguments.threads:
            rows += rates(path, threads, arguments.rounds, arguments.slowdown)
            if arguments.json:
                Path(arguments.json).write_text(json.dumps(rows, indent=1))


def rates(path: Path, threads: int, rounds: int, slowdown: float) -> list[dict[str, Any]]:
    """Count verdicts of a model against itself and against the slower one, in turns."""
    proto = onnx.load(path)
    feeds = _feeds(path)
    others = {"the same": proto, "slower": _tuned(proto, feeds, threads, slowdown)}
    found: dict[str, list[Any]] = {name: [] for name in others}
    for seed in range(rounds):
        for name, other in others.items():
            found[name].append(compare_latency(proto, other, feeds, threads=threads, seed=seed))
    rows = []
    for name, results in found.items():
        verdicts = Counter(result.verdict for result in results)
        ratio = math.exp(float(np.mean([math.log(result.ratio) for result in results])))
        row = {
            "model": path.name,
            "threads": threads,
            "against": name,
            "rounds": rounds,
            **{verdict: verdicts[verdict] for verdict in ("slower", "same", "faster")},
            "ratio": round(ratio, 4),
            "ms": round(median(result.before_ms for result in results), 4),
            "runs": round(float(np.mean([result.runs for result in results]))),
        }
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        rows.append(row)
    return rows


def slower(proto: onnx.ModelProto, width: int) -> onnx.ModelProto:
    """Return the model with the product of its input's largest value and a vector of some width beside it."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    graph.initializer.append(numpy_helper.from_array(np.ones(width, np.float32), "extra_vector"))
    graph.node.append(helper.make_node("ReduceMax", [input_specs(proto)[0].name], ["extra_value"], keepdims=0))
    graph.node.append(helper.make_node("Mul", ["extra_value", "extra_vector"], ["extra_output"]))
    graph.output.append(helper.make_tensor_value_info("extra_output", onnx.TensorProto.FLOAT, [width]))
    return result


def _tuned(proto: onnx.ModelProto, feeds: Feeds, threads: int, slowdown: float) -> onnx.ModelProto:
    """Bisect the width at which the additional work takes the share asked for, by long measurements."""
    low, high = 0.0, float(WIDEST)
    for _ in range(10):
        middle = (low + high) / 2
        other = slower(proto, round(2**middle))
        timings = Bench(proto, other, (feeds, feeds), Setting(threads), runs=200).time(4.0)
        low, high = (middle, high) if paired_ratio(timings)[0] < slowdown else (low, middle)
    return slower(proto, round(2 ** ((low + high) / 2)))


def record(models: list[Path], threads: list[int], pairs: int, target: str) -> None:
    """Write timings of every model against itself: milliseconds [pairs, blocks, 4]."""
    found = {}
    for path in models:
        feeds = _feeds(path)
        for count in threads:
            bench = Bench(path, path, (feeds, feeds), Setting(count), budget_seconds=1e3)
            bench.plan = replace(bench.plan, pairs=pairs, blocks=pairs * BLOCKS)
            rows = bench.time().milliseconds.reshape(pairs, BLOCKS, 4)
            found[f"{path.stem}, {count} threads"] = rows.astype(np.float32)
            print(f"{path.name}, {count} threads: {np.median(rows):.4f} ms", flush=True)
    np.savez_compressed(target, **found)


def _feeds(path: Path) -> Feeds:
    return one_call(random_source(tuple(input_specs(as_model(path).proto)), seed=0))


if __name__ == "__main__":
    main()
