"""One plain training loop for every table, and what trains and judges classifiers of images."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from data import Dataset, Part
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, pad
from torch.optim import Optimizer

from graphprune.finetune import GraphModule

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EVALUATED_AT_ONCE = 1000
WARM_UP = 0.05
"""Fraction of the steps over which the learning rate rises; then it falls to 0 by a cosine."""
VERSION = 2
"""Of the loop: what is kept of an older one is trained anew."""


class Stepper(Protocol):
    """What is called after every step of the optimizer: `graphprune.finetune.Pruner`."""

    def step(self) -> None:
        """Count a step."""


def descend(
    module: GraphModule,
    optimizer: Optimizer,
    loss: Callable[[int], Tensor],
    steps: int,
    *,
    after: Sequence[Stepper] = (),
    clip: float = math.inf,
    label: str = "train",
) -> None:
    """Train a module in place; the weights after the last step stay.

    Parameters
    ----------
    module : GraphModule
    optimizer : torch.optim.Optimizer
        Its learning rates are the highest that are used.
    loss : callable
        From the number of the step to the loss.
    steps : int
    after : sequence of Stepper
        Called after every step.
    clip : float
        Largest norm of the gradient.
    label : str
        Name in the progress on stderr.
    """
    module.train()
    pace = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _pace(step, steps))
    start, losses, shown = time.perf_counter(), [], max(1, steps // 20)
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        found = loss(step)
        found.backward()
        if clip < math.inf:
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
        pace.step()
        for each in after:
            each.step()
        losses.append(found.detach())
        if (step + 1) % shown == 0 or step + 1 == steps:
            mean, seconds = float(torch.stack(losses).mean()), time.perf_counter() - start
            losses.clear()
            print(f"{label}: step {step + 1}/{steps}, loss {mean:.4f}, {seconds:.0f} s", file=sys.stderr, flush=True)
    module.eval()


def _pace(step: int, steps: int) -> float:
    """Return the fraction of the learning rate at a step."""
    warm = max(1, int(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


# -- classifiers of images ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """How a classifier is trained: SGD with Nesterov's momentum of 0.9.

    Attributes
    ----------
    epochs, batch : int
    rate, decay : float
        Highest learning rate, and weight decay, which biases and normalisation do not have.
    shift : int
        Pixels by which every training image is moved at random, in either direction along both axes; 0 for none.
    teacher_share, temperature : float
        Share of the loss that is the cross entropy with the teacher's answers at this temperature (Hinton, Vinyals and
        Dean 2015), where there is a teacher.
    """

    epochs: int
    batch: int = 128
    rate: float = 0.05
    decay: float = 5e-4
    shift: int = 0
    teacher_share: float = 0.7
    temperature: float = 4.0

    def of(self, epochs: int) -> Settings:
        """The same for another number of epochs."""
        return replace(self, epochs=epochs)


def steps_of(settings: Settings, dataset: Dataset) -> int:
    """Steps of the optimizer in a training."""
    return settings.epochs * (len(dataset.train) // settings.batch)


def train(
    module: GraphModule,
    dataset: Dataset,
    settings: Settings,
    *,
    seed: int = 0,
    teacher: nn.Module | None = None,
    pruner: Callable[[Optimizer], Stepper] | None = None,
    penalty: Callable[[nn.Module], Tensor] | None = None,
    label: str = "train",
) -> None:
    """Train a classifier in place.

    Parameters
    ----------
    module : GraphModule
    dataset : Dataset
        On the module's device.
    settings : Settings
    seed : int
        Of the order, the shifts and Dropout.
    teacher : torch.nn.Module, optional
    pruner : callable, optional
        Makes of the optimizer what is stepped after it.
    penalty : callable, optional
        What is added to the loss.
    label : str
        Name in the progress on stderr.
    """
    torch.manual_seed(seed)  # Dropout draws from the global generator
    optimizer = sgd(module, settings.rate, settings.decay)
    drawn = batches(dataset, settings.batch, settings.shift, seed)

    def loss(step: int) -> Tensor:
        images, labels = next(drawn)
        answers = module(images)
        found = cross_entropy(answers, labels) if teacher is None else _taught(answers, labels, teacher, images)
        return found if penalty is None else found + penalty(module)

    def _taught(answers: Tensor, labels: Tensor, teacher: nn.Module, images: Tensor) -> Tensor:
        heat, share = settings.temperature, settings.teacher_share
        with torch.no_grad():
            wanted = (teacher(images) / heat).softmax(1)
        # The square makes up for gradients that shrink by it.
        soft = kl_div((answers / heat).log_softmax(1), wanted, reduction="batchmean") * heat**2
        return (1 - share) * cross_entropy(answers, labels) + share * soft

    after = [pruner(optimizer)] if pruner else []
    descend(module, optimizer, loss, steps_of(settings, dataset), after=after, label=label)


def sgd(module: GraphModule, rate: float, decay: float) -> Optimizer:
    """Make the optimizer of classifiers: biases and normalisation do not decay."""
    weights = [parameter for parameter in module.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in module.parameters() if parameter.dim() <= 1]
    groups = [{"params": weights, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)


def batches(dataset: Dataset, size: int, shift: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield training images, moved by at most `shift` pixels, and labels, in a new order in every epoch."""
    part, size = dataset.train, min(size, len(dataset.train))
    random = torch.Generator(device=part.images.device).manual_seed(seed)
    while True:
        order = torch.randperm(len(part), generator=random, device=random.device)
        for places in order[: len(order) // size * size].split(size):
            yield moved(dataset, part.images[places], shift, random), part.labels[places]


def error(module: nn.Module, part: Part) -> float:
    """Percent of the images that are classified wrongly."""
    module.eval()
    wrong = 0
    with torch.no_grad():
        for places in torch.arange(len(part), device=part.labels.device).split(EVALUATED_AT_ONCE):
            wrong += int((module(part.images[places]).argmax(1) != part.labels[places]).sum())
    return 100 * wrong / len(part)


def moved(dataset: Dataset, images: Tensor, shift: int, random: torch.Generator) -> Tensor:
    """Move every image by at most so many pixels, and mirror half of them where that is the same class."""
    if not shift:
        return images
    count, channels, height, width = images.shape
    blank = torch.tensor(dataset.blank, device=images.device).view(1, channels, 1, 1)
    padded = pad(images - blank, [shift] * 4) + blank

    def places(extent: int) -> Tensor:
        starts = torch.randint(0, 2 * shift + 1, (count, 1), generator=random, device=images.device)
        return starts + torch.arange(extent, device=images.device)

    rows, columns = places(height), places(width)
    if dataset.flips:
        mirrored = torch.rand(count, 1, generator=random, device=images.device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    index = torch.arange(count, device=images.device)[:, None, None]
    found = padded.movedim(1, 3)[index, rows[:, :, None], columns[:, None, :]]
    return found.movedim(3, 1).contiguous()
