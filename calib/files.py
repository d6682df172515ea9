"""Read calibration arrays from ``.npz`` and ``.npy`` files, refusing pickles."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from graphprune.calib.specs import Array, InputSpec
from graphprune.errors import CalibrationError

_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_NPY_MAGIC = b"\x93NUMPY"


UNNAMED = "arr_0"
"""What ``numpy.savez`` calls the first array that is given no name."""


def read_arrays(path: Path, specs: tuple[InputSpec, ...]) -> dict[str, Array]:
    """Read a file of calibration arrays; what it is shows in its first bytes, whatever its name.

    Parameters
    ----------
    path : Path
        An ``.npz`` (read whole) or ``.npy`` (mapped into memory) file.
    specs : tuple of InputSpec

    Returns
    -------
    dict of str to array
        By input name; a single array saved without a name takes the name of a model's only input.

    Raises
    ------
    CalibrationError
        When the file is neither, is truncated, or holds Python objects.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(len(_NPY_MAGIC))
        if magic[:4] in _ZIP_MAGIC:
            return _only_array_by_input(_read_npz(path), specs)
        if magic == _NPY_MAGIC:
            return single_array(np.load(path, mmap_mode="r", allow_pickle=False), specs, str(path))
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise CalibrationError(
            "the calibration file cannot be read",
            where=str(path),
            why=str(error) or type(error).__name__,
            hint="it may be truncated or hold Python objects, which are refused; save plain arrays with numpy.savez",
        ) from error
    raise CalibrationError(
        "the calibration file is neither .npz nor .npy",
        where=str(path),
        why="it is empty" if not magic else f"it begins with {magic!r}; pickles are refused",
        hint="save arrays with numpy.savez, or give a folder of images",
    )


def single_array(array: Any, specs: tuple[InputSpec, ...], where: str) -> dict[str, Any]:
    """Name a single array after the model's only input.

    Raises
    ------
    CalibrationError
        When the model has several inputs.
    """
    if len(specs) != 1:
        raise CalibrationError(
            "one array is given for a model of several inputs",
            where=where,
            why=f"the inputs are {', '.join(map(str, specs))}",
            hint="give an .npz file, or a dictionary, with one array for each",
        )
    return {specs[0].name: array}


def _read_npz(path: Path) -> dict[str, Array]:
    arrays = {}
    # Opened here, since numpy leaves its own file open when the archive is damaged.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        for name in archive.files:
            # Numpy hands back the raw bytes of whatever is no array.
            array = archive[name]
            if not isinstance(array, np.ndarray):
                raise ValueError(f"{name!r} in it is not an array")
            arrays[name] = array
    return arrays


def _only_array_by_input(arrays: dict[str, Array], specs: tuple[InputSpec, ...]) -> dict[str, Array]:
    """Take the one array that was saved without a name as the model's only input."""
    if len(specs) == 1 and list(arrays) == [UNNAMED]:
        return {specs[0].name: arrays[UNNAMED]}
    return arrays
