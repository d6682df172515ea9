"""Plain magnitude: the smallest weights become zero, and nothing is repaired (Han et al. 2015)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from task import Candidate, Task
from weights import gone, layers_of, prunable, read, total, write


def zeros(task: Task, share: float) -> Iterator[Candidate]:
    """One ranking of all layers' weights, and one for each layer."""
    part = min(share * total(task.proto) / prunable(task.proto), 1.0)
    weights = {layer.weight: read(task.proto, layer.weight) for layer in layers_of(task.proto)}
    sizes = np.cumsum([values.size for values in weights.values()])
    everything = np.concatenate([values.ravel() for values in weights.values()])
    masks = np.split(_smallest(everything, part), sizes[:-1])
    yield _masked(task, "global", dict(zip(weights, masks, strict=True)))
    yield _masked(task, "per layer", {name: _smallest(values, part) for name, values in weights.items()})


def _smallest(values: np.ndarray, part: float) -> np.ndarray:
    """A flat mask of this share of the values, those smallest in magnitude."""
    mask = np.zeros(values.size, bool)
    mask[np.argsort(np.abs(values), axis=None, kind="stable")[: round(part * values.size)]] = True
    return mask


def _masked(task: Task, variant: str, masks: dict[str, np.ndarray]) -> Candidate:
    pruned = onnx.ModelProto()
    pruned.CopyFrom(task.proto)
    for name, mask in masks.items():
        values = read(pruned, name)
        write(pruned, name, np.where(mask.reshape(values.shape), 0, values))
    return Candidate(variant, pruned, gone(task.proto, pruned))
