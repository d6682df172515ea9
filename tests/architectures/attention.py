"""Transformers, in the ways in which attention is written: torch's module, by hand, and by one function."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

HEADS, WIDTH = 4, 12
"""Of every network; a head has three dimensions, or another number where it says so."""
VOCABULARY = 11


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[batch, time, heads * dimensions] as [batch, heads, time, dimensions]."""
    batch, time, width = x.shape
    return x.view(batch, time, heads, width // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """The reverse of `split_heads`."""
    batch, heads, time, size = x.shape
    return x.transpose(1, 2).reshape(batch, time, heads * size)


def by_hand(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention, spelt out."""
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(mask, -1e4)
    return scores.softmax(-1) @ value


def by_function(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention as torch's one function; a mask is taken for the causal one."""
    return functional.scaled_dot_product_attention(query, key, value, is_causal=mask is not None)


class Attention(nn.Module):
    """Multi-head attention with a projection each for queries, keys and values."""

    def __init__(self, attend: object, size: int = 3, causal: bool = False, time: int = 6) -> None:
        super().__init__()
        self.attend, self.causal = attend, causal
        self.q, self.k, self.v = (nn.Linear(WIDTH, HEADS * size) for _ in range(3))
        self.o = nn.Linear(HEADS * size, WIDTH)
        self.register_buffer("mask", torch.ones(time, time, dtype=torch.bool).triu(1) if causal else None)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        query, key, value = (split_heads(p, HEADS) for p in (self.q(x), self.k(memory), self.v(memory)))
        return self.o(merge_heads(self.attend(query, key, value, self.mask)))


class Encoder(nn.Module):
    """Embedding and pre-norm layers, each of attention and a feed-forward net."""

    def __init__(self, attend: object, layers: int = 2, size: int = 3, causal: bool = False) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(VOCABULARY, WIDTH), nn.Parameter(torch.zeros(6, WIDTH))
        self.attention = nn.ModuleList(Attention(attend, size, causal) for _ in range(layers))
        self.up = nn.ModuleList(nn.Linear(WIDTH, 24) for _ in range(layers))
        self.down = nn.ModuleList(nn.Linear(24, WIDTH) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * layers))
        self.last = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place
        for index, (attention, up, down) in enumerate(zip(self.attention, self.up, self.down, strict=True)):
            normed = self.norms[2 * index](x)
            x = x + attention(normed, normed)
            x = x + down(functional.gelu(up(self.norms[2 * index + 1](x))))
        return self.last(x)


class Decoder(nn.Module):
    """A causal layer with cross-attention to a memory that is given; post-norm as in the first transformer."""

    def __init__(self, attend: object) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.own, self.cross = Attention(attend, causal=True), Attention(attend, size=5)
        self.up, self.down = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.last = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor, memory: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = self.norms[0](x + self.own(x, x))
        x = self.norms[1](x + self.cross(x, memory))
        return self.last(self.norms[2](x + self.down(functional.relu(self.up(x)))))


class TorchEncoder(nn.Module):
    """torch's own layers, which hold nn.MultiheadAttention."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, batch_first=True, norm_first=True)
        self.layers, self.last = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layers(x))


class TorchDecoder(nn.Module):
    """torch's own decoder layer, causal, with cross-attention."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 24, batch_first=True)
        self.layers, self.last = nn.TransformerDecoder(layer, 2), nn.Linear(WIDTH, 5)
        self.register_buffer("mask", torch.full((6, 6), -torch.inf).triu(1))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.last(self.layers(x, memory, tgt_mask=self.mask, tgt_is_causal=True))


class MultiHead(nn.Module):
    """nn.MultiheadAttention by itself, whose weights (averaged over the heads) are an output too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 5)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = functional.relu(self.first(x))
        mixed, weights = self.attention(x, x, x, need_weights=True)
        return self.last(mixed), weights


class ViT(nn.Module):
    """Vision transformer: patches by a convolution, class token, position embedding, fused qkv as timm writes it."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 4, 4)
        self.token, self.place = nn.Parameter(torch.zeros(1, 1, WIDTH)), nn.Parameter(torch.zeros(1, 10, WIDTH))
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(layers))
        self.proj = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(layers))
        self.up = nn.ModuleList(nn.Linear(WIDTH, 24) for _ in range(layers))
        self.down = nn.ModuleList(nn.Linear(24, WIDTH) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * layers + 1))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        for index, (qkv, proj) in enumerate(zip(self.qkv, self.proj, strict=True)):
            batch, count, width = x.shape
            fused = qkv(self.norms[2 * index](x)).reshape(batch, count, 3, HEADS, width // HEADS)
            query, key, value = fused.permute(2, 0, 3, 1, 4).unbind(0)
            x = x + proj(merge_heads(by_hand(query, key, value, None)))
            x = x + self.down[index](functional.gelu(self.up[index](self.norms[2 * index + 1](x))))
        return self.head(self.norms[-1](x)[:, 0])


class RMSNorm(nn.Module):
    """As Llama writes it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


class Llama(nn.Module):
    """Grouped-query attention with rotary embedding, RMSNorm and SwiGLU; biased projections, as Qwen has them."""

    def __init__(self, attend: object, layers: int = 2, size: int = 6, shared: int = 2, time: int = 6) -> None:
        super().__init__()
        self.attend, self.shared = attend, shared
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.q = nn.ModuleList(nn.Linear(WIDTH, HEADS * size) for _ in range(layers))
        self.k = nn.ModuleList(nn.Linear(WIDTH, HEADS // shared * size) for _ in range(layers))
        self.v = nn.ModuleList(nn.Linear(WIDTH, HEADS // shared * size) for _ in range(layers))
        self.o = nn.ModuleList(nn.Linear(HEADS * size, WIDTH, bias=False) for _ in range(layers))
        self.gate = nn.ModuleList(nn.Linear(WIDTH, 20, bias=False) for _ in range(layers))
        self.up = nn.ModuleList(nn.Linear(WIDTH, 20, bias=False) for _ in range(layers))
        self.down = nn.ModuleList(nn.Linear(20, WIDTH, bias=False) for _ in range(layers))
        self.norms = nn.ModuleList(RMSNorm(WIDTH) for _ in range(2 * layers + 1))
        self.last = nn.Linear(WIDTH, VOCABULARY, bias=False)
        angles = torch.outer(torch.arange(time), 100.0 ** (-torch.arange(0, size, 2) / size)).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        self.register_buffer("mask", torch.ones(time, time, dtype=torch.bool).triu(1))

    def rotate(self, x: Tensor) -> Tensor:
        """Rotary embedding: dimension i turns with dimension i + size / 2."""
        left, right = x.chunk(2, -1)
        return x * self.cos + torch.cat([-right, left], -1) * self.sin

    def repeat(self, x: Tensor) -> Tensor:
        """Give every query head its key or value head."""
        batch, heads, time, size = x.shape
        wide = x[:, :, None].expand(batch, heads, self.shared, time, size)
        return wide.reshape(batch, heads * self.shared, time, size)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for index, (q, k, v, o) in enumerate(zip(self.q, self.k, self.v, self.o, strict=True)):
            normed = self.norms[2 * index](x)
            query, key = self.rotate(split_heads(q(normed), HEADS)), split_heads(k(normed), HEADS // self.shared)
            value = split_heads(v(normed), HEADS // self.shared)
            mixed = self.attend(query, self.repeat(self.rotate(key)), self.repeat(value), self.mask)
            x = x + o(merge_heads(mixed))
            normed = self.norms[2 * index + 1](x)
            x = x + self.down[index](functional.silu(self.gate[index](normed)) * self.up[index](normed))
        return self.last(self.norms[-1](x))
