"""Distillation without labels: a pruned model learns to compute what the original computes, layer by layer.

The original is the teacher (Hinton, Vinyals and Dean 2015), and what every layer of the pruned model computes is a hint
(Romero et al. 2015, FitNets): with a few hundred samples the answers alone are soon learnt by heart, while every place
of every layer's output is something to learn from. So the loss is the mean over the hints of the squared error over the
variance, and answers count as one hint among the others. Inputs are mixed in pairs (Zhang et al. 2018, mixup), which
needs no label here: the teacher says what the mixture comes to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor

from graphprune.errors import ModelError
from graphprune.finetune.module import GraphModule, to_torch
from graphprune.ir.graph import Graph

Batch = Mapping[str, npt.NDArray[Any]]

RATES = (3e-5, 3e-4, 3e-3)
"""Learning rates that are tried."""
TRIED = 0.1
"""Part of the epochs that each of them trains for, to be compared."""
STEPS = 24
"""The most steps of the optimizer in an epoch."""
WARM_UP = 0.1
"""Part of the steps in which the learning rate rises."""
FOUR = 4
"""Axes of a batch of images."""
FULL = 4
"""Bytes of a number in single precision."""
PATIENCE = 0.25
"""Part of the epochs without a better loss after which the second half ends early."""


@dataclass(frozen=True)
class Hint:
    """A tensor of the teacher that the student is to compute, too.

    Attributes
    ----------
    tensor : str
        Its name in both graphs.
    axis : int
    kept : ndarray of int or None
        Positions along the axis that the student still has; all of them where it is None.
    """

    tensor: str
    axis: int = 0
    kept: npt.NDArray[np.int64] | None = field(default=None)


@dataclass(frozen=True)
class Lesson:
    """What a student learns, and from whom.

    Attributes
    ----------
    teacher : onnx.ModelProto
    hints : sequence of Hint
        At least one.
    batches : sequence of feeds
        Inputs of the teacher to learn from.
    held_out : sequence of feeds
        Others to judge by.
    cut : callable
        Makes the student's feeds of the teacher's.
    """

    teacher: onnx.ModelProto
    hints: Sequence[Hint]
    batches: Sequence[Batch]
    held_out: Sequence[Batch]
    cut: Callable[[Batch], Batch]


@dataclass(frozen=True)
class Distillation:
    """What became of a student.

    Attributes
    ----------
    epochs : int
        How many were trained.
    best : int
        After which of them the weights were as they are now; 0 where training made nothing better.
    learning_rate : float
        The largest that was used.
    before, after : float
        Loss on the samples held out: the mean over the hints of the squared error over the variance.
    """

    epochs: int
    best: int
    learning_rate: float
    before: float
    after: float


def distill(
    module: GraphModule,
    lesson: Lesson,
    *,
    epochs: int = 30,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Distillation:
    """Train a pruned model to compute what the original computes, in place.

    Parameters
    ----------
    module : GraphModule
        The student; its masks hold. It stays in evaluation mode: BatchNormalization keeps its statistics.
    lesson : Lesson
    epochs : int, default 30
        At least 1; it ends earlier where nothing becomes better any more.
    seed : int, default 0
        Of the order of the batches and of what is mixed.
    progress : callable, optional
        Called with the number of batches that were learnt from.

    Returns
    -------
    Distillation
        Never worse than before, by the loss on the samples held out: the weights of the best epoch are kept, or those
        that were given.

    Raises
    ------
    UnsupportedOperatorError
        When the torch interpreter does not know an operator of either model.
    ModelError
        When there is no hint, or what the teacher computes is not finite.
    """
    if not lesson.hints:
        raise ModelError("there is nothing to learn: no output and no layer is in both models")
    module.eval()
    student = _Student(module, lesson, seed, progress)
    student.demand_gradients()
    before = student.loss()
    if not math.isfinite(before):
        raise ModelError(
            "the model cannot be distilled", why="its outputs, or the original's, are infinite or not numbers"
        )
    tried = max(1, round(TRIED * epochs))
    rate = min(RATES, key=lambda rate: student.tried(rate, tried))
    best, loss, done = student.train(rate, epochs, before)
    return Distillation(epochs=done, best=best, learning_rate=rate, before=before, after=loss)


class _Student:
    """A module that shows what its layers compute, beside the teacher."""

    def __init__(self, module: GraphModule, lesson: Lesson, seed: int, progress: Callable[[int], None] | None) -> None:
        self.module, self.lesson, self.progress = module, lesson, progress
        self.random = np.random.default_rng(seed)
        names = [hint.tensor for hint in lesson.hints]
        self.teacher = to_torch(_showing(lesson.teacher, names)).requires_grad_(False)
        self.shown = to_torch(_showing(module.model.proto, names))
        theirs = {name: torch_name for torch_name, name in self.shown.initializer_names.items()}
        for torch_name, name in module.initializer_names.items():  # the very parameters of the module
            setattr(self.shown, theirs[name], getattr(module, torch_name))
        self.shown.constraints = module.constraints
        self.weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.device = self.weights[0].device if self.weights else torch.device("cpu")
        for model in (self.teacher, self.shown):
            model.to(self.device)

    def demand_gradients(self) -> None:
        """Demand that the loss tells how the weights should change."""
        if not self._loss(self.lesson.batches[0]).requires_grad:
            raise ModelError(
                "the model cannot be distilled",
                why="nothing that its layers compute depends on its weights but through rounding (QuantizeLinear)",
                hint="train the float model, and quantise it afterwards",
            )

    def loss(self) -> float:
        """Return the loss on the samples held out."""
        with torch.no_grad():
            losses = [float(self._loss(batch)) for batch in self.lesson.held_out]
        return float(np.mean(losses))

    def tried(self, rate: float, epochs: int) -> float:
        """Return the loss that a learning rate leads to in a few epochs; nothing is changed."""
        kept = self._copy()
        for _ in self._epochs(rate, epochs):
            pass
        loss = self.loss()
        self._restore(kept)
        return loss if math.isfinite(loss) else math.inf

    def train(self, rate: float, epochs: int, before: float) -> tuple[int, float, int]:
        """Train, and keep the best weights; return their epoch, their loss, and how many epochs there were."""
        best, lowest, kept, epoch = 0, before, self._copy(), 0
        for epoch in self._epochs(rate, epochs):
            loss = self.loss()
            if loss < lowest:
                best, lowest, kept = epoch, loss, self._copy()
            if epoch > epochs / 2 and epoch - max(best, epochs / 2) > PATIENCE * epochs:
                break
        self._restore(kept)
        return best, lowest, epoch

    def _epochs(self, rate: float, epochs: int) -> Any:
        """Train, and yield the number of every epoch that is over."""
        batches = self.lesson.batches
        groups = np.array_split(np.arange(len(batches)), min(len(batches), STEPS))
        # Adam divides by squares of gradients, which are zero in half precision.
        masters = [weight if weight.dtype.itemsize >= FULL else weight.detach().float() for weight in self.weights]
        optimizer = torch.optim.Adam(masters, lr=rate)
        steps = epochs * len(groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, steps))
        for epoch in range(1, epochs + 1):
            order = self.random.permutation(len(batches))
            for group in groups:
                for place in order[group]:
                    (self._loss(self._mixed(batches[place])) / len(group)).backward()  # type: ignore[no-untyped-call]
                self._step(optimizer, masters)
                schedule.step()
                if self.progress is not None:
                    self.progress(len(group))
            for constraint in self.module.constraints:
                constraint()
            yield epoch

    def _step(self, optimizer: torch.optim.Optimizer, masters: Sequence[Tensor]) -> None:
        """Update what stands for the weights, and the weights by it."""
        for weight, master in zip(self.weights, masters, strict=True):
            if master is not weight:
                master.grad = None if weight.grad is None else weight.grad.float()
        optimizer.step()
        for weight, master in zip(self.weights, masters, strict=True):
            if master is not weight:
                weight.data.copy_(master)
            weight.grad = None

    def _mixed(self, batch: Batch) -> Batch:
        """Mix a batch with another of the same shapes; what is no float number is that of the first."""
        other = self.lesson.batches[int(self.random.integers(len(self.lesson.batches)))]
        share = self.random.random()
        if any(batch[name].shape != other[name].shape for name in batch):
            return batch
        return {
            name: (share * value + (1 - share) * other[name]).astype(value.dtype) if value.dtype.kind == "f" else value
            for name, value in batch.items()
        }

    def _loss(self, batch: Batch) -> Tensor:
        """Mean over the hints of the squared error over the variance."""
        with torch.no_grad():
            wanted = self._run(self.teacher, batch)
        errors, found = [], self._run(self.shown, self.lesson.cut(batch))
        for hint, want, have in zip(self.lesson.hints, wanted, found, strict=True):
            places = None if hint.kept is None else torch.from_numpy(hint.kept).to(self.device)
            kept = want if places is None else want.index_select(hint.axis, places)
            wide = kept.float() if kept.dtype.itemsize < FULL else kept
            errors.append((have - wide).square().mean() / wide.var(correction=0).clamp_min(1e-12))
        return torch.stack(errors).mean()

    def _run(self, model: GraphModule, batch: Batch) -> Sequence[Tensor]:
        inputs = [torch.from_numpy(np.ascontiguousarray(batch[name])).to(self.device) for name in model.input_names]
        # Convolutions are up to three times as fast where channels lie side by side.
        found = model(*[x.to(memory_format=torch.channels_last) if x.dim() == FOUR else x for x in inputs])
        return (found,) if isinstance(found, Tensor) else found

    def _copy(self) -> list[Tensor]:
        return [weight.detach().clone() for weight in self.weights]

    def _restore(self, kept: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for weight, value in zip(self.weights, kept, strict=True):
                weight.copy_(value)


def _share(step: int, steps: int) -> float:
    """Return which part of the learning rate a step takes: it rises at first, and falls by half a cosine."""
    return min((step + 1) / max(WARM_UP * steps, 1), (1 + math.cos(math.pi * step / steps)) / 2)


def _showing(proto: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a model whose outputs are these tensors."""
    graph = Graph(proto)
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    del shown.graph.output[:]
    for name in dict.fromkeys(names):
        shape = [extent if isinstance(extent, int) else None for extent in graph.shape(name) or ()]
        shown.graph.output.append(onnx.helper.make_tensor_value_info(name, graph.element_types[name], shape))
    return shown
