"""Zhu & Gupta 2017, "To prune, or not to prune": large sparse networks against small dense ones of as many nonzeros.

Every network of a table is trained from scratch for the same number of steps. Beside each sparse network stands a dense
one of the same kind, the narrowest that has at least as many parameters as the sparse one has nonzeros. Every one is
trained at two learning rates, since narrow networks like higher ones; the better on the validation part counts.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import convolutional
import language
import onnx
import tables
import translation
from data import cifar10
from graphs import equal_width
from networks import CLASSES, SCALED
from pruning import Bench
from training import DEVICE

Run = Callable[[float, float, int, float], tuple[int, dict[str, float]]]
"""From width, sparsity, seed and a factor of the learning rate to nonzeros, and the metric by part."""

FACTORS = (1.0, 2.5)
"""Of the learning rate."""

SPARSITIES = (0.5, 0.75, 0.875, 0.9, 0.95)
"""Of the networks of images."""


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes
    ----------
    metric : str
        What is measured.
    higher : bool
        Whether more of it is better.
    efficiency : str
        What is called parameter efficiency, a million nonzeros.
    gain : callable
        From the metric to what of it counts for that.
    sparsities : tuple of float
    sizes : dict of str to float
        Widths of the dense networks that the paper has, by name; the first is pruned.
    widths : tuple of float
        Those that a small dense network may have, ascending.
    build : callable
        From width to a network.
    run : callable
    paper : dict
        What the paper has, by name of the dense network or by sparsity.
    """

    metric: str
    higher: bool
    efficiency: str
    gain: Callable[[float], float]
    sparsities: tuple[float, ...]
    sizes: dict[str, float]
    widths: tuple[float, ...]
    build: Callable[[float], onnx.ModelProto]
    run: Run
    paper: dict[str | float, str]


# -- the four tables ------------------------------------------------------------------------------------------------


def _images(kind: str, quick: bool, paper: dict[str | float, str]) -> Table:
    size = convolutional.QUICK[kind] if quick else convolutional.FULL
    images = cifar10(size.images).to(DEVICE)
    narrower = {"width 0.75": 0.75, "width 0.5": 0.5, "width 0.25": 0.25}
    names = {"large": 1.0, **{name: share for name, share in narrower.items() if name in paper and not quick}}
    return Table(
        metric="top-1, %",
        higher=True,
        efficiency="points above chance",
        gain=lambda value: value - 100 / CLASSES,
        sparsities=SPARSITIES,
        sizes={name: share * size.width for name, share in names.items()},
        widths=tuple(size.width * share / 128 for share in range(4, 129)),
        build=lambda width: SCALED[kind](width, 0, quick=size.quick),
        run=lambda width, sparsity, seed, faster: convolutional.run(kind, size, images, width, sparsity, seed, faster),
        paper=paper,
    )


def mobilenet(quick: bool) -> Table:
    """MobileNet on CIFAR-10; the paper's is on ImageNet (its table 4)."""
    paper: dict[str | float, str] = {
        "large": "70.6",
        "width 0.75": "68.4",
        "width 0.5": "63.7",
        "width 0.25": "50.6",
        0.5: "69.5",
        0.75: "67.7",
        0.9: "61.8",
        0.95: "53.6",
    }
    return _images("mobilenet", quick, paper)


def inception(quick: bool) -> Table:
    """An Inception network on CIFAR-10; the paper's is Inception V3 on ImageNet."""
    paper: dict[str | float, str] = {"large": "78.1", 0.5: "78.0", 0.75: "76.1", 0.875: "74.6"}
    return _images("inception", quick, paper)


def lstm(quick: bool) -> Table:
    """A stacked LSTM over the characters of tinyshakespeare; the paper's is over the words of Penn Treebank."""
    size = language.QUICK if quick else language.FULL
    text = language.read(size.text)
    return Table(
        metric="perplexity",
        higher=False,
        efficiency="bits a character below uniform",
        gain=lambda value: math.log2(text.characters / value),
        sparsities=(0.8, 0.85, 0.9, 0.95),
        # The paper's 1500, 650 and 200 hidden units.
        sizes={"large": size.large, "medium": round(size.large * 650 / 1500), "small": round(size.large * 200 / 1500)},
        widths=tuple(range(4, size.large + 1)),
        build=lambda width: language.network(int(width), text.characters, 0, layers=size.layers),
        run=lambda width, sparsity, seed, faster: language.run(size, text, int(width), sparsity, seed, faster),
        paper={
            "large": "78.45",
            "medium": "83.37",
            "small": "115.30",
            0.8: "77.52",
            0.85: "78.31",
            0.9: "80.24",
            0.95: "87.83",
        },
    )


