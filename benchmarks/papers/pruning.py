"""What every table does with models: train a dense one or take it from the last time, prune while training, count."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import networks
import onnx
import training
from data import Dataset
from torch import Tensor, nn
from torch.optim import Optimizer
from training import Settings, Stepper

from graphprune.finetune import GraphModule, Pruner, Schedule, to_onnx, to_proto, to_torch
from graphprune.ir.cost import count_nonzero, count_weights

GROWS_FOR = 0.6
"""Part of a training in which zeros become more; in the rest what is left is trained alone."""
CHANGES = 300
"""How many times zeros become more."""

Network = Callable[[int], onnx.ModelProto]


@dataclass(frozen=True)
class Run:
    """One result, as it is kept for the table of efficiencies."""

    table: str
    network: str
    seed: int
    compression: float
    dense_error: float
    error: float
    weights: int
    nonzero: int
    seconds: float


@dataclass(frozen=True)
class Bench:
    """What the command line says.

    Attributes
    ----------
    seeds : int
    quick : bool
        A few steps of everything: to see that it runs, not for the numbers.
    folder : Path or None
        Where dense models are kept from one command to the next, and the figures of every run.
    sparsities : tuple of float
        Of Zhu & Gupta's tables the rows that are made; all where empty.
    """

    seeds: int
    quick: bool
    folder: Path | None
    sparsities: tuple[float, ...] = ()

    def titled(self, title: str) -> str:
        """A title that says at which size."""
        return f"{title}, quick size" if self.quick else title

    def record(self, run: Run) -> None:
        """Keep a run's figures."""
        if self.folder is not None and not self.quick:
            with (self.folder / "runs.jsonl").open("a") as file:
                file.write(json.dumps(asdict(run)) + "\n")

    def dense(
        self,
        network: str,
        dataset: Dataset,
        settings: Settings,
        seed: int,
        penalty: tuple[str, Callable[[nn.Module], Tensor]] | None = None,
    ) -> GraphModule:
        """A trained dense network, or the one that was kept of a training that was the same.

        The same are network, settings, seed, name of the penalty, number of images and the version of the loop.
        """
        word, function = penalty or ("", None)
        key = f"{settings} {seed} {word} {len(dataset.train)} {training.VERSION}"
        path = None
        if self.folder is not None:
            path = self.folder / f"{network}-{seed}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.onnx"
            if path.exists():
                return to_torch(path).to(training.DEVICE)
        module = to_torch(NETWORKS[network](seed)).to(training.DEVICE)
        label = f"{network} dense {word}, seed {seed}"
        training.train(module, dataset, settings, seed=seed, penalty=function, label=label)
        if path is not None:
            to_onnx(module, path)
        return module


def copy(module: GraphModule) -> GraphModule:
    """A module of the same graph and weights, without masks."""
    return to_torch(to_proto(module)).to(training.DEVICE)


def sparsity_for(module: GraphModule, compression: float) -> float:
    """Which part of the weights that may be zeroed has to go, so that all weights over those left are `compression`."""
    pruner = Pruner(module, Schedule(0.0))
    prunable = sum(zeros.numel() for zeros in pruner.masks.zeros.values())
    pruner.remove()
    weights = count_weights(module.model.proto)
    sparsity = (weights - weights / compression) / prunable
    if not sparsity < 1:
        raise SystemExit(
            f"papers: {compression}x is out of reach: {weights - prunable} of {weights} weights are biases"
        )
    return sparsity


def gradual(
    module: GraphModule, sparsity: float, dataset: Dataset, settings: Settings, **options: object
) -> Callable[[Optimizer], Stepper]:
    """Zeros that grow by Zhu and Gupta's cubic for `GROWS_FOR` of the training, from half of what is asked."""
    end = int(GROWS_FOR * training.steps_of(settings, dataset))
    schedule = Schedule(sparsity, initial=sparsity / 2, end=end, frequency=max(1, end // CHANGES))
    return lambda optimizer: Pruner(module, schedule, optimizer, **options)  # type: ignore[arg-type]


def pruned(
    dense: GraphModule, compression: float, dataset: Dataset, settings: Settings, seed: int, label: str
) -> tuple[GraphModule, float]:
    """A copy of a dense model, pruned while it is trained and the dense one teaches; and the seconds that took."""
    start = time.perf_counter()
    module = copy(dense)
    pruner = gradual(module, sparsity_for(module, compression), dataset, settings)
    training.train(
        module, dataset, settings, seed=seed + 1000, teacher=dense, pruner=pruner, label=f"{label} {compression:g}x"
    )
    return module, time.perf_counter() - start


def counts(module: GraphModule) -> tuple[int, int]:
    """All weights of the file, biases among them, and those that are not zero."""
    proto = to_proto(module)
    return count_weights(proto), count_nonzero(proto)


def kept(module: GraphModule) -> dict[str, tuple[int, float]]:
    """Of every layer, how many weights it has and which part of them is not zero."""
    found = {}
    for name in module.initializer_names.values():
        layer, _, kind = name.rpartition(".")
        if kind == "weight":
            weight = module.parameter_of(name)
            found[layer] = (weight.numel(), int(weight.count_nonzero()) / weight.numel())
    return found


NETWORKS: dict[str, Network] = {
    "lenet300": networks.lenet300,
    "lenet5": networks.lenet5,
    "alexnet": networks.alexnet,
    "vgg16": networks.vgg16,
    "alexnet-quarter": functools.partial(networks.alexnet, width=0.25),
    "vgg16-quarter": functools.partial(networks.vgg16, width=0.25),
}
