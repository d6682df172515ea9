"""SparseGPT (Frantar & Alistarh 2023), written from the paper, on the layers of an ONNX file.

Every layer gets the same sparsity. Layers are taken in graph order; what a layer reads comes from the layers already
pruned, as in the paper ("sequential"), or from the unpruned model ("dense inputs").
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from hessians import hessian, matrix, weight_of
from task import Candidate, Task
from weights import gone, layers_of, prunable, read, total, write

BLOCK = 128
DAMPING = 0.01


def zeros(task: Task, share: float) -> Iterator[Candidate]:
    """Both ways of taking the inputs, all layers at one sparsity."""
    part = share * total(task.proto) / prunable(task.proto)
    for variant in ("sequential", "dense inputs"):
        pruned = onnx.ModelProto()
        pruned.CopyFrom(task.proto)
        for layer in layers_of(task.proto):
            moments = hessian(task, pruned if variant == "sequential" else task.proto, layer)
            weight = read(pruned, layer.weight)
            rows = matrix(layer, weight).astype(np.float64)
            write(pruned, layer.weight, weight_of(layer, _sparsify(rows, moments, part), weight.shape))
        yield Candidate(variant, pruned, gone(task.proto, pruned))


def _sparsify(weights: np.ndarray, moments: np.ndarray, part: float) -> np.ndarray:
    """Each group of [groups, rows, K] on its own; counts of zeros are carried on, so that the layer's share is met."""
    result = np.empty_like(weights)
    seen = done = 0
    for index, (rows, moment) in enumerate(zip(weights, moments, strict=True)):
        result[index], seen, done = _group(rows.copy(), moment, part, seen, done)
    return result


def _group(weight: np.ndarray, moment: np.ndarray, part: float, seen: int, done: int) -> tuple[np.ndarray, int, int]:
    """Optimal brain surgeon column by column: each zero's error moves into the columns that follow.

    Parameters
    ----------
    weight : array
        [rows, K], overwritten.
    moment : array
        [K, K], second moments of the inputs.
    part : float
        Share of the weights to be zeroed, in each block of 128 columns.
    seen, done : int
        Weights and zeros so far in this layer.
    """
    factor = _inverse_factor(weight, moment)
    columns = weight.shape[1]
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        block, diagonal = weight[:, start:stop], np.diag(factor)[start:stop]
        seen += block.size
        count = min(round(part * seen) - done, block.size)
        done += count
        mask = np.zeros(block.shape, bool)
        mask.flat[np.argsort((block / diagonal) ** 2, axis=None)[:count]] = True
        errors = np.zeros_like(block)
        for offset, column in enumerate(range(start, stop)):
            errors[:, offset] = np.where(mask[:, offset], weight[:, column], 0) / diagonal[offset]
            weight[:, column:stop] -= np.outer(errors[:, offset], factor[column, column:stop])
            weight[mask[:, offset], column] = 0
        weight[:, stop:] -= errors @ factor[start:stop, stop:]
    return weight, seen, done


def _inverse_factor(weight: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """Upper Cholesky factor of the inverse of the damped moments; inputs that are always zero lose their weights."""
    moment = moment.copy()
    dead = np.diag(moment) == 0
    moment[dead, dead] = 1
    weight[:, dead] = 0
    moment += DAMPING * np.mean(np.diag(moment)) * np.eye(len(moment))
    return np.linalg.cholesky(np.linalg.inv(moment)).T
