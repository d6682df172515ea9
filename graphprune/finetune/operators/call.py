"""What an operator function is given beside its input tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor


@dataclass(frozen=True)
class Call:
    """One node as its operator function sees it.

    Attributes
    ----------
    attributes : dict
        Attribute values by name: int, float, str, list of them, or ``torch.Tensor``.
    opset : int
        Version of the default operator set that the model imports, >= 7.
    outputs : int
        Number of outputs that the node names, >= 1.
    training : bool
        Whether the module is in training mode.
    given : tuple of bool
        For every input slot that the node names, whether there is an input.
    """

    attributes: dict[str, Any]
    opset: int
    outputs: int = 1
    training: bool = False
    given: tuple[bool, ...] = ()

    def has(self, slot: int) -> bool:
        """Return whether the node is given an input in a slot."""
        return slot < len(self.given) and self.given[slot]

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute's value, or the default where the node leaves it out."""
        return self.attributes.get(name, default)

    def ints(self, name: str, given: Tensor | None) -> list[int] | None:
        """Return a list of integers as `numbers` does."""
        values = self.numbers(name, given)
        return None if values is None else [int(value) for value in values]

    def numbers(self, name: str, given: Tensor | None) -> list[Any] | None:
        """Return a list that is an attribute in older operator sets or where it is stored, and an input otherwise.

        Parameters
        ----------
        name : str
            The attribute's name.
        given : torch.Tensor or None
            The input of the same meaning, of rank 0 or 1.

        Returns
        -------
        list of int or float, or None
            None where the node gives neither.
        """
        if given is not None:
            return list(given.reshape(-1).tolist())
        value = self.attributes.get(name)
        return None if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


Operator: TypeAlias = Callable[..., "Tensor | tuple[Tensor, ...]"]
"""``function(call, *inputs)``: an omitted optional input is None, or not passed when it comes last."""

Restriction: TypeAlias = Callable[[Call], str]
"""Says why a node's attributes cannot be interpreted, or the empty string when they can."""
