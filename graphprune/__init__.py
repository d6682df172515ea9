"""graphprune: prune trained ONNX models, with proof of what was done."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphprune.api import prune
    from graphprune.errors import (
        CalibrationError,
        EquivalenceError,
        GraphPruneError,
        ModelError,
        PluginError,
        RecipeError,
        TargetError,
    )
    from graphprune.ledger import Ledger
    from graphprune.recipe import Recipe

__version__ = "0.1.0"

__all__ = [
    "CalibrationError",
    "EquivalenceError",
    "GraphPruneError",
    "Ledger",
    "ModelError",
    "PluginError",
    "Recipe",
    "RecipeError",
    "TargetError",
    "__version__",
    "prune",
]

_HOMES = {"prune": "api", "Ledger": "ledger", "Recipe": "recipe"}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: the program must answer Ctrl-C before its libraries are here."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
