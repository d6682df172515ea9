"""Encoded weights: bytes of the file, time and peak memory of loading it, latency, and the way back.

    python benchmarks/encoding.py [MODEL ...] [--sparsities S ...] [--modes auto fp16] [--rounds N] [--threads N]

Models are names in ../shared/zoo/models, paths, or ``matmul4096``, one product with a 4096x4096 weight. The smallest
weights of every model go to zero, globally by magnitude, vectors aside. Loading and running are measured against the
dense file in turns, in the same run; peak memory in a process of its own for each file, interpreter included.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from graphprune.calib.sources import input_specs
from graphprune.calib.synthetic import random_source
from graphprune.ir.encoding.decode import decode
from graphprune.ir.model import load, save
from graphprune.ir.session import open_session, run_session
from graphprune.ir.tensors import array, float_tensors, replace_values
from graphprune.passes.encode import encode

ZOO = Path(__file__).resolve().parents[2] / "shared" / "zoo" / "models"
DEFAULT = ("lenet5_mnist", "squeezenet11_imagenet", "matmul4096")
LIMITS = {("auto", 0.9): 0.14, ("fp16", 0.9): 0.09, ("auto", 0.5): 0.55}
"""Bytes over the dense file's that are asked for."""
LOAD_RATIO, LOAD_MS, PEAK_RATIO = 1.5, 50.0, 3.0
PEAK = """
import sys, onnxruntime
from graphprune.ir.session import open_session
session = open_session(sys.argv[1], threads=1)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure encoded models against dense ones.")
    parser.add_argument("models", nargs="*", default=list(DEFAULT))
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.9, 0.5])
    parser.add_argument("--modes", nargs="+", default=["auto", "fp16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    columns = "model|zeros|encode|bytes|limit|back|load ms|dense|limit|peak MB|dense|latency|verdict".split("|")
    print(f"| {' | '.join(columns)} |")
    print(f"| {' | '.join('---' for _ in columns)} |")
    for name in arguments.models:
        for sparsity in arguments.sparsities:
            dense = with_zeros(model_of(name), sparsity)
            for mode in arguments.modes:
                with tempfile.TemporaryDirectory() as folder:
                    print(row(name, dense, sparsity, mode, Path(folder), arguments), flush=True)


def row(
    name: str, dense: onnx.ModelProto, sparsity: float, mode: str, folder: Path, arguments: argparse.Namespace
) -> str:
    """Measure one model in one encoding."""
    before, after = folder / "dense.onnx", folder / "encoded.onnx"
    encoded, _ = encode(dense, mode)
    onnx.checker.check_model(encoded, full_check=True)
    onnx.shape_inference.infer_shapes(encoded, check_type=True, strict_mode=True)
    bytes_before, bytes_after = save(dense, before), save(encoded, after)
    same = load(after).proto.SerializeToString(deterministic=True) == before.read_bytes()
    back = ("bit for bit" if same else "NOT THE SAME") if mode == "auto" else "rounded"
    loads = paired(
        lambda: open_session(str(before), threads=arguments.threads),
        lambda: open_session(str(after), threads=arguments.threads),
        arguments.rounds,
    )
    feeds = next(iter(random_source(input_specs(dense), seed=0, samples=1).batches(1)))
    # Rounded weights give other outputs, and are compared with the dense model that has them.
    reference = decode(encoded)
    sessions = [open_session(model, threads=arguments.threads) for model in (reference, encoded)]
    outputs = [run_session(session, feeds) for session in sessions]
    equal = all(np.array_equal(one, other) for one, other in zip(*outputs, strict=True))
    runs = paired(lambda: run_session(sessions[0], feeds), lambda: run_session(sessions[1], feeds), arguments.runs)
    peaks = [peak_mb(path) for path in (before, after)]
    ratio, limit = bytes_after / bytes_before, LIMITS.get((mode, sparsity))
    allowed = LOAD_RATIO * loads[0] + LOAD_MS
    missed = [
        word
        for word, holds in (
            ("bytes", limit is None or ratio <= limit),
            ("back", same or mode != "auto"),
            ("outputs", equal),
            ("load", loads[1] <= allowed),
            ("peak", peaks[1] < PEAK_RATIO * peaks[0]),
        )
        if not holds
    ]
    return (
        f"| {name} | {sparsity:.0%} | {mode} | {ratio:.4f} | {limit or '-'} | {back} | {loads[1]:.0f} | {loads[0]:.0f} "
        f"| {allowed:.0f} | {peaks[1]:.0f} | {peaks[0]:.0f} | x{runs[1] / runs[0]:.2f} "
        f"| {'missed: ' + ', '.join(missed) if missed else 'held'} |"
    )


def model_of(name: str) -> onnx.ModelProto:
    """Return a model of the zoo, from a file, or the large product."""
    if name == "matmul4096":
        return product(4096)
    path = ZOO / f"{name}.onnx"
    return load(path if path.is_file() else name).proto


def product(size: int) -> onnx.ModelProto:
    """One MatMul with a square weight."""
    weight = np.random.default_rng(0).normal(0, size**-0.5, (size, size)).astype(np.float32)
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", size]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        values[:1],
        values[1:],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def with_zeros(proto: onnx.ModelProto, sparsity: float) -> onnx.ModelProto:
    """Set the smallest weights of all matrices and kernels together to zero."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    found = [tensor for tensor in float_tensors(result).values() if len(tensor.dims) > 1]
    sizes = np.abs(np.concatenate([array(tensor).ravel() for tensor in found]))
    limit = np.partition(sizes, int(sparsity * sizes.size))[int(sparsity * sizes.size)]
    for tensor in found:
        values = array(tensor).copy()
        values[np.abs(values) < limit] = 0
        replace_values(tensor, values)
    return result


def paired(one: Callable[[], object], other: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median milliseconds of two calls, taken in turns (A B B A) after one of each to warm up."""
    times: tuple[list[float], list[float]] = ([], [])
    one(), other()
    for number in range(rounds):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        for which in order:
            start = time.perf_counter()
            (one, other)[which]()
            times[which].append((time.perf_counter() - start) * 1e3)
    return float(np.median(times[0])), float(np.median(times[1]))


def peak_mb(path: Path) -> float:
    """Peak memory of a process that loads a file, in MB."""
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    return int(done.stdout) * 1024 / 1e6


if __name__ == "__main__":
    main()
