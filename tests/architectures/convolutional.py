"""Convolutional networks, each in the way that its paper's reference code writes it, a few channels wide."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Residual(nn.Module):
    """What is computed, added to what came in; both may be changed first."""

    def __init__(self, inner: nn.Module, shortcut: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.inner, self.shortcut, self.after = inner, shortcut or nn.Identity(), after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.inner(x) + self.shortcut(x))


class Branches(nn.Module):
    """Several ways from the same input, concatenated."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Excite(nn.Module):
    """Squeeze-excite (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int, gate: nn.Module) -> None:
        super().__init__()
        self.down, self.up, self.gate = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1), gate

    def forward(self, x: Tensor) -> Tensor:
        squeezed = functional.adaptive_avg_pool2d(x, 1)
        return x * self.gate(self.up(functional.relu(self.down(squeezed))))


def conv_bn(
    inputs: int,
    outputs: int,
    kernel: int | tuple[int, int] = 3,
    stride: int = 1,
    groups: int = 1,
    act: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """A convolution that keeps the size but for its stride, BatchNorm, and an activation."""
    padding = (kernel // 2,) * 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([act()] if act else []))


def head(channels: int, classes: int = 5) -> list[nn.Module]:
    """Global pooling and a classifier."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


# -- residual ---------------------------------------------------------------------------------------------------


def basic(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The block of ResNet-18."""
    inner = nn.Sequential(conv_bn(inputs, outputs, 3, stride), conv_bn(outputs, outputs, act=None))
    changed = inputs != outputs or stride != 1
    return Residual(inner, conv_bn(inputs, outputs, 1, stride, act=None) if changed else None, nn.ReLU())


def bottleneck(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The block of ResNet-50."""
    width = outputs // 2
    first, second = conv_bn(inputs, width, 1), conv_bn(width, width, 3, stride)
    inner = nn.Sequential(first, second, conv_bn(width, outputs, 1, act=None))
    changed = inputs != outputs or stride != 1
    return Residual(inner, conv_bn(inputs, outputs, 1, stride, act=None) if changed else None, nn.ReLU())


def resnet_basic() -> nn.Module:
    blocks = [basic(8, 8, 1), basic(8, 16, 2), basic(16, 16, 1), basic(16, 24, 2)]
    return nn.Sequential(conv_bn(3, 8), nn.MaxPool2d(3, 2, 1), *blocks, *head(24))


def resnet_bottleneck() -> nn.Module:
    blocks = [bottleneck(8, 16, 1), bottleneck(16, 16, 1), bottleneck(16, 24, 2), bottleneck(24, 24, 1)]
    return nn.Sequential(conv_bn(3, 8), nn.MaxPool2d(3, 2, 1), *blocks, *head(24))


# -- concatenation ----------------------------------------------------------------------------------------------


def densenet() -> nn.Module:
    """DenseNet-BC: normalisation comes before the convolution, and every layer sees all layers before it."""

    def layer(inputs: int, growth: int = 6) -> nn.Module:
        first = [nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, 12, 1, bias=False)]
        second = [nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, growth, 3, padding=1, bias=False)]
        return Branches(nn.Identity(), nn.Sequential(*first, *second))

    turn = [nn.BatchNorm2d(26), nn.ReLU(), nn.Conv2d(26, 12, 1, bias=False), nn.AvgPool2d(2)]
    blocks = [layer(8), layer(14), layer(20), *turn, layer(12), layer(18)]
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks, nn.BatchNorm2d(24), nn.ReLU(), *head(24))


def inception() -> nn.Module:
    """Inception v3: parallel branches, one of them with a factorised kernel."""

    def module(inputs: int) -> nn.Module:
        factorised = nn.Sequential(conv_bn(inputs, 6, 1), conv_bn(6, 6, (1, 5)), conv_bn(6, 8, (5, 1)))
        pooled = nn.Sequential(nn.AvgPool2d(3, 1, 1), conv_bn(inputs, 4, 1))
        return Branches(conv_bn(inputs, 6, 1), nn.Sequential(conv_bn(inputs, 6, 1), conv_bn(6, 6)), factorised, pooled)

    reduced = Branches(conv_bn(24, 8, 3, 2), nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(conv_bn(3, 8), module(8), reduced, module(32), *head(24))


# -- mobile -----------------------------------------------------------------------------------------------------


def inverted(inputs: int, wide: int, outputs: int, act: type[nn.Module], gate: nn.Module | None) -> nn.Module:
    """An inverted residual: widen, filter by channel, gate, narrow."""
    excite = [Excite(wide, 8, gate)] if gate else []
    layers = [conv_bn(inputs, wide, 1, act=act), conv_bn(wide, wide, 3, groups=wide, act=act), *excite]
    inner = nn.Sequential(*layers, conv_bn(wide, outputs, 1, act=None))
    return Residual(inner) if inputs == outputs else inner


def mobilenet_v3() -> nn.Module:
    blocks = [
        inverted(8, 16, 8, nn.ReLU, nn.Hardsigmoid()),
        inverted(8, 24, 12, nn.Hardswish, None),
        inverted(12, 24, 12, nn.Hardswish, nn.Hardsigmoid()),
    ]
    last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 16), nn.Hardswish(), nn.Linear(16, 5)]
    return nn.Sequential(conv_bn(3, 8, 3, 2, act=nn.Hardswish), *blocks, conv_bn(12, 24, 1, act=nn.Hardswish), *last)


def efficientnet() -> nn.Module:
    blocks = [inverted(8, 16, 8, nn.SiLU, nn.Sigmoid()), inverted(8, 24, 12, nn.SiLU, nn.Sigmoid())]
    return nn.Sequential(conv_bn(3, 8, 3, 2, act=nn.SiLU), *blocks, conv_bn(12, 24, 1, act=nn.SiLU), *head(24))


