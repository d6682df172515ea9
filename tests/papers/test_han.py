"""The benchmarks of Han et al. and Hu et al.: networks as large as the papers', and pruned by as much as is stated."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch")

from graphprune.finetune import to_torch  # noqa: E402

PAPERS = Path(__file__).resolve().parents[2] / "benchmarks" / "papers"
SIZES = {"lenet300": (1, 28, 28), "lenet5": (1, 28, 28), "alexnet-quarter": (3, 32, 32), "vgg16-quarter": (3, 32, 32)}


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(PAPERS))


def module_of(name):
    return importlib.import_module(name)


def digits(count, seed=0):
    """Images whose class shows: a bright row in noise."""
    data = module_of("data")
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, count)
    images = random.random((count, 1, 28, 28)).astype(np.float32) * 0.3
    images[np.arange(count), 0, 2 * labels + 4] += 0.7
    part = data.Part(torch.from_numpy(images), torch.from_numpy(labels))
    return data.Dataset(part, part, part, blank=(0.0,), flips=False)


@pytest.mark.parametrize("name", SIZES)
def test_torch_and_onnx_runtime_compute_the_same(name):
    model = module_of("pruning").NETWORKS[name](0)
    onnx.checker.check_model(model, full_check=True)
    image = np.random.default_rng(1).standard_normal((3, *SIZES[name])).astype(np.float32)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    want = session.run(None, {"image": image})[0]
    with torch.no_grad():
        have = to_torch(model).eval()(torch.from_numpy(image)).numpy()
    assert want.std() > 0.05
    np.testing.assert_allclose(have, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_networks_have_the_weights_that_the_papers_count():
    """Han et al.: 267K and 431K; their layers have 8 and 16 of AlexNet and VGG-16."""
    pruning, han = module_of("pruning"), module_of("han")
    assert pruning.counts(to_torch(pruning.NETWORKS["lenet300"](0)))[0] == 266_610
    assert pruning.counts(to_torch(pruning.NETWORKS["lenet5"](0)))[0] == 431_080
    for name in ("alexnet", "vgg16"):
        layers = pruning.kept(to_torch(pruning.NETWORKS[f"{name}-quarter"](0)))
        assert list(layers) == list(han.CASES[name].fractions)


@pytest.mark.parametrize("compression", [4, 12])
def test_pruning_while_training_ends_at_the_compression(compression):
    pruning, training, dataset = module_of("pruning"), module_of("training"), digits(256)
    dense = to_torch(pruning.NETWORKS["lenet300"](0))
    settings = training.Settings(8, batch=32, rate=0.05)
    training.train(dense, dataset, settings)
    before = training.error(dense, dataset.test)
    module, _ = pruning.pruned(dense, compression, dataset, settings, 0, "test")
    weights, left = pruning.counts(module)
    assert weights / left == pytest.approx(compression, rel=5e-3)
    assert before < 5
    assert training.error(module, dataset.test) < 10
    assert pruning.counts(dense) == (266_610, pytest.approx(266_600, abs=20))  # the teacher is as it was


def test_rounds_of_trimming_touch_the_named_layers_alone():
    pruning, hu = module_of("pruning"), module_of("hu")
    module = to_torch(pruning.NETWORKS["lenet5"](0))
    hu.removed(module, digits(128), ("conv2", "fc1"))
    found = [int(part) for part in hu._neurons(module).split("-")]
    assert (found[0], found[3]) == (20, 10)
    assert found[1] < 50
    assert found[2] < 500


def test_dense_models_and_figures_are_kept(tmp_path):
    pruning, training, dataset = module_of("pruning"), module_of("training"), digits(64)
    bench, settings = pruning.Bench(1, False, tmp_path), training.Settings(1, batch=32)
    first = bench.dense("lenet300", dataset, settings, 0)
    again = bench.dense("lenet300", dataset, settings, 0)
    other = bench.dense("lenet300", dataset, settings, 1)
    name = "fc1.weight"
    assert torch.equal(first.parameter_of(name), again.parameter_of(name))
    assert not torch.equal(first.parameter_of(name), other.parameter_of(name))
    assert len(list(tmp_path.glob("*.onnx"))) == 2


@pytest.mark.parametrize("entries", [50, 4_000, 40_000])
def test_information_is_at_most_what_bytes_hold(entries):
    """Stored forms round up to bytes: they take no less than the survey's formulas, gaps by luck of the draw."""
    storage = module_of("storage")
    matrix = np.zeros(400_000, np.float32)
    matrix[np.random.default_rng(0).choice(matrix.size, entries, replace=False)] = 1
    matrix = matrix.reshape(500, 800)
    wanted = storage.formulas(matrix.shape, entries)
    for form, count in storage.STORED.items():
        assert count(matrix) * 8 >= 0.97 * (wanted[form] + entries * storage.VALUE_BITS)
    assert storage.STORED["bitmap"](matrix) == 400_000 // 8 + entries * 4


def test_images_move_by_whole_pixels():
    training, data = module_of("training"), module_of("data")
    images = torch.zeros(64, 1, 8, 8)
    images[:, 0, 4, 4] = 1
    part = data.Part(images, torch.zeros(64, dtype=torch.int64))
    dataset = data.Dataset(part, part, part, blank=(0.0,), flips=False)
    found = training.moved(dataset, images, 1, torch.Generator().manual_seed(0))
    assert (found.sum((1, 2, 3)) == 1).all()
    rows, columns = found[:, 0].nonzero()[:, 1:].unbind(1)
    assert set(rows.tolist()) == set(columns.tolist()) == {3, 4, 5}
    assert training.moved(dataset, images, 0, torch.Generator()) is images
