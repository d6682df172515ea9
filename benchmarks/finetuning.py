"""Accuracy after pruning and training, beside the same training without pruning, and by the original as teacher.

    python benchmarks/finetuning.py resnet20 [--keep FOLDER] [--epochs N] [--speedup S] [--rate R] [--threads N]
    python benchmarks/finetuning.py resnet20-taught [--keep FOLDER] [--epochs N] [--speedup S] [--rate R] [--threads N]
    python benchmarks/finetuning.py mobilenet [--epochs N] [--target T] [--threads N]

resnet20: resnet20_cifar10 of ../shared/zoo is trained on the training set of the JPEG copy of CIFAR-10, with
BatchNormalization for as long as that takes; and in the same way after it has lost the units that cost least for the
time they save, until it is S times as fast.
resnet20-taught: the trained network loses them, and is trained again in the same way, by itself as it was before.
Both are judged on the 10,000 test images; --keep leaves the trained network for the other command.
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
from graphprune.finetune import GraphModule, normalised, to_proto, to_torch
from graphprune.ir.model import save

ZOO = Path(__file__).resolve().parents[2] / "shared" / "zoo"
BATCH = 128
TAUGHT, HEAT = 0.7, 4.0
"""Share of the loss that a teacher has, and the temperature of its answers."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure accuracy after pruning and training.")
    parser.add_argument("model", choices=["resnet20", "resnet20-taught", "mobilenet"])
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--speedup", type=float, default=1.1)
    parser.add_argument("--target", type=float, default=0.5)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if not ZOO.is_dir():
        raise SystemExit(f"no zoo at {ZOO}: the models and data of this benchmark are not in the project")
    print("| model | weights kept | MACs before / after | drop without training | top-1 | seconds |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    (mobilenet if given.model == "mobilenet" else resnet20)(zoo_module(), given)


def resnet20(zoo: ModuleType, given: argparse.Namespace) -> None:
    """Train the original, and the same with units removed, on the same data."""
    name, path = "resnet20_cifar10", ZOO / "models" / "resnet20_cifar10.onnx"
    calibration, school = zoo.cifar10(True, 256)[0], School(zoo, given)
    with tempfile.TemporaryDirectory() as folder:
        dense, start = (given.keep or Path(folder)) / f"resnet20-{given.epochs}.onnx", time.perf_counter()
        if not dense.is_file():
            module = to_torch(path)
            school.train(module, calibration)
            save(to_proto(module), dense)
        row("resnet20, trained", None, zoo.evaluate(dense, name, 10_000)["top1"], start)
        first, teacher = (path, None) if given.model == "resnet20" else (dense, to_torch(dense))
        recipe, start = Recipe(speedup=given.speedup, align="off", max_latency_ratio=10.0), time.perf_counter()
        train = functools.partial(school.train, calibration=calibration, teacher=teacher)
        pruned, ledger = prune(first, recipe, calibration, finetune=train)
    how = "and trained" if teacher is None else "after it was trained, and taught by what it was"
    row(f"resnet20, units removed, {how}", ledger, judged(zoo, pruned, name), start)


class School:
    """The training set of CIFAR-10, and how networks are trained on it."""

    def __init__(self, zoo: ModuleType, given: argparse.Namespace) -> None:
        self.epochs, self.rate = given.epochs, given.rate
        with np.load(ZOO / "data" / "cifar10_jpeg.npz") as data:
            self.labels = torch.from_numpy(data["y_train"].astype(np.int64))
            images = zoo._jpegs(data["jpg_train"], data["off_train"], range(len(self.labels)))
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        shape = (1, 3, 1, 1)
        self.mean, self.std = (torch.from_numpy(v).reshape(shape) for v in (zoo.IMAGENET_MEAN, zoo.IMAGENET_STD))

    def train(self, module: GraphModule, calibration: Any, teacher: GraphModule | None = None) -> None:
        """Train a network by the labels, and by a teacher where there is one."""
        torch.manual_seed(0)
        with normalised(module, calibration):
            weights = [weight for weight in module.parameters() if weight.dim() > 1]
            others = [other for other in module.parameters() if other.dim() <= 1]
            groups = [{"params": weights, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}]
            optimizer = torch.optim.SGD(groups, lr=self.rate, momentum=0.9, nesterov=True)
            steps = self.epochs * -(-len(self.images) // BATCH)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.rate, steps + 1, pct_start=0.15)
            for epoch in range(self.epochs):
                module.train()
                for pick in torch.randperm(len(self.images)).split(BATCH):
                    optimizer.zero_grad()
                    loss = self._loss(module, pick, teacher)
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                print(f"epoch {epoch + 1}: loss {loss.item():.3f}", file=sys.stderr, flush=True)
        module.eval()

    def _loss(self, module: GraphModule, pick: torch.Tensor, teacher: GraphModule | None) -> torch.Tensor:
        inputs = (augmented(self.images[pick].float() / 255) - self.mean) / self.std
        inputs = inputs.to(memory_format=torch.channels_last)
        answers = module(inputs)
        loss = cross_entropy(answers, self.labels[pick])
        return loss if teacher is None else (1 - TAUGHT) * loss + TAUGHT * taught(answers, teacher, inputs)


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
    """Shift every image by up to 4 pixels, and mirror half of them."""
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4), mode="reflect")
    moved = torch.empty_like(images)
    for place, (down, right, mirrored) in enumerate(torch.randint(0, 18, (len(images), 3)).tolist()):
        piece = padded[place, :, down // 2 : down // 2 + 32, right // 2 : right // 2 + 32]
        moved[place] = piece.flip(-1) if mirrored % 2 else piece
    return moved


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
