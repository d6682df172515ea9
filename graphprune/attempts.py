"""Never hand over a slower model: what is tried instead where a result turns out slower than the original.

Narrower layers can be slower than wide ones, where their width suits no kernel. Such a result is built again with
kept channels in whole blocks, and at last with all units left in place; where nothing of that helps, a gate fails.
Packed weights cost accuracy, so they stay only where they make the whole model faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import onnx

from graphprune.analysis import Analysis
from graphprune.building import Draft, build
from graphprune.calib.stream import Source
from graphprune.entries import RoundRecord
from graphprune.errors import TargetError
from graphprune.ir.cost import count_nonzero, count_weights
from graphprune.ir.encoding.decode import decode
from graphprune.ir.kernels import preferred_widths
from graphprune.ir.model import Model
from graphprune.passes import pack
from graphprune.passes.encode import encode
from graphprune.passes.sparsify import allowed_nonzero
from graphprune.pipeline import Decision, Verification, decide, time_again, time_packed, verify
from graphprune.recipe import Recipe
from graphprune.verify.latency import Latency
from graphprune.watch import Stopwatch

NONE_PAYS = (
    "no weight is packed: with its zeros left out, no product takes less than {most:.0%} of its time; more zeros, or a "
    "larger --batch, may pay"
)
NO_GAIN = "packed weights made the model no faster (latency x{ratio:.2f} of the same unpacked); none are packed instead"
SLOWER = "{what} the result was slower than the original (latency x{ratio:.2f}); {instead}"


@dataclass(frozen=True)
class Attempt:
    """A result, and how it came about.

    Attributes
    ----------
    decision : Decision
    draft : Draft
        Its model as it is stored, but for the encoding; what is zeroed does not count what packed weights left out.
    result : onnx.ModelProto
        The same, encoded where the recipe says so.
    verification : Verification
        Of the result.
    gain : Latency or None
        Of the packed model beside the same unpacked; None where nothing is packed.
    notes : tuple of str
        What was tried before and why it was given up.
    rounds : tuple of RoundRecord
        What became of it when it was trained.
    """

    decision: Decision
    draft: Draft
    result: onnx.ModelProto
    verification: Verification
    gain: Latency | None = None
    notes: tuple[str, ...] = ()
    rounds: tuple[RoundRecord, ...] = ()


def attempt(original: Model, analysis: Analysis, recipe: Recipe, source: Source, watch: Stopwatch) -> Attempt:
    """Decide, build and verify, again with safer widths as long as the result is slower than the original.

    Raises
    ------
    RecipeError, TargetError, EquivalenceError
        As `graphprune.pipeline.decide` and `verify` do; what comes after the first attempt may miss the target.
    """
    found = _once(original, analysis, recipe, source, watch)
    notes: list[str] = []
    for what, instead, safer in _safer(recipe, packed=bool(found.draft.packings)):
        if not _is_slower(found, recipe):
            break
        try:
            other = _once(original, analysis, safer, source, watch)
        except TargetError:
            continue
        ratio = found.verification.latency.ratio
        if other.verification.latency.ratio < ratio:
            notes.append(SLOWER.format(what=what, ratio=ratio, instead=instead))
            found = other
    return replace(found, notes=(*found.notes, *notes))


def _once(original: Model, analysis: Analysis, recipe: Recipe, source: Source, watch: Stopwatch) -> Attempt:
    with watch.time("decide"):
        decision = decide(original, analysis, recipe, source)
    draft = build(analysis, decision.plan, recipe, watch)
    changed = draft.kept or draft.zeroed or decision.plan.branches
    if not changed and _reaches(original, recipe.target):
        draft = Draft(original.proto)
    return finish(
        original,
        analysis,
        decision,
        draft,
        recipe,
        source,
        watch,
        lambda: _once(original, analysis, replace(recipe, pack="off"), source, watch),
    )


def finish(
    original: Model,
    analysis: Analysis,
    decision: Decision,
    draft: Draft,
    recipe: Recipe,
    source: Source,
    watch: Stopwatch,
    unpacked: Callable[[], Attempt],
) -> Attempt:
    """Pack and encode a draft, where that is asked for, and verify it.

    Parameters
    ----------
    unpacked : callable
        Makes what is taken instead where packed weights make the draft no faster.

    Raises
    ------
    EquivalenceError
        As `graphprune.pipeline.verify` does.
    """
    gain: Latency | None = None
    notes: tuple[str, ...] = ()
    if recipe.pack != "off" and draft.zeroed and not draft.packings:
        notes = (NONE_PAYS.format(most=pack.PAYS),)
    if draft.packings:
        with watch.time("pack"):
            packed = pack.apply(draft.model, draft.packings)
            gain = time_packed(draft.model, packed, analysis, decision.plan.removed, recipe)
        if gain.verdict != "faster":
            plain = unpacked()
            return replace(plain, notes=(NO_GAIN.format(ratio=gain.ratio), *plain.notes))
        left = {name: count for name, count in draft.zeroed.items() if name not in draft.packings}
        draft = replace(draft, model=packed, zeroed=left)
    with watch.time("encode"):
        result, encodings = encode(draft.model, recipe.encode)
        draft = replace(draft, model=decode(result), encodings=tuple(encodings))
    with watch.time("verify"):
        verification = verify(original, analysis, decision.plan.removed, result, recipe, source)
        if verification.latency.verdict == "slower" and recipe.max_latency_ratio is None:
            # A verdict that leads to another result is asked for twice: one in some hundred is chance.
            latency = time_again(original, analysis, decision.plan.removed, result, recipe, source)
            verification = replace(verification, latency=latency)
    return Attempt(decision, draft, result, verification, gain, notes)


def _is_slower(found: Attempt, recipe: Recipe) -> bool:
    return found.verification.latency.verdict == "slower" and recipe.max_latency_ratio is None


def _safer(recipe: Recipe, *, packed: bool) -> Iterator[tuple[str, str, Recipe]]:
    """Recipes that leave less to chance, with what was tried before and what is done instead."""
    if recipe.speedup is not None:
        return  # whole blocks as it is, and chosen by their time
    good = preferred_widths()
    if packed:
        recipe = replace(recipe, pack="off")
        yield "with packed weights", "none are packed instead", recipe
    if recipe.align == "auto" and good.block > good.step and recipe.structural != 0:
        instead = f"convolutions keep multiples of {good.block} channels instead"
        yield f"with multiples of {good.step} channels kept", instead, replace(recipe, align=good.block)
    if recipe.align == "auto" and recipe.by_rule and recipe.target is not None:
        yield "with units removed", "all units stay instead", replace(recipe, structural=0.0)


def _reaches(original: Model, target: float | None) -> bool:
    """Whether a model is as sparse as asked for as it is: to fold BatchNormalization may be all that a target needs."""
    if target is None:
        return True
    return count_nonzero(original.proto) <= allowed_nonzero(count_weights(original.proto), target)
