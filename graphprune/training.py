"""Who trains a pruned model: a function of the user's, or the original, whose outputs need no labels."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx

from graphprune.analysis import HELD_OUT, Analysis, Data, split
from graphprune.calib.pairs import Batch
from graphprune.calib.stream import Source
from graphprune.errors import RecipeError, user_code
from graphprune.imports import import_function
from graphprune.ir.coupling.resizing import resized
from graphprune.ir.coupling.units import BoolArray
from graphprune.ir.graph import Graph
from graphprune.ranks import world
from graphprune.recipe import Recipe
from graphprune.recovery.effects import compared_outputs
from graphprune.recovery.repair import solved_layers

if TYPE_CHECKING:  # torch only where something is trained
    from graphprune.finetune import GraphModule
    from graphprune.finetune.distill import Hint

DISTILL = "distill"
EPOCHS = 30
"""Of distillation, where the recipe says nothing."""
MEMORY = 2**30
"""Bytes of calibration inputs to learn from, at most."""
_USE = "give a function that takes a torch module and trains it in place"

Function: TypeAlias = "Callable[[GraphModule], object]"
"""Trains a module, which is in training mode, in place."""


@dataclass(frozen=True)
class Task:
    """What is known of a model that is to be trained.

    Attributes
    ----------
    analysis : Analysis
        Of the original.
    removed : ndarray of bool, shape (units,)
        What the model lost of the original's units.
    source : Source
    """

    analysis: Analysis
    removed: BoolArray
    source: Source


Training: TypeAlias = "Callable[[GraphModule, Task | None], dict[str, Any] | None]"
"""Trains a module in place, and may say what came of it. No task is given to processes that only help to train."""


def training_of(
    recipe: Recipe,
    source: Source,
    function: Function | None = None,
    progress: Callable[[int], None] | None = None,
) -> Training | None:
    """Return the training that is asked for, None where there is none.

    Parameters
    ----------
    recipe : Recipe
    source : Source
    function : callable, optional
        The user's own; instead of one that the recipe names.
    progress : callable, optional
        Called with the number of batches learnt from.

    Raises
    ------
    RecipeError
        When the user's function cannot be imported, or there are no calibration inputs to learn from.
    TorchMissingError
        When torch is not installed.
    """
    if recipe.finetune is None and function is None:
        if recipe.rounds > 1:
            raise RecipeError("--rounds prunes and trains in turns", hint="give --finetune as well")
        return None
    import graphprune.finetune  # noqa: F401, PLC0415 - to find out before hours of work that there is no torch

    if function is not None:
        if not callable(function):
            why = f"it is a {type(function).__name__}"
            raise RecipeError("the training function is not a function", where="finetune", why=why, hint=_USE)
        return by_function(function, getattr(function, "__qualname__", repr(function)))
    assert recipe.finetune is not None
    if recipe.finetune == DISTILL:
        if not source.real:
            raise RecipeError(
                "the original teaches on the calibration inputs, and these are random",
                where=f"--finetune {DISTILL}",
                hint="give --calib",
            )
        if world() > 1:
            raise RecipeError(
                "the original teaches in one process, and there are more",
                where=f"--finetune {DISTILL}",
                hint="start it without torchrun",
            )
        return lambda module, task: _distilled(module, task, recipe, progress)
    return by_function(import_function(recipe.finetune, "training function", RecipeError, _USE), recipe.finetune)


def by_function(function: Function, name: str) -> Training:
    """Return the training that a function of the user's does; what fails in it is an error of theirs."""

    def training(module: GraphModule, task: Task | None) -> None:
        module.train()
        hint = "call it alone, with graphprune.finetune.to_torch(MODEL), to see where it fails"
        with user_code(RecipeError, "the training function failed", where=name, hint=hint):
            result = function(module)
        if isinstance(result, Generator | Coroutine):
            result.close()
            why = f"it returned a {type(result).__name__}, and nothing in it has run"
            raise RecipeError("the training function does not train", where=name, why=why, hint=_USE)

    return training


def demand_trainable(proto: onnx.ModelProto) -> None:
    """Demand that torch can run a model.

    Raises
    ------
    UnsupportedOperatorError
        When the torch interpreter does not know an operator.
    """
    from graphprune.finetune import to_torch  # noqa: PLC0415

    to_torch(proto)


def train(
    proto: onnx.ModelProto, zeroed: frozenset[str], task: Task | None, training: Training
) -> tuple[onnx.ModelProto, dict[str, Any] | None]:
    """Train a model and hold its zeros, as `graphprune.finetune.training.trained` does; return what was said of it."""
    from graphprune.finetune.training import trained  # noqa: PLC0415

    return trained(proto, zeroed, lambda module: training(module, task))


def _distilled(
    module: GraphModule, task: Task | None, recipe: Recipe, progress: Callable[[int], None] | None
) -> dict[str, Any]:
    assert task is not None
    from graphprune.finetune.distill import Lesson, distill  # noqa: PLC0415

    coupling, data = task.analysis.coupling, split(task.source)
    change = resized(coupling, task.removed)
    lesson = Lesson(
        teacher=coupling.graph.proto,
        hints=hints(task, module.model.proto),
        batches=list(_batches(task.source, data)),
        held_out=data.held_out,
        cut=change.cut_feeds,
    )
    found = distill(module, lesson, epochs=recipe.epochs or EPOCHS, seed=recipe.seed, progress=progress)
    return asdict(found)


def _batches(source: Source, data: Data) -> Iterator[Batch]:
    """Return the calibration inputs, without those that are held out, as far as memory allows."""
    taken = 0
    size = max((len(value) for value in data.every[0].values() if value.ndim), default=1)
    for number, feeds in enumerate(source.batches(size), 1):
        held_out = data.splits and number <= len(data.every) and number % HELD_OUT == 0
        if not held_out:
            taken += sum(value.nbytes for value in feeds.values())
            if taken > MEMORY:
                return
            yield dict(feeds)


def hints(task: Task, student: onnx.ModelProto) -> list[Hint]:
    """Return what every layer and output of a pruned model is to compute: what is left of the original's."""
    from graphprune.finetune.distill import Hint  # noqa: PLC0415

    coupling, found = task.analysis.coupling, dict[str, Hint]()
    graph, there = coupling.graph, Graph(student).element_types
    for before, layer in solved_layers(coupling, student):
        if layer.form.computed and layer.total in there and graph.shape(layer.total):
            rank = len(graph.shape(layer.total) or ())
            axis = 1 if before.form.channel_axis == 1 else rank - 1
            lost = coupling.lost(layer.total, axis, task.removed)
            found[layer.total] = Hint(layer.total, axis, None if lost is None else np.flatnonzero(~lost))
    resizes = resized(coupling, task.removed).outputs
    for name in compared_outputs(graph):
        if name in there and name not in resizes and name not in found:
            found[name] = Hint(name)
    return list(found.values())
