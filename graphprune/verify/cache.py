"""Measured times, kept on disk: they depend on the machine alone, and take longer to measure than to read."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnxruntime as ort


def cache_path(kind: str, *details: str) -> Path:
    """Return the file that holds times of one kind on this machine.

    Parameters
    ----------
    kind : str
        What the times are of.
    *details : str
        What else they depend on, besides the processor, its cores, and ONNX Runtime's version.

    Returns
    -------
    pathlib.Path
        In ``graphprune`` in the user's cache folder: ``$XDG_CACHE_HOME``, or ``~/.cache``.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graphprune"
    text = "-".join([kind, _processor(), f"{os.cpu_count()}cores", f"onnxruntime{ort.__version__}", *details])
    return folder / (re.sub(r"[^\w.-]+", "_", text) + ".json")


def key_of(node: onnx.NodeProto, *details: object) -> str:
    """Return the key that a node's time is kept under.

    Parameters
    ----------
    node : onnx.NodeProto
        Its name, and those of its inputs and outputs, do not count.
    *details : object
        What else tells it from others: shapes, operator set.
    """
    plain = onnx.NodeProto()
    plain.CopyFrom(node)
    del plain.input[:], plain.output[:]
    plain.name = plain.doc_string = ""
    text = (plain.SerializeToString(deterministic=True), *details)
    return hashlib.sha256(repr(text).encode()).hexdigest()[:24]


def read_times(path: Path) -> dict[str, float]:
    """Return what was measured before; nothing where the file is missing or broken: it is only a cache."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {str(key): float(value) for key, value in values.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def write_times(path: Path, times: Mapping[str, float]) -> None:
    """Keep times, all or none; where that cannot be, they are measured again another time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as draft:
            json.dump(dict(times), draft)
        Path(draft.name).replace(path)
    except OSError:
        return


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
