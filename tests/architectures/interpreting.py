"""The way back: an exported network as a torch module again."""

from __future__ import annotations

import numpy as np
import onnx
import torch

from graphprune.finetune import to_torch
from tests.oracles import Feeds, run


def assert_same_in_torch(model: onnx.ModelProto, inputs: Feeds) -> None:
    """Demand ONNX Runtime's outputs to a relative 1e-5, and finite gradients of their squares."""
    module = to_torch(model)
    got = module(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    outputs = got if isinstance(got, tuple) else (got,)
    for expected, found in zip(run(model, inputs).values(), outputs, strict=True):
        error = np.linalg.norm(found.detach().numpy() - expected)
        assert error <= 1e-5 * np.linalg.norm(expected) + 1e-6
    sum(found.square().sum() for found in outputs).backward()
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
