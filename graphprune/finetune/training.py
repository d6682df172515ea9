"""Hand a pruned model to whoever trains it, and take it back with its zeros in place."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TypeVar

import onnx
import torch

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
    ModelError
        When a weight is not finite any more.
    """
    module = to_torch(proto)
    if torch.cuda.is_available():  # torchrun numbers the processes of a machine
        module.to(f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}")
    masks = Masks(module, sorted(set(zeroed).intersection(module.initializer_names.values())))
    outcome = training(module)
    module.eval()
    masks.apply()
    return to_proto(module.cpu()), outcome
