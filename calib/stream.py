"""Calibration samples as one stream of batches that can be walked any number of times."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from graphprune.calib.chunks import Chunk
from graphprune.calib.specs import Array, InputSpec, common_fixed_batch
from graphprune.errors import CalibrationError


@dataclass(frozen=True)
class Source:
    """Calibration inputs that can be walked any number of times.

    Attributes
    ----------
    description : str
        Where they come from, for reports.
    specs : tuple of InputSpec
        The inputs that they feed.
    real : bool
        False for random inputs.
    chunks : callable
        Starts a new pass over the data.
    known : int, optional
        The number of samples in `chunks` where it is known without a pass.
    limit : int, optional
        The most samples to use, rounded up to whole batches where the model fixes the batch.
    """

    description: str
    specs: tuple[InputSpec, ...]
    real: bool
    chunks: Callable[[], Iterable[Chunk]]
    known: int | None = None
    limit: int | None = None

    @cached_property
    def samples(self) -> int:
        """Samples that a pass feeds; whole feeds where an array has one rank more than its input.

        A function is walked once to count them.
        """
        if self.known is not None:
            return self._whole(self.known if self.limit is None else min(self.known, self._rounded(self.limit)))
        groups = itertools.groupby(self._limited(), lambda chunk: chunk.kind)
        counts = [(kind[0], sum(chunk.count for chunk in group)) for kind, group in groups]
        return sum(self._whole(count) if by_sample else count for by_sample, count in counts)

    def batches(self, batch_size: int = 1) -> Iterator[dict[str, Array]]:
        """Walk the data once.

        Parameters
        ----------
        batch_size : int, default 1
            Samples in one batch, at least 1; the last may be smaller. It counts only where samples lie along
            axis 0 and every input leaves axis 0 free: a model with a fixed batch of d is fed d samples at a
            time (an incomplete rest is left out), and a whole feed goes alone.

        Yields
        ------
        dict of str to array
            Feeds for ONNX Runtime, in the inputs' element types, C order.

        Raises
        ------
        CalibrationError
            When there is no batch at all, or data that is read on the way is not usable.
        """
        for _, feeds in self.counted(batch_size):
            yield feeds

    def counted(self, batch_size: int = 1) -> Iterator[tuple[int, dict[str, Array]]]:
        """Walk the data once, as `batches`, with the number of samples in front of each batch."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        size = self._fixed_batch or batch_size
        empty = True
        for kind, group in itertools.groupby(self._limited(), lambda chunk: chunk.kind):
            for batch in _join(group, size, whole=self._fixed_batch is not None) if kind[0] else _one_by_one(group):
                empty = False
                yield batch
        if empty:
            raise self._no_sample()

    def subset(self, n: int) -> Source:
        """Return the first `n` samples (at least 1) as a source; walking it reads no more than it needs."""
        if n < 1:
            raise ValueError(f"a subset needs at least 1 sample, not {n}")
        return replace(self, limit=n if self.limit is None else min(n, self.limit))

    def check(self) -> Source:
        """Walk the data once, and return the source.

        Raises
        ------
        CalibrationError
            When some of it is not usable, or there is no whole batch.
        """
        if not self.samples:
            raise self._no_sample()
        return self

    @property
    def _fixed_batch(self) -> int | None:
        return common_fixed_batch(self.specs)

    def _rounded(self, count: int) -> int:
        size = self._fixed_batch or 1
        return -(-count // size) * size

    def _whole(self, count: int) -> int:
        return count - count % (self._fixed_batch or 1)

    def _limited(self) -> Iterator[Chunk]:
        left = self.limit
        for index, chunk in enumerate(self.chunks()):
            if left is None:
                yield chunk
                continue
            if index == 0 and chunk.by_sample:
                left = self._rounded(left)
            yield replace(chunk, count=min(chunk.count, left))
            left -= min(chunk.count, left)
            if not left:
                return

    def _no_sample(self) -> CalibrationError:
        size = self._fixed_batch
        return CalibrationError(
            "the calibration data holds no sample" if size in (None, 1) else "too few calibration samples",
            where=self.description,
            why="" if size in (None, 1) else f"the model takes {size} samples at a time, and there are fewer",
            hint="give at least one sample" if size in (None, 1) else f"give {size} samples or more",
        )


def _join(chunks: Iterable[Chunk], size: int, *, whole: bool) -> Iterator[tuple[int, dict[str, Array]]]:
    """Cut batches of `size` samples across the borders of like chunks; an incomplete rest goes if `whole`."""
    pieces: list[dict[str, Array]] = []
    held = 0
    for chunk in chunks:
        start = 0
        while start < chunk.count:
            stop = min(chunk.count, start + size - held)
            pieces.append(chunk.take(start, stop))
            held, start = held + stop - start, stop
            if held == size:
                yield size, chunk.concatenate(pieces)
                pieces, held = [], 0
    if pieces and not whole:
        yield held, chunk.concatenate(pieces)


def _one_by_one(chunks: Iterable[Chunk]) -> Iterator[tuple[int, dict[str, Array]]]:
    for chunk in chunks:
        for index in range(chunk.count):
            yield 1, chunk.take(index, index + 1)