def multiplier() -> nn.Module:
    """Depthwise convolutions that make two channels of each."""
    first, second = conv_bn(8, 16, 3, groups=8), conv_bn(12, 24, 3, groups=12)
    return nn.Sequential(conv_bn(3, 8), first, conv_bn(16, 12, 1), second, conv_bn(24, 8, 1), *head(8))


# -- shuffle ----------------------------------------------------------------------------------------------------


class Shuffle(nn.Module):
    """Channel shuffle: the channels of g groups, taken in turn."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        apart = x.view(batch, self.groups, channels // self.groups, height, width)
        return apart.transpose(1, 2).reshape(batch, channels, height, width)


class Halves(nn.Module):
    """The unit of ShuffleNet v2: one half of the channels is passed on, the other is worked on."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.shuffle = inner, Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        kept, worked = x.chunk(2, 1)
        return self.shuffle(torch.cat([kept, self.inner(worked)], 1))


def shufflenet_v1() -> nn.Module:
    """ShuffleNet v1 with three groups: the unit that keeps its size adds, the one with a stride concatenates."""

    def inner(inputs: int, outputs: int, stride: int) -> nn.Module:
        first, last = conv_bn(inputs, 12, 1, groups=3), conv_bn(12, outputs, 1, groups=3, act=None)
        return nn.Sequential(first, Shuffle(3), conv_bn(12, 12, 3, stride, groups=12, act=None), last)

    down = nn.Sequential(Branches(nn.AvgPool2d(3, 2, 1), inner(12, 12, 2)), nn.ReLU())
    same = [Residual(inner(24, 24, 1), after=nn.ReLU()) for _ in range(2)]
    return nn.Sequential(conv_bn(3, 12), down, *same, *head(24))


def shufflenet_v2() -> nn.Module:
    def inner(channels: int, stride: int) -> nn.Module:
        filters = conv_bn(channels, channels, 3, stride, groups=channels, act=None)
        return nn.Sequential(conv_bn(channels, channels, 1), filters, conv_bn(channels, channels, 1))

    passed = nn.Sequential(conv_bn(12, 12, 3, 2, groups=12, act=None), conv_bn(12, 12, 1))
    down = nn.Sequential(Branches(passed, inner(12, 2)), Shuffle(2))
    units = [Halves(inner(12, 1)), Halves(inner(12, 1))]
    return nn.Sequential(conv_bn(3, 12), down, *units, conv_bn(24, 16, 1), *head(16))


# -- up and down ------------------------------------------------------------------------------------------------


class UNet(nn.Module):
    """U-Net: transposed convolutions upwards, skips concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([conv_bn(3, 8), conv_bn(8, 12), conv_bn(12, 16)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(16, 12, 2, 2), nn.ConvTranspose2d(12, 8, 4, 2, 1)])
        self.merge = nn.ModuleList([conv_bn(24, 12), conv_bn(16, 8)])
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down[0](x)
        second = self.down[1](functional.max_pool2d(first, 2))
        low = self.down[2](functional.max_pool2d(second, 2))
        low = self.merge[0](torch.cat([self.up[0](low), second], 1))
        return self.last(self.merge[1](torch.cat([self.up[1](low), first], 1)))


class SuperResolution(nn.Module):
    """ESPCN's pixel shuffle behind residual blocks, and another one inside."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.block = Residual(nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.PReLU(12)))
        self.inner, self.middle = nn.Conv2d(12, 32, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last, self.shuffle = nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.shuffle(self.inner(self.block(functional.relu(self.first(x)))))
        enlarged = functional.interpolate(x, scale_factor=4.0, mode="nearest")
        return self.shuffle(self.last(functional.relu(self.middle(inner)))) + enlarged


def groupnorm() -> nn.Module:
    """GroupNorm after every convolution: groups of four channels, and one group of all."""
    first = [nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU()]
    block = Residual(nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 16, 3, padding=1)))
    second = [nn.Conv2d(16, 24, 3, padding=1), nn.GroupNorm(6, 24), nn.SiLU()]
    return nn.Sequential(*first, block, *second, *head(24))


class Gated1d(nn.Module):
    """The unit of WaveNet: dilated, gated, with a residual and a skip."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.filters = nn.Conv1d(channels, 2 * channels, 3, padding=dilation, dilation=dilation)
        self.out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.filters(x).chunk(2, 1)
        return x + self.out(torch.tanh(value) * torch.sigmoid(gate))


def wave() -> nn.Module:
    """One-dimensional."""
    last = [nn.BatchNorm1d(12), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(12, 8, 3), nn.GLU(1), nn.Conv1d(4, 3, 1)]
    return nn.Sequential(nn.Conv1d(2, 12, 3, padding=1), Gated1d(12, 1), Gated1d(12, 2), *last)


def volume() -> nn.Module:
    """Three-dimensional, with a bottleneck that goes down and up again."""
    down = nn.Sequential(nn.Conv3d(8, 16, 3, 2, 1), nn.BatchNorm3d(16), nn.ReLU(), nn.ConvTranspose3d(16, 8, 2, 2))
    first = [nn.Conv3d(2, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU()]
    return nn.Sequential(*first, Residual(down), nn.AvgPool3d(2), nn.Flatten(), nn.Linear(8 * 2 * 4 * 4, 5))


def plain() -> nn.Module:
    """Convolutions, and a classifier that reads all positions of the map."""
    layers = [conv_bn(3, 8), nn.MaxPool2d(2), conv_bn(8, 12), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(12 * 4 * 4, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 5))
