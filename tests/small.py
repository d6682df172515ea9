"""A small trained-looking network on disk, with calibration data: what commands and the Python interface run on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from tests.nets import Net
from tests.oracles import feeds

Array = npt.NDArray[Any]


def network(seed: int = 0, batch: int | str = "N") -> onnx.ModelProto:
    """Two convolutions with normalisation, a residual, and two dense layers: 3,461 weights in three groups."""
    net = Net(seed=seed)
    stem = net.block(net.input([batch, 2, 6, 6], "image"), 16)
    joined = net.relu(net.add(stem, net.conv(net.relu(net.conv(stem, 8, 3)), 16, 1)))
    hidden = net.relu(net.gemm(net.flatten(net.pool(joined)), 12))
    return net.build(net.gemm(hidden, 5))


def calibration(model: onnx.ModelProto, samples: int = 32, seed: int = 1) -> dict[str, Array]:
    """Calibration samples for it."""
    return feeds(model, seed, samples)


def write(folder: Path, model: onnx.ModelProto | None = None, samples: int = 32) -> tuple[Path, Path]:
    """Write a model and its calibration data; return their paths."""
    model = network() if model is None else model
    path, data = folder / "net.onnx", folder / "calib.npz"
    onnx.save(model, path)
    np.savez(data, **calibration(model, samples))
    return path, data
