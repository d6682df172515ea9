"""Find the largest sparsity that holds ``--max-drop``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from graphprune.analysis import Analysis
from graphprune.building import build
from graphprune.entries import RecoveryRecord
from graphprune.errors import TargetError
from graphprune.ir.model import Model
from graphprune.ir.session import ModelLike
from graphprune.planning import Plan, plan
from graphprune.recipe import Recipe
from graphprune.verify.metric import measure_metric
from graphprune.watch import Stopwatch

SEARCH_STEPS = 6
"""Targets that are tried to find the largest that holds ``--max-drop``."""
MOST = 0.98
"""The largest of them."""

Trial: TypeAlias = Callable[[Plan], RecoveryRecord]
"""Builds what a plan leads to, and measures it."""


def drop_of(original: Model, analysis: Analysis, recipe: Recipe, trial: Trial) -> Callable[[Plan], float]:
    """Return what tells how much a plan loses: of the recipe's metric, or without one of the answers in a trial."""
    reference = recipe.metric
    if reference is None:
        return lambda tried: trial(tried).drop

    def measured(model: ModelLike, which: str) -> float:
        return measure_metric(reference, model, which, custom_ops=recipe.custom_ops, provider=recipe.provider)

    before = measured(original.path or original.proto, "model before")
    return lambda tried: before - measured(build(analysis, tried, recipe, Stopwatch()).model, "a model tried")


def search(analysis: Analysis, recipe: Recipe, trial: Trial, lost: Callable[[Plan], float]) -> Plan:
    """Return the plan of the largest target that was tried that loses at most what the recipe allows."""
    best = Plan(np.zeros(analysis.coupling.units, dtype=np.bool_), {}, 0.0)
    low, high = 0.0, MOST
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        try:
            tried = plan(analysis, recipe, middle, trial)
        except TargetError:
            high = middle
            continue
        if lost(tried) <= (recipe.max_drop or 0.0):
            best, low = tried, middle
        else:
            high = middle
    return best
