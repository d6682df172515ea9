"""What the user must be told beside the figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from graphprune.analysis import Analysis
from graphprune.attempts import Attempt
from graphprune.calib.stream import Source
from graphprune.ir.coupling.resizing import Resized, freed, resized
from graphprune.ir.coupling.units import BoolArray, Coupling
from graphprune.passes import trim
from graphprune.pipeline import Verification
from graphprune.recipe import Recipe

NOT_REAL = (
    "warning: no calibration data was given: the statistics come from random inputs and say nothing about real ones; "
    "give --calib"
)
HELD_BACK = (
    "the rule names {named} units, and {removed} were removed: the rest would have changed more answers than zeros "
    "alone do, or left convolutions of widths that ONNX Runtime runs no faster (--channels removes regardless)"
)
UNLIKE = (
    "input {entry!r} and output {result!r} had one shape, and keep different positions: to feed one back from the "
    "other, free them together as --allow-resize {entry}={result}"
)
UNPROVEN = (
    "the proof says nothing of {outputs}: on the calibration data it ran on, all values of such an output are the same "
    "up to rounding; give data that the model responds to (--calib)"
)
AGREEMENT, ERROR = 0.5, 0.7
"""Share of the original's answers below which, and where there are none relative error above which, a result is called
likely useless."""
USELESS = "warning: the result is likely useless without fine-tuning: {what}; ask for less, or give --finetune"
UNTAUGHT = "warning: the result is likely useless, fine-tuned as it is: {what}; ask for less, or train it longer"
UNCHANGED = (
    "warning: the training of round {number} changed no weight; train the very module that the function is given"
)
NO_UNITS = "no unit of this model can be removed: {reasons}; graphprune inspect names every axis"


def notes_of(recipe: Recipe, source: Source, analysis: Analysis, found: Attempt) -> list[str]:
    """Return the notes of a run."""
    removed = found.decision.plan.removed
    change = resized(analysis.coupling, removed)
    return [
        *notes_on(source),
        *found.notes,
        *_no_units(analysis, recipe),
        *_held_back(analysis, removed, recipe),
        *_unchanged(found),
        *_useless(found),
        *_unproven(removed, found.verification),
        *_unlike(analysis.coupling, change, recipe),
    ]


def notes_on(source: Source) -> list[str]:
    """Return what must be said of the calibration data."""
    return [] if source.real else [NOT_REAL]


def _unlike(coupling: Coupling, change: Resized, recipe: Recipe) -> Iterator[str]:
    """Tell of freed inputs that look like states, and that no freed output of their shape can be fed back to."""
    graph, names = coupling.graph, freed(coupling.graph, recipe.allow_resize).names
    for entry in (name for name in graph.inputs if name in names):
        alike = [name for name in graph.outputs if name in names and graph.shape(name) == graph.shape(entry)]
        keeps = [change.outputs.get(name) for name in alike]
        if alike and not any(_same(change.inputs.get(entry), keep) for keep in keeps):
            yield UNLIKE.format(entry=entry, result=alike[0])


def _same(one: BoolArray | None, other: BoolArray | None) -> bool:
    return one is other if one is None or other is None else bool(np.array_equal(one, other))


def _no_units(analysis: Analysis, recipe: Recipe) -> list[str]:
    """Say so where nothing can be removed, and the three most frequent reasons."""
    if analysis.coupling.units or recipe.structural == 0:
        return []
    found = Counter(declined.reason.text for declined in analysis.coupling.declined)
    reasons = [text for text, _ in found.most_common(3)]
    return [NO_UNITS.format(reasons="; ".join(reasons) or "it holds no weights that operators known here multiply by")]


def _held_back(analysis: Analysis, removed: BoolArray, recipe: Recipe) -> list[str]:
    """Say how much of the criterion's rule was not carried out."""
    if not recipe.by_rule or analysis.curves is not None:
        return []
    steps = trim.by_threshold(analysis.coupling, analysis.scores)
    named, gone = sum(len(step.units) for step in steps), int(removed.sum())
    return [HELD_BACK.format(named=named, removed=gone)] if gone < named else []


def _unchanged(found: Attempt) -> Iterator[str]:
    """Tell of trainings that did nothing; of the original's as teacher, its best epoch is told."""
    for number, record in enumerate(found.rounds, 1):
        if record.distillation is None and not record.changed:
            yield UNCHANGED.format(number=number)


def _useless(found: Attempt) -> list[str]:
    """Warn where too little is left of what the model said."""
    fidelity, recovery = found.verification.fidelity, found.decision.recovery
    agreement, error = fidelity.top1_agreement, fidelity.relative_l2
    if recovery is not None:
        error = max(error, recovery.measured_l2)
        agreement = None if agreement is None else min(agreement, recovery.agreement or 0.0)
    useless = error > ERROR if agreement is None else agreement < AGREEMENT
    what = f"the outputs' relative error is {error:.2f}"
    if agreement is not None:
        what = f"{agreement:.0%} of the answers are the original's"
    return [(UNTAUGHT if found.rounds else USELESS).format(what=what)] if useless else []


def _unproven(removed: BoolArray, verification: Verification) -> list[str]:
    """Say which outputs show nothing of what was removed."""
    constant = verification.equivalence.constant
    if not removed.any() or not constant:
        return []
    return [UNPROVEN.format(outputs=", ".join(f"output {name!r}" for name in constant))]
