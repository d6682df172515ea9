"""What optimizers remember of parameters, when parameters are cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from graphprune.errors import RecipeError
from graphprune.ir.coupling.units import BoolArray
from graphprune.ir.edit import kept_extents
from graphprune.ir.surgery import is_product, kept_indices

Cuts = Mapping[nn.Parameter, BoolArray]
"""Parameters that lose positions, each with what stays, broadcastable to its shape."""


def as_list(optimizer: Optimizer | Sequence[Optimizer] | None) -> list[Optimizer]:
    """Return no, one or several optimizers as a list.

    Raises
    ------
    RecipeError
        When something else is among them.
    """
    if optimizer is None:
        return []
    found = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    for other in found:
        if not isinstance(other, Optimizer):
            raise RecipeError(
                f"an optimizer is a {type(other).__name__}",
                where="optimizer=...",
                hint="give a torch.optim.Optimizer, or a list of those, that train the module",
            )
    return found


def cut(tensor: Tensor, keep: BoolArray) -> Tensor:
    """Push what stays of a tensor together, as `graphprune.ir.surgery.take` does.

    Parameters
    ----------
    tensor : torch.Tensor
        In the rank of ``keep``; where that is a rectangle, an axis of extent 1 may stand for any.
    keep : ndarray of bool
        Broadcastable to the tensor's shape.
    """
    if is_product(keep):
        for axis, indices in kept_indices(keep).items():
            if tensor.shape[axis] > 1:
                tensor = tensor.index_select(axis, torch.tensor(indices, device=tensor.device))
        return tensor
    extents = [now if keep.shape[axis] > 1 else tensor.shape[axis] for axis, now in enumerate(kept_extents(keep))]
    mask = torch.from_numpy(keep.copy()).to(tensor.device).expand(tensor.shape)
    return tensor[mask].reshape(extents)


def cut_states(optimizers: Sequence[Optimizer], cuts: Cuts) -> list[dict[nn.Parameter, dict[str, Any]]]:
    """Return what optimizers are to remember of parameters that are cut; nothing is changed.

    Numbers, and tensors of one entry (a count of steps), stay; tensors of the parameter's shape (momentum, exp_avg,
    exp_avg_sq) are cut as it is, and so are those that have an extent of 1 in the place of another (rows and columns
    of Adafactor). LBFGS is passed over: see `start_anew`.

    Parameters
    ----------
    optimizers : sequence of torch.optim.Optimizer
    cuts : mapping of torch.nn.Parameter to ndarray of bool

    Returns
    -------
    list of dict
        For each optimizer, by parameter.

    Raises
    ------
    RecipeError
        When one remembers something of another shape.
    """
    return [
        {
            parameter: {key: _cut_entry(optimizer, key, value, parameter, keep) for key, value in known.items()}
            for parameter, keep in cuts.items()
            if (known := optimizer.state.get(parameter)) and not isinstance(optimizer, LBFGS)
        }
        for optimizer in optimizers
    ]


def _cut_entry(optimizer: Optimizer, key: str, value: Any, parameter: nn.Parameter, keep: BoolArray) -> Any:
    if value is None or isinstance(value, (int, float, str)):
        return value
    if isinstance(value, Tensor):
        if value.numel() == 1:
            return value
        if value.shape == parameter.shape:
            return cut(value, keep)
        pairs = zip(value.shape, parameter.shape, strict=False)
        if value.dim() == parameter.dim() and is_product(keep) and all(one in (1, other) for one, other in pairs):
            return cut(value, keep)
    shape = tuple(value.shape) if isinstance(value, Tensor) else f"of type {type(value).__name__}"
    raise RecipeError(
        "what the optimizer remembers cannot be cut along with a weight",
        where=f"{type(optimizer).__name__}, {key!r}",
        why=f"it is {shape}, and the weight {tuple(parameter.shape)}",
        hint="trim without this optimizer, and make a new one of the parameters that the module has then",
    )


def start_anew(optimizer: Optimizer) -> None:
    """Let LBFGS forget the curvature that it has seen, when weights go; other optimizers are left alone.

    It holds differences of all weights, and of their gradients, as one vector each: where some of the weights may not
    move any more, these are of another function.
    """
    if isinstance(optimizer, LBFGS):
        optimizer.state.clear()
        optimizer._numel_cache = None


def replace_parameters(
    optimizer: Optimizer, now: Mapping[nn.Parameter, nn.Parameter | None], states: Mapping[nn.Parameter, dict[str, Any]]
) -> None:
    """Put parameters in the places of others, in an optimizer's groups and in its state.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    now : mapping of torch.nn.Parameter to torch.nn.Parameter or None
        By parameter, what stands in its place; None where it goes.
    states : mapping of torch.nn.Parameter to dict
        From `cut_states`.
    """
    for group in optimizer.param_groups:
        after = [now.get(parameter, parameter) for parameter in group["params"]]
        group["params"][:] = [parameter for parameter in after if parameter is not None]
        if "param_names" in group:  # of optimizers made of named parameters
            pairs = zip(group["param_names"], after, strict=True)
            group["param_names"][:] = [name for name, parameter in pairs if parameter is not None]
    for before, parameter in now.items():
        optimizer.state.pop(before, None)
        if parameter is not None and before in states:
            optimizer.state[parameter] = states[before]
    start_anew(optimizer)


def join_group(optimizer: Optimizer, other: nn.Parameter, parameter: nn.Parameter, name: str) -> None:
    """Let an optimizer train a new parameter, of this name, as it trains another, if it does."""
    for group in optimizer.param_groups:
        if any(known is other for known in group["params"]):
            group["params"].append(parameter)
            if "param_names" in group:
                group["param_names"].append(name)
