"""Control flow as torch exports it: what is inside is pruned, the rest is the same, and torch runs it again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.architectures.exporting import Exporter, export, randomise
from tests.architectures.interpreting import assert_same_in_torch
from tests.oracles import all_groups, assert_exact


class Either(nn.Module):
    """Two convolutions or one, whichever an input says."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.deep = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 12, 1))
        self.flat = nn.Conv2d(8, 12, 1)
        self.last = nn.Linear(12, 4)

    def forward(self, image: Tensor, depth: Tensor) -> Tensor:
        hidden = self.stem(image).relu()
        hidden = torch.cond(depth.sum() > 0, self.deep.forward, self.flat.forward, (hidden,))
        return self.last(hidden.relu().mean((2, 3)))


class Cell(nn.Module):
    """An RNN by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.again, self.last = nn.Linear(6, 10), nn.Linear(10, 10), nn.Linear(10, 4)


class Stepped(Cell):
    """Step by step in a loop of TorchScript."""

    def forward(self, words: Tensor) -> Tensor:
        hidden = torch.zeros(words.size(1), 10)
        for step in range(words.size(0)):
            hidden = torch.tanh(self.into(words[step]) + self.again(hidden))
        return self.last(hidden)


class Scanned(Cell):
    """By torch's scan operator, which also gives out all states."""

    def forward(self, words: Tensor) -> tuple[Tensor, Tensor]:
        def step(hidden: Tensor, word: Tensor) -> tuple[Tensor, Tensor]:
            after = torch.tanh(self.into(word) + self.again(hidden))
            return after, after.clone()

        final, states = torch._higher_order_ops.scan(step, torch.zeros(2, 10), words, dim=0)
        return self.last(final), self.last(states)


def sentence(*shape: int) -> Tensor:
    """Return seeded numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("depth", [-1.0, 1.0])
def test_branches(depth: float) -> None:
    inputs = [sentence(2, 3, 6, 6), torch.full((1,), depth)]
    model = export(randomise(Either()), inputs, "dynamo", 20)
    assert "If" in [node.op_type for node in model.graph.node]
    given = {f"input_{n}": value.numpy() for n, value in enumerate(inputs)}
    coupling = assert_exact(model, inputs=given)
    assert sorted(all_groups(coupling).values()) == [8, 12, 16]
    assert_same_in_torch(model, given)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # of torch's own, in its scan, too
@pytest.mark.parametrize(
    ("build", "exporter", "opset"),
    [(lambda: torch.jit.script(randomise(Stepped())), "script", 17), (lambda: randomise(Scanned()), "dynamo", 20)],
)
def test_a_recurrence_written_out(build: Callable[[], nn.Module], exporter: Exporter, opset: int) -> None:
    words = sentence(5, 2, 6)
    model = export(build(), [words], exporter, opset)
    assert {"Loop", "Scan"} & {node.op_type for node in model.graph.node}
    coupling = assert_exact(model, inputs={"input_0": np.asarray(words)})
    assert list(all_groups(coupling).values()) == [10]
    assert_same_in_torch(model, {"input_0": np.asarray(words)})
