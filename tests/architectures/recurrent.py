"""Recurrent networks: language models, a tagger, and translation with attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 11


class LanguageModel(nn.Module):
    """Embedding, stacked recurrent layers, and a word for every step.

    With ``tied`` the last layer's weights are the embedding's (Press and Wolf 2017).
    """

    def __init__(self, kind: type[nn.RNNBase], tied: bool = False, **options: object) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 12)
        self.layers = kind(12, 12 if tied else 16, num_layers=2, batch_first=True, **options)
        self.last = nn.Linear(12 if tied else 16, VOCABULARY)
        if tied:
            self.last.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(self.layers(self.embed(tokens))[0])


class Projected(nn.Module):
    """Tied weights behind a projection: the width of the embedding is inner, the recurrent one too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layers = nn.Embedding(VOCABULARY, 12), nn.LSTM(12, 16, batch_first=True)
        self.project, self.last = nn.Linear(16, 12), nn.Linear(12, VOCABULARY, bias=False)
        self.last.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(self.project(self.layers(self.embed(tokens))[0]))


class Tagger(nn.Module):
    """A bidirectional LSTM of two layers over features and words, and a tag for every step."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embed, self.first = nn.Embedding(VOCABULARY, 8), nn.Linear(5, 8)
        self.layers = kind(16, 10, num_layers=2, bidirectional=True, batch_first=True)
        self.hidden, self.last = nn.Linear(20, 12), nn.Linear(12, 4)

    def forward(self, tokens: Tensor, features: Tensor) -> Tensor:
        x = torch.cat([self.embed(tokens), torch.relu(self.first(features))], -1)
        return self.last(torch.tanh(self.hidden(self.layers(x)[0])))


class Classifier(nn.Module):
    """A bidirectional GRU's last states, concatenated, and a class of the whole sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.last = nn.GRU(5, 10, bidirectional=True, batch_first=True), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = self.layers(x)[1]
        return self.last(torch.cat([state[0], state[1]], -1))


class Translator(nn.Module):
    """LSTM to LSTM: the decoder starts from the encoder's states, and looks back (Luong et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(VOCABULARY, 8), nn.Embedding(VOCABULARY, 8)
        self.encoder, self.decoder = nn.LSTM(8, 12, batch_first=True), nn.LSTM(8, 12, batch_first=True)
        self.general, self.mix = nn.Linear(12, 12, bias=False), nn.Linear(24, 16)
        self.last = nn.Linear(16, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, state = self.encoder(self.source(source))
        x, _ = self.decoder(self.target(target), state)
        weights = functional.softmax(torch.bmm(x, self.general(memory).transpose(1, 2)), -1)
        return self.last(torch.tanh(self.mix(torch.cat([x, torch.bmm(weights, memory)], -1))))


class Unrolled(nn.Module):
    """An LSTM written out with nn.LSTMCell, step by step: MatMul, Split and gates alone."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.last = nn.LSTMCell(5, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        state, cell = x.new_zeros(x.shape[0], 12), x.new_zeros(x.shape[0], 12)
        for step in range(x.shape[1]):
            state, cell = self.cell(x[:, step], (state, cell))
        return self.last(state)
