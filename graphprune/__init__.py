"""graphprune: prune trained ONNX models, with proof of what was done."""

from graphprune.api import prune
from graphprune.errors import (
    CalibrationError,
    EquivalenceError,
    GraphPruneError,
    ModelError,
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
    "Recipe",
    "RecipeError",
    "TargetError",
    "__version__",
    "prune",
]
