"""Open calibration data: files, folders, images, functions, Python objects, or seeded random inputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from graphprune.calib.chunks import Chunk, check_chunk
from graphprune.calib.files import read_arrays, single_array
from graphprune.calib.functions import import_source, mapping_chunks
from graphprune.calib.images import SUFFIXES, ImagePreprocessing, image_chunks, read_preprocessing
from graphprune.calib.specs import Array, InputSpec, input_specs
from graphprune.calib.stream import Source
from graphprune.calib.synthetic import random_source
from graphprune.errors import CalibrationError, RecipeError
from graphprune.imports import is_reference

__all__ = ["ImagePreprocessing", "InputSpec", "Source", "SourceLike", "input_specs", "open_source", "random_source"]

SourceLike: TypeAlias = (
    "str | os.PathLike[str] | Mapping[str, Any] | Array | Iterable[Mapping[str, Any]] "
    "| Callable[[], Iterable[Mapping[str, Any]]] | Source | None"
)


def open_source(
    data: SourceLike,
    specs: Sequence[InputSpec],
    *,
    seed: int = 0,
    random_samples: int = 16,
    preprocessing: ImagePreprocessing | None = None,
) -> Source:
    """Open calibration data, whatever it is kept in, and check it against the model's inputs.

    Files, folders of files and arrays are read and checked whole; images when they are used; of a function only
    what it yields first.

    Parameters
    ----------
    data : path-like, str, mapping, array, iterable, callable, Source or None
        An ``.npz`` or ``.npy`` file, a folder of such files or of images, ``module:function``, a dictionary of
        arrays, one array for a model of one input, a collection of dictionaries or a function that yields them
        (called again for each pass); None for random inputs.
    specs : sequence of InputSpec
        The model's inputs.
    seed : int, default 0
        Of the random inputs.
    random_samples : int, default 16
        Number of random inputs.
    preprocessing : ImagePreprocessing, optional
        Of a folder of images; by default what ``preprocessing.toml`` in the folder declares.

    Returns
    -------
    Source

    Raises
    ------
    RecipeError
        When a path does not exist, or a folder of images comes without its preprocessing.
    CalibrationError
        When the data cannot be used.
    """
    specs = tuple(specs)
    if data is None:
        return random_source(specs, seed, random_samples)
    if isinstance(data, Source):
        return data
    if isinstance(data, (str, os.PathLike)):
        return _from_path(os.fspath(data), specs, preprocessing)
    return _from_object(data, specs)


def _from_object(data: Any, specs: tuple[InputSpec, ...]) -> Source:
    where = "the calibration data given"
    if isinstance(data, Mapping):
        return _from_arrays(data, specs, where)
    if hasattr(data, "__array__"):
        return _from_arrays(single_array(data, specs, where), specs, where)
    if isinstance(data, Iterator):
        raise CalibrationError(
            "the calibration data can be walked only once",
            where=where,
            why=f"it is a {type(data).__name__}, and several passes are made",
            hint="give a list, or a function that makes the iterator",
        )
    if isinstance(data, Iterable):
        items = data
        return _from_function(lambda: items, specs, where)
    if callable(data):
        return _from_function(data, specs, where)
    raise CalibrationError(
        "the calibration data is of an unknown kind",
        where=where,
        why=f"it is a {type(data).__name__}",
        hint="give a path, a dictionary of arrays, an array, a list of dictionaries or a function",
    )


def _from_path(path: str, specs: tuple[InputSpec, ...], preprocessing: ImagePreprocessing | None) -> Source:
    if os.path.isdir(path):
        return _from_folder(Path(path), specs, preprocessing)
    if os.path.exists(path):
        return _from_arrays(read_arrays(Path(path), specs), specs, path)
    if is_reference(path):
        return _from_function(import_source(path), specs, path)
    raise RecipeError(
        "the calibration data does not exist",
        where=path,
        hint="give an .npz or .npy file, a folder of them or of images, or module:function",
    )


def _from_arrays(arrays: Mapping[str, Any], specs: tuple[InputSpec, ...], where: str) -> Source:
    chunk = check_chunk(arrays, specs, where)
    return Source(where, specs, True, lambda: (chunk,)).check()


def _from_function(make: Callable[[], Iterable[Mapping[str, Any]]], specs: tuple[InputSpec, ...], where: str) -> Source:
    next(mapping_chunks(make, specs, where))  # an error in the first item shows at once
    return Source(where, specs, True, lambda: mapping_chunks(make, specs, where))


def _from_folder(folder: Path, specs: tuple[InputSpec, ...], preprocessing: ImagePreprocessing | None) -> Source:
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    arrays = [file for file in files if file.suffix.lower() in (".npz", ".npy")]
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    if bool(arrays) == bool(images):
        raise CalibrationError(
            "the calibration folder holds both arrays and images"
            if arrays
            else "the calibration folder holds nothing usable",
            where=str(folder),
            why=f"it has {len(arrays)} .npz or .npy files, {len(images)} images, {len(files)} files in all",
            hint="give a folder of .npz, .npy files or of .png, .jpg images alone, without subfolders",
        )
    if arrays:

        def read() -> Iterator[Chunk]:
            return (check_chunk(read_arrays(file, specs), specs, str(file)) for file in arrays)

        return Source(str(folder), specs, True, read).check()
    preprocessing = preprocessing or read_preprocessing(folder)
    next(image_chunks(images, specs, preprocessing))  # an error in the first image shows at once
    make = partial(image_chunks, images, specs, preprocessing)
    return Source(str(folder), specs, True, make, known=len(images)).check()
