"""Keep what pruning set to zero at zero, through any torch optimizer."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from graphprune.errors import ModelError, RecipeError
from graphprune.finetune.module import GraphModule
from graphprune.ir.tensors import FLOAT_TYPES


class Masks:
    """Holds the zeros of a module's weights in place.

    Nothing needs to be called in the training loop. The gradient of a zero is set to zero as soon as it is
    there, so that SGD, Adam and their like, momentum and weight decay included, never move it; and the zeros
    are set again before every forward pass and before `to_onnx` writes, so that no optimizer's own state or
    update rule reaches the network or the file. With `attach` they are set again after each step of an
    optimizer, too. They are +0.0, and `trim` cuts the masks along with the weights.

    Parameters
    ----------
    module : GraphModule
        The module, with the pruned weights in it.
    names : iterable of str
        ONNX names of the initializers to hold; every weight of theirs that is 0 now stays 0.

    Attributes
    ----------
    zeros : dict of str to torch.Tensor
        For each ONNX name, a bool tensor of the weight's shape: True where the weight stays 0. `hold` changes it.

    Raises
    ------
    ModelError
        When the module has no parameter of a given name.

    Notes
    -----
    Copying a module (``copy.deepcopy``) does not copy its masks: make them again for the copy.
    """

    def __init__(self, module: GraphModule, names: Iterable[str]) -> None:
        self.module = module
        self._handles: list[RemovableHandle] = []
        self._hooks: dict[str, RemovableHandle] = {}
        self.zeros = {name: _weight(module, name).detach() == 0 for name in names}
        for name in self.zeros:
            self._hook(name)
        module.constraints.append(self.apply)

    @classmethod
    def from_ledger(cls, module: GraphModule, ledger: Mapping[str, Any]) -> Masks:
        """Make the masks of the weights that a pruning run set to zero.

        Parameters
        ----------
        module : GraphModule
            `to_torch` of the pruned file.
        ledger : mapping
            The run's ledger; ``zeroed`` gives for each initializer the number of weights set to zero in it.

        Returns
        -------
        Masks

        Raises
        ------
        RecipeError
            When the ledger has no ``zeroed``.
        ModelError
            When the module lacks an initializer of the ledger or has fewer zeros than the ledger says.
        """
        zeroed = ledger.get("zeroed")
        if not isinstance(zeroed, Mapping):
            raise RecipeError(
                "the ledger does not say which initializers hold zeros",
                where='"zeroed"',
                hint="give the report that graphprune wrote with the model (--report)",
            )
        # Those of a quantised model are no parameters, and no training moves them.
        stored = module.model.proto.graph.initializer
        whole = {tensor.name for tensor in stored if tensor.data_type not in FLOAT_TYPES}
        masks = cls(module, [name for name, count in zeroed.items() if count and name not in whole])
        for name, zeros in masks.zeros.items():
            if int(zeros.sum()) < zeroed[name]:
                masks.remove()
                raise ModelError(
                    "the weight has fewer zeros than the ledger says",
                    where=name,
                    why=f"{int(zeros.sum())} zeros, {zeroed[name]} in the ledger",
                    hint="load the pruned model that the ledger was written with",
                )
        return masks

    def hold(self, zeros: Mapping[str, Tensor]) -> None:
        """Hold other zeros than before, and set them.

        Parameters
        ----------
        zeros : mapping of str to torch.Tensor
            For names that are held already, a bool tensor of the weight's shape: True where the weight is to be 0.

        Raises
        ------
        ModelError
            When a name is not held, or a tensor is of another shape.
        """
        for name, found in zeros.items():
            shape = tuple(self.zeros[name].shape) if name in self.zeros else "not held"
            if shape != tuple(found.shape):
                why = f"they are {tuple(found.shape)}, and the weight is {shape}"
                raise ModelError("these are no zeros of a weight that is held", where=name, why=why)
        self.zeros.update(zeros)
        self.apply()

    def follow(self, cut: Callable[[str, Tensor], Tensor]) -> None:
        """Go over to the parameters that a module has now, after some have been cut or have gone.

        Parameters
        ----------
        cut : callable
            From a weight's ONNX name, and a tensor of the shape that it had, to what is left of that tensor.
        """
        there = set(self.module.initializer_names.values())
        self.zeros = {name: cut(name, zeros) for name, zeros in self.zeros.items() if name in there}
        for name in list(self._hooks):
            self._hooks.pop(name).remove()
            if name in there:
                self._hook(name)

    def apply(self) -> None:
        """Set the masked weights to zero now."""
        for name in self.zeros:
            # .data, since autograd need not know: the values are the same wherever the optimizer left them.
            parameter = self._held(name)
            if parameter is not None:
                parameter.data.masked_fill_(self._zeros_on(name, parameter), 0.0)

    def clear(self, optimizer: Optimizer) -> None:
        """Set what an optimizer remembers of the masked weights, such as their momentum, to zero.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
            Floats that it holds in the shape of a weight are cleared; anything else is left alone.
        """
        for name in self.zeros:
            parameter = self.module.parameter_of(name)
            zeros = self._zeros_on(name, parameter)
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.is_floating_point() and value.shape == parameter.shape:
                    value.masked_fill_(zeros, 0)

    def attach(self, optimizer: Optimizer) -> RemovableHandle:
        """Set the masked weights to zero after every step of an optimizer, too.

        Needed only to read the weights between a step and the next forward pass when the optimizer moves
        weights whose gradient is zero: one with state from before the masks, or one that mixes a matrix's
        gradients.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
            An optimizer over the module's parameters.

        Returns
        -------
        torch.utils.hooks.RemovableHandle
            Its ``remove()`` detaches.
        """

        def after_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.apply()

        handle = optimizer.register_step_post_hook(after_step)
        self._handles.append(handle)
        return handle

    def remove(self) -> None:
        """Let the weights go: undo every hook, and hold no zeros any more."""
        for handle in (*self._handles, *self._hooks.values()):
            handle.remove()
        self._handles.clear()
        self._hooks.clear()
        self.zeros = {}
        if self.apply in self.module.constraints:
            self.module.constraints.remove(self.apply)

    def _held(self, name: str) -> nn.Parameter | None:
        """Return the parameter; None while ``torch.func.functional_call`` has put a tensor of its own there."""
        try:
            return self.module.parameter_of(name)
        except KeyError:
            torch_name = next(key for key, known in self.module.initializer_names.items() if known == name)
            if not parametrize.is_parametrized(self.module, torch_name):
                return None
        raise ModelError(
            "the zeros of a weight that is parametrized cannot be held",
            where=name,
            why="it is computed of other parameters, whatever the optimizer does to them",
            hint="remove the parametrization, or make the masks of a module without it",
        )

    def _zeros_on(self, name: str, parameter: Tensor) -> Tensor:
        """Return the mask on the parameter's device, where it then stays."""
        if self.zeros[name].device != parameter.device:
            self.zeros[name] = self.zeros[name].to(parameter.device)
        return self.zeros[name]

    def _hook(self, name: str) -> None:
        """Register the hook on the parameter that has this name now."""
        parameter = self.module.parameter_of(name)
        trained = parameter.requires_grad
        parameter.requires_grad_(True)  # else torch takes no hook, and who has frozen it may let it go again
        register: Any = parameter.register_post_accumulate_grad_hook  # torch leaves it untyped
        self._hooks[name] = register(self._gradient_hook(name))
        parameter.requires_grad_(trained)

    def _gradient_hook(self, name: str) -> Any:
        # torch keeps the hook where no garbage collector looks, and would keep the masks, and with them the module.
        masks = weakref.ref(self)

        def hook(parameter: Tensor) -> None:
            owner = masks()
            if owner is not None and parameter.grad is not None:
                with torch.no_grad():
                    parameter.grad.masked_fill_(owner._zeros_on(name, parameter), 0.0)

        return hook


def _weight(module: GraphModule, name: str) -> nn.Parameter:
    try:
        return module.parameter_of(name)
    except KeyError:
        raise ModelError(
            "the module has no weight of this name to mask",
            where=name,
            hint="load the pruned model that the ledger was written with",
        ) from None


def masks_of(module: GraphModule) -> list[Masks]:
    """Return the masks that hold zeros of a module."""
    owners = (getattr(constraint, "__self__", None) for constraint in module.constraints)
    return [owner for owner in owners if isinstance(owner, Masks)]
