"""Hu, Peng, Tai and Tang 2016, Network trimming: rounds of removing neurons by their zeros, and training again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import tables
import training
from data import Dataset
from han import CASES, sized
from pruning import Bench, Run, copy, counts
from training import Settings

from graphprune.finetune import GraphModule, trim

PAPER = {1: 1.41, 2: 2.24, 3: 3.11, 4: 3.85}
"""Compression after every round; the accuracy of all, trained again, is 99.3 % in the paper."""
MOST_ROUNDS = 20


@dataclass(frozen=True)
class Case:
    """What is trimmed, and until when.

    Attributes
    ----------
    only : tuple of str
        Layers that lose neurons; all others keep theirs, as in the paper.
    again : Settings
        Of the training after every round.
    last : Settings
        Of the training after the last one, and after the one that reaches what is asked.
    asked, goal : float
        Compressions that are asked for, and to go for. Rounds end at the latter.
    """

    title: str
    network: str
    only: tuple[str, ...]
    again: Settings
    last: Settings
    asked: float
    goal: float


LENET = Case(
    "LeNet 20-50-500-10 on MNIST",
    "lenet5",
    ("conv2", "fc1"),
    Settings(3, rate=0.02, shift=1),
    Settings(12, rate=0.05, shift=1),
    3.85,
    6.0,
)
VGG = Case(
    "CONV5-3 and FC6 of VGG-16 on CIFAR-10 (the paper's is on ImageNet, and comes to 2.59x)",
    "vgg16",
    ("conv5_3", "fc6"),
    Settings(3, rate=0.01, shift=4),
    Settings(3, rate=0.01, shift=4),
    1.2,
    1.25,
)


def lenet(bench: Bench) -> None:
    """Print the rounds of the LeNet."""
    _rounds(bench, LENET, PAPER)


def vgg(bench: Bench) -> None:
    """Print the rounds of VGG-16."""
    _rounds(bench, VGG, {})


def _rounds(bench: Bench, case: Case, paper: dict[int, float]) -> None:
    size, dataset = sized(bench, CASES[case.network])
    columns = ("seed", "round", "neurons", "weights", "compression", "paper", "removed", "trained", "loss", "seconds")
    tables.heading(f"{bench.titled(case.title)}: structural removal alone, accuracy", columns)
    for seed in range(bench.seeds):
        dense = bench.dense(size.network, dataset, size.dense, seed)
        before = 100 - training.error(dense, dataset.test)
        weights, _ = counts(dense)
        tables.row((seed, 0, _neurons(dense), f"{weights:,}", "1.00x", "", "", tables.percent(before), "", ""))
        module, reached = copy(dense), 1.0
        for number in range(1, MOST_ROUNDS + 1):
            start = time.perf_counter()
            removed(module, dataset, case.only)
            at_once = 100 - training.error(module, dataset.test)
            left, _ = counts(module)
            marks = any(reached < mark <= weights / left for mark in (case.asked, case.goal))
            settings, reached = case.last if marks else case.again, weights / left
            name = f"{size.network}, round {number}"
            settings = settings.of(min(settings.epochs, size.dense.epochs // 2))
            training.train(module, dataset, settings, seed=seed, teacher=dense, label=name)
            after = 100 - training.error(module, dataset.test)
            seconds = time.perf_counter() - start
            found = (tables.percent(at_once), tables.percent(after), f"{before - after:+.2f}", f"{seconds:.0f}")
            theirs = tables.times(paper.get(number), 2)
            tables.row((seed, number, _neurons(module), f"{left:,}", tables.times(reached, 2), theirs, *found))
            bench.record(Run("hu", size.network, seed, reached, 100 - before, 100 - after, weights, left, seconds))
            if reached >= case.goal:
                break


def removed(module: GraphModule, dataset: Dataset, only: Sequence[str]) -> None:
    """One round by the paper's rule: neurons go whose share of zeros is a standard deviation above the layer's mean.

    Statistics are of the images held back from training.
    """
    module.cpu()
    images = dataset.validation.images.cpu().numpy()
    trim(module, {"image": images}, align="off", only=[f"{layer}.weight" for layer in only])
    module.to(training.DEVICE)


def _neurons(module: GraphModule) -> str:
    """Outputs of every layer, as 20-50-500-10."""
    weights = (module.parameter_of(name) for name in module.initializer_names.values() if name.endswith(".weight"))
    return "-".join(str(len(weight)) for weight in weights)


TABLES = {"hu-lenet": lenet, "hu-vgg16": vgg}
