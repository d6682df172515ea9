"""Accuracy after pruning and training, beside the same training without pruning, and by the original as teacher.

    python benchmarks/finetuning.py resnet20 [--keep FOLDER] [--macs F] [options]
    python benchmarks/finetuning.py resnet20-taught [--keep FOLDER] [--macs F] [--again N] [options]
    python benchmarks/finetuning.py mobilenet [--target T] [options]

with the options --epochs N, --rate R, --bf16 and --threads N.

resnet20: resnet20_cifar10 of ../shared/zoo is trained on the training set of the JPEG copy of CIFAR-10, with
BatchNormalization for as long as that takes; and in the same way after it has lost the units that cost least for the
MACs they save. With --macs 0 it loses none.
resnet20-taught: the trained network loses them, and is trained again, by itself as it was before.
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
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
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
    parser.add_argument("--again", type=int, default=16)
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--target", type=float, default=0.5)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--bf16", action="store_true")
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
            save(trained(path, functools.partial(school.train, calibration=calibration)), dense)
        row("resnet20, trained", None, judged(zoo, dense, name), start)
        taught_again = given.model == "resnet20-taught"
        first, how = (dense, "trained again, taught by what it was") if taught_again else (path, "trained")
        train = functools.partial(
            school.train,
            calibration=calibration,
            epochs=given.again if taught_again else given.epochs,
            teacher=to_torch(dense) if taught_again else None,
        )
        start = time.perf_counter()
        if given.macs == 0:
            row(f"resnet20, {how}", None, judged(zoo, trained(first, train), name), start)
            return
        recipe = Recipe(macs=given.macs, align="off", max_latency_ratio=10.0)
        pruned, ledger = prune(first, recipe, calibration, finetune=train)
    row(f"resnet20, units removed, {how}", ledger, judged(zoo, pruned, name), start)


def trained(path: Path, train: Callable[[GraphModule], None]) -> onnx.ModelProto:
    """Return a network as a training leaves it."""
    module = to_torch(path)
    train(module)
    return to_proto(module)


class School:
    """The training set of CIFAR-10, and how networks are trained on it."""

    def __init__(self, zoo: ModuleType, given: argparse.Namespace) -> None:
        self.epochs, self.rate = given.epochs, given.rate
        self.autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16, enabled=given.bf16)
        with np.load(ZOO / "data" / "cifar10_jpeg.npz") as data:
            self.labels = torch.from_numpy(data["y_train"].astype(np.int64))
            images = zoo._jpegs(data["jpg_train"], data["off_train"], range(len(self.labels)))
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        shape = (1, 3, 1, 1)
        self.mean, self.std = (torch.from_numpy(v).reshape(shape) for v in (zoo.IMAGENET_MEAN, zoo.IMAGENET_STD))

    def train(
        self, module: GraphModule, calibration: Any, epochs: int | None = None, teacher: GraphModule | None = None
    ) -> None:
        """Train a network by the labels, and by a teacher where there is one."""
        epochs = epochs or self.epochs
        torch.manual_seed(0)
        with normalised(module, calibration):
            weights = [weight for weight in module.parameters() if weight.dim() > 1]
            others = [other for other in module.parameters() if other.dim() <= 1]
            groups = [{"params": weights, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}]
            optimizer = torch.optim.SGD(groups, lr=self.rate, momentum=0.9, nesterov=True)
            steps = epochs * -(-len(self.images) // BATCH)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.rate, steps + 1, pct_start=0.15)
            for epoch in range(epochs):
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
        with self.autocast():
            answers = module(inputs)
            wanted = None if teacher is None else told(teacher, inputs)
        answers = answers.float()
        loss = cross_entropy(answers, self.labels[pick])
        return loss if wanted is None else (1 - TAUGHT) * loss + TAUGHT * taught(answers, wanted)


def mobilenet(zoo: ModuleType, given: argparse.Namespace) -> None:
    """Prune, and learn from the original without labels."""
    name = "mobilenet_v2_imagenet"
    path = ZOO / "models" / f"{name}.onnx"
    row("mobilenet_v2", None, judged(zoo, path, name), time.perf_counter())
    calibration = zoo.imagenet(True, 256, zoo._tf_norm)[0]
    for finetune in (None, "distill"):
        start = time.perf_counter()
        recipe = Recipe(target=given.target, finetune=finetune, epochs=given.epochs if finetune else None)
        pruned, ledger = prune(path, recipe, calibration)
        what = f"mobilenet_v2, --target {given.target:g}" + (f" --finetune {finetune}" if finetune else "")
        row(what, ledger, judged(zoo, pruned, name), start)
        for turn in ledger.rounds:
            print(turn, file=sys.stderr, flush=True)


def told(teacher: GraphModule, inputs: torch.Tensor) -> torch.Tensor:
    """Return a teacher's answers."""
    with torch.no_grad():
        return teacher(inputs).float()  # type: ignore[no-any-return]


def taught(answers: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the divergence from a teacher's answers (Hinton, Vinyals and Dean 2015)."""
    soft = (wanted / HEAT).softmax(1)
    return HEAT**2 * kl_div((answers / HEAT).log_softmax(1), soft, reduction="batchmean")


def augmented(images: torch.Tensor) -> torch.Tensor:
    """Shift every image by up to 4 pixels, and mirror half of them."""
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4), mode="reflect")
    moved = torch.empty_like(images)
    for place, (down, right, mirrored) in enumerate(torch.randint(0, 18, (len(images), 3)).tolist()):
        piece = padded[place, :, down // 2 : down // 2 + 32, right // 2 : right // 2 + 32]
        moved[place] = piece.flip(-1) if mirrored % 2 else piece
    return moved


def judged(zoo: ModuleType, model: Path | onnx.ModelProto, name: str) -> float:
    """Return the top-1 of a model."""
    with tempfile.TemporaryDirectory() as folder:
        path = model if isinstance(model, Path) else Path(folder) / "model.onnx"
        if model is not path:
            save(model, path)
        return float(zoo.evaluate(path, name, 10_000)["top1"])


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
