"""One step of a recurrent operator, with all that the specification lets a node choose.

A cell is made for one direction of a node; given the weights, it multiplies all inputs at once and returns a function
from the number of a step and the states in front of it, each [N, H], to those behind it.

References: https://onnx.ai/onnx/operators/onnx__LSTM.html, onnx__GRU.html, onnx__RNN.html
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from graphprune.finetune.operators.call import Call

Activation = Callable[[Tensor], Tensor]
StepFunction = Callable[..., tuple[Tensor, ...]]
Cell = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], StepFunction]
"""From X [T, N, I], W [G*H, I], R [G*H, H], B [2*G*H] and P [3*H] to a function of a step."""

DEFAULTS = {"GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"], "RNN": ["Tanh"]}
"""The activations of a direction that names none."""

# by name: the function of x, alpha and beta, as far as it takes them, and the defaults of these; None = to be given
ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], tuple[float | None, ...]]] = {
    "affine": (lambda x, alpha, beta: alpha * x + beta, (None, None)),
    "elu": (F.elu, (1.0,)),
    "hardsigmoid": (lambda x, alpha, beta: torch.clamp(alpha * x + beta, 0, 1), (0.2, 0.5)),
    "leakyrelu": (F.leaky_relu, (0.01,)),
    "relu": (torch.relu, ()),
    "scaledtanh": (lambda x, alpha, beta: alpha * torch.tanh(beta * x), (None, None)),
    "sigmoid": (torch.sigmoid, ()),
    "softplus": (F.softplus, ()),
    "softsign": (F.softsign, ()),
    "tanh": (torch.tanh, ()),
    # The specification has a default, and ONNX Runtime another one.
    "thresholdedrelu": (lambda x, alpha: F.threshold(x, alpha, 0.0), (None,)),
}


def parameters(call: Call, names: Sequence[str]) -> list[tuple[float | None, ...]]:
    """Return what each activation takes of the lists of alphas and betas, in order, or by default."""
    lists = [list(call.get(f"activation_{kind}") or []) for kind in ("alpha", "beta")]
    return [
        tuple(given.pop(0) if given else default for given, default in zip(lists, ACTIVATIONS[name][1], strict=False))
        for name in names
    ]


def activation_names(call: Call, kind: str, directions: int) -> list[str]:
    """Return the names of the activations of all directions, in lower case."""
    return [name.lower() for name in call.get("activations") or DEFAULTS[kind] * directions]


def _activations(call: Call, kind: str, number: int) -> list[Activation]:
    """Return the activations of one direction."""
    names, count = activation_names(call, kind, number + 1), len(DEFAULTS[kind])
    found = [_bound(name, given) for name, given in zip(names, parameters(call, names), strict=True)]
    return found[number * count : (number + 1) * count]


def _bound(name: str, given: tuple[float | None, ...]) -> Activation:
    function = ACTIVATIONS[name][0]
    return lambda x: function(x, *given)


def _clipped(call: Call, function: Activation) -> Activation:
    limit = call.get("clip")
    return function if limit is None else lambda x: function(x.clamp(-limit, limit))


def _lstm(call: Call, number: int) -> Cell:
    """Gates input, output, forget, cell; the output gate looks at the new cell through its peephole."""
    f, g, h = _activations(call, "LSTM", number)
    f, g = _clipped(call, f), _clipped(call, g)

    def cell(
        x: Tensor, weight: Tensor, recurrence: Tensor, bias: Tensor | None, peepholes: Tensor | None
    ) -> StepFunction:
        read, across = F.linear(x, weight, _sum(bias)), recurrence.t()
        look = (None, None, None) if peepholes is None else peepholes.chunk(3)

        def step(t: int, state: Tensor, kept: Tensor) -> tuple[Tensor, ...]:
            into, out, forget, new = (read[t] + state @ across).chunk(4, dim=1)
            entering = f(_looking(into, look[0], kept))
            leaving = 1 - entering if call.get("input_forget", 0) else f(_looking(forget, look[2], kept))
            kept = leaving * kept + entering * g(new)
            return f(_looking(out, look[1], kept)) * h(kept), kept

        return step

    return cell


def _sum(bias: Tensor | None) -> Tensor | None:
    """Add the bias of the state's product to that of the input's."""
    return None if bias is None else torch.add(*bias.chunk(2))


def _looking(gate: Tensor, peephole: Tensor | None, cell: Tensor) -> Tensor:
    return gate if peephole is None else gate + peephole * cell


def _gru(call: Call, number: int) -> Cell:
    """Gates update, reset, hidden; the reset acts in front of the product or behind it."""
    f, g = (_clipped(call, function) for function in _activations(call, "GRU", number))
    behind = bool(call.get("linear_before_reset", 0))

    def cell(
        x: Tensor, weight: Tensor, recurrence: Tensor, bias: Tensor | None, peepholes: Tensor | None
    ) -> StepFunction:
        of_x, of_state = (None, None) if bias is None else bias.chunk(2)
        read = F.linear(x, weight, of_x)
        hidden = recurrence.shape[1]
        gates, last = torch.split(recurrence, [2 * hidden, hidden])
        more, of_last = (None, None) if of_state is None else torch.split(of_state, [2 * hidden, hidden])

        def step(t: int, state: Tensor) -> tuple[Tensor, ...]:
            own, new = torch.split(read[t], [2 * hidden, hidden], dim=1)
            update, reset = f(own + F.linear(state, gates, more)).chunk(2, dim=1)
            if behind:
                candidate = g(new + reset * F.linear(state, last, of_last))
            else:
                candidate = g(new + F.linear(reset * state, last, of_last))
            return ((1 - update) * candidate + update * state,)

        return step

    return cell


def _rnn(call: Call, number: int) -> Cell:
    """One product and an activation."""
    (f,) = (_clipped(call, function) for function in _activations(call, "RNN", number))

    def cell(
        x: Tensor, weight: Tensor, recurrence: Tensor, bias: Tensor | None, peepholes: Tensor | None
    ) -> StepFunction:
        read, across = F.linear(x, weight, _sum(bias)), recurrence.t()
        return lambda t, state: (f(read[t] + state @ across),)

    return cell


CELLS: dict[str, Callable[[Call, int], Cell]] = {"GRU": _gru, "LSTM": _lstm, "RNN": _rnn}
"""From a node and the number of a direction to its cell."""
