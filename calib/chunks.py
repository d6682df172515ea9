"""A piece of calibration data, checked against the model's inputs.

Every source is a sequence of chunks. In a chunk, an array whose rank equals its input's has its samples on axis 0;
an array of one rank more holds one whole feed in each row. A scalar input may be given one scalar for all feeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphprune.calib.specs import Array, InputSpec, common_fixed_batch, format_shape
from graphprune.errors import CalibrationError

_BLOCK_BYTES = 16 * 2**20  # values are checked in blocks of about this size, so that mapped files stay on disk

_STACKED, _CONSTANT = 0, -1  # values of Chunk.rows beside a number of rows


@dataclass(frozen=True)
class Chunk:
    """Checked arrays, and how feeds are cut from them.

    Attributes
    ----------
    arrays : dict of str to array
        As the user gave them; cast when a feed is cut.
    specs : tuple of InputSpec
    rows : dict of str to int
        Rows of axis 0 in one unit; 0 where a row is a whole feed and its axis goes; -1 where the array is the
        same for all.
    count : int
        Units: samples if `by_sample`, whole feeds if not.
    by_sample : bool
        Whether neighbouring units may be put in one batch.
    """

    arrays: dict[str, Array]
    specs: tuple[InputSpec, ...]
    rows: dict[str, int]
    count: int
    by_sample: bool

    def take(self, start: int, stop: int) -> dict[str, Array]:
        """Cut units `start` to `stop` (one unit only if not `by_sample`), in the model's element types."""
        feeds = {}
        for spec in self.specs:
            array, rows = self.arrays[spec.name], self.rows[spec.name]
            if rows == _STACKED:
                array = array[start]
            elif rows != _CONSTANT:
                array = array[start * rows : stop * rows]
            feeds[spec.name] = np.asarray(array, dtype=None if spec.dtype.kind == "U" else spec.dtype, order="C")
        return feeds

    def concatenate(self, pieces: Sequence[dict[str, Array]]) -> dict[str, Array]:
        """Join feeds cut from this chunk and from others like it along axis 0."""
        if len(pieces) == 1:
            return pieces[0]
        return {
            name: pieces[0][name] if rows == _CONSTANT else np.concatenate([piece[name] for piece in pieces])
            for name, rows in self.rows.items()
        }

    @property
    def kind(self) -> tuple[Any, ...]:
        """Equal for chunks whose samples may share a batch."""
        if not self.by_sample:
            return (False,)
        return (
            True,
            *(
                self.arrays[name].tobytes() if rows == _CONSTANT else self.arrays[name].shape[1:]
                for name, rows in self.rows.items()
            ),
        )


def check_chunk(arrays: Mapping[str, Any], specs: tuple[InputSpec, ...], where: str) -> Chunk:
    """Check arrays against the model's inputs.

    Parameters
    ----------
    arrays : mapping of str to array-like
        By input name.
    specs : tuple of InputSpec
    where : str
        Where the arrays come from, for messages.

    Returns
    -------
    Chunk

    Raises
    ------
    CalibrationError
        On a missing or unknown name, a wrong shape or element type, NaN or infinite values, no sample, or
        arrays with different sample counts.
    """
    _check_names(arrays, specs, where)
    checked = {}
    for spec in specs:
        at = f"{where}, input {spec.name!r}"
        array = _as_array(arrays[spec.name], at)
        _check_dtype(array, spec, at)
        _check_shape(array, spec, at)
        _check_values(array, spec, at)
        checked[spec.name] = array
    rows, count, by_sample = _layout(checked, specs, where)
    return Chunk(checked, specs, rows, count, by_sample)


def _check_names(arrays: Mapping[str, Any], specs: tuple[InputSpec, ...], where: str) -> None:
    valid = [spec.name for spec in specs]
    missing = [name for name in valid if name not in arrays]
    unknown = [str(name) for name in arrays if name not in valid]
    if missing or unknown:
        complaints = [f"missing: {', '.join(missing)}"] * bool(missing)
        complaints += [f"not an input: {', '.join(unknown)}"] * bool(unknown)
        raise CalibrationError(
            "the calibration data's names are not the model's inputs",
            where=where,
            why="; ".join(complaints),
            hint=f"give one array for each input and no other: {', '.join(map(str, specs))}",
        )


def _as_array(value: Any, at: str) -> Array:
    try:
        array: Array = np.asanyarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise CalibrationError(
            "the calibration data is not an array", where=at, why=str(error), hint="give one rectangular array"
        ) from error
    if array.dtype.hasobject:
        raise CalibrationError(
            "the calibration data holds Python objects",
            where=at,
            why=f"its element type is {array.dtype}",
            hint="save plain numbers; objects and pickles are refused",
        )
    return array


