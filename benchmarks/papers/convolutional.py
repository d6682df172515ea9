"""MobileNet and an Inception network on CIFAR-10, trained as Zhu & Gupta compare them."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from data import Dataset
from gradual import train
from networks import SCALED
from torch import Tensor
from torch.nn.functional import cross_entropy
from training import DEVICE, batches, error, sgd

from graphprune.finetune import to_torch

SHIFT = 4
"""Pixels by which training images move: He et al. 2015."""


@dataclass(frozen=True)
class Size:
    """How much is trained; ``quick`` networks are shallower, and ``width`` multiplies their channels."""

    width: float
    steps: int
    images: int | None
    batch: int
    rate: float
    quick: bool


FULL = Size(width=1.0, steps=45_000, images=None, batch=128, rate=0.1, quick=False)
QUICK = {
    "mobilenet": Size(width=0.5, steps=5_000, images=None, batch=64, rate=0.1, quick=True),
    "inception": Size(width=0.5, steps=3_000, images=None, batch=64, rate=0.1, quick=True),
}


def left_dense(model: onnx.ModelProto) -> list[str]:
    """Names of the weights that the paper does not prune: the first convolution's, and depthwise ones."""
    names = {tensor.name for tensor in model.graph.initializer}
    return sorted(name for name in names if name.startswith(("first.", "depthwise")) and name.endswith(".weight"))


def run(
    kind: str, size: Size, dataset: Dataset, width: float, sparsity: float, seed: int, faster: float = 1.0
) -> tuple[int, dict[str, float]]:
    """Train one network, its learning rate times a factor; return nonzeros, and top-1 in percent by part."""
    model = SCALED[kind](width, seed, quick=size.quick)
    module = to_torch(model).to(DEVICE)
    drawn = batches(dataset, size.batch, SHIFT, seed)

    def loss(step: int) -> Tensor:
        images, labels = next(drawn)
        return cross_entropy(module(images), labels)

    optimizer = sgd(module, faster * size.rate, 5e-4)
    label = f"{kind}, width {width:.3g}, sparsity {sparsity:g}"
    nonzeros = train(module, optimizer, loss, size.steps, sparsity, dense=left_dense(model), label=label)
    parts = {"validation": dataset.validation, "test": dataset.test}
    return nonzeros, {name: 100 - error(module, part) for name, part in parts.items()}
