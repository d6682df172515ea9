"""Where a sparse tensor's entries are, as gaps or as a bitmap.

Both say at which places of the flattened tensor the stored values go; everywhere else it is +0. Gaps take one byte for
every stored value, a bitmap one bit for every place: gaps are smaller below about one entry in eight.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]

FURTHEST = 255
"""The largest gap that one byte holds; a zero is stored after every such stretch of a longer one."""
TABLE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.bool_)
"""The bits of every byte, the highest first: shape (256, 8)."""


def occupied(values: npt.NDArray[np.generic]) -> Places:
    """Return the places of a flat array that hold anything but +0, at least one place.

    Bits are looked at, not values: -0 is an entry, and so is every NaN.
    """
    bits = values.view(np.dtype(f"u{values.dtype.itemsize}"))
    found = np.flatnonzero(bits)
    # No decoder works on nothing: a tensor of zeros alone stores its first.
    return (found if found.size else np.zeros(1, dtype=np.int64)).astype(np.int64, copy=False)


def to_gaps(places: Places) -> Bytes:
    """Return the distance of every place from the one before, the first one's from 0.

    Parameters
    ----------
    places : ndarray of int64, shape (entries,)
        Ascending.

    Returns
    -------
    ndarray of uint8, shape (stored values,)
        A distance over 255 takes several; all but the last of them lead to a zero that is stored as a value.
    """
    steps = np.diff(places, prepend=0)
    extra = np.maximum(steps - 1, 0) // FURTHEST
    gaps = np.full(len(places) + int(extra.sum()), FURTHEST, dtype=np.uint8)
    gaps[np.cumsum(1 + extra) - 1] = steps - FURTHEST * extra
    return gaps


def from_gaps(gaps: Bytes, size: int) -> Places:
    """Return the places that gaps stand for.

    Raises
    ------
    ValueError
        When they run beyond the tensor's size, or come back to a place.
    """
    places = np.cumsum(gaps, dtype=np.int64)
    if not places.size or places[-1] >= size:
        raise ValueError(f"its gaps do not fit into {size} places")
    if not gaps[1:].all():
        raise ValueError("two of its values go to one place")
    return np.asarray(places)


def to_bitmap(places: Places, size: int) -> Bytes:
    """Return one bit for every place of a tensor, the first in the highest bit of the first byte.

    Returns
    -------
    ndarray of uint8, shape (ceil(size / 8),)
    """
    bits = np.zeros(size, dtype=np.bool_)
    bits[places] = True
    return np.packbits(bits)


def from_bitmap(bitmap: Bytes, size: int) -> Places:
    """Return the places that a bitmap stands for.

    Raises
    ------
    ValueError
        When it is longer or shorter than the tensor.
    """
    if len(bitmap) != -(-size // 8):
        raise ValueError(f"its bitmap of {len(bitmap)} bytes is not one of {size} places")
    places = np.flatnonzero(np.unpackbits(bitmap))
    if not places.size or places[-1] >= size:
        raise ValueError("its bitmap has entries beyond the last place, or none")
    return places.astype(np.int64, copy=False)
