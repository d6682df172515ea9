"""Which entries of a layer's matrix may stay: the largest of all, n of every m, whole blocks, or some inputs.

A choice takes magnitudes, shape (groups, width, outputs), and gives what stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Magnitudes = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]
Choice = Callable[[Magnitudes], BoolArray]


def largest(count: int) -> Choice:
    """Return the choice of the `count` largest entries of all."""

    def choose(magnitudes: Magnitudes) -> BoolArray:
        kept = np.zeros(magnitudes.size, dtype=np.bool_)
        if count > 0:
            kept[np.argpartition(magnitudes.ravel(), magnitudes.size - count)[magnitudes.size - count :]] = True
        return kept.reshape(magnitudes.shape)

    return choose


def n_of_m(n: int, m: int, kernel: int) -> Choice:
    """Return the choice of the n largest of every m input channels in a row, for every output and place of the kernel.

    Parameters
    ----------
    n, m : int
        0 < n < m: 2 of 4, 4 of 8.
    kernel : int
        Elements of the kernel. Channels that fill no whole m stay.
    """

    def choose(magnitudes: Magnitudes) -> BoolArray:
        groups, width, outputs = magnitudes.shape
        channels = width // kernel
        whole = channels - channels % m
        shaped = magnitudes.reshape(groups, channels, kernel * outputs)
        kept = np.ones(shaped.shape, dtype=np.bool_)
        parts = shaped[:, :whole].reshape(groups, whole // m, m, kernel * outputs)
        order = np.argsort(np.argsort(-parts, axis=2, kind="stable"), axis=2)
        kept[:, :whole] = (order < n).reshape(groups, whole, kernel * outputs)
        return kept.reshape(magnitudes.shape)

    return choose


def blocks(count: int, inputs: int, outputs: int) -> Choice:
    """Return the choice of the blocks with the most energy, so that at most `count` entries stay.

    Parameters
    ----------
    count : int
    inputs, outputs : int
        Extent of a block along the rows and the columns of the matrix; at the ends blocks are smaller.
    """

    def choose(magnitudes: Magnitudes) -> BoolArray:
        groups, width, columns = magnitudes.shape
        padding = ((0, 0), (0, -width % inputs), (0, -columns % outputs))
        squared = np.pad(np.square(magnitudes, dtype=np.float64), padding)
        tall, wide = squared.shape[1] // inputs, squared.shape[2] // outputs
        energy = squared.reshape(groups, tall, inputs, wide, outputs).sum(axis=(2, 4))
        sizes = np.pad(np.ones(magnitudes.shape), padding).reshape(groups, tall, inputs, wide, outputs).sum(axis=(2, 4))
        order = np.argsort(-(energy / sizes).ravel(), kind="stable")
        stays = order[np.cumsum(sizes.ravel()[order]) <= count]
        kept = np.zeros(energy.size, dtype=np.bool_)
        kept[stays] = True
        spread = kept.reshape(energy.shape).repeat(inputs, axis=1).repeat(outputs, axis=2)
        return np.asarray(spread[:, :width, :columns])

    return choose


def shared_inputs(count: int, groups: int) -> Choice:
    """Return the choice, for every group of columns, of the inputs with the most energy, as many for each group.

    Parameters
    ----------
    count : int
        How many of all inputs a group keeps.
    groups : int
        Into how many groups the columns fall: of one size, but for the last, which may be smaller.
    """

    def choose(magnitudes: Magnitudes) -> BoolArray:
        outputs = magnitudes.shape[2]
        columns = -(-outputs // groups)
        squared = np.square(magnitudes, dtype=np.float64)
        energy = np.add.reduceat(squared, np.arange(0, outputs, columns), axis=2)
        order = np.argsort(-energy, axis=1, kind="stable")
        kept = np.zeros(energy.shape, dtype=np.bool_)
        np.put_along_axis(kept, order[:, :count], values=True, axis=1)
        return np.asarray(kept.repeat(columns, axis=2)[:, :, :outputs])

    return choose


@dataclass(frozen=True)
class Pattern:
    """Where the zeros of a layer may be.

    Attributes
    ----------
    kind : str
        ``":"`` for n of m, ``"x"`` for blocks.
    first, second : int
        n and m; or the inputs and the outputs of a block.
    """

    kind: str
    first: int
    second: int

    @staticmethod
    def parse(text: str) -> Pattern:
        """Read ``2:4`` (two of every four input channels stay) or ``16x1`` (16 inputs by 1 output at once)."""
        kind = ":" if ":" in text else "x"
        first, second = map(int, text.split(kind))
        return Pattern(kind, first, second)

    @property
    def fixes_count(self) -> bool:
        """Whether the pattern itself says how many entries stay."""
        return self.kind == ":"

    def stays(self, shape: tuple[int, ...], kernel: int) -> int:
        """Return how many entries n of m leave of a matrix of shape (groups, width, outputs)."""
        groups, width, outputs = shape
        channels = width // kernel
        left = channels // self.second * self.first + channels % self.second
        return groups * left * kernel * outputs

    def choice(self, count: int, kernel: int) -> Choice:
        """Return the choice that it makes in a layer of which `count` entries may stay."""
        if self.kind == ":":
            return n_of_m(self.first, self.second, kernel)
        return blocks(count, self.first, self.second)


def within(allowed: BoolArray, choose: Choice) -> Choice:
    """Return a choice among some entries alone."""
    return lambda magnitudes: choose(np.where(allowed, magnitudes, 0)) & allowed