def translate(quick: bool) -> Table:
    """An encoder-decoder with attention, English to German, on Multi30k; the paper has GNMT on WMT."""
    size = translation.QUICK if quick else translation.FULL
    corpus = translation.read(size.words)
    words = (len(corpus.words[0]), len(corpus.words[1]))
    return Table(
        metric="BLEU",
        higher=True,
        efficiency="BLEU",
        gain=lambda value: value,
        sparsities=(0.8, 0.85, 0.9),
        sizes={"large": size.large},
        widths=tuple(range(4, size.large + 1, 2)),
        build=lambda width: translation.network(int(width), words, 0),
        run=lambda width, sparsity, seed, faster: translation.run(size, corpus, int(width), sparsity, seed, faster),
        paper={"large": "26.77", 0.8: "26.86", 0.85: "26.52", 0.9: "26.19"},
    )


# -- what is measured, and how it is printed ------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """A network trained with several seeds."""

    nonzeros: int
    validation: tuple[float, ...]
    test: tuple[float, ...]
    seconds: float


def measure(table: Table, width: float, sparsity: float, seeds: Sequence[int]) -> Result:
    """Train a network with every seed, and keep for each the learning rate that is best on the validation part."""
    start = time.perf_counter()
    best = max if table.higher else min
    made = [
        best((table.run(width, sparsity, seed, faster) for faster in FACTORS), key=lambda found: found[1]["validation"])
        for seed in seeds
    ]
    seconds = (time.perf_counter() - start) / len(made)
    (nonzeros, *_), values = zip(*made, strict=True)
    parts = [tuple(value[part] for value in values) for part in ("validation", "test")]
    return Result(nonzeros, parts[0], parts[1], seconds)


def shown(values: Sequence[float]) -> str:
    """Write the mean, and of several values the standard deviation."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def line(table: Table, name: str, sparsity: float, width: float, result: Result, paper: str, verdict: str) -> None:
    """Print a row."""
    worth = table.gain(statistics.fmean(result.test)) / (result.nonzeros / 1e6)
    cells = [name, f"{width:.4g}", f"{sparsity:.1%}" if sparsity else "0", f"{result.nonzeros:,}"]
    cells += [shown(result.validation), shown(result.test), f"{worth:.1f}", paper, verdict, f"{result.seconds:.0f}"]
    tables.row(cells)


def compare(bench: Bench, make: Callable[[bool], Table], name: str) -> None:
    """Train all networks of a table, or those that stand for some sparsities, and print each row when it is known."""
    table, seeds = make(bench.quick), range(bench.seeds)
    asked = bench.sparsities or table.sparsities
    heads = ["network", "width", "sparsity", "nonzeros", f"{table.metric}, validation", f"{table.metric}, test"]
    heads += [f"{table.efficiency}, a million nonzeros", "paper", "large-sparse against it", "seconds a run"]
    tables.heading(f"{bench.titled(name)}: large-sparse against small-dense at equal nonzeros", heads)
    for size_name, width in () if bench.sparsities else table.sizes.items():
        result = measure(table, width, 0.0, seeds)
        line(table, f"{size_name}, dense", 0.0, width, result, table.paper.get(size_name, "-"), "")
    large, known, lost = table.sizes["large"], dict[float, Result](), []
    for sparsity in asked:
        sparse = measure(table, large, sparsity, seeds)
        line(table, "large, sparse", sparsity, large, sparse, table.paper.get(sparsity, "-"), "")
        width = equal_width(table.build, sparse.nonzeros, table.widths)
        if width not in known:
            known[width] = measure(table, width, 0.0, seeds)
        better = statistics.fmean(sparse.test) - statistics.fmean(known[width].test)
        beaten = (better if table.higher else -better) > 0
        verdict = f"{'better' if beaten else 'worse'} by {abs(better):.2f}"
        lost += [] if beaten else [f"{sparsity:.1%}"]
        line(table, "small, dense", 0.0, width, known[width], "-", verdict)
    print(f"\nLarge-sparse is better in {len(asked) - len(lost)} of {len(asked)} rows", end="")
    print(f"; not at {', '.join(lost)}." if lost else ".", flush=True)


TABLES = {
    f"zhu-{name}": functools.partial(compare, make=make, name=title)
    for name, make, title in (
        ("mobilenet", mobilenet, "MobileNet on CIFAR-10"),
        ("inception", inception, "Inception on CIFAR-10"),
        ("lstm", lstm, "LSTM language model"),
        ("translation", translate, "Translation, LSTM with attention"),
    )
}
