"""The papers' networks of images as ONNX graphs with random weights: what is trained is the graph that is deployed.

Every function takes the seed of the weights. A layer's weight is ``<layer>.weight``, and its ReLU's output
``<layer>.out``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from graphs import Builder
from onnx import TensorProto

CLASSES = 10
DROPOUT = 0.5

ALEXNET = (64, "pool", 192, "pool", 384, 256, 256, "pool")
VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512)

MOBILENET = ((1, 64), (2, 128), (1, 128), (2, 256), (1, 256), (2, 512), *((1, 512),) * 5, (2, 1024), (1, 1024))
"""Stride and channels of the separable convolutions of Howard et al. 2017, table 1. Images of 32x32 are halved three
times: the first convolution and the first halving of the paper's keep the resolution."""

MOBILENET_QUICK = ((1, 64), (2, 128), (2, 256), (1, 256), (2, 512), (1, 512))
"""The same with less repetition; the quick networks' first convolution halves the image."""

INCEPTION = (
    (32, 48, 64, 8, 16, 16),
    (64, 64, 96, 16, 48, 32),
    None,
    (96, 48, 104, 8, 24, 32),
    (80, 56, 112, 12, 32, 32),
    (64, 64, 128, 12, 32, 32),
    None,
    (128, 80, 160, 16, 64, 64),
    (192, 96, 192, 24, 64, 64),
)
"""Channels of each module: 1x1, in front of 3x3, 3x3, in front of 5x5, 5x5, behind pooling; None halves the maps."""

INCEPTION_QUICK = (None, *INCEPTION[:5])


# -- Han et al. 2015, Hu et al. 2016 --------------------------------------------------------------------------------


def lenet300(seed: int = 0) -> onnx.ModelProto:
    """LeNet-300-100 (LeCun et al. 1998): 266,200 weights and 410 biases."""
    builder = Builder(seed)
    data = builder.node("Flatten", ["image"], "flat")
    for name, inputs, units in (("fc1", 784, 300), ("fc2", 300, 100)):
        data = builder.node("Relu", [_dense(builder, name, data, inputs, units)], f"{name}.out")
    return _closed(builder, _dense(builder, "fc3", data, 100, CLASSES, gain=1.0), (1, 28, 28))


def lenet5(seed: int = 0) -> onnx.ModelProto:
    """LeNet-5 as Caffe has it, 20-50-500-10, with 431,080 weights and biases; and a Relu behind every pooling.

    Caffe's has a Relu only after the first fully connected layer. Here the convolutions have one too, since APoZ (Hu et
    al. 2016) is of activations that are zero.
    """
    builder, data = Builder(seed), "image"
    for name, inputs, channels in (("conv1", 1, 20), ("conv2", 20, 50)):
        data = _pooled(builder, name, _convolved(builder, name, data, (inputs, channels, 5), pads=[0] * 4))
        data = builder.node("Relu", [data], f"{name}.out")
    data = builder.node("Flatten", [data], "flat")
    data = builder.node("Relu", [_dense(builder, "fc1", data, 800, 500)], "fc1.out")
    return _closed(builder, _dense(builder, "fc2", data, 500, CLASSES, gain=1.0), (1, 28, 28))


def alexnet(seed: int = 0, width: float = 1.0) -> onnx.ModelProto:
    """AlexNet's five convolutions and three fully connected layers, cut down to images of 32x32."""
    return _deep(ALEXNET, 4 * 4, seed, width)


def vgg16(seed: int = 0, width: float = 1.0) -> onnx.ModelProto:
    """VGG-16's thirteen convolutions and three fully connected layers, for images of 32x32.

    Without the last pooling FC6 reads 2x2 positions of CONV5-3; BatchNormalization stands in for the stages in which
    Simonyan and Zisserman trained.
    """
    return _deep(VGG16, 2 * 2, seed, width)


def _deep(layers: Sequence[int | str], places: int, seed: int, width: float) -> onnx.ModelProto:
    """Stack convolutions, named conv<stage>_<number> as VGG's are, and three fully connected layers from FC6 on."""
    builder, data, channels, stage, number = Builder(seed), "image", 3, 1, 0
    units = _scaled(1024, width)
    for step in layers:
        if isinstance(step, str):
            data, stage, number = _pooled(builder, f"stage{stage}", data), stage + 1, 0
        else:
            number += 1
            data = _normal_convolution(builder, f"conv{stage}_{number}", data, (channels, _scaled(step, width), 3))
            channels = _scaled(step, width)
    data, ratio = builder.node("Flatten", [data], "flat"), builder.store("ratio", np.float32(DROPOUT))
    for name, inputs in (("fc6", channels * places), ("fc7", units)):
        data = builder.node("Relu", [_dense(builder, name, data, inputs, units)], f"{name}.out")
        data = builder.node("Dropout", [data, ratio], f"{name}.thinned")
    return _closed(builder, _dense(builder, "fc8", data, units, CLASSES, gain=1.0), (3, 32, 32))


# -- Zhu & Gupta 2017 -----------------------------------------------------------------------------------------------


