"""Networks of the zoo rebuilt as torch modules, their weights read from the ONNX file in graph order.

Each network says only what is connected to what; kernel sizes, strides, padding and groups come from the file. A
`Network` also names its trunk, which a pruner may leave alone: the layers whose outputs are added to others, and the
squeezes through which everything passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn


@dataclass
class Network:
    """A rebuilt network: the layers that must keep their outputs, and those of the trunk."""

    module: nn.Module
    output: nn.Module
    trunk: list[nn.Module] = field(default_factory=list)


class Reader:
    """Hands out the Conv, Gemm and BatchNormalization nodes of a file one after another, as torch modules."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._values = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        kept = ("Conv", "Gemm", "BatchNormalization")
        self._nodes: Iterator[onnx.NodeProto] = iter([n for n in proto.graph.node if n.op_type in kept])

    def conv(self) -> nn.Module:
        """The next Conv; asymmetric padding becomes a module before it."""
        attributes, weight, *bias = self._next("Conv")
        groups, strides = attributes.get("group", 1), tuple(attributes.get("strides", (1, 1)))
        top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
        symmetric = (top, left) == (bottom, right)
        outputs, inputs, *kernel = weight.shape
        padding = (top, left) if symmetric else 0
        conv = nn.Conv2d(inputs * groups, outputs, kernel, strides, padding, groups=groups, bias=bool(bias))
        _load(conv, weight, *bias)
        return conv if symmetric else nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), conv)

    def linear(self) -> nn.Linear:
        """The next Gemm."""
        attributes, weight, bias = self._next("Gemm")
        weight = weight if attributes.get("transB", 0) else weight.T
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        _load(linear, weight, bias)
        return linear

    def norm(self) -> nn.BatchNorm2d:
        """The next BatchNormalization."""
        attributes, weight, bias, mean, variance = self._next("BatchNormalization")
        norm = nn.BatchNorm2d(len(weight), eps=attributes["epsilon"])
        _load(norm, weight, bias)
        norm.running_mean, norm.running_var = torch.tensor(mean), torch.tensor(variance)
        return norm

    def _next(self, op: str) -> tuple[Any, ...]:
        node = next(self._nodes)
        if node.op_type != op:
            raise ValueError(f"{node.output[0]}: {node.op_type} where the rebuilt network has {op}")
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        return attributes, *(self._values[name] for name in node.input[1:] if name in self._values)


def _load(module: nn.Module, weight: np.ndarray, bias: np.ndarray | None = None) -> None:
    module.weight = nn.Parameter(torch.tensor(weight))
    if bias is not None:
        module.bias = nn.Parameter(torch.tensor(bias))


class Shortcut(nn.Conv2d):
    """Option A of He et al. 2016 as a fixed 1x1 convolution: every second row and column, new channels zero around.

    Its weights choose channels; they are no weights of the network and are not counted.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1, 2, bias=False)
        nn.init.zeros_(self.weight)
        with torch.no_grad():
            index = torch.arange(inputs)
            self.weight[index + (outputs - inputs) // 2, index] = 1


class Residual(nn.Module):
    """shortcut(x) + body(x), then an activation."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut, self.after = body, shortcut, after

    def forward(self, x: Tensor) -> Tensor:
        """Add, then activate."""
        result: Tensor = self.after(self.body(x) + self.shortcut(x))
        return result


class Fire(nn.Module):
    """Squeeze, then two expansions side by side."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.squeeze, self.narrow, self.wide = (nn.Sequential(reader.conv(), nn.ReLU()) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Squeeze once, expand twice, concatenate."""
        squeezed = self.squeeze(x)
        return torch.cat([self.narrow(squeezed), self.wide(squeezed)], 1)


def lenet300(reader: Reader) -> Network:
    first, second, last = (reader.linear() for _ in range(3))
    body = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), last, nn.LogSoftmax(-1))
    return Network(body, last)


def lenet5(reader: Reader) -> Network:
    first, second, hidden, last = reader.conv(), reader.conv(), reader.linear(), reader.linear()
    maps = [first, nn.MaxPool2d(2), second, nn.MaxPool2d(2), nn.Flatten()]
    return Network(nn.Sequential(*maps, hidden, nn.ReLU(), last), last)


def dscnn(reader: Reader) -> Network:
    layers = [module for _ in range(9) for module in (reader.conv(), nn.ReLU())]
    last = reader.linear()
    return Network(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last, nn.Softmax(-1)), last)


def squeezenet11(reader: Reader) -> Network:
    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    layers: list[nn.Module] = [reader.conv(), nn.ReLU(), pool()]
    trunk = []
    for fires in (2, 2, 4):
        stage = [Fire(reader) for _ in range(fires)]
        trunk += [fire.squeeze[0] for fire in stage]
        layers += [*stage, *([pool()] if fires == 2 else [])]
    last = reader.conv()
    return Network(nn.Sequential(*layers, last, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), last, trunk)


def mobilenet_v2(reader: Reader) -> Network:
    layers: list[nn.Module] = [reader.conv(), nn.ReLU6(), reader.conv(), nn.ReLU6(), reader.conv()]
    trunk = [layers[-1]]
    for repeats in (2, 3, 4, 3, 3, 1):
        for repeat in range(repeats):
            body = nn.Sequential(reader.conv(), nn.ReLU6(), reader.conv(), nn.ReLU6(), reader.conv())
            trunk.append(body[-1])
            layers.append(Residual(body, nn.Identity(), nn.Identity()) if repeat else body)
    layers += [reader.conv(), nn.ReLU6(), nn.AdaptiveAvgPool2d(1)]
    last = reader.conv()
    return Network(nn.Sequential(*layers, last, nn.Flatten(), nn.Softmax(-1)), last, trunk)


def resnet20(reader: Reader) -> Network:
    layers: list[nn.Module] = [reader.conv(), reader.norm(), nn.ReLU()]
    trunk, width = [layers[0]], 16
    for outputs in (16, 32, 64):
        for _ in range(3):
            body = nn.Sequential(reader.conv(), reader.norm(), nn.ReLU(), reader.conv(), reader.norm())
            shortcut = nn.Identity() if width == outputs else Shortcut(width, outputs)
            trunk += [body[3], *([shortcut] if width != outputs else [])]
            layers.append(Residual(body, shortcut, nn.ReLU()))
            width = outputs
    last = reader.linear()
    return Network(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last), last, trunk)


# name of the zoo: the file whose weights are read (that with BatchNormalization, where there are two), the network
REBUILT: dict[str, tuple[str, Callable[[Reader], Network]]] = {
    "dscnn_kws": ("dscnn_kws", dscnn),
    "lenet300_mnist": ("lenet300_mnist", lenet300),
    "lenet5_mnist": ("lenet5_mnist", lenet5),
    "mobilenet_v2_imagenet": ("mobilenet_v2_imagenet", mobilenet_v2),
    "resnet20_cifar10": ("resnet20_cifar10_bn", resnet20),
    "squeezenet11_imagenet": ("squeezenet11_imagenet", squeezenet11),
}
