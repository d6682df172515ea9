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

from graphprune.finetune.masks import Masks  # noqa: E402
from graphprune.finetune.module import GraphModule, to_onnx, to_proto, to_torch  # noqa: E402

__all__ = ["GraphModule", "Masks", "TorchMissingError", "to_onnx", "to_proto", "to_torch"]
