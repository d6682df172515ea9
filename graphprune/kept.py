"""What is kept of a model by removals in a row, each of what the one before left."""

from __future__ import annotations

import numpy as np

from graphprune.building import Draft
from graphprune.errors import EquivalenceError
from graphprune.ir.coupling.atoms import IdArray, support
from graphprune.ir.coupling.units import FROZEN, Coupling
from graphprune.ir.surgery import Kept


def origins(original: Coupling, kept: Kept, current: Coupling) -> IdArray:
    """Return which units of the original those of a model are that lost some of them.

    Parameters
    ----------
    original : Coupling
    kept : dict
        What is left of the original's initializers.
    current : Coupling
        Of the model that is left.

    Returns
    -------
    ndarray of int, shape (units of the model,)
        FROZEN where no initializer tells.
    """
    found = np.full(current.units, FROZEN)
    for name in current.graph.initializers.keys() & original.graph.initializers.keys():
        places = kept.get(name, {})
        if any(isinstance(indices[0], list) for indices in places.values()):
            continue  # other initializers carry the same units
        for units, ids in zip(current.ids.get(name, ()), original.ids.get(name, ()), strict=False):
            before = ids
            for axis in support(ids):
                before = before.take(places.get(axis, range(ids.shape[axis])), axis)
            if before.shape == units.shape:
                free = (units != FROZEN) & (before != FROZEN)
                found[units[free]] = before[free]
    return found


def composed(first: Kept, then: Kept) -> Kept:
    """Return what is kept of the original by two removals, the second of what the first left."""
    result: Kept = {name: dict(axes) for name, axes in first.items()}
    for name, axes in then.items():
        for axis, kept in axes.items():
            before = result.setdefault(name, {}).get(axis)
            if before is None:
                result[name][axis] = kept
            elif not isinstance(kept[0], list) and not isinstance(before[0], list):
                result[name][axis] = [before[place] for place in kept]
    return result


def demand_same(kept: Kept, other: Kept, draft: Draft) -> None:
    """Demand that two accounts of what is kept agree for all that is still there; nested lists are passed over."""
    there = {tensor.name for tensor in draft.model.graph.initializer}
    for name in there & (kept.keys() | other.keys()):
        for axis in kept.get(name, {}).keys() | other.get(name, {}).keys():
            one, two = kept.get(name, {}).get(axis), other.get(name, {}).get(axis)
            nested = any(found is not None and isinstance(found[0], list) for found in (one, two))
            if one != two and not nested:
                raise defect(f"axis {axis} of {name!r}")


def defect(where: str) -> EquivalenceError:
    """Return the error that says that two rounds contradict each other."""
    return EquivalenceError(
        "what went in two rounds does not add up",
        where=where,
        hint="this is a defect of graphprune: prune in one round (--rounds 1), and report it",
    )
