"""If, Loop and Scan: their bodies are given as functions, before the inputs.

References: https://onnx.ai/onnx/operators/onnx__If.html, onnx__Loop.html, onnx__Scan.html
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from graphprune.errors import ModelError
from graphprune.finetune.operators.call import Call, Operator, Restriction

Run = Callable[..., tuple[Tensor, ...]]
"""From a body's inputs to its outputs."""

FIRST_SCAN = 9
"""Before this operator set, Scan runs along a batch axis, too."""


def if_(call: Call, first: Run, second: Run, condition: Tensor) -> tuple[Tensor, ...]:
    """If: one of the branches, which read what stands around them."""
    return first() if bool(condition) else second()


def loop(
    call: Call, body: Run, count: Tensor | None = None, condition: Tensor | None = None, *states: Tensor
) -> tuple[Tensor, ...]:
    """Loop: as often as told, as long as the condition holds.

    Parameters
    ----------
    call : Call
    body : callable
        From iteration number, condition and states to condition, states, and what is stacked over the iterations.
    count : torch.Tensor, optional
        Int scalar; without it the condition alone ends the loop.
    condition : torch.Tensor, optional
        Bool scalar, true where left out.
    *states : torch.Tensor
        Initial states.

    Returns
    -------
    tuple of torch.Tensor
        Last states, and what has been stacked along a new axis 0.
    """
    most = None if count is None else int(count)
    device = next((value.device for value in (*states, count, condition) if value is not None), None)
    going = torch.ones((), dtype=torch.bool, device=device) if condition is None else condition
    rows: list[tuple[Tensor, ...]] = []
    while (most is None or len(rows) < most) and bool(going):
        going, *made = body(torch.tensor(len(rows), dtype=torch.int64, device=device), going, *states)
        states = tuple(made[: len(states)])
        rows.append(tuple(made[len(states) :]))
    return *states, *_stacked(call, rows, len(states))


def _stacked(call: Call, rows: list[tuple[Tensor, ...]], states: int) -> list[Tensor]:
    """Stack the results of all iterations, along axis 0 where the node names no other."""
    if not rows and call.outputs > states:
        raise ModelError(
            "a loop that does not run once stacks nothing",
            why="torch does not know of which shape the results would have been",
            hint="give it one iteration at least",
        )
    count = len(rows[0]) if rows else 0
    axes = call.get("scan_output_axes") or [0] * count
    back = call.get("scan_output_directions") or [0] * count
    stacks = zip(zip(*rows, strict=True), axes, back, strict=True)
    return [torch.stack(row[::-1] if turn else row, dim=axis) for row, axis, turn in stacks]


def scan(call: Call, body: Run, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Scan: once for every position of the scanned axes.

    Parameters
    ----------
    call : Call
        Attributes ``num_scan_inputs``, and axes and directions of scanned inputs and stacked outputs.
    body : callable
        From states and one position of every scanned input to states and what is stacked.
    *inputs : torch.Tensor
        Initial states, and what is scanned.

    Returns
    -------
    tuple of torch.Tensor
        Last states, and what has been stacked.
    """
    count = call.get("num_scan_inputs")
    states, scanned = inputs[: len(inputs) - count], inputs[len(inputs) - count :]
    axes = call.get("scan_input_axes") or [0] * count
    back = call.get("scan_input_directions") or [0] * count
    places = zip(scanned, axes, back, strict=True)
    columns = [x.unbind(axis)[::-1] if turn else x.unbind(axis) for x, axis, turn in places]
    rows: list[tuple[Tensor, ...]] = []
    for row in zip(*columns, strict=True):
        made = body(*states, *row)
        states = tuple(made[: len(states)])
        rows.append(tuple(made[len(states) :]))
    return *states, *_stacked(call, rows, len(states))


def _scan_limits(call: Call) -> str:
    return "" if call.opset >= FIRST_SCAN else f"before operator set {FIRST_SCAN} it means something else"


OPERATORS: dict[str, Operator] = {"If": if_, "Loop": loop, "Scan": scan}

RESTRICTIONS: dict[str, Restriction] = {"Scan": _scan_limits}