def mobilenet(width: float, seed: int, *, quick: bool = False) -> onnx.ModelProto:
    """Make MobileNet v1 (Howard et al. 2017) for 32x32 images.

    Parameters
    ----------
    width : float
        Multiplies all channels, above 0.
    seed : int
        Of the weights.
    quick : bool
        Whether there are fewer layers, and the first one halves the image.

    Returns
    -------
    onnx.ModelProto
        From ``image`` [N, 3, 32, 32] to ``logits`` [N, 10].
    """
    builder = Builder(seed)
    channels = _scaled(32, width)
    data = _normal_convolution(builder, "first", "image", (3, channels, 3), strides=[1 + quick, 1 + quick])
    for number, (stride, wide) in enumerate(MOBILENET_QUICK if quick else MOBILENET):
        own = {"group": channels, "strides": [stride, stride]}
        data = _normal_convolution(builder, f"depthwise{number}", data, (channels, channels, 3), **own)
        data = _normal_convolution(builder, f"pointwise{number}", data, (channels, _scaled(wide, width), 1))
        channels = _scaled(wide, width)
    return _averaged(builder, data, channels)


def inception(width: float, seed: int, *, quick: bool = False) -> onnx.ModelProto:
    """Make a network of Inception modules (Szegedy et al. 2014) for 32x32 images, with BatchNormalization.

    Parameters, result
        As for `mobilenet`.
    """
    builder = Builder(seed)
    channels = _scaled(64, width)
    data = _normal_convolution(builder, "first", "image", (3, channels, 3), strides=[1 + quick, 1 + quick])
    for number, module in enumerate(INCEPTION_QUICK if quick else INCEPTION):
        if module is None:
            window = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
            data = builder.node("MaxPool", [data], f"halved{number}", strides=[2, 2], **window)
        else:
            wide = [_scaled(count, width) for count in module]
            data, channels = _module(builder, f"module{number}", data, channels, wide)
    return _averaged(builder, data, channels)


def _module(builder: Builder, name: str, data: str, channels: int, wide: Sequence[int]) -> tuple[str, int]:
    """Add the four branches of an Inception module."""
    one, before_three, three, before_five, five, behind = wide
    ways = [_normal_convolution(builder, f"{name}.one", data, (channels, one, 1))]
    for kind, kernel, narrow, count in (("three", 3, before_three, three), ("five", 5, before_five, five)):
        reduced = _normal_convolution(builder, f"{name}.{kind}.reduce", data, (channels, narrow, 1))
        ways.append(_normal_convolution(builder, f"{name}.{kind}", reduced, (narrow, count, kernel)))
    window = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1]}
    pooled = builder.node("MaxPool", [data], f"{name}.pooled", **window)
    ways.append(_normal_convolution(builder, f"{name}.pool", pooled, (channels, behind, 1)))
    return builder.node("Concat", ways, f"{name}.joined", axis=1), one + three + five + behind


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


SCALED: dict[str, Callable[..., onnx.ModelProto]] = {"mobilenet": mobilenet, "inception": inception}
"""Networks of any width."""


# -- layers ---------------------------------------------------------------------------------------------------------


def _convolved(
    builder: Builder,
    name: str,
    data: str,
    size: tuple[int, int, int],
    *,
    bias: bool = True,
    group: int = 1,
    **attributes: Sequence[int],
) -> str:
    """Add a convolution of so many inputs, outputs and kernel places, which keeps the extent at a stride of 1."""
    inputs, outputs, kernel = size
    shape = (outputs, inputs // group, kernel, kernel)
    read = [data, builder.weight(f"{name}.weight", shape, shape[1] * kernel**2)]
    if bias:
        read.append(builder.store(f"{name}.bias", np.zeros(outputs)))
    window = {"kernel_shape": [kernel, kernel], "pads": [kernel // 2] * 4, "group": group, **attributes}
    return builder.node("Conv", read, name, **window)


def _normal_convolution(
    builder: Builder, name: str, data: str, size: tuple[int, int, int], group: int = 1, **attributes: Sequence[int]
) -> str:
    """Add a convolution without biases, BatchNormalization and ReLU."""
    made = _convolved(builder, name, data, size, bias=False, group=group, **attributes)
    statistics = [
        builder.store(f"{name}.{kind}", np.full(size[1], float(value)))
        for kind, value in (("scale", 1), ("shift", 0), ("mean", 0), ("variance", 1))
    ]
    normal = builder.node("BatchNormalization", [made, *statistics], f"{name}.normal", momentum=0.9)
    return builder.node("Relu", [normal], f"{name}.out")


def _pooled(builder: Builder, name: str, data: str) -> str:
    """Halve the extents by the largest of 2x2."""
    return builder.node("MaxPool", [data], f"{name}.pooled", kernel_shape=[2, 2], strides=[2, 2])


def _dense(builder: Builder, name: str, data: str, inputs: int, outputs: int, gain: float = 2.0) -> str:
    """Add a Gemm whose weight is [outputs, inputs], of variance gain / inputs, and zero biases."""
    weight = builder.weight(f"{name}.weight", (outputs, inputs), 2 * inputs / gain)
    return builder.node("Gemm", [data, weight, builder.store(f"{name}.bias", np.zeros(outputs))], name, transB=1)


def _averaged(builder: Builder, data: str, channels: int) -> onnx.ModelProto:
    """Classify by the means of the channels."""
    flat = builder.node("Flatten", [builder.node("GlobalAveragePool", [data], "pooled")], "flat")
    return _closed(builder, _dense(builder, "classifier", flat, channels, CLASSES, gain=1.0), (3, 32, 32))


def _closed(builder: Builder, data: str, shape: Sequence[int]) -> onnx.ModelProto:
    builder.node("Identity", [data], "logits")
    return builder.model({"image": (TensorProto.FLOAT, ["N", *shape])}, {"logits": ["N", CLASSES]})
