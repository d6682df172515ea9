"""The zoo beside the project: its models, its calibration inputs, and its one way to measure top-1.

The zoo's own command is run in a process of its own, so that images never count in the memory measured of a run that
follows.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ZOO = ROOT.parent / "shared" / "zoo"
SAMPLES = 256


def require_zoo() -> None:
    """Stop with a message where the zoo is absent."""
    if not (ZOO / "zoo.py").is_file():
        raise SystemExit(f"oneshot: no zoo at {ZOO}: the models and data of this benchmark are not in the project")


def model_path(name: str) -> Path:
    return ZOO / "models" / f"{name}.onnx"


def calibration(name: str, folder: Path) -> Path:
    """Write 256 unlabelled inputs of the model into `folder`, once."""
    path = folder / f"{name}.calib.npz"
    if not path.exists():
        _zoo("calib", name, "-n", str(SAMPLES), "-o", str(path))
    return path


def top1(path: Path, name: str, limit: int) -> float:
    """Top-1 in percent of the ONNX file on the held-back data of the zoo's model `name`."""
    return 100 * float(json.loads(_zoo("eval", str(path), "--as", name, "--limit", str(limit)))["top1"])


def _zoo(*arguments: str) -> str:
    command = [sys.executable, str(ZOO / "zoo.py"), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout
