"""Hand a pruned model to whoever trains it, and take it back with its zeros in place."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TypeVar

import onnx
import torch

from graphprune.errors import RecipeError
from graphprune.finetune.masks import Masks
from graphprune.finetune.module import GraphModule, to_proto, to_torch

Outcome = TypeVar("Outcome")


def trained(
    proto: onnx.ModelProto, zeroed: Iterable[str], training: Callable[[GraphModule], Outcome]
) -> tuple[onnx.ModelProto, Outcome]:
    """Train a model, on a GPU where there is one, and hold its zeros.

    Parameters
    ----------
    proto : onnx.ModelProto
        Not changed.
    zeroed : iterable of str
        Initializers whose zeros stay; those that are no longer there are passed over.
    training : callable
        Trains a module, which is in evaluation mode, in place.

    Returns
    -------
    model : onnx.ModelProto
        The very graph, with other weights.
    outcome
        What the training returned.

    Raises
    ------
    UnsupportedOperatorError
        When the torch interpreter does not know an operator.
    RecipeError
        When the training changed what the weights are: their names, or their shapes.
    ModelError
        When a weight is not finite any more.
    """
    module = to_torch(proto)
    if torch.cuda.is_available():  # torchrun numbers the processes of a machine
        module.to(f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}")
    before = _shapes(module)
    # What is stored and is no parameter (a mask of attention) is not trained, and stays as it is.
    parameters = {module.initializer_names[torch_name] for torch_name, _ in module.named_parameters()}
    masks = Masks(module, sorted(parameters.intersection(zeroed)))
    try:
        outcome = training(module)
        _demand_same(before, _shapes(module))
        module.eval()
        masks.apply()
        return to_proto(module.cpu()), outcome
    finally:
        masks.remove()


def _shapes(module: GraphModule) -> dict[str, tuple[int, ...]]:
    values = {name: getattr(module, torch_name, None) for torch_name, name in module.initializer_names.items()}
    return {name: tuple(value.shape) for name, value in values.items() if value is not None}


def _demand_same(before: dict[str, tuple[int, ...]], after: dict[str, tuple[int, ...]]) -> None:
    """Demand that a training left every weight its shape."""
    for name in before | after:
        was, now = (shapes.get(name, "absent") for shapes in (before, after))
        if was != now:
            raise RecipeError(
                "the training changed the shape of a weight",
                where=name,
                why=f"it was {was}, and is {now}: what goes in the rounds is decided between the trainings",
                hint="let the recipe say what is removed (--target, --channels, --macs), and train alone",
            )
