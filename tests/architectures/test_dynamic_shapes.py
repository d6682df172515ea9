"""Networks whose batch, height, width or sequence length is open, exported by torch: exact at every extent."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.architectures.exporting import Exporter, export, randomise
from tests.architectures.networks import OPSET
from tests.oracles import all_groups, assert_close, check_removal, coupled, random_removal, run

EXPORTERS: list[Exporter] = ["script", "dynamo"]
Shape = tuple[int, ...]


class Views(nn.Module):
    """Flatten by view, with the batch read from the shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.hidden, self.last = nn.Linear(6 * 16, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        x = x.view(x.size(0), x.size(1) * x.size(2) * x.size(3))
        return self.last(self.hidden(x).relu())


class Heads(nn.Module):
    """Multi-head attention by views of all extents, scaled by the size of the heads."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Linear(5, 16)
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), x.size(1), self.heads, x.size(2) // self.heads).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        scores = query @ key.transpose(2, 3) / query.size(-1) ** 0.5
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).contiguous()
        return self.out(mixed.view(mixed.size(0), mixed.size(1), mixed.size(2) * mixed.size(3)))


class Tokens(nn.Module):
    """A class token for every row of the batch, and as many positions as there are tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 2, stride=2)
        self.token, self.places = nn.Parameter(torch.zeros(1, 1, 12)), nn.Parameter(torch.zeros(1, 40, 12))
        self.hidden, self.last = nn.Linear(12, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.size(0), -1, -1), x], dim=1)
        x = x + self.places[:, : x.size(1)]
        return self.last(self.hidden(x).relu())


class Skips(nn.Module):
    """Coarse features, resized to the size of fine ones."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 10, 3, stride=2, padding=1)
        self.lateral, self.last = nn.Conv2d(6, 10, 1), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x).relu()
        up = functional.interpolate(self.coarse(fine).relu(), size=fine.shape[2:], mode="nearest")
        return self.last(torch.cat([up + self.lateral(fine), fine], dim=1))


class Crops(nn.Module):
    """Features cropped to even extents, and padded back."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        height, width = x.size(2), x.size(3)
        x = x[:, :, : height // 2 * 2, 1:width]
        return self.last(functional.pad(x, (width - x.size(3), 0, 0, height - x.size(2))))


class Masked(nn.Module):
    """Causal attention whose mask is made from the length."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.key, self.value, self.last = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).relu()
        steps = torch.arange(x.size(1), device=x.device)
        mask = torch.zeros(x.size(1), x.size(1)).masked_fill(steps[None, :] > steps[:, None], -1e9)
        scores = x @ self.key(x).transpose(1, 2) + mask
        return self.last(scores.softmax(-1) @ self.value(x))


class Recurrent(nn.Module):
    """An LSTM whose initial state is made of zeros for every row of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 8, bidirectional=True, batch_first=True)
        self.last = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        zeros = torch.zeros(2, x.size(0), 8)
        made, _ = self.lstm(x, (zeros, zeros))
        return self.last(made)


IMAGES: list[Shape] = [(2, 3, 8, 8), (1, 3, 8, 8), (3, 3, 7, 10)]
SEQUENCES: list[Shape] = [(2, 6, 5), (1, 3, 5), (4, 9, 5)]
WORDS: list[Shape] = [(2, 5, 6), (1, 3, 6), (3, 9, 6)]
CASES: dict[str, tuple[Callable[[], nn.Module], list[Shape], dict[int, str], list[int]]] = {
    "views": (Views, [(2, 3, 4, 4), (1, 3, 4, 4), (5, 3, 4, 4)], {}, [6, 7]),
    "heads": (Heads, SEQUENCES, {1: "time"}, [4, 4, 4, 16]),
    "tokens": (Tokens, [(2, 3, 8, 8), (1, 3, 4, 8), (3, 3, 6, 10)], {2: "height", 3: "width"}, [9, 12]),
    "skips": (Skips, IMAGES, {2: "height", 3: "width"}, [6, 10]),
    "crops": (Crops, IMAGES, {2: "height", 3: "width"}, [8]),
    "masked": (Masked, WORDS, {1: "time"}, [6, 6]),
    "recurrent": (Recurrent, SEQUENCES, {1: "time"}, [8]),
}
"""Module, shapes that it is run with, open axes, and how many units each group has."""


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", CASES)
def test_a_removal_is_exact_at_every_extent(name: str, exporter: Exporter) -> None:
    build, shapes, others, sizes = CASES[name]
    module, example = randomise(build()), torch.zeros(shapes[0])
    model = export(module, [example], exporter, OPSET[exporter], dynamic=True, others=others)
    coupling = coupled(model)
    feeds = [{"input_0": np.random.default_rng(0).normal(size=shape).astype(np.float32)} for shape in shapes]
    for inputs in feeds:
        assert_close(run(model, inputs), run(coupling.graph.proto, inputs))
        (made,) = run(model, inputs).values()
        np.testing.assert_allclose(made, module(torch.from_numpy(inputs["input_0"])).detach(), rtol=1e-3, atol=1e-4)
    assert sorted(all_groups(coupling).values()) == sizes
    for seed, fraction in enumerate([0.2, 0.6, None]):
        removed = random_removal(coupling, fraction, seed)
        assert removed.any()
        for inputs in feeds:
            check_removal(coupling, removed, inputs)
