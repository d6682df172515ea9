"""Real networks: torch equals ONNX Runtime, and a pruned LeNet-5 learns again with its zeros in place."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch")

from graphprune.finetune import Masks, to_onnx, to_torch  # noqa: E402
from graphprune.ir.model import array, float_tensors  # noqa: E402

pytestmark = pytest.mark.zoo

NETWORKS = """lenet5_mnist lenet300_mnist mnist_cntk resnet20_cifar10 resnet20_cifar10_bn squeezenet11_imagenet
mobilenet_v2_imagenet mobilenet_v1_025_imagenet dscnn_kws autoencoder_ad shufflenet_v2_imagenet ultraface_rfb espcn
dtln_2 magika vit_tracker""".split()


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_equal_onnxruntime_and_the_round_trip_changes_nothing(
    name, zoo, zoo_models, tmp_path, run_ort, run_torch, relative_error
):
    path = zoo_models / f"{name}.onnx"
    if name in zoo.LABELLED and (zoo.HERE / "data").is_dir():
        entry, data, *_ = zoo.LABELLED[name]
        feeds = {entry: data(False, 1)[0]}
    else:
        feeds = zoo.synthetic(name, 1)[0]
    module = to_torch(path)
    expected = run_ort(path, feeds)
    assert relative_error(expected, run_torch(module, feeds)) < 1e-5
    to_onnx(module, tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx") == onnx.load(path)


def prune_by_hand(model, fraction):
    """Zero the smallest of all weight matrices and kernels; return the ledger's entry."""
    weights = {name: t for name, t in float_tensors(model).items() if len(t.dims) > 1}
    threshold = np.quantile(np.concatenate([np.abs(array(t)).ravel() for t in weights.values()]), fraction)
    zeroed = {}
    for name, tensor in weights.items():
        values = array(tensor).copy()
        small = np.abs(values) <= threshold
        values[small] = 0
        zeroed[name] = int(small.sum())
        tensor.CopyFrom(numpy_helper.from_array(values, name))
    return {"zeroed": zeroed}


def test_pruned_lenet5_learns_again(zoo_models, zoo_data, tmp_path, run_ort, run_torch, relative_error):
    model = onnx.load(zoo_models / "lenet5_mnist.onnx")
    ledger = prune_by_hand(model, 0.98)
    module = to_torch(model)
    Masks.from_ledger(module, ledger)
    with np.load(zoo_data / "mnist.npz") as file:
        images = {part: torch.from_numpy(file[f"x_{part}"][:, None] / np.float32(256)) for part in ("train", "test")}
        labels = {part: torch.from_numpy(file[f"y_{part}"].astype(np.int64)) for part in ("train", "test")}

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
    print(f"LeNet-5 at 98 % zeros: accuracy {before:.4f} before, {after:.4f} after 200 steps")
    assert after > before + 0.05
    assert after > 0.95

    to_onnx(module, tmp_path / "tuned.onnx")
    tuned, start = float_tensors(onnx.load(tmp_path / "tuned.onnx")), float_tensors(model)
    for name in ledger["zeroed"]:
        assert (array(tuned[name])[array(start[name]) == 0] == 0).all()
    feeds = {"data": images["test"][:100].numpy()}
    assert relative_error(run_ort(tmp_path / "tuned.onnx", feeds), run_torch(module, feeds)) < 1e-5
