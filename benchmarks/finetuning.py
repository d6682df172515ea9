"""Accuracy after pruning and training, beside the same training without pruning, and by the original as teacher.

    python benchmarks/finetuning.py resnet20 [--epochs N] [--share S] [--samples N] [--rate R] [--threads N]
    python benchmarks/finetuning.py mobilenet [--epochs N] [--target T] [--threads N]

resnet20: resnet20_cifar10 of ../shared/zoo loses the share S of every group's units and is trained on the training set
of the JPEG copy of CIFAR-10, by itself and with the trained original for a teacher; the original is trained in the same
way. All are judged on the 10,000 test images.
mobilenet: mobilenet_v2_imagenet is pruned to the target and learns from the original on 256 images without labels; it
is judged on the other 744.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy, kl_div

from graphprune import Recipe, prune
from graphprune.finetune import GraphModule, to_proto, to_torch
from graphprune.ir.model import save

ZOO = Path(__file__).resolve().parents[2] / "shared" / "zoo"
BATCH = 128
TAUGHT, HEAT = 0.7, 4.0
"""Share of the loss that a teacher has, and the temperature of its answers."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure accuracy after pruning and training.")
    parser.add_argument("model", choices=["resnet20", "mobilenet"])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--share", type=float, default=0.32)
    parser.add_argument("--target", type=float, default=0.5)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--rate", type=float, default=0.03)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if not ZOO.is_dir():
        raise SystemExit(f"no zoo at {ZOO}: the models and data of this benchmark are not in the project")
    print("| model | weights kept | MACs before / after | drop without training | top-1 | seconds |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    (resnet20 if given.model == "resnet20" else mobilenet)(zoo_module(), given)


def resnet20(zoo: ModuleType, given: argparse.Namespace) -> None:
    """Train the original, and the same with units removed, on the same data in the same order."""
    name, path = "resnet20_cifar10", ZOO / "models" / "resnet20_cifar10.onnx"
    with np.load(ZOO / "data" / "cifar10_jpeg.npz") as data:
        chosen = np.random.default_rng(0).permutation(len(data["y_train"]))[: given.samples]
        labels = torch.from_numpy(data["y_train"][chosen].astype(np.int64))
        images = zoo._jpegs(data["jpg_train"], data["off_train"], chosen)
    images = torch.from_numpy(images)
    mean, std = (torch.from_numpy(value).reshape(1, 3, 1, 1) for value in (zoo.IMAGENET_MEAN, zoo.IMAGENET_STD))

    def train(module: GraphModule, teacher: GraphModule | None = None) -> None:
        torch.manual_seed(0)
        optimizer = torch.optim.SGD(module.parameters(), lr=given.rate, momentum=0.9, weight_decay=1e-4, nesterov=True)
        steps = given.epochs * -(-len(images) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, given.rate, steps + 1, pct_start=0.1)
        for epoch in range(given.epochs):
            for pick in torch.randperm(len(images)).split(BATCH):
                inputs = augmented(images[pick].permute(0, 3, 1, 2).float() / 255)
                optimizer.zero_grad()
                inputs = (inputs - mean) / std
                answers = module(inputs)
                loss = cross_entropy(answers, labels[pick])
                if teacher is not None:
                    loss = (1 - TAUGHT) * loss + TAUGHT * taught(answers, teacher, inputs)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)  # its BatchNormalization has been folded
                optimizer.step()
                schedule.step()
            print(f"epoch {epoch + 1}: loss {loss.item():.3f}", file=sys.stderr, flush=True)

    start = time.perf_counter()
    dense = to_torch(path).train()
    train(dense)
    with tempfile.TemporaryDirectory() as folder:
        save(to_proto(dense.eval()), Path(folder) / "dense.onnx")
        top1 = zoo.evaluate(Path(folder) / "dense.onnx", name, 10_000)["top1"]
    row("resnet20, trained on", None, top1, start)
    calibration = zoo.cifar10(True, 256)[0]
    recipe = Recipe(channels=given.share, align="off", max_latency_ratio=10.0)
    for how, teacher in (("", None), (", the trained original teaches", dense)):
        start = time.perf_counter()
        pruned, ledger = prune(path, recipe, calibration, finetune=functools.partial(train, teacher=teacher))
        row(f"resnet20, {given.share:.0%} of units removed{how}", ledger, judged(zoo, pruned, name), start)


def mobilenet(zoo: ModuleType, given: argparse.Namespace) -> None:
    """Prune, and learn from the original without labels."""
    name = "mobilenet_v2_imagenet"
    path = ZOO / "models" / f"{name}.onnx"
    row("mobilenet_v2", None, zoo.evaluate(path, name, 10_000)["top1"], time.perf_counter())
    calibration = zoo.imagenet(True, 256, zoo._tf_norm)[0]
    for finetune in (None, "distill"):
        start = time.perf_counter()
        recipe = Recipe(target=given.target, finetune=finetune, epochs=given.epochs if finetune else None)
        pruned, ledger = prune(path, recipe, calibration)
        what = f"mobilenet_v2, --target {given.target:g}" + (f" --finetune {finetune}" if finetune else "")
        row(what, ledger, judged(zoo, pruned, name), start)
        for turn in ledger.rounds:
            print(turn, file=sys.stderr, flush=True)


def taught(answers: torch.Tensor, teacher: GraphModule, inputs: torch.Tensor) -> torch.Tensor:
    """Return the divergence from a teacher's answers (Hinton, Vinyals and Dean 2015)."""
    with torch.no_grad():
        wanted = (teacher(inputs) / HEAT).softmax(1)
    return HEAT**2 * kl_div((answers / HEAT).log_softmax(1), wanted, reduction="batchmean")


def augmented(images: torch.Tensor) -> torch.Tensor:
    """Shift images by up to 4 pixels, and mirror half of them."""
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4), mode="reflect")
    down, right = torch.randint(0, 9, (2,)).tolist()
    moved = padded[:, :, down : down + 32, right : right + 32]
    return torch.where(torch.rand(len(moved), 1, 1, 1) < 0.5, moved, moved.flip(-1))


def judged(zoo: ModuleType, model: Any, name: str) -> float:
    """Return the top-1 of a model."""
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder) / "model.onnx")
        return float(zoo.evaluate(Path(folder) / "model.onnx", name, 10_000)["top1"])


def row(what: str, ledger: Any, top1: float, start: float) -> None:
    """Print one line of the table."""
    kept = macs = drop = "-"
    if ledger is not None:
        kept = f"{ledger.weights.nonzero / ledger.weights.before:.3f}"
        macs = f"{ledger.macs.before / ledger.macs.after:.2f}"
        drop = f"{ledger.rounds[0].before:.3f}" if ledger.rounds and ledger.rounds[0].before is not None else "-"
    cells = (what, kept, macs, drop, f"{100 * top1:.2f}", f"{time.perf_counter() - start:.0f}")
    print("| " + " | ".join(cells) + " |", flush=True)


def zoo_module() -> ModuleType:
    """Return the zoo's own module of data and preprocessing."""
    spec = importlib.util.spec_from_file_location("zoo", ZOO / "zoo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
