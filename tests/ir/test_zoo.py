"""Real networks with their trained weights: half of every group, and all but one unit of each, removed."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.oracles import assert_untouched, check_removal, coupled, feeds, random_removal

UNITS = {
    "autoencoder_ad": 1032,
    "dscnn_kws": 320,
    "espcn": 160,
    "lenet300_mnist": 400,
    "lenet5_mnist": 570,
    "mnist_cntk": 24,
    "mobilenet_v1_025_imagenet": 1496,
    "mobilenet_v2_imagenet": 9128,
    "resnet20_cifar10": 400,
    "resnet20_cifar10_bn": 400,
    "shufflenet_v2_imagenet": 3542,
    "squeezenet11_imagenet": 2944,
    "ultraface_rfb": 1716,
    "yolox_nano": 5280,
}
"""What each must offer at least."""


@pytest.mark.zoo
@pytest.mark.parametrize("name", UNITS)
def test_a_real_network(zoo: Path, name: str) -> None:
    coupling = coupled(onnx.load(str(zoo / "models" / f"{name}.onnx")))
    assert coupling.units >= UNITS[name]
    assert_untouched(coupling)
    inputs = feeds(coupling.graph.proto, batch=1)
    for fraction in (0.5, None):
        check_removal(coupling, random_removal(coupling, fraction, 0), inputs)


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["resnet20_cifar10", "resnet20_cifar10_bn"])
def test_residual_stages_grow_around_the_channels_before_them(zoo: Path, name: str) -> None:
    """16, 32 and 64 channels with option-A shortcuts: 16 units live on through all stages, 16 and 32 are new."""
    coupling = coupled(onnx.load(str(zoo / "models" / f"{name}.onnx")))
    stages = sorted((len(group.units), len(group.axes)) for group in coupling.groups)
    assert sum(size for size, _ in stages) == 400
    long_lived = max(coupling.groups, key=lambda group: len(group.axes))
    assert len(long_lived.units) == 16
    assert len({axis for axis in long_lived.axes if axis[1] == 0}) > 9
