"""Pruning in a training loop of one's own: one call after the optimizer's step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from graphprune.calib.sources import SourceLike
from graphprune.errors import ModelError, RecipeError
from graphprune.finetune.distributed import agree, demand_unwrapped
from graphprune.finetune.layers import find_graph, structure
from graphprune.finetune.magnitude import smallest, whole_number
from graphprune.finetune.masks import Masks
from graphprune.finetune.optimizers import as_list, start_anew
from graphprune.finetune.schedule import Schedule
from graphprune.finetune.structural import Trimmed, trim

SCOPES = ("global", "layer")


class Pruner:
    """Zeroes the smallest weights of a module while it is trained (Han et al. 2015; Zhu & Gupta 2017).

    ::

        pruner = Pruner(module, Schedule(0.9, end=1000, frequency=100), optimizer)
        for x, y in data:
            ...
            optimizer.step()
            pruner.step()

    What is zero stays +0.0, whatever the optimizer: gradients, weight decay and momentum never move it (`Masks`). Zeros
    that are there when the pruner is made, of a model that is pruned already, stay and count.

    Sparsity is the fraction of zeros among the weights that may be zeroed, as the module holds them now: those of two
    axes and more that products alone read, never biases and normalisation parameters. The command's ``--target`` and
    the ledger's ``sparsity`` are of **all** float weights of the original, those that have been removed among them: a
    sparsity of s here, of P prunable weights in a model that had W of all kinds and now holds N, is a fraction of
    1 - (N - s P) / W there. How many are zero is exact: s P, rounded to the nearest whole number, a half down; where
    several are as small as the last of them, those go that come first.

    Under ``torch.distributed`` the masks of the first process hold in all: the pruner has to be made and stepped in
    each of them.

    Parameters
    ----------
    module : torch.nn.Module
        What `to_torch` returned, or a module that holds it: DistributedDataParallel, what ``torch.compile`` returns, or
        one with a loss.
    schedule : Schedule
        Sparsity by step. Step 0 is now: where the schedule asks for zeros at it, they are set at once.
    optimizer : torch.optim.Optimizer or sequence of them, optional
        Whose state (momentum and the like) is cleared where the weights are zero, and cut by `trim`. LBFGS, whose state
        is of all weights as one vector, starts anew when more of them are zeroed.
    scope : {"global", "layer"}
        Whether the smallest weights of all layers together go, or of each layer by itself.
    targets : mapping of str to (float or Schedule), optional
        By ONNX name of an initializer, what its final sparsity is instead, at the steps of the schedule; or a schedule
        of its own. These layers are pruned each by itself, and the schedule is of the others.

    Attributes
    ----------
    module : torch.nn.Module
    graph : GraphModule
        The part that is pruned.
    masks : Masks
        What holds the zeros; ``masks.zeros`` has a bool tensor for every weight that may be zeroed.
    steps : int
        How often `step` was called.

    Raises
    ------
    RecipeError
        When the module holds no module of `to_torch` or several, none of its weights may be zeroed, a target names none
        of them, or a value is out of range.
    """

    def __init__(
        self,
        module: nn.Module,
        schedule: Schedule,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        *,
        scope: Literal["global", "layer"] = "global",
        targets: Mapping[str, float | Schedule] | None = None,
    ) -> None:
        self.module, self.graph, self.optimizers = module, find_graph(module), as_list(optimizer)
        if not isinstance(schedule, Schedule):
            raise RecipeError(
                f"the schedule must be a Schedule, not {schedule!r}",
                where="Pruner(schedule)",
                hint="give Schedule(0.9, end=1000, frequency=100), or Schedule.one_shot(0.9)",
            )
        if scope not in SCOPES:
            raise RecipeError(f"scope must be one of {', '.join(SCOPES)}, not {scope!r}", where="Pruner(scope=...)")
        names = structure(self.graph).prunable
        if not names:
            raise RecipeError(
                "the module holds no weight that may be zeroed",
                where="Pruner",
                why="those may that products alone read, and that have two axes or more",
                hint="`graphprune inspect` tells what the model consists of",
            )
        self.schedule, self.scope = schedule, scope
        self.targets = {name: _schedule_for(name, given, schedule, names) for name, given in (targets or {}).items()}
        self.steps = 0
        self.masks = Masks(self.graph, names)
        # What step 0 takes is kept until the first step: a run that is resumed has not taken it.
        due = any(schedule.due(0) for _, schedule in self._parts())
        self._taken = {name: self.graph.parameter_of(name).detach().clone() for name in names if due}
        try:
            agree(module, self.masks.zeros.values())
            self._prune()
        except BaseException:
            self.masks.remove()
            raise

    def step(self) -> None:
        """Count a step of the optimizer, set more weights to zero where the schedule says so, and all zeros again.

        Raises
        ------
        ModelError
            When a weight is not a number any more.
        """
        self.steps += 1
        self._taken = {}
        self._prune()

    @property
    def sparsity(self) -> float:
        """Fraction of zeros among the weights that may be zeroed, in [0, 1]."""
        zeros = self.masks.zeros.values()
        return sum(int(found.sum()) for found in zeros) / max(sum(found.numel() for found in zeros), 1)

    @property
    def sparsity_by_layer(self) -> dict[str, float]:
        """The same for every weight, by ONNX name."""
        return {name: int(zeros.sum()) / max(zeros.numel(), 1) for name, zeros in self.masks.zeros.items()}

    def trim(self, calibration: SourceLike, **options: Any) -> Trimmed:
        """Remove units on fresh statistics and go on with the smaller module: `graphprune.finetune.trim`.

        The optimizer's state and the masks are cut along; the count of steps goes on. What was zero in the weights that
        stay is zero still, and the schedule is from now on of those weights.

        Parameters
        ----------
        calibration : path-like, mapping, array, iterable, callable or Source
        **options
            As for `graphprune.finetune.trim`.

        Raises
        ------
        RecipeError
            When the pruner was given a module inside DistributedDataParallel.
        """
        demand_unwrapped(self.module)
        trimmed = trim(self.graph, calibration, optimizer=self.optimizers, **options)
        self._taken = {}
        self._set()
        return trimmed

    def remove(self) -> None:
        """Let the weights go: nothing holds the zeros any more."""
        self.masks.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return what a later run needs to go on, beside the state of the module and of the optimizer.

        Returns
        -------
        dict
            ``steps``, and ``zeros``: a bool tensor for every weight that may be zeroed.
        """
        return {"steps": self.steps, "zeros": {name: zeros.clone() for name, zeros in self.masks.zeros.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a run was interrupted.

        Make module, optimizer and pruner first, then load the states of all three, in any order.

        Parameters
        ----------
        state : mapping
            From `state_dict`, of a module of the same graph: one that has been trimmed is written by `to_onnx` and read
            again by `to_torch`.

        Raises
        ------
        ModelError
            When it is of other weights, or of other shapes.
        """
        zeros: Mapping[str, Tensor] = state["zeros"]
        mine = {name: tuple(found.shape) for name, found in self.masks.zeros.items()}
        theirs = {name: tuple(found.shape) for name, found in zeros.items()}
        if mine != theirs:
            name = next(name for name in (*mine, *theirs) if mine.get(name) != theirs.get(name))
            here, there = (shapes.get(name, "absent") for shapes in (mine, theirs))
            raise ModelError(
                "the pruner's state is of another module",
                where=name,
                why=f"the weight is {there} in the state, and {here} in the module",
                hint="load the .onnx file that to_onnx wrote along with the state",
            )
        self.steps = int(state["steps"])
        self.masks.zeros.update(
            (name, found.to(self.masks.zeros[name].device).clone()) for name, found in zeros.items()
        )
        for name, before in self._taken.items():  # where the state of the module has not put it back already
            weight = self.graph.parameter_of(name)
            weight.data.copy_(torch.where(weight.data == 0, before.to(weight.device), weight.data))
        self._taken = {}
        self._set()

    def _prune(self) -> None:
        """Choose more zeros where a schedule is due, and set all."""
        more = False
        for names, schedule in self._parts():
            if schedule.due(self.steps):
                more |= self._choose(names, schedule.at(self.steps))
                agree(self.module, [self.masks.zeros[name] for name in names])
        if more:
            for optimizer in self.optimizers:
                start_anew(optimizer)
        self._set()

    def _set(self) -> None:
        self.masks.apply()
        for optimizer in self.optimizers:
            self.masks.clear(optimizer)

    def _parts(self) -> list[tuple[list[str], Schedule]]:
        """Weights that are chosen from together, each with its schedule."""
        others = [name for name in self.masks.zeros if name not in self.targets]
        whole = [others] if self.scope == "global" else [[name] for name in others]
        single = [([name], schedule) for name, schedule in self.targets.items() if name in self.masks.zeros]
        return [(names, self.schedule) for names in whole if names] + single

    def _choose(self, names: Sequence[str], sparsity: float) -> bool:
        """Choose the smallest of some weights, after those that are zero already; return whether there are more."""
        zeros = [self.masks.zeros[name] for name in names]
        count = whole_number(sparsity, sum(found.numel() for found in zeros))
        if count <= sum(int(found.sum()) for found in zeros):
            return False
        weights = [self.graph.parameter_of(name).detach() for name in names]
        for name, weight in zip(names, weights, strict=True):
            if not weight.isfinite().all():
                raise ModelError(
                    "a weight is infinite or not a number: the training diverged",
                    where=name,
                    hint="train with a smaller learning rate, or let the sparsity grow more slowly",
                )
        chosen = smallest(
            weights, [found.to(weight.device) for found, weight in zip(zeros, weights, strict=True)], count
        )
        self.masks.zeros.update(zip(names, chosen, strict=True))
        return True


def _schedule_for(name: str, given: float | Schedule, schedule: Schedule, names: Iterable[str]) -> Schedule:
    """Return the schedule of one layer."""
    if name not in names:
        raise RecipeError(
            "there is no weight of this name that may be zeroed",
            where=f"Pruner(targets={{{name!r}: ...}})",
            why="biases, normalisation parameters and what something else than a product reads are never zeroed",
            hint=f"there are {', '.join(names)}",
        )
    if isinstance(given, Schedule):
        return given
    final = Schedule(given).final  # checks it
    return replace(schedule, final=final, initial=min(schedule.initial, final))
