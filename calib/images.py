"""Calibration samples from a folder of images, with declared preprocessing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from graphprune.calib.chunks import Chunk, check_chunk
from graphprune.calib.specs import Array, InputSpec
from graphprune.errors import CalibrationError, RecipeError
from graphprune.recipe import read_toml

SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
"""File name endings, in lower case, that are taken as images."""
DECLARATION = "preprocessing.toml"
"""Name of the file in a folder of images that declares their preprocessing."""


@dataclass(frozen=True)
class ImagePreprocessing:
    """How an image becomes an input: ``(pixel * scale - mean) / std``, pixels in [0, 255].

    Attributes
    ----------
    mean, std : tuple of float
        One value, or one for each channel in `channel_order`, in units of the scaled pixel; std > 0.
    scale : float, default 1/255
    channel_order : {"RGB", "BGR"}
    layout : {"NCHW", "NHWC"}
    size : (int, int), optional
        Height and width in pixels; needed only where the model leaves them free.

    Raises
    ------
    RecipeError
        On a value out of range.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1 / 255
    channel_order: Literal["RGB", "BGR"] = "RGB"
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        wrong = {
            "mean": not self.mean or not np.isfinite(self.mean).all(),
            "std": not self.std or not all(0 < value < np.inf for value in self.std),
            "scale": not np.isfinite(self.scale),
            "channel_order": self.channel_order not in ("RGB", "BGR"),
            "layout": self.layout not in ("NCHW", "NHWC"),
            "size": self.size is not None and min(self.size) < 1,
        }
        for name, is_wrong in wrong.items():
            if is_wrong:
                raise RecipeError(
                    "the image preprocessing is out of range",
                    where=name,
                    why=f"it is {getattr(self, name)!r}",
                    hint="mean and scale are finite, std and size positive, RGB or BGR, NCHW or NHWC",
                )


def read_preprocessing(folder: Path) -> ImagePreprocessing:
    """Read what a folder of images declares of their preprocessing.

    Parameters
    ----------
    folder : Path
        Holds `DECLARATION`, whose keys are the attributes of `ImagePreprocessing`.

    Returns
    -------
    ImagePreprocessing

    Raises
    ------
    RecipeError
        When there is no such file, or it is not TOML, or declares something else or out of range.
    """
    path = folder / DECLARATION
    names = [field.name for field in fields(ImagePreprocessing)]
    if not path.is_file():
        raise RecipeError(
            "the calibration folder holds images, and their preprocessing is not declared",
            where=str(path),
            hint=f"write this file with {', '.join(names)}, or give the prepared inputs as an .npz file",
        )
    values = read_toml(path)
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise RecipeError(
            f"an image preprocessing has no {unknown[0]!r}", where=str(path), hint=f"it has {', '.join(names)}"
        )
    declared: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    try:
        return ImagePreprocessing(**declared)
    except TypeError as error:  # a text for a number, a number for a list
        raise RecipeError(
            "the image preprocessing is of the wrong kind",
            where=str(path),
            why=str(error),
            hint="mean, std and size are lists of numbers, scale is a number",
        ) from error


def image_chunks(
    files: Sequence[Path], specs: tuple[InputSpec, ...], preprocessing: ImagePreprocessing
) -> Iterator[Chunk]:
    """Read images one by one, each as a chunk of one sample.

    Images are resized (bilinear, the whole image) to the model's height and width; a model of one channel gets
    grey values.

    Parameters
    ----------
    files : sequence of Path
    specs : tuple of InputSpec
        Of a model with one image input.
    preprocessing : ImagePreprocessing

    Yields
    ------
    Chunk

    Raises
    ------
    CalibrationError
        When pillow is missing, a file is no image, or the input is no image input.
    """
    spec = _image_input(specs, files[0].parent)
    channels, height, width = _geometry(spec, preprocessing, files[0].parent)
    for file in files:
        pixels = _pixels(file, channels, height, width)
        yield check_chunk({spec.name: _input(pixels, spec, preprocessing, file)}, specs, str(file))


def _image_input(specs: tuple[InputSpec, ...], folder: Path) -> InputSpec:
    if len(specs) == 1 and len(specs[0].shape) in (3, 4):
        return specs[0]
    raise CalibrationError(
        "a folder of images is given for a model that has no single image input",
        where=str(folder),
        why=f"the inputs are {', '.join(map(str, specs))}",
        hint="give the calibration data as an .npz file",
    )


def _geometry(spec: InputSpec, preprocessing: ImagePreprocessing, folder: Path) -> tuple[int, int, int]:
    sizes = spec.shape[-3:]
    channels, height, width = sizes if preprocessing.layout == "NCHW" else (sizes[2], sizes[0], sizes[1])
    if preprocessing.size:
        free = (height, width)
        height, width = (
            size if isinstance(size, int) else own for size, own in zip(free, preprocessing.size, strict=True)
        )
    channels = channels if isinstance(channels, int) else 3
    if channels not in (1, 3) or not isinstance(height, int) or not isinstance(width, int):
        raise CalibrationError(
            "the model's input is not an image of known size",
            where=f"{folder}, input {spec}",
            why=f"as {preprocessing.layout} it has {channels} channels, height {height}, width {width}",
            hint="declare the layout, and the size where the model leaves it free, in the image preprocessing",
        )
    return channels, height, width


def _pixels(file: Path, channels: int, height: int, width: int) -> Array:
    """Decode one image: [height, width, channels], uint8, channels as RGB or grey."""
    try:
        from PIL import Image  # noqa: PLC0415 - an extra that only this source needs
    except ImportError as error:
        raise CalibrationError(
            "images cannot be read",
            where=str(file.parent),
            why="pillow is not installed",
            hint="pip install 'graphprune[images]'",
        ) from error
    try:
        with Image.open(file) as image:
            converted = image.convert("L" if channels == 1 else "RGB")
            resized = converted.resize((width, height), Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CalibrationError(
            "the calibration image cannot be read",
            where=str(file),
            why=str(error),
            hint="replace the file or take it out of the folder",
        ) from error
    return np.asarray(resized).reshape(height, width, channels)


def _input(pixels: Array, spec: InputSpec, preprocessing: ImagePreprocessing, file: Path) -> Array:
    """Apply the preprocessing: one sample with its axis 0, in the input's element type."""
    if preprocessing.channel_order == "BGR":
        pixels = pixels[..., ::-1]
    for name in ("mean", "std"):
        if len(getattr(preprocessing, name)) not in (1, pixels.shape[2]):
            raise CalibrationError(
                "the image preprocessing does not fit the model's channels",
                where=f"{file}, input {spec}",
                why=f"{name} has {len(getattr(preprocessing, name))} values for {pixels.shape[2]} channels",
                hint="give one value, or one for each channel",
            )
    values = (pixels * preprocessing.scale - np.asarray(preprocessing.mean)) / np.asarray(preprocessing.std)
    if preprocessing.layout == "NCHW":
        values = values.transpose(2, 0, 1)
    # An integer input takes the nearest integers; a range that they leave is found by the check of values.
    values = np.rint(values).astype(np.int64) if spec.dtype.kind in "iu" else values
    return np.asarray(values[np.newaxis])
