"""How much of a change of weights reaches the outputs: the model is run with the weights changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from graphprune.calib.pairs import Batch, Track
from graphprune.ir.graph import Graph

SQUASHING = ("LogSoftmax", "Sigmoid", "Softmax")
"""Operators at the end of a model that hide errors of what they read, the logits."""
SAMPLES = 64
"""About how many samples an effect is measured on."""

Values = list[npt.NDArray[np.float64]]


class Effects:
    """Measures what changed weights do to a model's outputs.

    Parameters
    ----------
    track : Track
        The model on its data; weights are changed in it, and put back.
    """

    def __init__(self, track: Track) -> None:
        self.track = track
        self.outputs = compared_outputs(Graph(track.proto))
        self.stored = {tensor.name: tensor for tensor in track.proto.graph.initializer}
        size = max((len(value) for value in track.known[0].values() if value.ndim), default=1)
        self.chosen = range(0, len(track.known), max(len(track.known) * size // SAMPLES, 1))
        self.reference = self._run()

    def of(self, names: Sequence[str], change: Callable[[], None]) -> float:
        """Return the squared error of the outputs that a change leads to, as `squared_error` gives it.

        Parameters
        ----------
        names : sequence of str
            Initializers that the change writes to; they are put back.
        change : callable
        """
        with self._restored([name for name in names if name]):
            change()
            return squared_error(self.reference, self._run())

    @contextmanager
    def _restored(self, names: Sequence[str]) -> Iterator[None]:
        before = {name: self.stored[name].SerializeToString() for name in names}
        try:
            yield
        finally:
            for name, content in before.items():
                self.stored[name].ParseFromString(content)

    def _run(self) -> Values:
        return values_of(self.track, self.outputs, [self.track.known[index] for index in self.chosen])


def compared_outputs(graph: Graph) -> list[str]:
    """Return the tensors that errors are measured on: the graph's outputs, or the logits behind them."""
    producers = ((graph.producer.get(name), name) for name in graph.outputs)
    return [node.inputs[0] if node is not None and node.op in SQUASHING else name for node, name in producers]


def values_of(track: Track, names: Sequence[str], batches: list[Batch]) -> Values:
    """Return tensors over all batches, each as one flat array."""
    found: dict[str, Values] = {name: [] for name in names}
    for batch in track.run(list(found), batches):
        for name, value in batch.items():
            found[name].append(np.asarray(value, dtype=np.float64).ravel())
    return [np.concatenate(values) for values in found.values()]


def squared_error(reference: Values, values: Values) -> float:
    """Return the squared error over the variance, averaged over the outputs; infinite if one is not finite."""
    errors = []
    for one, other in zip(reference, values, strict=True):
        spread = float(np.square(one - one.mean()).sum()) if one.size and np.isfinite(one).all() else 0.0
        if spread > 0:
            error = float(np.square(one - other).sum()) / spread
            errors.append(error if np.isfinite(error) else np.inf)
    return float(np.mean(errors)) if errors else 0.0
