"""Training with gradual pruning as Zhu & Gupta 2017 do it: by magnitude, ever more while it is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from training import Stepper, descend

from graphprune.finetune import GraphModule, Masks, Pruner, Schedule

BEGIN, END, CHANGES = 0.1, 0.5, 40
"""Fractions of the steps at which pruning begins and ends, and how often masks change between."""


class Embeddings:
    """Prunes tables that Gather reads on the same schedule.

    `Pruner` zeroes weights of products alone; Zhu & Gupta prune their language models' embeddings as well.
    """

    def __init__(self, module: GraphModule, names: Sequence[str], schedule: Schedule, optimizer: Optimizer) -> None:
        self.module, self.schedule, self.optimizer, self.steps = module, schedule, optimizer, 0
        self.masks = Masks(module, names)

    def step(self) -> None:
        """Count a step of the optimizer; zero the smallest entries of each table where the schedule is due."""
        self.steps += 1
        if self.schedule.due(self.steps):
            self._choose()
        self.masks.apply()
        self.masks.clear(self.optimizer)

    def _choose(self) -> None:
        for name in self.masks.zeros:
            magnitudes = self.module.parameter_of(name).detach().abs()
            count = round(self.schedule.at(self.steps) * magnitudes.numel())
            smallest = torch.topk(magnitudes.flatten(), count, largest=False).indices
            chosen = torch.zeros(magnitudes.numel(), dtype=torch.bool, device=magnitudes.device)
            chosen[smallest] = True
            self.masks.hold({name: chosen.view(magnitudes.shape)})


def train(
    module: GraphModule,
    optimizer: Optimizer,
    loss: Callable[[int], Tensor],
    steps: int,
    sparsity: float,
    *,
    clip: float = math.inf,
    scope: Literal["global", "layer"] = "layer",
    dense: Sequence[str] = (),
    embeddings: Sequence[str] = (),
    label: str = "train",
) -> int:
    """Train from scratch for a number of steps, and prune meanwhile.

    Parameters
    ----------
    module, optimizer, loss, steps, clip, label
        As for `training.descend`.
    sparsity : float
        Of the weights that are pruned, in [0, 1); 0 is dense training.
    scope : {"layer", "global"}
        Whether every layer gets to the sparsity, as in the paper, or all together.
    dense, embeddings : sequence of str
        ONNX names of weights that are left alone, and of embeddings that are pruned too.

    Returns
    -------
    int
        How many parameters are not held at zero.
    """
    after: list[Stepper] = []
    held: list[Masks] = []
    if sparsity:
        begin, end = int(BEGIN * steps), int(END * steps)
        schedule = Schedule(sparsity, begin=begin, end=end, frequency=max(1, (end - begin) // CHANGES))
        pruner = Pruner(module, schedule, optimizer, scope=scope, targets=dict.fromkeys(dense, 0.0))
        after, held = [pruner], [pruner.masks]
        if embeddings:
            more = Embeddings(module, embeddings, schedule, optimizer)
            after, held = [pruner, more], [pruner.masks, more.masks]
    descend(module, optimizer, loss, steps, after=after, clip=clip, label=label)
    zeros = sum(int(found.sum()) for masks in held for found in masks.zeros.values())
    return sum(parameter.numel() for parameter in module.parameters()) - zeros
