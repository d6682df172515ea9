"""MNIST and CIFAR-10 of the zoo beside the project, with a part of the training set held back to choose by."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "zoo" / "data"
VALIDATION = 5_000
"""Images of the training set that nothing is trained on."""
CIFAR_MEAN, CIFAR_DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Part:
    """Images, float32 [n, channels, height, width], and their classes, int64 [n]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Part:
        """All of them on a device."""
        return Part(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """What is trained on, what is chosen by, and what is only measured on.

    Attributes
    ----------
    train, validation, test : Part
    blank : float or tuple of float
        The value of a black pixel by channel, which moves in where an image is shifted.
    flips : bool
        Whether a mirrored image is of the same class.
    """

    train: Part
    validation: Part
    test: Part
    blank: tuple[float, ...]
    flips: bool

    def to(self, device: torch.device) -> Dataset:
        """All parts on a device."""
        return replace(
            self, train=self.train.to(device), validation=self.validation.to(device), test=self.test.to(device)
        )


@lru_cache
def mnist(limit: int | None = None) -> Dataset:
    """MNIST, pixels in [0, 1]: 55,000 images to train on, 5,000 to choose by, 10,000 to measure.

    Parameters
    ----------
    limit : int, optional
        Only so many images of the training set and of the test set are read, the first ones.
    """
    with np.load(require(DATA / "mnist.npz")) as arrays:
        images = {part: arrays[f"x_{part}"][:limit, None].astype(np.float32) / 255 for part in ("train", "test")}
        labels = {part: arrays[f"y_{part}"][:limit] for part in ("train", "test")}
    return _split(images, labels, (0.0,), flips=False)


@lru_cache
def cifar10(limit: int | None = None) -> Dataset:
    """CIFAR-10 from the zoo's JPEG copy, channels of mean 0 and deviation 1.

    Parameters
    ----------
    limit : int, optional
        Only so many images of the training set, and half as many of the test set, are read: drawn at random, but the
        same in every run, since the file has them in the order of classes.
    """
    mean = np.array(CIFAR_MEAN, np.float32)[:, None, None]
    deviation = np.array(CIFAR_DEVIATION, np.float32)[:, None, None]
    images, labels = {}, {}
    with np.load(require(DATA / "cifar10_jpeg.npz")) as arrays:
        for part, share in (("train", 1), ("test", 2)):
            count = len(arrays[f"y_{part}"])
            chosen = np.random.default_rng(0).permutation(count)[: count if limit is None else limit // share]
            pixels = _decoded(arrays[f"jpg_{part}"], arrays[f"off_{part}"], chosen)
            images[part] = (pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255 - mean) / deviation
            labels[part] = arrays[f"y_{part}"][chosen]
    return _split(images, labels, tuple((-mean / deviation).ravel().tolist()), flips=True)


def _decoded(blob: np.ndarray, offsets: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    try:
        from PIL import Image  # noqa: PLC0415 - the extra `images`
    except ImportError:
        raise SystemExit("papers: the images of ../shared/zoo are JPEG files: pip install pillow") from None
    spans = ((offsets[number], offsets[number + 1]) for number in chosen.tolist())
    return np.stack([np.asarray(Image.open(io.BytesIO(blob[a:b].tobytes())).convert("RGB")) for a, b in spans])


def _split(
    images: dict[str, np.ndarray], labels: dict[str, np.ndarray], blank: tuple[float, ...], flips: bool
) -> Dataset:
    """Hold back the last images of the training set in a seeded order, never more than a quarter."""
    order = np.random.default_rng(0).permutation(len(labels["train"]))
    held = min(VALIDATION, len(order) // 4)
    parts = {"train": order[:-held], "validation": order[-held:]}
    found = {name: _part(images["train"][places], labels["train"][places]) for name, places in parts.items()}
    test = _part(images["test"], labels["test"])
    return Dataset(**found, test=test, blank=blank, flips=flips)


def _part(images: np.ndarray, labels: np.ndarray) -> Part:
    return Part(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))


def require(path: Path) -> Path:
    """The path of a file of the zoo; stop with a message where it is absent."""
    if not path.is_file():
        raise SystemExit(f"papers: no {path}: the data of this benchmark is not in the project")
    return path
