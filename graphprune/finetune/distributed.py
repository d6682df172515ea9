"""Several processes that train copies of one module: what one of them decides holds for all."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from graphprune.errors import RecipeError


def wrapper_of(module: nn.Module) -> DistributedDataParallel | None:
    """Return the DistributedDataParallel that a module is, or holds."""
    return next((part for part in module.modules() if isinstance(part, DistributedDataParallel)), None)


def agree(module: nn.Module, tensors: Iterable[Tensor]) -> None:
    """Give tensors the values that they have in the first process, in place; all processes have to call this.

    Without ``torch.distributed``, or before ``init_process_group``, there is one process, and nothing to do.

    Parameters
    ----------
    module : torch.nn.Module
        The module that is trained: the processes are those of its DistributedDataParallel, all of the default group
        where it has none.
    tensors : iterable of torch.Tensor
        Of the same shapes in every process, on a device that the group's backend sends from.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    wrapper = wrapper_of(module)
    group: Any = torch.distributed.group.WORLD if wrapper is None else wrapper.process_group
    first = torch.distributed.get_global_rank(group, 0)
    send: Any = torch.distributed.broadcast  # torch leaves it untyped
    for tensor in tensors:
        send(tensor, src=first, group=group)


def demand_unwrapped(module: nn.Module) -> None:
    """Demand that a module's parameters may be replaced.

    Raises
    ------
    RecipeError
        When it is wrapped in DistributedDataParallel, which exchanges the gradients of the parameters that it was made
        with, and would go on doing so.
    """
    if wrapper_of(module) is not None:
        raise RecipeError(
            "a module inside DistributedDataParallel cannot be given another graph",
            where=type(module).__name__,
            why="the wrapper goes on exchanging the gradients of the parameters that it was made with",
            hint="give trim, normalised or Pruner what to_torch returned, and wrap it anew when they have changed it",
        )


def store(host: str, port: int, timeout: timedelta) -> Any:
    """Return torchrun's own key-value store, which keeps bytes.

    Parameters
    ----------
    host : str
    port : int
    timeout : datetime.timedelta
        How long to wait for a key.
    """
    library: Any = torch.distributed  # it does not declare what it exports
    return library.TCPStore(host, port, is_master=False, timeout=timeout)
