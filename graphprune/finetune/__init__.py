"""The fine-tuning hook: an ONNX graph as a torch module, masks that keep its zeros, and the way back.

The only part of graphprune that imports torch: ``pip install graphprune[torch]``.
"""

from __future__ import annotations

import importlib.util

from graphprune.errors import GraphPruneError


class TorchMissingError(GraphPruneError, ImportError):
    """Fine-tuning was asked for, and torch is not installed."""


if importlib.util.find_spec("torch") is None:
    raise TorchMissingError(
        "fine-tuning needs torch, which is not installed",
        where="graphprune.finetune",
        hint="pip install graphprune[torch]",
    )

from graphprune.finetune.freezing import frozen  # noqa: E402
from graphprune.finetune.masks import Masks  # noqa: E402
from graphprune.finetune.module import GraphModule, to_onnx, to_proto, to_torch  # noqa: E402
from graphprune.finetune.normalisation import normalised  # noqa: E402
from graphprune.finetune.pruner import Pruner  # noqa: E402
from graphprune.finetune.regularisation import (  # noqa: E402
    Connections,
    connections,
    dropout_ratios,
    l1_penalty,
    l2_penalty,
)
from graphprune.finetune.schedule import Schedule  # noqa: E402
from graphprune.finetune.structural import Trimmed, trim  # noqa: E402

__all__ = [
    "Connections",
    "GraphModule",
    "Masks",
    "Pruner",
    "Schedule",
    "TorchMissingError",
    "Trimmed",
    "connections",
    "dropout_ratios",
    "frozen",
    "l1_penalty",
    "l2_penalty",
    "normalised",
    "to_onnx",
    "to_proto",
    "to_torch",
    "trim",
]
