"""onnxsim's pruning functions: structured magnitude and Wanda; magnitude, Wanda and SparseGPT zeros."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import onnx
from task import Candidate, Task, UnavailableError, every, search
from weights import gone, prunable, total

EVERYWHERE = {"global": True, "per layer": False}


def structural(task: Task, share: float) -> Iterator[Candidate]:
    """L2 and Wanda scores, one threshold for all chains or one for each."""
    onnxsim, inputs = _library(), {"calibration_data": list(task.batches())}
    attempts = {}
    for where, everywhere in EVERYWHERE.items():
        attempts[f"L2, {where}"] = partial(onnxsim.apply_structured_pruning_cpp, global_sparsity=everywhere)
        wanda = partial(onnxsim.apply_structured_wanda_pruning_cpp, global_sparsity=everywhere, **inputs)
        attempts[f"Wanda, {where}"] = wanda
    yield from every(partial(_searched, task, share, share, *attempt) for attempt in attempts.items())


def zeros(task: Task, share: float) -> Iterator[Candidate]:
    """Magnitude and Wanda, global and per layer, and SparseGPT."""
    onnxsim, inputs = _library(), {"calibration_data": list(task.batches())}
    attempts = {"SparseGPT": partial(onnxsim.apply_sparsegpt_pruning_cpp, **inputs)}
    for where, everywhere in EVERYWHERE.items():
        attempts[f"magnitude, {where}"] = partial(onnxsim.prune_magnitude_cpp, global_sparsity=everywhere)
        wanda = partial(onnxsim.apply_wanda_pruning_cpp, global_sparsity=everywhere, **inputs)
        attempts[f"Wanda, {where}"] = wanda
    guess = share * total(task.proto) / prunable(task.proto)
    yield from every(partial(_searched, task, share, guess, *attempt) for attempt in attempts.items())


def _searched(task: Task, share: float, guess: float, variant: str, function: Any) -> Candidate:
    def prune(ratio: float) -> Candidate:
        pruned = function(task.proto, sparsity=ratio)
        onnx.checker.check_model(pruned)
        return Candidate(variant, pruned, gone(task.proto, pruned))

    return search(prune, share, guess)


def _library() -> Any:
    try:
        import onnxsim  # noqa: PLC0415  (optional)
    except ImportError as error:
        raise UnavailableError(f"onnxsim cannot be imported: {error}") from error
    return onnxsim
