"""LSTM, GRU and RNN: torch's kernels where they compute the same (`recurrent_kernels`), else a loop over the steps.

With G gates (4, 3, 1), H hidden units, D directions: W [D, G*H, I], R [D, G*H, H], B [D, 2*G*H], states [D, N, H],
X [T, N, I], Y [T, D, N, H]; with layout 1, X [N, T, I], states [N, D, H] and Y [N, T, D, H].

References: https://onnx.ai/onnx/operators/onnx__LSTM.html, onnx__GRU.html, onnx__RNN.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from graphprune.finetune.operators.call import Call, Operator, Restriction
from graphprune.finetune.operators.cells import ACTIVATIONS, CELLS, Cell, activation_names, parameters
from graphprune.finetune.operators.positions import reversed_by_length
from graphprune.finetune.operators.recurrent_kernels import FUSED, Inputs, Results, fused


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
    kernel = FUSED[kind](call, len(backwards))
    if kernel is not None and inputs.peepholes is None and min(inputs.lengths or [1]) > 0:
        if backwards != [True]:
            return fused(kind, kernel, inputs)
        turned = replace(inputs, x=_turned(inputs.x, inputs.lengths))
        y, states = fused(kind, kernel, turned)
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
