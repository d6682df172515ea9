"""Time of finding and cutting units, against nodes and against weights.

    python benchmarks/coupling.py [--rounds N]

Transformers of growing depth, one of four times the width, and the nine topologies inside the onnx package. Half of
every group is removed. Times are medians over rounds, of which every one goes through all models.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from graphprune.ir.cost import count_weights
from graphprune.ir.coupling.walk import couple
from graphprune.ir.graph import Graph
from graphprune.ir.surgery import remove
from graphprune.passes.canonicalize import canonicalize
from graphprune.passes.criteria import score
from graphprune.passes.trim import by_fraction
from tests.light import NAMES, light
from tests.nets import Net

TOKENS, HEADS = 16, 8
STEPS = ("canonicalize", "couple", "choose", "remove")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure coupling and surgery.")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    models = {f"transformer, {depth} layers of {width}": transformer(depth, width) for depth, width in SIZES}
    models.update({name: light(name) for name in NAMES})
    times: dict[str, list[list[float]]] = {name: [] for name in models}
    lost = {}
    for _ in range(rounds):
        for name, model in models.items():
            seconds, lost[name] = run(model)
            times[name].append(seconds)
    print("| model | nodes | weights | lost | " + " | ".join(STEPS) + " | coupling and surgery, ms a node |")
    print("| --- " * (len(STEPS) + 5) + "|")
    for name, model in models.items():
        medians = [statistics.median(step) for step in zip(*times[name], strict=True)]
        per_node = (medians[1] + medians[3]) / len(model.graph.node) * 1e3
        cells = " | ".join(f"{seconds:.3f}" for seconds in medians)
        weights = f"{count_weights(model):,}"
        print(f"| {name} | {len(model.graph.node)} | {weights} | {lost[name]:.0%} | {cells} | {per_node:.2f} |")


SIZES = ((6, 128), (12, 128), (24, 128), (48, 128), (24, 512))


def run(model: onnx.ModelProto) -> tuple[list[float], float]:
    """Return the seconds of each step, and the share of the weights that went."""
    moments = [time.perf_counter()]
    canonical = canonicalize(model)
    moments.append(time.perf_counter())
    coupling = couple(Graph(canonical))
    moments.append(time.perf_counter())
    removed = by_fraction(coupling, score(coupling, {}, "activation"), 0.5)
    moments.append(time.perf_counter())
    pruned, _ = remove(coupling, removed)
    moments.append(time.perf_counter())
    seconds = [after - before for before, after in pairwise(moments)]
    return seconds, 1 - count_weights(pruned) / count_weights(canonical)


def transformer(depth: int, width: int) -> onnx.ModelProto:
    """An encoder of multi-head attention and two-layer perceptrons, normalised before each."""
    net = Net()
    data = net.linear(net.input(["N", TOKENS, width]), width)
    for _ in range(depth):
        data = net.add(data, attention(net, normalised(net, data), width))
        data = net.add(data, net.linear(net.relu(net.linear(normalised(net, data), 4 * width)), width))
    return net.build(net.linear(data, 3))


def normalised(net: Net, data: str) -> str:
    width = int(net.shapes[data][-1])
    return net.node("LayerNormalization", [data, net.vector(width), net.vector(width)], axis=-1)


def attention(net: Net, data: str, width: int) -> str:
    size = width // HEADS
    apart = [
        net.reshape(net.linear(data, width), [0, TOKENS, HEADS, size], ["N", TOKENS, HEADS, size]) for _ in range(3)
    ]
    query, value = (net.transpose(apart[place], [0, 2, 1, 3]) for place in (0, 2))
    product = net.node("MatMul", [query, net.transpose(apart[1], [0, 2, 3, 1])], ["N", HEADS, TOKENS, TOKENS])
    mixed = net.node("MatMul", [net.node("Softmax", [product], axis=-1), value], ["N", HEADS, TOKENS, size])
    merged = net.reshape(net.transpose(mixed, [0, 2, 1, 3]), [0, TOKENS, width], ["N", TOKENS, width])
    return net.linear(merged, width)


if __name__ == "__main__":
    main()