def _check_dtype(array: Array, spec: InputSpec, at: str) -> None:
    given, wanted = array.dtype, spec.dtype
    both_float = given.kind == "f" and wanted.kind in "fV"  # numpy's kind of bfloat16 and the 8-bit floats is V
    both_integer = given.kind in "iu" and wanted.kind in "iu"
    both_text = given.kind == wanted.kind == "U"
    if given == wanted or both_float or both_integer or both_text:
        return
    raise CalibrationError(
        "the calibration data has the wrong element type",
        where=at,
        why=f"the model takes {wanted}, the array is {given}",
        hint=f"scale it as for the model's training, if need be, and save it with .astype({str(wanted)!r})",
    )


def _check_shape(array: Array, spec: InputSpec, at: str) -> None:
    rank = len(spec.shape)
    if array.ndim == rank:
        wanted, given = spec.shape[1:], array.shape[1:]
    elif array.ndim == rank + 1:
        wanted, given = spec.shape, array.shape[1:]
    else:
        wanted, given = (-1,), ()
    fits = len(wanted) == len(given) and all(
        size == got for size, got in zip(wanted, given, strict=True) if isinstance(size, int)
    )
    if not fits:
        raise CalibrationError(
            "the calibration data has the wrong shape",
            where=at,
            why=f"the model takes {format_shape(spec.shape)}, the array is {format_shape(array.shape)}",
            hint=f"axis 0 holds the samples; or give {rank + 1} axes, each row one whole feed",
        )
    if array.ndim and not array.shape[0]:
        raise CalibrationError(
            "the calibration data holds no sample",
            where=at,
            why=f"the array's shape is {format_shape(array.shape)}",
            hint="give at least one sample",
        )


def _check_values(array: Array, spec: InputSpec, at: str) -> None:
    """Refuse NaN and infinity, and what the model's element type cannot hold."""
    if spec.dtype.kind not in "fViu" or (spec.dtype.kind in "iu" and array.dtype == spec.dtype):
        return
    for start, block in _blocks(array):
        with np.errstate(over="ignore"):  # what overflows becomes infinite, and is found below
            cast = block.astype(spec.dtype)
        if spec.dtype.kind in "iu":
            bad, complaint = cast != block, f"values that {spec.dtype} cannot hold"
        else:
            bad, complaint = ~np.isfinite(cast), f"NaN, infinity, or values over the range of {spec.dtype}"
        if bad.any():
            first = start + int(np.argmax(bad.reshape(len(bad), -1).any(axis=1)))
            raise CalibrationError(
                "the calibration data holds values that the model cannot use",
                where=at,
                why=f"{complaint}; the first in row {first} of axis 0",
                hint="repair or leave out these samples",
            )


def _blocks(array: Array) -> Iterator[tuple[int, Array]]:
    if not array.ndim:
        yield 0, array[np.newaxis]
        return
    step = max(1, _BLOCK_BYTES * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), step):
        yield start, array[start : start + step]


def _layout(arrays: dict[str, Array], specs: tuple[InputSpec, ...], where: str) -> tuple[dict[str, int], int, bool]:
    """Decide how many rows of each array make one unit, how many units there are, and of which sort."""
    ranks = {spec.name: len(spec.shape) for spec in specs}
    stacked = {name: len(array) for name, array in arrays.items() if array.ndim > ranks[name]}
    sliced = {name: len(array) for name, array in arrays.items() if array.ndim == ranks[name] > 0}
    rows = dict.fromkeys(arrays, _CONSTANT) | dict.fromkeys(stacked, _STACKED)
    fixed = {spec.name: spec.fixed_batch for spec in specs if spec.name in sliced and spec.fixed_batch}
    if not stacked and not sliced:
        return rows, 1, False
    if not stacked and len(set(sliced.values())) == 1 and (not fixed or common_fixed_batch(specs)):
        return rows | dict.fromkeys(sliced, 1), next(iter(sliced.values())), True
    # Whole feeds: each array says how many it holds, and they must agree. An input with a free axis 0 goes whole
    # into a single feed, and gives one row to each of several.
    feeds = {name: count / fixed[name] if name in fixed else count for name, count in sliced.items()} | stacked
    telling = {feeds[name] for name in (*stacked, *fixed)}
    count = telling.pop() if len(telling) == 1 else 0
    free = [name for name in sliced if name not in fixed]
    if not count or count != int(count) or (count > 1 and any(sliced[name] != count for name in free)):
        raise _different_counts(arrays, specs, where)
    rows |= fixed | {name: 1 if count > 1 else sliced[name] for name in free}
    return rows, int(count), False


def _different_counts(arrays: dict[str, Array], specs: tuple[InputSpec, ...], where: str) -> CalibrationError:
    shapes = [f"{spec.name!r} {format_shape(arrays[spec.name].shape)} for {format_shape(spec.shape)}" for spec in specs]
    return CalibrationError(
        "the calibration arrays do not hold the same number of samples",
        where=where,
        why=", ".join(shapes),
        hint="give every input the same samples, in the same order",
    )
