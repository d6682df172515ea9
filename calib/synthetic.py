"""Seeded random inputs, for models that come without calibration data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphprune.calib.chunks import check_chunk
from graphprune.calib.specs import Array, InputSpec, common_fixed_batch
from graphprune.calib.stream import Source
from graphprune.errors import CalibrationError

FREE_SIZES = (64, 256)
"""What random inputs take for a free size that is not the batch: small, or, where a model asks for more, larger."""


def free_sizes(specs: Sequence[InputSpec]) -> bool:
    """Whether any size is free that is not the batch."""
    return any(_is_free(spec, axis, _batch_names(specs)) for spec in specs for axis in range(len(spec.shape)))


def random_source(specs: Sequence[InputSpec], seed: int, samples: int = 16, free_size: int = FREE_SIZES[0]) -> Source:
    """Make seeded random inputs: standard normal floats, integers 0 and 1, booleans.

    Only 0 and 1 are sure to be valid indices into any table. A free size is 1 where it is the batch (axis 0, or
    a size of the same name as some input's axis 0) and ``free_size`` elsewhere.

    Parameters
    ----------
    specs : sequence of InputSpec
    seed : int
    samples : int, default 16
        At least 1; rounded up to whole batches where the model fixes the batch.
    free_size : int, default ``FREE_SIZES[0]``

    Returns
    -------
    Source
        With `real` False.

    Raises
    ------
    CalibrationError
        When an input takes text.
    """
    specs = tuple(specs)
    generator = np.random.default_rng(seed)
    batch_names = _batch_names(specs)
    leads = {spec.shape[0] if spec.shape and spec.fixed_batch else None for spec in specs if spec.shape}
    size = common_fixed_batch(specs) or 1
    # Samples can share a batch only where all inputs agree on axis 0; otherwise each row is one whole feed.
    by_sample = len(leads) == 1 and all(spec.shape for spec in specs)
    arrays = {}
    for spec in specs:
        shape = [
            extent if isinstance(extent, int) else free_size if _is_free(spec, axis, batch_names) else 1
            for axis, extent in enumerate(spec.shape)
        ]
        rows = [-(-samples // size) * size, *shape[1:]] if by_sample else [samples, *shape]
        arrays[spec.name] = _random_array(generator, spec, rows)
    sizes = f", free sizes {free_size}" if free_sizes(specs) else ""
    description = f"{samples} seeded random inputs (seed {seed}{sizes})"
    chunk = check_chunk(arrays, specs, description)
    return Source(description, specs, False, lambda: (chunk,))


def _batch_names(specs: Sequence[InputSpec]) -> set[int | str | None]:
    return {spec.shape[0] for spec in specs if spec.shape}


def _is_free(spec: InputSpec, axis: int, batch_names: set[int | str | None]) -> bool:
    extent = spec.shape[axis]
    return not isinstance(extent, int) and axis != 0 and not (extent and extent in batch_names)


def _random_array(generator: np.random.Generator, spec: InputSpec, shape: list[int]) -> Array:
    if spec.dtype.kind == "U":
        raise CalibrationError(
            "random inputs cannot be made for text",
            where=f"input {spec}",
            hint="give calibration data",
        )
    if spec.dtype.kind in "iub":
        return generator.integers(0, 2, shape).astype(spec.dtype)
    return generator.standard_normal(shape).astype(spec.dtype)
