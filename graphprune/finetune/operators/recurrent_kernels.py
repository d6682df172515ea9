"""torch's fused kernels of recurrent operators: which of them compute the same as ONNX, and how they are called.

They want the gates in another order: input, forget, cell, output for an LSTM, where ONNX has input, output, forget,
cell; reset, update, new for a GRU, where ONNX has update, reset, hidden. They know neither clipping, peepholes, coupled
gates and other activations, nor a GRU that resets in front of the product (``linear_before_reset=0``).

Shapes are those of `graphprune.finetune.operators.recurrent`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from graphprune.finetune.operators.call import Call
from graphprune.finetune.operators.cells import DEFAULTS, activation_names


@dataclass(frozen=True)
class Inputs:
    """What a recurrent operator reads, in layout 0.

    Attributes
    ----------
    x : torch.Tensor
        [T, N, I].
    weight, recurrence : torch.Tensor
        [D, G*H, I] and [D, G*H, H].
    bias : torch.Tensor or None
        [D, 2*G*H].
    lengths : list of int or None
        Of every sequence; None where all are of T steps.
    states : tuple of torch.Tensor
        Each [D, N, H].
    peepholes : torch.Tensor or None
        [D, 3*H].
    """

    x: Tensor
    weight: Tensor
    recurrence: Tensor
    bias: Tensor | None
    lengths: list[int] | None
    states: tuple[Tensor, ...]
    peepholes: Tensor | None = None

    def direction(self, number: int) -> Inputs:
        """Return what one direction reads."""
        own = slice(number, number + 1)
        return replace(
            self,
            weight=self.weight[own],
            recurrence=self.recurrence[own],
            bias=None if self.bias is None else self.bias[own],
            states=tuple(state[own] for state in self.states),
            peepholes=None if self.peepholes is None else self.peepholes[own],
        )


ORDERS = {"GRU": (1, 0, 2), "LSTM": (0, 2, 3, 1), "RNN": (0,)}
"""torch's gates by their numbers in ONNX."""

Results = tuple[Tensor, tuple[Tensor, ...]]
"""Y and the last states."""

Kernel = Callable[..., tuple[Tensor, ...]]
"""Of torch; what it is given differs with whether sequences are packed."""


def _fails(kind: torch.dtype) -> bool:
    """Whether there is no kernel for an LSTM under autocast to a type: oneDNN has some for processors with AVX-512."""
    ones = torch.ones(1, 1, 1)
    try:
        with torch.autocast("cpu", dtype=kind):
            torch.lstm(ones, (ones, ones), [torch.ones(4, 1)] * 2, False, 1, 0.0, False, False, False)
    except RuntimeError:
        return True
    return False


WITHOUT = tuple(kind for kind in (torch.bfloat16, torch.float16) if _fails(kind))
"""Types to which autocast on the CPU leaves LSTMs without a kernel here: they are computed in float32 instead."""


def _lstm(*given: Any) -> tuple[Tensor, ...]:
    kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    if given[0].device.type != "cpu" or kind not in WITHOUT:
        return torch.lstm(*given)
    with torch.autocast("cpu", enabled=False):
        return torch.lstm(*_widened(given))


def _widened(given: Any) -> Any:
    """Return tensors, or whatever holds some, with all floats in float32."""
    if isinstance(given, list | tuple):
        return type(given)(_widened(one) for one in given)
    return given.float() if isinstance(given, Tensor) and given.is_floating_point() else given


def _parameters(kind: str, inputs: Inputs) -> list[Tensor]:
    """Return the weights as torch's kernels want them.

    They are parts of one tensor, in the order in which cuDNN wants them: it copies them together otherwise.
    """
    order = ORDERS[kind]

    def gates(weight: Tensor) -> list[Tensor]:
        parts = weight.chunk(len(order))
        return [parts[gate].reshape(-1) for gate in order]

    matrices = [weight for pair in zip(inputs.weight, inputs.recurrence, strict=True) for weight in pair]
    vectors = [] if inputs.bias is None else [half for bias in inputs.bias for half in bias.chunk(2)]
    every = [*matrices, *vectors]
    flat = torch.cat([part for weight in every for part in gates(weight)])
    laid_out = [
        part.view(w.shape) for part, w in zip(torch.split(flat, [w.numel() for w in every]), every, strict=True)
    ]
    pairs = [laid_out[start : start + 2] for start in range(0, len(laid_out), 2)]
    directions = len(inputs.weight)  # torch wants all of one direction first
    return [weight for number in range(directions) for pair in pairs[number::directions] for weight in pair]


def fused(kind: str, kernel: Kernel, inputs: Inputs) -> Results:
    """Run all directions in one kernel; sequences of different lengths are packed."""
    parameters, biased = _parameters(kind, inputs), inputs.bias is not None
    (directions, _, hidden), (steps, batch, _) = inputs.recurrence.shape, inputs.x.shape
    # Without dropout the mode decides only whether cuDNN can go backwards.
    settings = (parameters, biased, 1, 0.0, torch.is_grad_enabled(), directions == 2)
    if inputs.lengths is None:
        y, *states = kernel(inputs.x, _state(inputs.states), *settings, False)
    else:
        packed = pack_padded_sequence(inputs.x, torch.tensor(inputs.lengths), enforce_sorted=False)
        data, sizes, order, back = packed
        assert order is not None
        assert back is not None
        initial = tuple(state.index_select(1, order) for state in inputs.states)
        made, *states = kernel(data, sizes, _state(initial), *settings)
        y, _ = pad_packed_sequence(PackedSequence(made, sizes, order, back), total_length=steps)
        states = [state.index_select(1, back) for state in states]
    return y.view(steps, batch, directions, hidden).transpose(1, 2), tuple(states)


def _state(states: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    return states if len(states) > 1 else states[0]


def _plain(call: Call, kind: str, directions: int) -> bool:
    """Whether nothing is clipped, and activations are those that torch's kernel has."""
    usual = [name.lower() for name in DEFAULTS[kind] * directions]
    return "clip" not in call.attributes and activation_names(call, kind, directions) == usual


def _fused_lstm(call: Call, directions: int) -> Kernel | None:
    return _lstm if _plain(call, "LSTM", directions) and not call.get("input_forget", 0) else None


def _fused_gru(call: Call, directions: int) -> Kernel | None:
    return torch.gru if _plain(call, "GRU", directions) and call.get("linear_before_reset", 0) else None


def _fused_rnn(call: Call, directions: int) -> Kernel | None:
    kernels: dict[str, Kernel] = {"tanh": torch.rnn_tanh, "relu": torch.rnn_relu}
    names = set(activation_names(call, "RNN", directions))
    return kernels.get(names.pop()) if "clip" not in call.attributes and len(names) == 1 else None


FUSED: dict[str, Callable[[Call, int], Kernel | None]] = {"GRU": _fused_gru, "LSTM": _fused_lstm, "RNN": _fused_rnn}
