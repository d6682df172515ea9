"""A user's training function, and a program that runs it unchanged in every process of torchrun."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from graphprune.errors import RecipeError
from graphprune.finetune import Pruner, Schedule, to_torch, trim

STEPS = 12


def data(part: int = 0, parts: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of 16 samples, or the part of each that one process gets."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(16, 2, 6, 6, generator=generator) for _ in range(STEPS)]
    return [(x[part::parts], x[part::parts].flatten(1)[:, :5]) for x in batches]


def train(module: torch.nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> Pruner:
    """The loop of README.md."""
    module.train()
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3, weight_decay=1e-2)
    pruner = Pruner(module, Schedule(0.8, begin=2, end=10, frequency=4), optimizer)
    for x, y in batches:
        optimizer.zero_grad()
        (module(x) - y).square().mean().backward()
        optimizer.step()
        pruner.step()
    return pruner


def parameters(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of what a module has learnt."""
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def rounds(module: torch.nn.Module, part: int, parts: int) -> list[dict[str, torch.Tensor]]:
    """Train, trim by statistics of this process's own inputs, wrap what is left anew, and train on."""
    found = []
    for _ in range(3):
        pruner = train(DistributedDataParallel(module), data(part, parts))
        found.append(parameters(module))
        refused = ""
        try:
            pruner.trim(torch.zeros(1, 2, 6, 6))
        except RecipeError as error:
            refused = str(error)
        if "wrap it anew" not in refused:
            raise AssertionError("what DistributedDataParallel holds was trimmed")
        pruner.remove()
        trim(module, data(part, parts)[0][0] * (1 - 2 * part), align="off")
    return found


def main(folder: Path) -> None:
    """Train in one of several processes, and save what each has in the end."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    part, parts = torch.distributed.get_rank(), torch.distributed.get_world_size()
    module = to_torch(folder / "net.onnx")
    pruner = train(DistributedDataParallel(module), data(part, parts))
    apart = to_torch(folder / "net.onnx")
    with torch.no_grad():  # what the processes hold has drifted apart
        for weight in apart.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)), alpha=0.05 * part)
    alone = Pruner(apart, Schedule(0.5, begin=1, end=1))
    alone.step()
    result = {
        "weights": parameters(module),
        "zeros": pruner.masks.zeros,
        "sparsity": pruner.sparsity,
        "apart": alone.masks.zeros,
        "differ": parameters(apart),
        "rounds": rounds(to_torch(folder / "net.onnx"), part, parts),
    }
    torch.save(result, folder / f"{part}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
