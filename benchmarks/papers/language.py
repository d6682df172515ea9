"""A language model of characters on tinyshakespeare: stacked LSTMs that read one character and expect the next."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from data import DATA, require
from gradual import train
from graphs import Builder
from onnx import TensorProto
from torch import Tensor
from torch.nn.functional import cross_entropy
from training import DEVICE

from graphprune.finetune import GraphModule, to_torch

HELD_BACK = 0.05
"""Fraction of the text at its end that is tested on; as much in front of it is for validation."""


@dataclass(frozen=True)
class Size:
    """How much is trained: characters of text, and their streams and steps in a batch."""

    large: int
    steps: int
    text: int
    streams: int
    length: int
    rate: float
    dropout: float
    layers: int = 2


FULL = Size(large=512, steps=12_000, text=1_115_394, streams=64, length=100, rate=2e-3, dropout=0.3)
QUICK = Size(large=160, steps=1500, text=400_000, streams=32, length=50, rate=4e-2, dropout=0.0)


def network(width: int, characters: int, seed: int, *, layers: int = 2, dropout: float = 0.0) -> onnx.ModelProto:
    """Make a stacked LSTM over characters.

    Characters enter as one-hot vectors, which makes the first layer's weights the embedding.

    Parameters
    ----------
    width : int
        Hidden units of every layer.
    characters : int
        Size of the alphabet.
    seed : int
        Of the weights.
    layers : int
    dropout : float
        Between layers and in front of the output (Zaremba et al. 2014), in [0, 1).

    Returns
    -------
    onnx.ModelProto
        From ``text`` [T, N], int64, and the layers' states and cells [1, N, width] to logits [T, N, characters], and
        states and cells.
    """
    builder = Builder(seed)
    shape = [1, "streams", width]
    inputs: dict[str, tuple[int, list[int | str]]] = {"text": (TensorProto.INT64, ["steps", "streams"])}
    outputs: dict[str, list[int | str]] = {"logits": ["steps", "streams", characters]}
    depth, values = builder.store("depth", np.int64(characters)), builder.store("values", np.array([0.0, 1.0]))
    hidden, size = builder.node("OneHot", ["text", depth, values], "letters"), characters
    builder.store("directions", np.array([1]))
    builder.store("ratio", np.float32(dropout))
    for number in range(layers):
        states = [f"{kind}{number}" for kind in ("state", "cell")]
        inputs.update((name, (TensorProto.FLOAT, list(shape))) for name in states)
        y, state, cell = builder.lstm(f"lstm{number}", hidden, size, width, states)
        outputs.update({state: list(shape), cell: list(shape)})
        hidden, size = builder.node("Squeeze", [y, "directions"], f"hidden{number}"), width
        if dropout:
            hidden = builder.node("Dropout", [hidden, "ratio"], f"thinned{number}")
    builder.node("Identity", [builder.dense("output", hidden, width, characters)], "logits")
    return builder.model(inputs, outputs)


@dataclass(frozen=True)
class Text:
    """Characters by number, in three parts that follow one another."""

    train: Tensor
    validation: Tensor
    test: Tensor
    characters: int


def read(length: int) -> Text:
    """Read the first characters of tinyshakespeare."""
    text = require(DATA / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    alphabet = {character: number for number, character in enumerate(sorted(set(text)))}
    numbers = torch.tensor([alphabet[character] for character in text[:length]], device=DEVICE)
    held = int(HELD_BACK * len(numbers))
    train_part, validation, test = numbers.split([len(numbers) - 2 * held, held, held])
    return Text(train_part, validation, test, len(alphabet))


def streams(numbers: Tensor, count: int) -> Tensor:
    """Cut text into parallel streams: [steps, count]."""
    return numbers[: len(numbers) // count * count].view(count, -1).t().contiguous()


def fresh(count: int, width: int, layers: int) -> list[Tensor]:
    """Return states and cells of zeros."""
    return [torch.zeros(1, count, width, device=DEVICE) for _ in range(2 * layers)]


def perplexity(module: GraphModule, numbers: Tensor, width: int, layers: int, count: int = 20) -> float:
    """Return the perplexity of a character, its states carried from end to end of every stream."""
    data, states, total = streams(numbers, count), fresh(count, width, layers), 0.0
    with torch.no_grad():
        for start in range(0, len(data) - 1, 100):
            piece = data[start : start + 101]
            logits, *states = module(piece[:-1], *states)
            total += float(cross_entropy(logits.flatten(0, 1), piece[1:].flatten(), reduction="sum"))
    return math.exp(total / ((len(data) - 1) * count))


def run(
    size: Size, text: Text, width: int, sparsity: float, seed: int, faster: float = 1.0
) -> tuple[int, dict[str, float]]:
    """Train one network, its learning rate times a factor; return nonzeros, and perplexity by part."""
    dropout = size.dropout * width / size.large  # narrower networks need less: Zaremba et al. 2014 give small ones none
    module = to_torch(network(width, text.characters, seed, layers=size.layers, dropout=dropout)).to(DEVICE)
    torch.manual_seed(seed)
    data, states = streams(text.train, size.streams), fresh(size.streams, width, size.layers)
    pieces = (len(data) - 1) // size.length

    def loss(step: int) -> Tensor:
        nonlocal states
        if step % pieces == 0:
            states = fresh(size.streams, width, size.layers)
        start = step % pieces * size.length
        piece = data[start : start + size.length + 1]
        logits, *states = module(piece[:-1], *states)
        states = [state.detach() for state in states]
        return cross_entropy(logits.flatten(0, 1), piece[1:].flatten())

    label = f"width {width}, sparsity {sparsity:g}"
    optimizer = torch.optim.Adam(module.parameters(), lr=faster * size.rate)
    nonzeros = train(module, optimizer, loss, size.steps, sparsity, clip=1.0, scope="global", label=label)
    parts = {"validation": text.validation, "test": text.test}
    return nonzeros, {name: perplexity(module, part, width, size.layers) for name, part in parts.items()}
