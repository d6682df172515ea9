"""The shipped network is what models/README.md says and what models/digits.py builds."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

MODELS = Path(__file__).resolve().parents[2] / "models"


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("digits", MODELS / "digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shipped():
    model = onnx.load(MODELS / "digits.onnx")
    onnx.checker.check_model(model, full_check=True)
    return model


def load(name):
    with np.load(MODELS / name) as file:
        return {key: file[key] for key in file.files}


def test_accuracy_is_what_the_readme_states():
    test = load("digits_test.npz")
    session = ort.InferenceSession(str(MODELS / "digits.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": test["image"]})
    right = int((logits.argmax(1) == test["label"]).sum())
    stated = re.search(r"Test accuracy: ([\d.]+) \((\d+) of (\d+) images\)", (MODELS / "README.md").read_text())
    assert stated is not None
    assert (int(stated[2]), int(stated[3])) == (right, len(test["label"]))
    assert float(stated[1]) == round(right / len(test["label"]), 4)


def test_the_builder_makes_the_shipped_graph(digits, shipped):
    built = digits.build()
    assert sum(int(np.prod(tensor.dims)) for tensor in built.graph.initializer) == 124106
    for new, old in zip(built.graph.initializer, shipped.graph.initializer, strict=True):
        assert (new.name, new.dims, new.data_type) == (old.name, old.dims, old.data_type)
        new.CopyFrom(old)
    assert built == shipped


def test_the_shipped_images_are_the_split(digits):
    train_x, _, test_x, test_y = digits.data()
    calibration, test = load("digits_calib.npz"), load("digits_test.npz")
    assert list(calibration) == ["image"]
    assert np.array_equal(calibration["image"], train_x[:256])
    assert np.array_equal(test["image"], test_x)
    assert np.array_equal(test["label"], test_y)
    assert len(train_x) + len(test_x) == 1797
    assert train_x.min() >= 0
    assert train_x.max() == 1


def test_the_script_trains_and_writes(digits, tmp_path, monkeypatch, capsys):
    """Three epochs instead of forty: a way through the whole script."""
    monkeypatch.setattr(digits, "EPOCHS", 3)
    monkeypatch.setattr(sys, "argv", ["digits.py", "-o", str(tmp_path)])
    digits.main()
    assert {path.name for path in tmp_path.iterdir()} == {"digits.onnx", "digits_calib.npz", "digits_test.npz"}
    test = load("digits_test.npz")
    right = digits.correct(tmp_path / "digits.onnx", test["image"], test["label"])
    assert f"({right} of 450 images)" in capsys.readouterr().out
    assert right > 225
