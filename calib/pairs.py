"""Run the original and what has become of it side by side, layer after layer, and measure what each layer lacks.

A layer's input is what the pruned model, repaired up to there, really computes; its errors are what its output lacks
against the original's. So that a model of n layers does not cost n runs of all that is before a layer, each model's
live tensors are kept from layer to layer wherever they are small enough (`MEMORY`), and the next run starts from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from graphprune.calib.moments import SecondMoments, second_moments
from graphprune.ir.bodies import captured
from graphprune.ir.coupling.resizing import SAME, Resized
from graphprune.ir.layers.forms import output_rows, places_of
from graphprune.ir.layers.layer import Layer
from graphprune.ir.segment import segment
from graphprune.ir.session import open_session, run_session

MEMORY = 256 * 2**20
"""Bytes of live tensors that are kept of each of the two models."""
ROWS_PER_COLUMN = 32
"""Rows that are measured for every column of a layer's matrix."""
FEWEST_ROWS, MOST_ROWS = 4096, 32768
JUDGE = 4
"""Every fourth batch judges how well the others' least squares do."""

Array = npt.NDArray[Any]
Batch = dict[str, Array]


class Track:
    """One of the two models, and how far its tensors are known.

    Parameters
    ----------
    proto : onnx.ModelProto
        Its weights may change behind the point that was last passed to `advance`.
    batches : list of dict
        Its inputs.
    custom_ops : sequence of str
    """

    def __init__(self, proto: onnx.ModelProto, batches: list[Batch], custom_ops: Sequence[str]) -> None:
        self.proto = proto
        self.known = batches
        self.custom_ops = custom_ops
        self.place = {name: index for index, node in enumerate(proto.graph.node) for name in node.output if name}

    def run(self, wanted: Sequence[str], batches: list[Batch] | None = None) -> Iterator[Batch]:
        """Compute tensors, batch by batch, of all batches or the ones given."""
        batches = self.known if batches is None else batches
        kinds = {name: onnx.helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in batches[0].items()}
        part = segment(self.proto, kinds, wanted)
        session = open_session(part, custom_ops=self.custom_ops) if part.graph.output else None
        names = [value.name for value in part.graph.output]
        inputs = [value.name for value in part.graph.input]
        for batch in batches:
            made = run_session(session, {name: batch[name] for name in inputs}, names) if session else []
            found = {**batch, **dict(zip(names, made, strict=True))}
            yield {name: found[name] for name in wanted}

    def advance(self, output: str) -> None:
        """Keep what is known in front of a tensor's node, if that is not too much.

        Parameters
        ----------
        output : str
            All weights in front of the node that makes it are settled.
        """
        live = self._live(self.place[output])
        if set(live) == set(self.known[0]):
            return
        (first,) = self.run(live, self.known[:1])
        if sum(value.nbytes for value in first.values()) * len(self.known) <= MEMORY:
            self.known = list(self.run(live))

    def _live(self, place: int) -> list[str]:
        """Tensors that are there before a node and needed by it or behind it."""
        before = {name for name in self.known[0] if name not in self.place}
        before.update(name for node in self.proto.graph.node[:place] for name in node.output if name)
        needed: dict[str, None] = {}
        for node in self.proto.graph.node[place:]:
            needed.update(dict.fromkeys((*node.input, *captured(node))))
        needed.update({value.name: None for value in self.proto.graph.output})
        return [name for name in needed if name in before]


