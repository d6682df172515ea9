"""Han et al. 2015: what regularisation, retraining and iteration are worth, and how sensitive every layer is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import tables
import training
from data import Dataset
from han import CASES, sized
from pruning import Bench, copy, sparsity_for
from torch import Tensor, nn
from training import Settings

from graphprune.finetune import GraphModule, Pruner, Schedule, l1_penalty, l2_penalty

COMPRESSIONS = (2, 4, 8, 12, 20, 40)
Penalty = Callable[[nn.Module], Tensor]
PENALTIES: dict[str, Penalty] = {
    "L1": functools.partial(l1_penalty, strength=1e-5),
    "L2": functools.partial(l2_penalty, strength=1e-4),
}
"""Of strengths that cost the dense network little."""
ROUNDS = 5
EPOCHS, AGAIN = 10, 5
"""Of the dense network, and of training after pruning: all at once, or shared out to the rounds."""
KEPT = (0.8, 0.6, 0.4, 0.3, 0.2, 0.1, 0.05)


def regularisation(bench: Bench, name: str) -> None:
    """Print errors by compression, penalty, retraining and rounds: what figure 5 of the paper shows of AlexNet."""
    case = CASES[name]
    size, dataset = sized(bench, case)
    plain = replace(size.dense, epochs=min(EPOCHS, size.dense.epochs), decay=0.0)  # the penalty is all there is
    ratios = COMPRESSIONS[:2] if bench.quick else COMPRESSIONS
    columns = ("seed", "trained with", "then", "dense", *(f"{ratio}x" for ratio in ratios))
    tables.heading(
        f"{bench.titled(case.title)}: error by penalty, retraining and rounds (figure 5 of the paper)", columns
    )
    ways: list[tuple[str, str, int]] = [(penalty, "", 0) for penalty in PENALTIES]
    ways += [(penalty, again, 1) for penalty in PENALTIES for again in PENALTIES]
    ways += [("L2", "L2", ROUNDS)]
    for seed in range(bench.seeds):
        trained = {
            penalty: bench.dense(size.network, dataset, plain, seed, penalty=(penalty, function))
            for penalty, function in PENALTIES.items()
        }
        for first, again, rounds in ways:
            dense = trained[first]
            modules = (in_rounds(dense, ratio, dataset, plain, rounds, PENALTIES.get(again), seed) for ratio in ratios)
            errors = [tables.percent(training.error(module, dataset.test)) for module in modules]
            then = f"{AGAIN} epochs with {again}, {rounds} round(s)" if rounds else "nothing"
            tables.row((seed, first, then, tables.percent(training.error(dense, dataset.test)), *errors))


def in_rounds(
    dense: GraphModule,
    compression: float,
    dataset: Dataset,
    settings: Settings,
    rounds: int,
    penalty: Penalty | None,
    seed: int,
) -> GraphModule:
    """A copy of which the smallest weights of all layers go in equal factors, each followed by training.

    Without rounds they go at once, and nothing is trained. All rounds together take the same number of epochs.
    """
    module = copy(dense)
    again = settings.of(1 if settings.epochs < AGAIN else AGAIN // max(rounds, 1))
    again = replace(again, rate=settings.rate / 5)
    for number in range(1, max(rounds, 1) + 1):
        sparsity = sparsity_for(module, compression ** (number / max(rounds, 1)))
        pruner = Pruner(module, Schedule.one_shot(sparsity))
        if rounds:
            label = f"{compression:g}x, round {number}"
            training.train(module, dataset, again, seed=seed + number, penalty=penalty, label=label)
        pruner.remove()
    return module


def sensitivity(bench: Bench, name: str) -> None:
    """Print the error when one layer alone is pruned and nothing is trained: figure 6 of the paper, of our network."""
    case = CASES[name]
    size, dataset = sized(bench, case)
    tables.heading(
        f"{bench.titled(case.title)}: error with one layer pruned, nothing retrained (figure 6 of the paper)",
        ("seed", "layer", "weights", "dense", *(f"{part:.0%} kept" for part in KEPT)),
    )
    for seed in range(bench.seeds):
        dense = bench.dense(size.network, dataset, size.dense, seed)
        before = tables.percent(training.error(dense, dataset.test))
        for weight in Pruner(copy(dense), Schedule(0.0)).masks.zeros:
            errors = []
            for part in KEPT:
                module = copy(dense)
                Pruner(module, Schedule(0.0), targets={weight: Schedule(1 - part)})
                errors.append(tables.percent(training.error(module, dataset.test)))
            size = dense.parameter_of(weight).numel()
            tables.row((seed, weight.removesuffix(".weight"), f"{size:,}", before, *errors))


TABLES = {
    **{f"han-{name}-penalties": functools.partial(regularisation, name=name) for name in CASES},
    **{f"han-{name}-sensitivity": functools.partial(sensitivity, name=name) for name in CASES},
}
