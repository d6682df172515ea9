"""Train the small convolutional network that ships with graphprune, on scikit-learn's handwritten digits.

    python models/digits.py [-o FOLDER]

The graph is built in ONNX, trained through the project's own fine-tuning hook (`graphprune.finetune`), and
written as ``digits.onnx``, with ``digits_calib.npz`` (unlabelled training images, to calibrate with) and
``digits_test.npz`` (images and labels that training never saw). Needs torch and scikit-learn; about 8 seconds
on one core. Everything is seeded.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

from graphprune.finetune import to_onnx, to_torch

SEED = 0
TRAIN = 1347
"""Training images; the other 450 of the 1,797 are for the test."""
CALIBRATION = 256
EPOCHS = 40
BATCH = 64
L1 = 1e-3
"""Weight of the sum of absolute weights in the loss: it leaves few large weights, as Han et al. 2015 train."""

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

# name of the layer, of its input, of its output; shape of its weight; whether a 2x2 max-pooling follows its Relu
CONVOLUTIONS = [
    ("conv1", "image", "conv1_relu", (32, 1, 3, 3), False),
    ("conv2", "conv1_relu", "conv2_pool", (64, 32, 3, 3), True),
    ("conv3", "conv2_pool", "conv3_pool", (64, 64, 3, 3), True),
]
HIDDEN = ("hidden", (256, 256))
CLASSIFIER = ("classifier", (10, 256))


def data() -> tuple[Floats, Labels, Floats, Labels]:
    """Return training images and labels, then those of the test: [n, 1, 8, 8] in [0, 1], and [n] in 0..9."""
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(SEED).permutation(len(labels))
    train, test = order[:TRAIN], order[TRAIN:]
    return images[train], labels[train], images[test], labels[test]


def build() -> onnx.ModelProto:
    """Build the untrained network: seeded normal weights of variance 2 / fan-in, zero biases."""
    rng = np.random.default_rng(SEED)
    initializers: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def weights(name: str, shape: tuple[int, ...]) -> list[str]:
        scale = np.sqrt(2 / np.prod(shape[1:]))
        values = {f"{name}.weight": rng.standard_normal(shape) * scale, f"{name}.bias": np.zeros(shape[0])}
        initializers.extend(numpy_helper.from_array(v.astype(np.float32), k) for k, v in values.items())
        return list(values)

    def node(op_type: str, inputs: list[str], output: str, **attributes: Any) -> None:
        nodes.append(helper.make_node(op_type, inputs, [output], name=f"{output}_node", **attributes))

    for name, source, target, shape, pooled in CONVOLUTIONS:
        node("Conv", [source, *weights(name, shape)], name, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        node("Relu", [name], f"{name}_relu")
        if pooled:
            node("MaxPool", [f"{name}_relu"], target, kernel_shape=[2, 2], strides=[2, 2])
    node("Flatten", ["conv3_pool"], "features", axis=1)
    node("Gemm", ["features", *weights(*HIDDEN)], "hidden", transB=1)
    node("Relu", ["hidden"], "hidden_relu")
    node("Gemm", ["hidden_relu", *weights(*CLASSIFIER)], "logits", transB=1)
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        initializers,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="graphprune models/digits.py"
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def train(module: torch.nn.Module, images: Floats, labels: Labels) -> None:
    """Train with Adam, an L1 penalty and a one-cycle learning rate; each batch is shifted by up to one pixel."""
    torch.manual_seed(SEED)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    steps = -(-len(y) // BATCH) * EPOCHS
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    module.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(y))
        for first in range(0, len(y), BATCH):
            pick = order[first : first + BATCH]
            down, right = torch.randint(0, 3, (2,)).tolist()
            shifted = torch.nn.functional.pad(x[pick], (1, 1, 1, 1))[..., down : down + 8, right : right + 8]
            optimizer.zero_grad()
            size: Any = sum(weight.abs().sum() for weight in module.parameters())
            loss = torch.nn.functional.cross_entropy(module(shifted), y[pick]) + L1 * size
            loss.backward()
            optimizer.step()
            schedule.step()
    module.eval()


def correct(path: Path, images: Floats, labels: Labels) -> int:
    """Count the images that the file classifies rightly in ONNX Runtime."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": images})
    return int((logits.argmax(1) == labels).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and write the small network that ships with graphprune.")
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).resolve().parent, help="folder to write to")
    folder = parser.parse_args().out
    torch.set_num_threads(1)  # sums in one order: the same weights again on the same machine
    train_x, train_y, test_x, test_y = data()
    module = to_torch(build())
    train(module, train_x, train_y)
    to_onnx(module, folder / "digits.onnx")
    np.savez_compressed(folder / "digits_calib.npz", image=train_x[:CALIBRATION])
    np.savez_compressed(folder / "digits_test.npz", image=test_x, label=test_y)
    weights = sum(parameter.numel() for parameter in module.parameters())
    right = correct(folder / "digits.onnx", test_x, test_y)
    print(f"{folder / 'digits.onnx'}: {weights:,} weights")
    print(f"training accuracy {correct(folder / 'digits.onnx', train_x, train_y) / len(train_y):.4f}")
    print(f"test accuracy {right / len(test_y):.4f} ({right} of {len(test_y)} images)")


if __name__ == "__main__":
    main()
