"""Real networks: torch equals ONNX Runtime, and a pruned LeNet-5 learns again with its zeros in place."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from graphprune import Recipe, prune  # noqa: E402
from graphprune.finetune import Masks, to_onnx, to_torch  # noqa: E402
from graphprune.ir.model import load  # noqa: E402
from graphprune.ir.tensors import array, float_tensors  # noqa: E402
from graphprune.output import write  # noqa: E402

pytestmark = pytest.mark.zoo

NETWORKS = """lenet5_mnist lenet300_mnist mnist_cntk resnet20_cifar10 resnet20_cifar10_bn squeezenet11_imagenet
mobilenet_v2_imagenet mobilenet_v1_025_imagenet dscnn_kws autoencoder_ad shufflenet_v2_imagenet ultraface_rfb espcn
dtln_1 dtln_2 gtcrn_simple magika ppocr_det silero_vad vit_tracker yolox_nano""".split()


TOLERANCE = {"ppocr_det": 2e-5}
"""Relative error to ONNX Runtime, 1e-5 for all others: here ONNX Runtime is 1.1e-5 away from float64 itself."""


def page(zoo):
    """Return handwritten digits in rows, as the text detector reads them: on noise it finds nothing at all."""
    digits, _ = zoo.mnist(False, 40)
    rows = np.concatenate(digits.reshape(4, 10, 28, 28).transpose(0, 2, 1, 3).reshape(4, 28, 280))
    image = np.zeros((1, 3, 320, 320), np.float32)
    for row in range(4):
        image[0, :, 40 + 70 * row : 68 + 70 * row, 20:300] = rows[28 * row : 28 * row + 28]
    return (image - 0.5) / 0.25


def collage(zoo):
    """Return photographs side by side, in the object detector's range: noise makes numbers that float32 cannot hold."""
    pictures, _ = zoo.cifar10(False, 169, prep=lambda x: x.astype(np.float32))
    rows = pictures.reshape(13, 13, 32, 32, 3).transpose(4, 0, 2, 1, 3)
    return np.ascontiguousarray(rows.reshape(1, 3, 416, 416))


def feeds_for(name, zoo):
    if not (zoo.HERE / "data").is_dir():
        pytest.skip("the real data in ../shared/zoo is not here")
    if name in zoo.LABELLED:
        entry, data, *_ = zoo.LABELLED[name]
        return {entry: data(False, 1)[0]}
    if name == "ppocr_det":
        return {"image": page(zoo)}
    return {"images": collage(zoo)} if name == "yolox_nano" else zoo.synthetic(name, 1)[0]


def test_these_are_all(zoo_models):
    assert sorted(NETWORKS) == sorted(path.stem for path in zoo_models.glob("*.onnx"))


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_equal_onnxruntime_and_the_round_trip_changes_nothing(
    name, zoo, zoo_models, tmp_path, run_ort, run_torch, relative_error
):
    path, feeds = zoo_models / f"{name}.onnx", feeds_for(name, zoo)
    module = to_torch(path)
    expected = run_ort(path, feeds)
    assert relative_error(expected, run_torch(module, feeds)) < TOLERANCE.get(name, 1e-5)
    to_onnx(module, tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx") == onnx.load(path)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_gets_a_finite_gradient(name, zoo, zoo_models):
    module = to_torch(zoo_models / f"{name}.onnx")
    got = module(**{name: torch.from_numpy(value) for name, value in feeds_for(name, zoo).items()})
    outputs = got if isinstance(got, tuple) else (got,)
    sum(value.square().mean() for value in outputs if value.is_floating_point()).backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.any()] == []
    assert [name for name, gradient in gradients.items() if not gradient.isfinite().all()] == []


@pytest.mark.parametrize("asked", [{"structural": 0}, {"channels": 0.5}], ids=["zeros", "channels and zeros"])
def test_pruned_lenet5_learns_again(asked, zoo_models, zoo_data, tmp_path, run_ort, run_torch, relative_error):
    with np.load(zoo_data / "mnist.npz") as file:
        images = {part: torch.from_numpy(file[f"x_{part}"][:, None] / np.float32(256)) for part in ("train", "test")}
        labels = {part: torch.from_numpy(file[f"y_{part}"].astype(np.int64)) for part in ("train", "test")}
    original = load(zoo_models / "lenet5_mnist.onnx")
    # Without recovery: with it hardly anything is left to learn.
    recipe = Recipe(target=0.98, recover=False, runs=2, **asked)
    pruned, record = prune(original, recipe, images["train"][:256].numpy())
    write(pruned, record, original, tmp_path / "pruned.onnx", tmp_path / "pruned.json")
    ledger = json.loads((tmp_path / "pruned.json").read_text())
    assert ledger["weights"]["sparsity"] >= 0.98
    module = to_torch(tmp_path / "pruned.onnx")
    Masks.from_ledger(module, ledger)

    def accuracy():
        with torch.no_grad():
            return float((module(images["test"][:2000]).argmax(1) == labels["test"][:2000]).float().mean())

    before = accuracy()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(0)
    module.train()
    for _ in range(200):
        pick = torch.randint(len(labels["train"]), (64,), generator=generator)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(images["train"][pick]), labels["train"][pick]).backward()
        optimizer.step()
    module.eval()
    after = accuracy()
    print(f"LeNet-5 at 98 % ({asked}): accuracy {before:.4f} before, {after:.4f} after 200 steps")
    assert after > before + 0.05
    assert after > 0.95

    to_onnx(module, tmp_path / "tuned.onnx")
    tuned, start = float_tensors(onnx.load(tmp_path / "tuned.onnx")), float_tensors(pruned)
    assert sum(ledger["zeroed"].values()) > 50_000
    for name, count in ledger["zeroed"].items():
        zeros = array(start[name]) == 0
        assert int(zeros.sum()) >= count
        assert not array(tuned[name])[zeros].any()
        assert (array(tuned[name]) != array(start[name])).any(), "nothing was learnt"
    feeds = {"data": images["test"][:100].numpy()}
    assert relative_error(run_ort(tmp_path / "tuned.onnx", feeds), run_torch(module, feeds)) < 1e-5
