"""LSTM, GRU and RNN: torch's fused kernels where they compute the same, else a loop over the steps (`cells`).

With G gates (4, 3, 1), H hidden units, D directions: W [D, G*H, I], R [D, G*H, H], B [D, 2*G*H], states [D, N, H],
X [T, N, I], Y [T, D, N, H]; with layout 1, X [N, T, I], states [N, D, H] and Y [N, T, D, H].

torch's kernels want the gates in another order: input, forget, cell, output for an LSTM, where ONNX has input, output,
forget, cell; reset, update, new for a GRU, where ONNX has update, reset, hidden. They know neither clipping, peepholes,
coupled gates and other activations, nor a GRU that resets in front of the product (``linear_before_reset=0``).

References: https://onnx.ai/onnx/operators/onnx__LSTM.html, onnx__GRU.html, onnx__RNN.html
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from graphprune.finetune.operators.call import Call, Operator, Restriction
from graphprune.finetune.operators.cells import ACTIVATIONS, CELLS, DEFAULTS, Cell, activation_names, parameters
from graphprune.finetune.operators.positions import reversed_by_length


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


def lstm(
    call: Call,
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    state: Tensor | None = None,
    cell: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """LSTM, with peepholes, of one or both directions.

    Parameters
    ----------
    call : Call
        Attributes ``activation_alpha``, ``activation_beta``, ``activations``, ``clip``, ``direction``,
        ``input_forget``, ``layout``.
    x, weight, recurrence, bias : torch.Tensor
        As the module says.
    lengths : torch.Tensor, optional
        [N], int: how many steps of every sequence count; behind them Y is 0.
    state, cell : torch.Tensor, optional
        Initial states, 0 where left out.
    peepholes : torch.Tensor, optional
        [D, 3*H]: of the input, output and forget gate.

    Returns
    -------
    tuple of torch.Tensor
        Y and the last state and cell.
    """
    inputs = _inputs(call, x, weight, recurrence, bias, lengths, (state, cell), peepholes)
    return _finish(call, _run(call, "LSTM", inputs))


def _of_one_state(kind: str) -> Operator:
    """GRU or RNN: as `lstm`, without cells and peepholes."""

    def run(
        call: Call,
        x: Tensor,
        weight: Tensor,
        recurrence: Tensor,
        bias: Tensor | None = None,
        lengths: Tensor | None = None,
        state: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        return _finish(call, _run(call, kind, _inputs(call, x, weight, recurrence, bias, lengths, (state,))))

    return run


def _inputs(
    call: Call,
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    states: Sequence[Tensor | None],
    peepholes: Tensor | None = None,
) -> Inputs:
    """Bring what is read into layout 0; under autocast the states take part in the computation's type."""
    batch_first = bool(call.get("layout", 0))
    x = x.transpose(0, 1) if batch_first else x
    shape = (weight.shape[0], x.shape[1], recurrence.shape[2])
    given = tuple(
        x.new_zeros(shape) if state is None else (state.transpose(0, 1) if batch_first else state).to(x.dtype)
        for state in states
    )
    counts = None if lengths is None else [int(count) for count in lengths.tolist()]
    if counts is not None and min(counts, default=0) == len(x):
        counts = None
    return Inputs(x, weight, recurrence, bias, counts, given, peepholes)


def _finish(call: Call, results: Results) -> tuple[Tensor, ...]:
    y, states = results
    if call.get("layout", 0):
        return y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in states)
    return y, *states


def _run(call: Call, kind: str, inputs: Inputs) -> Results:
    backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[
        call.get("direction", "forward")
    ]
    fused = FUSED[kind](call, len(backwards))
    if fused is not None and inputs.peepholes is None and min(inputs.lengths or [1]) > 0:
        if backwards != [True]:
            return _fused(kind, fused, inputs)
        turned = replace(inputs, x=_turned(inputs.x, inputs.lengths))
        y, states = _fused(kind, fused, turned)
        return _turned(y, inputs.lengths), states
    cells = [CELLS[kind](call, number) for number in range(len(backwards))]
    parts = [
        _loop(cell, inputs.direction(k), back) for k, (cell, back) in enumerate(zip(cells, backwards, strict=True))
    ]
    y = torch.stack([part[0] for part in parts], dim=1)
    return y, tuple(torch.stack(states) for states in zip(*(part[1] for part in parts), strict=True))


def _turned(x: Tensor, lengths: list[int] | None) -> Tensor:
    """Turn the order of the steps, axis 0, of every sequence in the batch: axis 1 of X and 2 of Y."""
    if lengths is None:
        return x.flip(0)
    return reversed_by_length(x, lengths, 0, 1 if x.dim() == 3 else 2)


# -- torch's kernels ------------------------------------------------------------------------------------------------

Kernel = Callable[..., tuple[Tensor, ...]]


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


def _fused(kind: str, kernel: Kernel, inputs: Inputs) -> Results:
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
    return torch.lstm if _plain(call, "LSTM", directions) and not call.get("input_forget", 0) else None


def _fused_gru(call: Call, directions: int) -> Kernel | None:
    return torch.gru if _plain(call, "GRU", directions) and call.get("linear_before_reset", 0) else None


def _fused_rnn(call: Call, directions: int) -> Kernel | None:
    kernels: dict[str, Kernel] = {"tanh": torch.rnn_tanh, "relu": torch.rnn_relu}
    names = set(activation_names(call, "RNN", directions))
    return kernels.get(names.pop()) if "clip" not in call.attributes and len(names) == 1 else None


FUSED: dict[str, Callable[[Call, int], Kernel | None]] = {"GRU": _fused_gru, "LSTM": _fused_lstm, "RNN": _fused_rnn}


# -- step by step ---------------------------------------------------------------------------------------------------


def _loop(cell: Cell, inputs: Inputs, backwards: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one direction: Y [T, N, H], and the last states [N, H]."""
    steps = len(inputs.x)
    step = cell(inputs.x, inputs.weight[0], inputs.recurrence[0], _first(inputs.bias), _first(inputs.peepholes))
    counts = None if inputs.lengths is None else torch.tensor(inputs.lengths, device=inputs.x.device)[:, None]
    states = tuple(state[0] for state in inputs.states)
    made: list[Tensor] = []
    for t in reversed(range(steps)) if backwards else range(steps):
        after = step(t, *states)
        y = after[0]
        if counts is not None:  # backwards a sequence begins where its own steps end
            inside = counts > t
            after = tuple(torch.where(inside, new, old) for new, old in zip(after, states, strict=True))
            y = torch.where(inside, y, 0.0)
        states = after
        made.append(y)
    if counts is not None:  # ONNX Runtime ends a sequence of no step with 0, whatever it began with
        states = tuple(torch.where(counts > 0, state, 0.0) for state in states)
    return torch.stack(made[::-1] if backwards else made), states


def _first(values: Tensor | None) -> Tensor | None:
    return None if values is None else values[0]


def _limits(kind: str, call: Call) -> str:
    directions = 2 if call.get("direction", "forward") == "bidirectional" else 1
    names = activation_names(call, kind, directions)
    for name in names:
        if name not in ACTIVATIONS:
            return f"activation {name} is not known"
    for name, given in zip(names, parameters(call, names), strict=True):
        if None in given:
            return f"activation {name} has no activation_alpha or activation_beta"
    return ""


OPERATORS: dict[str, Operator] = {"GRU": _of_one_state("GRU"), "LSTM": lstm, "RNN": _of_one_state("RNN")}

RESTRICTIONS: dict[str, Restriction] = {kind: partial(_limits, kind) for kind in OPERATORS}
