"""Han, Pool, Tran and Dally 2015, Learning both weights and connections: compression without loss (tables 1 to 5)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import tables
import training
from data import Dataset, cifar10, mnist
from pruning import Bench, Run, counts, kept, pruned
from training import Settings

ALEXNET_LAYERS = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "conv3_3", "fc6", "fc7", "fc8")
VGG16_LAYERS = (
    *("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3"),
    *("conv4_1", "conv4_2", "conv4_3", "conv5_1", "conv5_2", "conv5_3", "fc6", "fc7", "fc8"),
)


@dataclass(frozen=True)
class Size:
    """How much is trained.

    Attributes
    ----------
    network : str
        One of `pruning.NETWORKS`.
    images : int or None
        How many of the training set are read; None for all.
    dense, pruning : Settings
        Of the training from scratch, and of the one in which zeros grow. Images move alike in both.
    """

    network: str
    images: int | None
    dense: Settings
    pruning: Settings


@dataclass(frozen=True)
class Case:
    """A network of the paper: how we train it, and what the paper found.

    Attributes
    ----------
    title : str
    data : callable
        From a number of images, or None, to the data.
    full, quick : Size
    compressions : tuple of float
        All weights over those that are left, biases counted.
    asked : float
        Percent of errors that the pruned network may make at most, beside what the dense one makes.
    paper : tuple of float
        The paper's compression, percent of errors before, and after.
    fractions : dict of str to float
        The part of every layer's weights that the paper keeps.
    """

    title: str
    data: Callable[[int | None], Dataset]
    full: Size
    quick: Size
    compressions: tuple[float, ...]
    asked: float
    paper: tuple[float, float, float]
    fractions: dict[str, float]


def _digits(network: str, dense: Settings, pruning: Settings) -> tuple[Size, Size]:
    """The size of a LeNet, which trains in minutes; and a few steps."""
    return Size(network, None, dense, pruning), Size(network, 600, dense.of(2), pruning.of(2))


def _objects(network: str, epochs: int, quick: int) -> tuple[Size, Size]:
    """The size of a network for CIFAR-10, which takes a GPU; and a quarter of its width on a part of the images."""
    full = Settings(epochs, rate=0.05, decay=5e-4, shift=4)
    small = replace(full, epochs=quick, batch=64, rate=0.03)
    return Size(network, None, full, full), Size(f"{network}-quarter", 17_000, small, small)


CASES = {
    "lenet300": Case(
        "LeNet-300-100 on MNIST",
        mnist,
        *_digits(
            "lenet300", Settings(30, rate=0.1, shift=1), Settings(60, rate=0.1, decay=1e-4, shift=1, teacher_share=0.3)
        ),
        (12, 40),
        1.6,
        (12, 1.64, 1.59),
        {"fc1": 0.08, "fc2": 0.09, "fc3": 0.26},
    ),
    "lenet5": Case(
        "LeNet-5 on MNIST",
        mnist,
        *_digits(
            "lenet5", Settings(10, rate=0.05, shift=1), Settings(20, rate=0.05, decay=1e-4, shift=1, teacher_share=0.3)
        ),
        (12, 100),
        0.8,
        (12, 0.80, 0.77),
        {"conv1": 0.66, "conv2": 0.12, "fc1": 0.08, "fc2": 0.19},
    ),
    "alexnet": Case(
        "AlexNet on CIFAR-10 (the paper's is on ImageNet)",
        cifar10,
        *_objects("alexnet", 60, 12),
        (9,),
        100.0,
        (9, 42.78, 42.77),
        dict(zip(ALEXNET_LAYERS, (0.84, 0.38, 0.35, 0.37, 0.37, 0.09, 0.09, 0.25), strict=True)),
    ),
    "vgg16": Case(
        "VGG-16 on CIFAR-10 (the paper's is on ImageNet)",
        cifar10,
        *_objects("vgg16", 80, 12),
        (13,),
        100.0,
        (13, 31.50, 31.34),
        dict(
            zip(
                VGG16_LAYERS,
                (0.58, 0.22, 0.34, 0.36, 0.53, 0.24, 0.42, 0.32, 0.27, 0.34, 0.35, 0.29, 0.36, 0.04, 0.04, 0.23),
                strict=True,
            )
        ),
    ),
}


def compression(bench: Bench, name: str) -> None:
    """Print error and compression of one network, then the kept fractions of every layer."""
    case = CASES[name]
    size, dataset = sized(bench, case)
    columns = ("seed", "compression", "weights left", "dense error", "error", "verdict", "seconds")
    paper = f"the paper: {case.paper[0]:g}x, {case.paper[1]:.2f} % -> {case.paper[2]:.2f} %"
    tables.heading(f"{bench.titled(case.title)}: compression without loss ({paper})", columns)
    found: dict[float, list[dict[str, tuple[int, float]]]] = {}
    for seed in range(bench.seeds):
        dense = bench.dense(size.network, dataset, size.dense, seed)
        before = training.error(dense, dataset.test)
        for ratio in case.compressions:
            module, seconds = pruned(dense, ratio, dataset, size.pruning, seed, size.network)
            weights, left = counts(module)
            after = training.error(module, dataset.test)
            held = after <= min(before, case.asked)
            verdict = "held" if held else f"{after - min(before, case.asked):.2f} points short"
            cells = (tables.times(weights / left), f"{left:,}", tables.percent(before), tables.percent(after))
            tables.row((seed, *cells, verdict, f"{seconds:.0f}"))
            bench.record(Run("han", size.network, seed, weights / left, before, after, weights, left, seconds))
            found.setdefault(ratio, []).append(kept(module))
    _fractions(case, bench.titled(case.title), found)


def _fractions(case: Case, title: str, found: dict[float, list[dict[str, tuple[int, float]]]]) -> None:
    """Which part of its weights every layer keeps, the mean over the seeds."""
    columns = ("layer", "weights", "paper", *(f"{ratio:g}x" for ratio in found))
    tables.heading(f"{title}: weights kept of every layer", columns)
    for layer, (size, _) in next(iter(found.values()))[0].items():
        means = [sum(run[layer][1] for run in runs) / len(runs) for runs in found.values()]
        tables.row((layer, f"{size:,}", tables.share(case.fractions.get(layer)), *map(tables.share, means)))


def sized(bench: Bench, case: Case) -> tuple[Size, Dataset]:
    """Size and data of a case, as the command asks for them."""
    size = case.quick if bench.quick else case.full
    return size, case.data(size.images).to(training.DEVICE)


TABLES = {f"han-{name}": functools.partial(compression, name=name) for name in CASES}
