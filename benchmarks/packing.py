"""Packed weights: latency against the same zeros dense, and how far outputs are apart.

    python benchmarks/packing.py [WIDTHS ...] [--target T] [--decide-at N] [--batches N ...] [--threads N] [--runs N]

WIDTHS are those of a stack of Gemm with Relu between, such as 4096-4096-4096, or of convolutions with a kernel of 1 on
square images, such as 512-2048-512@7. graphprune prunes it once with ``--pack auto --no-recover``, deciding at one
batch size what to pack; at every batch size the result is then timed beside the original with the same zeros, in turns,
in the same run. Weights are random: neither time nor exactness depends on what they are. Outputs are compared on other
inputs than those it was pruned with.
"""

from __future__ import annotations

import argparse
import itertools
import time

import numpy as np
import onnx
from onnx import helper, numpy_helper

from graphprune import Ledger, Recipe, prune
from graphprune.ir.session import open_session, run_session
from graphprune.ir.tensors import array
from graphprune.verify.latency import compare_latency

DEFAULT = ("4096-4096-4096", "9216-4096-4096-1000", "25088-4096-4096-1000", "256-1024-256@14", "512-2048-512@7")
"""An MLP, the heads of AlexNet and of VGG-16, and 1x1 convolutions of ResNet-50."""
LIMITS = {1: 0.35, 32: 0.7}
"""By batch size, what is asked for of the packed latency over the dense one's."""
TOLERANCE = 1e-5
"""Largest difference of an output that is asked for, over the largest output."""
SAMPLES = 64


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure packed models against dense ones with the same zeros.")
    parser.add_argument("widths", nargs="*", default=list(DEFAULT))
    parser.add_argument("--target", type=float, default=0.9)
    parser.add_argument("--decide-at", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=100)
    arguments = parser.parse_args()
    columns = "model|zeros|V x k|pruned in|batch|dense ms|packed ms|ratio (99 % interval)|limit|apart|verdict".split(
        "|"
    )
    print(f"| {' | '.join(columns)} |")
    print(f"| {' | '.join('---' for _ in columns)} |")
    for widths in arguments.widths:
        channels, _, extent = widths.partition("@")
        original = stack([int(width) for width in channels.split("-")], int(extent or 0))
        data = inputs(original, SAMPLES, seed=1)
        batch, threads = arguments.decide_at, arguments.threads
        recipe = Recipe(
            target=arguments.target, structural=0.0, recover=False, pack="auto", batch=batch, threads=threads, runs=10
        )
        start = time.perf_counter()
        packed, ledger = prune(original, recipe, data)
        seconds = time.perf_counter() - start
        dense = unpacked(original, packed, ledger)
        for batch in arguments.batches:
            print(row(widths, dense, packed, ledger, seconds, batch, arguments), flush=True)


def row(
    name: str,
    dense: onnx.ModelProto,
    packed: onnx.ModelProto,
    ledger: Ledger,
    seconds: float,
    batch: int,
    arguments: argparse.Namespace,
) -> str:
    """Measure both at one batch size."""
    feeds = inputs(dense, batch, seed=2)
    (one,), (other,) = (run_session(open_session(m, threads=arguments.threads), feeds) for m in (dense, packed))
    apart = float(np.abs(one - other).max() / np.abs(one).max())
    latency = compare_latency(
        dense, packed, feeds, threads=arguments.threads, batch=batch, runs=arguments.runs, budget_seconds=20.0
    )
    low, high = latency.ratio_ci
    limit = None if "@" in name else LIMITS.get(batch)
    missed = [
        word
        for word, holds in (
            ("latency", limit is None or latency.ratio <= limit),
            ("outputs", apart <= TOLERANCE),
            ("target", ledger.weights.sparsity >= arguments.target),
        )
        if not holds
    ]
    sizes = ", ".join(f"{record.columns} x {record.inputs}" for record in ledger.packed)
    return (
        f"| {name} | {ledger.weights.sparsity:.2%} | {sizes} | {seconds:.0f} s | {batch} | {latency.before_ms:.2f} "
        f"| {latency.after_ms:.2f} | {latency.ratio:.3f} [{low:.3f}, {high:.3f}] | {limit or '-'} | {apart:.1e} "
        f"| {'missed: ' + ', '.join(missed) if missed else 'held'} |"
    )


def inputs(model: onnx.ModelProto, batch: int, seed: int) -> dict[str, np.ndarray]:
    """Random inputs of a stack."""
    _, *extents = model.graph.input[0].type.tensor_type.shape.dim
    shape = (batch, *(extent.dim_value for extent in extents))
    return {"x": np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)}


def stack(widths: list[int], extent: int) -> onnx.ModelProto:
    """Layers with Relu between: of rows where the extent is 0, else of images."""
    random, spatial = np.random.default_rng(0), [extent, extent] if extent else []
    kernel = [1] * len(spatial)
    nodes, weights, data = [], [], "x"
    for number, (width, outputs) in enumerate(itertools.pairwise(widths)):
        values = random.standard_normal((outputs, width, *kernel), dtype=np.float32) * np.float32((2 / width) ** 0.5)
        weights += [
            numpy_helper.from_array(values, f"w{number}"),
            numpy_helper.from_array(random.standard_normal(outputs, dtype=np.float32), f"b{number}"),
        ]
        names = [data, f"w{number}", f"b{number}"]
        operator, attributes = ("Conv", {}) if extent else ("Gemm", {"transB": 1})
        nodes.append(helper.make_node(operator, names, [f"h{number}"], **attributes))
        data = f"h{number}"
        if number < len(widths) - 2:
            nodes.append(helper.make_node("Relu", [data], [f"r{number}"]))
            data = f"r{number}"
    ends = zip(("x", data), (widths[0], widths[-1]), strict=True)
    entry, result = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", width, *spatial]) for name, width in ends
    )
    graph = helper.make_graph(nodes, "stack", [entry], [result], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def unpacked(original: onnx.ModelProto, packed: onnx.ModelProto, ledger: Ledger) -> onnx.ModelProto:
    """The original with the weights of the packed model, put in place by what the ledger says alone."""
    stored = {tensor.name: array(tensor) for tensor in packed.graph.initializer}
    records = {record.weight: record for record in ledger.packed}
    result = onnx.ModelProto()
    result.CopyFrom(original)
    for tensor in result.graph.initializer:
        record = records.get(tensor.name)
        values = stored.get(tensor.name)
        if record is not None:
            blocks = stored[record.blocks].reshape(record.groups, record.columns, record.inputs)
            indices = stored[record.indices].reshape(record.groups, record.inputs)
            matrix = np.zeros(tuple(tensor.dims[:2]), np.float32)  # of outputs and inputs
            for group, (block, reads) in enumerate(zip(blocks, indices, strict=True)):
                outputs = np.arange(group * record.columns, min((group + 1) * record.columns, len(matrix)))
                matrix[np.ix_(outputs, reads)] = block[: len(outputs)]
            values = matrix.reshape(tuple(tensor.dims))
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return result


if __name__ == "__main__":
    main()
