"""What a peer is given, and what it hands back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx

TOLERANCE = 0.005
COARSEST = 0.03  # where units are large, this much more than asked may go


class UnavailableError(Exception):
    """The peer cannot do this; the text says why."""


@dataclass(frozen=True)
class Candidate:
    """A pruned model: the peer's own name of the variant, the model, and the share of weights that is gone."""

    variant: str
    proto: onnx.ModelProto
    gone: float


@dataclass(frozen=True)
class Task:
    """A model of the zoo and its calibration inputs."""

    name: str
    path: Path
    calibration: Path

    @cached_property
    def proto(self) -> onnx.ModelProto:
        """The original model."""
        return onnx.load(self.path)

    @cached_property
    def feeds(self) -> dict[str, np.ndarray]:
        """The calibration inputs by input name, samples on axis 0."""
        with np.load(self.calibration) as arrays:
            return {name: arrays[name] for name in arrays.files}

    @property
    def samples(self) -> int:
        """Calibration inputs there are."""
        return len(next(iter(self.feeds.values())))

    def batches(self, size: int = 32) -> Iterator[dict[str, np.ndarray]]:
        """The inputs in batches, or one by one where the model's batch is fixed."""
        batch = self.proto.graph.input[0].type.tensor_type.shape.dim[0]
        step = batch.dim_value or size
        for start in range(0, self.samples, step):
            yield {name: values[start : start + step] for name, values in self.feeds.items()}


Prune = Callable[[float], Candidate]


def every(attempts: Iterable[Callable[[], Candidate]]) -> Iterator[Candidate]:
    """Every candidate that there is; those that are unavailable are an error only where all are."""
    refused, found = [], 0
    for attempt in attempts:
        try:
            candidate = attempt()
        except UnavailableError as error:
            refused.append(str(error))
            continue
        found += 1
        yield candidate
    if not found:
        raise UnavailableError("; ".join(refused))


def search(prune: Prune, share: float, guess: float, rounds: int = 8) -> Candidate:
    """The candidate that removes the asked share of weights and least beyond it, by bisection over the peer's ratio.

    Parameters
    ----------
    prune : callable
        A ratio in [0, 1) to a Candidate; the share gone grows with the ratio.
    share : float
        Share of all weights that must be gone; half a point less is taken too.
    guess : float
        The ratio that is tried first.
    rounds : int
        Runs of `prune` at most.

    Raises
    ------
    UnavailableError
        When no candidate has the share gone and at most 3 points more.
    """
    low, high = 0.0, 1.0
    ratio = min(guess, 0.99)
    tried: list[Candidate] = []
    for _ in range(rounds):
        tried.append(prune(ratio))
        if abs(tried[-1].gone - share) <= TOLERANCE:
            break
        low, high = (ratio, high) if tried[-1].gone < share else (low, ratio)
        ratio = (low + high) / 2
    enough = [candidate for candidate in tried if -TOLERANCE <= candidate.gone - share <= COARSEST]
    if not enough:
        nearest = min(tried, key=lambda candidate: abs(candidate.gone - share))
        raise UnavailableError(
            f"{nearest.variant}: nearest share of weights gone is {nearest.gone:.1%}, asked {share:.0%}"
        )
    return min(enough, key=lambda candidate: candidate.gone)
