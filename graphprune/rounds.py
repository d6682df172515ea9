"""Prune and train in turns: what is left learns to do without what went, round after round.

Han et al. 2015 (train, prune by magnitude, retrain from the weights that stay, iterate) and Hu et al. 2016 (the same
with units). Every round takes the same share of what is left; the statistics are those of the model as trained so far.
Dead units, whose weights or activations have become zero, go in the next round or at the end: that costs nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from graphprune.analysis import Analysis, analyse
from graphprune.attempts import Attempt, finish
from graphprune.building import LOWERING, PRUNING, Draft, Job, run
from graphprune.calib.pairs import Batch
from graphprune.calib.stream import Source
from graphprune.entries import RoundRecord
from graphprune.ir.cost import count_changed, count_nonzero, count_weights, nonzero_entries
from graphprune.ir.coupling.units import FROZEN, BoolArray
from graphprune.ir.kernels import widths
from graphprune.ir.model import Model, from_proto
from graphprune.ir.surgery import Kept, remove
from graphprune.kept import composed, defect, demand_same, origins
from graphprune.ledger import Ledger
from graphprune.passes import trim
from graphprune.passes.choice import take
from graphprune.pipeline import Decision, Trials, decide
from graphprune.planning import Plan
from graphprune.ranks import Channel, ToTrain
from graphprune.recipe import Recipe
from graphprune.training import Task, Training, demand_trainable, train
from graphprune.watch import Stopwatch


@dataclass(frozen=True)
class State:
    """How far the rounds have come.

    Attributes
    ----------
    model : Model
        What is pruned next.
    removed : ndarray of bool, shape (units,)
        All that went so far, of the units of the original.
    kept : dict
        What is left of every initializer of the original that lost something.
    draft : Draft
        The last one, as it was before it was trained.
    zeroed : frozenset of str
        Initializers in which weights were set to 0.
    records : tuple of RoundRecord
    """

    model: Model
    removed: BoolArray
    kept: Kept = field(default_factory=dict)
    draft: Draft | None = None
    zeroed: frozenset[str] = frozenset()
    records: tuple[RoundRecord, ...] = ()

    @property
    def packed(self) -> bool:
        """Whether weights are to be packed, whose shapes must stay as they are."""
        return self.draft is not None and bool(self.draft.packings)


class Rounds:
    """Prunes and trains, and keeps account of what that does to the original.

    Parameters
    ----------
    original : Model
    analysis : Analysis
        Of the original.
    recipe : Recipe
    source : Source
    watch : Stopwatch
    training : Training
        Trains a pruned model in place. Zeros stay zeros, whatever it does.
    channel : Channel, optional
        To other processes that train as well.
    """

    def __init__(
        self,
        original: Model,
        analysis: Analysis,
        recipe: Recipe,
        source: Source,
        watch: Stopwatch,
        training: Training,
        channel: Channel | None = None,
    ) -> None:
        self.original, self.analysis, self.recipe = original, replace(analysis, trained=True), recipe
        self.source, self.watch, self.training, self.channel = source, watch, training, channel
        demand_trainable(analysis.coupling.graph.proto)  # before any work is done
        self.trials = None if analysis.curves is None else Trials(analysis, recipe)

    def run(self) -> Attempt:
        """Prune and train as many times as the recipe says; then make the result fast, and verify it.

        Raises
        ------
        RecipeError
            When the training fails.
        TargetError, EquivalenceError
            As without rounds.
        ModelError
            When the torch interpreter does not know an operator, or the training diverged.
        """
        state = State(self.original, np.zeros(self.analysis.coupling.units, dtype=np.bool_))
        decision = None
        for part in parts(self.recipe):
            current = self._analysed(state, part)
            with self.watch.time("decide"):
                decision = decide(state.model, current, part, self.source)
            state = self._turn(state, current, decision, part)
        assert decision is not None
        if self.recipe.target is not None and self.recipe.structural != 0 and not state.packed:
            state = self._without_dead(state)
        return self._finished(state, decision)

    def _analysed(self, state: State, part: Recipe) -> Analysis:
        """Analyse what is left; targets and fractions stay those of the original."""
        if not state.records:
            return self.analysis
        again = analyse(state.model, part, self.source, self.watch)
        origin = origins(self.analysis.coupling, state.kept, again.coupling)
        steps = np.zeros(self.analysis.coupling.units + 1, dtype=np.int64)  # FROZEN indexes the last entry
        for queue in self.analysis.queues:
            for step in queue.steps:
                steps[step.units] = len(queue.steps)
        left = [
            replace(queue, gone=max(int(steps[origin[queue.steps[0].units[0]]]) - len(queue.steps), 0))
            for queue in again.queues
            if queue.steps
        ]
        first = self.analysis
        return replace(
            again,
            queues=left,
            weights_before=first.weights_before,
            macs_before=first.macs_before,
            trained=first.trained,
        )

    def _turn(self, state: State, current: Analysis, decision: Decision, part: Recipe) -> State:
        """Prune and train once.

        All samples repair what is trained. Those held out, which judge a distillation, then count for the state before
        it, so that only what is clearly better is taken for better.
        """
        return self._trained(self._pruned(state, current, decision.plan, part, current.data.every), decision)

    def _pruned(
        self, state: State, current: Analysis, plan: Plan, part: Recipe, batches: Sequence[Batch] = ()
    ) -> State:
        job = Job(current, plan, part, batches)
        draft = run(PRUNING, Draft(current.coupling.graph.proto), job, self.watch)
        going = origins(self.analysis.coupling, state.kept, current.coupling)[plan.removed]
        if (going == FROZEN).any():
            raise defect("a unit of no initializer")
        removed = state.removed.copy()
        removed[going] = True
        kept = remove(self.analysis.coupling, removed)[1]
        known = self.analysis.coupling.graph.initializers
        # Repair gives biases to layers that had none, and those are no part of the original.
        then = {name: axes for name, axes in draft.kept.items() if name in known}
        demand_same(kept, composed(state.kept, then), draft)
        zeroed = state.zeroed | {name for name, count in draft.zeroed.items() if count}
        if part.target is not None:  # zeros that were there before count for it
            zeroed |= {tensor.name for tensor in draft.model.graph.initializer if len(tensor.dims) > 1}
        return replace(state, removed=removed, kept=kept, draft=draft, zeroed=zeroed)

    def _trained(self, state: State, decision: Decision) -> State:
        assert state.draft is not None
        proto, start = state.draft.model, time.perf_counter()
        if self.channel is not None:
            self.channel.tell(ToTrain(proto.SerializeToString(), state.zeroed))
        with self.watch.time("train"):
            task = Task(self.analysis, state.removed, self.source)
            trained, outcome = train(proto, state.zeroed, task, self.training)
        record = RoundRecord(
            weights=count_weights(proto),
            nonzero=count_nonzero(proto),
            before=None if decision.recovery is None else decision.recovery.drop,
            after=None if self.trials is None else self.trials.judged(trained, state.removed).drop,
            changed=count_changed(proto, trained),
            seconds=round(time.perf_counter() - start, 3),
            distillation=outcome,
        )
        return replace(state, model=from_proto(trained), records=(*state.records, record))

    def _without_dead(self, state: State) -> State:
        """Remove what training has left without effect: there is no further round for that."""
        same = {name: getattr(self.recipe, name) for name in ("align", "allow_resize", "custom_ops", "seed")}
        plain = Recipe(target=0.0, criterion="apoz", recover=False, **same)
        current = analyse(state.model, plain, self.source, self.watch)
        dead = [step for step in trim.by_threshold(current.coupling, current.scores) if step.rank == np.inf]
        going = take(current.coupling, trim.aligned(current.coupling, dead, widths(self.recipe.align).step))
        if not going.any():
            return state
        cut = self._pruned(state, current, Plan(going), Recipe(channels=0.0, **same))
        assert state.draft is not None
        assert cut.draft is not None
        return replace(cut, model=from_proto(cut.draft.model), draft=state.draft)

    def _finished(self, state: State, decision: Decision) -> Attempt:
        assert state.draft is not None
        trimmed, kept = remove(self.analysis.coupling, state.removed)
        before, after = nonzero_entries(trimmed), nonzero_entries(state.model.proto)
        changed = {name: before[name] - after[name] for name in sorted(state.zeroed & before.keys() & after.keys())}
        zeroed = {name: count for name, count in changed.items() if count > 0}
        plan = replace(decision.plan, removed=state.removed)
        if plan.branches:  # what only they held is no longer kept either
            kept = {name: axes for name, axes in kept.items() if name in state.draft.kept}
        draft = replace(state.draft, model=state.model.proto, kept=kept, zeroed=zeroed)
        # Its weights are not the original's any more, so nothing speaks against folding.
        job = Job(self.analysis, plan, replace(self.recipe, recover=True), [])
        lowered = run(LOWERING, draft, job, self.watch)
        recovery = None if self.trials is None else self.trials.judged(lowered.model, state.removed, plan.error)
        found = replace(decision, plan=plan, recovery=recovery)
        return replace(self._verified(found, lowered, self.recipe), rounds=state.records)

    def _verified(self, decision: Decision, draft: Draft, recipe: Recipe) -> Attempt:
        def unpacked() -> Attempt:
            return self._verified(decision, replace(draft, packings={}), replace(recipe, pack="off"))

        return finish(self.original, self.analysis, decision, draft, recipe, self.source, self.watch, unpacked)


def follow(training: Training, channel: Channel) -> tuple[onnx.ModelProto, Ledger]:
    """Train with the first process, round after round; return what came of it."""
    while isinstance(message := channel.hear(), ToTrain):
        train(onnx.load_model_from_string(message.model), message.zeroed, None, training)
    return message.result()


def parts(recipe: Recipe) -> Iterator[Recipe]:
    """Return a recipe for every round; each leaves the same share of what the one before left.

    Targets and fractions are of what there was before the first round.
    """
    for number in range(1, recipe.rounds + 1):
        shares = {name: getattr(recipe, name) for name in ("target", "channels", "macs")}
        given = {name: share for name, share in shares.items() if share is not None}
        yield replace(recipe, **{name: 1 - (1 - share) ** (number / recipe.rounds) for name, share in given.items()})
