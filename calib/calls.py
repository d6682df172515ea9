"""The inputs of one call of a model, at the batch size asked for, and their shapes."""

from __future__ import annotations

import numpy as np

from graphprune.calib.specs import Array
from graphprune.calib.stream import Source
from graphprune.errors import RecipeError


def one_call(source: Source, batch: int | None = None) -> dict[str, Array]:
    """Return the inputs of one call.

    Parameters
    ----------
    source : Source
    batch : int, optional
        Samples in it, at least 1; one, or what the model fixes, where not given. Where there are fewer samples they
        are taken again.

    Returns
    -------
    dict of str to array

    Raises
    ------
    RecipeError
        When the model does not take so many samples at a time.
    """
    if batch is None:
        return next(iter(source.subset(1).batches(1)))
    fixed = [spec for spec in source.specs if spec.fixed_batch not in (None, batch) or not spec.shape]
    if fixed:
        raise RecipeError(
            f"the model cannot be run on {batch} samples at a time",
            where=f"--batch {batch}, input {fixed[0]}",
            why="its batch axis, the first, is fixed" if fixed[0].shape else "it has no batch axis",
            hint="leave out --batch, or export the model with a free batch axis",
        )
    chunk = next(iter(source.chunks()))
    if not chunk.by_sample:
        raise RecipeError(
            f"the data cannot be put together to {batch} samples at a time",
            where=f"--batch {batch}, {source.description}",
            why="its arrays have one axis more than the inputs: each row is a whole call",
            hint="leave out --batch, or give data with its samples along the inputs' own first axis",
        )
    feeds = next(iter(source.subset(batch).batches(batch)))
    return {name: value.take(np.arange(batch) % len(value), axis=0) for name, value in feeds.items()}


def one_sample_shapes(source: Source) -> dict[str, tuple[int, ...]]:
    """Return the input shapes of one sample, batch axis included."""
    return {name: value.shape for name, value in one_call(source).items()}