class Pair:
    """The original and a draft of its successor, on the same data.

    Parameters
    ----------
    original, draft : onnx.ModelProto
        Nodes of the two that make tensors of the same name stand for each other.
    batches : sequence of dict
        Inputs of the original.
    change : Resized, optional
        What stays of the graph inputs.
    custom_ops : sequence of str, default ()
    """

    def __init__(
        self,
        original: onnx.ModelProto,
        draft: onnx.ModelProto,
        batches: Sequence[Mapping[str, Array]],
        *,
        change: Resized = SAME,
        custom_ops: Sequence[str] = (),
    ) -> None:
        self.original = Track(original, [dict(batch) for batch in batches], custom_ops)
        self.draft = Track(draft, [change.cut_feeds(batch) for batch in batches], custom_ops)

    def advance(self, layer: Layer) -> None:
        """Tell that every weight in front of a layer is settled."""
        self.original.advance(layer.output)
        self.draft.advance(layer.output)

    def measure(self, before: Layer, after: Layer, kept: Array | None, seed: int) -> list[SecondMoments]:
        """Measure a layer's input in the draft, and what its output lacks.

        Parameters
        ----------
        before, after : Layer
            The layer in the original and in the draft.
        kept : ndarray of bool, shape (channels,), or None
            Which channels of the output are left.
        seed : int
            Of the places that are measured.

        Returns
        -------
        list of SecondMoments
            Of two disjoint parts of the data, the second of every `JUDGE`-th batch; all in one part where there are
            fewer batches than that.
        """
        return _in_parts(self._rows(before, after, kept, np.random.default_rng(seed)))

    def _rows(
        self, before: Layer, after: Layer, kept: Array | None, random: np.random.Generator
    ) -> Iterator[tuple[Array, Array]]:
        form, computed = after.form, after.form.computed
        shape = _shape(self.draft.proto, after.weight)
        same = before.total == after.total  # shapes may be known in one of the models alone
        past, present = (before.total, after.total) if same else (before.output, after.output)
        originals = self.original.run([past] if computed else [before.data])
        drafts = self.draft.run([after.data, present] if computed else [after.data])
        for there, here in zip(originals, drafts, strict=True):
            data, output = here[after.data], here[present if computed else after.data]
            places = _places(self.draft, after, shape, output, random)
            rows = form.rows(after.node.attributes, shape, data, places)
            if computed:
                was, now = output_rows(form, there[past], places), output_rows(form, output, places)
            else:
                first = _shape(self.original.proto, before.weight)
                matrix = before.matrix(self.original.proto)[0].astype(np.float32)
                was = form.rows(before.node.attributes, first, there[before.data], places)[:, 0] @ matrix
                now = rows[:, 0] @ after.matrix(self.draft.proto)[0].astype(np.float32)
            yield rows, (was if kept is None else was[:, kept]) - now


def measure_rows(track: Track, layer: Layer, seed: int) -> list[SecondMoments]:
    """Measure a layer's input in one model alone, as `Pair.measure` does; errors are 0.

    Parameters
    ----------
    track : Track
    layer : Layer
    seed : int
        Of the places that are measured.

    Returns
    -------
    list of SecondMoments
    """
    random = np.random.default_rng(seed)
    shape, form = _shape(track.proto, layer.weight), layer.form
    outputs = layer.matrix(track.proto).shape[2]

    def rows_of(found: Batch) -> tuple[Array, Array]:
        places = _places(track, layer, shape, found[layer.output if form.computed else layer.data], random)
        rows = form.rows(layer.node.attributes, shape, found[layer.data], places)
        return rows, np.zeros((*rows.shape[:2], outputs), rows.dtype)

    return _in_parts(map(rows_of, track.run([layer.data, layer.output])))


def _in_parts(batches: Iterable[tuple[Array, Array]]) -> list[SecondMoments]:
    """Sum up the moments of rows and errors of batches, in a part that is fitted and one that judges."""
    parts: dict[bool, SecondMoments] = {}
    for index, (rows, errors) in enumerate(batches, start=1):
        moments = second_moments(rows, errors.reshape(*rows.shape[:2], -1))
        judges = index % JUDGE == 0
        parts[judges] = parts[judges] + moments if judges in parts else moments
    return [parts[judges] for judges in sorted(parts)]


def _places(
    track: Track, layer: Layer, shape: tuple[int, ...], output: Array, random: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Places of every sample of a batch that are measured."""
    width = int(np.prod(shape[1:])) if layer.form.channel_axis == 1 else max(shape)
    wanted = min(max(ROWS_PER_COLUMN * width, FEWEST_ROWS), MOST_ROWS)
    available = places_of(layer.form, output.shape)
    count = min(available, -(-wanted // max(len(track.known) * len(output), 1)))
    return np.sort(random.choice(available, count, replace=False))


def _shape(proto: onnx.ModelProto, name: str) -> tuple[int, ...]:
    return next(tuple(tensor.dims) for tensor in proto.graph.initializer if tensor.name == name)
