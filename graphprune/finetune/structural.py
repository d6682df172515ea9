"""Structural rounds: remove units from a module that is being trained, and go on with the smaller one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from graphprune.calib.run import BATCH_SIZE, calibrate, probes_for
from graphprune.calib.sources import SourceLike, input_specs, open_source
from graphprune.calib.stats import Key, Moments
from graphprune.calib.stream import Source
from graphprune.errors import CalibrationError, RecipeError
from graphprune.finetune.distributed import agree, demand_unwrapped
from graphprune.finetune.layers import find_graph
from graphprune.finetune.module import to_proto
from graphprune.finetune.optimizers import as_list
from graphprune.finetune.shrinking import shrink
from graphprune.finetune.taylor import taylor
from graphprune.ir.cost import count_weights
from graphprune.ir.coupling.units import BoolArray, Coupling
from graphprune.ir.coupling.walk import couple
from graphprune.ir.graph import Graph
from graphprune.ir.kernels import widths
from graphprune.ir.surgery import Kept, remove
from graphprune.passes import compensate
from graphprune.passes.canonicalize import canonicalize
from graphprune.passes.choice import queues, take
from graphprune.passes.criteria import CRITERIA, score
from graphprune.passes.trim import aligned, by_fraction, by_threshold
from graphprune.values import demand
from graphprune.verify.equivalence import Proof, check_canonical, check_equivalence


@dataclass(frozen=True)
class Trimmed:
    """What a structural round did.

    Attributes
    ----------
    units, removed : int
        Units that there were, and those that went.
    weights_before, weights_after : int
        All float weights of the model (DESIGN section 6).
    kept : dict of str to dict of int to list
        For every initializer that lost something, by axis, the indices that stay.
    proof : Proof or None
        How the smaller graph compares with the larger one whose removed units are multiplied by zero where they are
        consumed, on one batch in ONNX Runtime; None where nothing went.
    """

    units: int
    removed: int
    weights_before: int
    weights_after: int
    kept: Kept
    proof: Proof | None


def trim(
    module: nn.Module,
    calibration: SourceLike,
    *,
    channels: float | None = None,
    dead_only: bool = False,
    criterion: str = "apoz",
    align: int | Literal["auto", "off"] = "auto",
    only: Sequence[str] | None = None,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    custom_ops: Sequence[str] = (),
    seed: int = 0,
) -> Trimmed:
    """Remove units from a module in place, by statistics that are taken of it as it is now.

    By default units go by Network Trimming's rule (Hu et al. 2016, section 3.2): those whose average percentage of
    zeros is more than one standard deviation above the mean of their group, and dead ones. What stays keeps its values
    to the bit; the module then computes what it computed with the removed units multiplied by zero where they are
    consumed, which is proven in ONNX Runtime before anything is changed.

    The module goes on to interpret the canonical form of its graph, with BatchNormalization and Dropout in it. A weight
    that loses something becomes a new parameter; masks (`Masks`, `Pruner`) and the optimizer's state are cut along.

    Parameters
    ----------
    module : torch.nn.Module
        What `to_torch` returned, or a module that holds it.
    calibration : path-like, mapping, array, iterable, callable or Source
        Unlabelled inputs, in any form that the command's ``--calib`` and `graphprune.prune` take.
    channels : float, optional
        Remove this fraction of every group's units instead, in [0, 1), those with the highest score first.
    dead_only : bool, default False
        Remove dead units alone: inactive on all of the data, or with no weight going in or out. Where one has a
        constant activation, that goes into the biases of the layers that read it, so that the module computes the same
        as before (but at the borders of padded convolutions).
    criterion : {"apoz", "activation", "l1", "l2", "taylor", "random"}, default "apoz"
        What orders the units where ``channels`` says how many go.
    align : int, "auto" or "off", default "auto"
        What the number of channels that convolutions keep is a multiple of, as for the command's ``--align``.
    only : sequence of str, optional
        Groups that may lose units, by the names that ``graphprune inspect`` gives them: those of the weights that make
        the units. All others keep theirs, as in the rounds of Hu et al. 2016. Default: all groups may.
    optimizer : torch.optim.Optimizer or sequence of them, optional
        All that train the module: their groups get the new parameters in the places of the old ones.
    custom_ops : sequence of str, default ()
        Shared libraries of ONNX Runtime custom operators, by path.
    seed : int, default 0
        Of the criterion ``random``.

    Returns
    -------
    Trimmed

    Raises
    ------
    RecipeError
        When a value is out of range, ``only`` names no group, the module is inside DistributedDataParallel, or what an
        optimizer remembers cannot be cut.
    CalibrationError
        When the data cannot be used.
    ModelError
        When the training has diverged, or ONNX Runtime cannot run the model.
    EquivalenceError
        When the smaller graph does not compute what it should; the module is as it was.

    Notes
    -----
    Gradients are cut, too. What else the user holds of the old parameters, such as hooks or moving averages, has to be
    made anew; ``kept`` tells what stays. Under ``torch.distributed`` every process has to call this, and what the first
    one chooses goes in all.
    """
    choice = Choice(channels, dead_only, criterion, align, seed, None if only is None else tuple(only))
    demand_unwrapped(module)
    if calibration is None:
        raise CalibrationError(
            "a structural round needs inputs to take statistics of",
            where="trim(calibration=None)",
            hint="give inputs like those that the module is trained on; no labels are needed",
        )
    graph = find_graph(module)
    before = to_proto(graph)
    source = open_source(calibration, input_specs(before))
    batch = next(iter(source.batches(BATCH_SIZE)))
    canonical = canonicalize(before, dropout=False)
    check_canonical(before, canonical, batch, custom_ops=custom_ops)
    coupling = couple(Graph(canonical))
    statistics = calibrate(coupling.graph, probes_for(coupling), source, custom_ops=custom_ops)
    removed = choice.of(coupling, statistics, source)
    # A choice by statistics of other data, or of sums in another order, would leave modules of different shapes.
    device = next((value.device for value in graph.parameters()), torch.device("cpu"))
    agreed = torch.from_numpy(removed.astype(np.uint8)).to(device)
    agree(module, [agreed])
    removed = agreed.cpu().numpy().astype(np.bool_)
    weights = count_weights(before)
    if not removed.any():
        return Trimmed(coupling.units, 0, weights, weights, {}, None)
    trimmed, kept = remove(coupling, removed)
    proof = check_equivalence(coupling, removed, trimmed, batch, custom_ops=custom_ops)
    constants = compensate.plan(coupling, removed, statistics) if dead_only else {}
    keeps = {name: coupling.keeps(name, removed) for name in coupling.graph.initializers}
    shrink(graph, trimmed, keeps, constants, as_list(optimizer))
    return Trimmed(coupling.units, int(removed.sum()), weights, count_weights(trimmed), kept, proof)


@dataclass(frozen=True)
class Choice:
    """Which units go in a structural round; the attributes are arguments of `trim`.

    Raises
    ------
    RecipeError
        When a value is out of range, or one rules another out.
    """

    channels: float | None
    dead_only: bool
    criterion: str
    align: int | Literal["auto", "off"]
    seed: int
    only: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        demand("channels", self.channels)
        demand("align", self.align)
        demand("seed", self.seed)
        if self.criterion not in (*CRITERIA, "taylor"):
            known = ", ".join((*CRITERIA, "taylor"))
            raise RecipeError(
                f"criterion must be one of {known}, not {self.criterion!r}",
                where="trim(criterion=...)",
                hint="what removal would cost is predicted by `graphprune` alone",
            )
        if self.channels is not None and self.dead_only:
            raise RecipeError("channels and dead_only both say what goes", where="trim", hint="give one of them")
        if self.channels is None and self.criterion != "apoz":
            raise RecipeError(
                f"criterion={self.criterion!r} orders units, and nothing says how many go",
                where="trim(criterion=...)",
                hint="give channels as well",
            )

    def of(self, coupling: Coupling, statistics: dict[Key, Moments], source: Source) -> BoolArray:
        """Return what goes, shape (units,)."""
        measured = {"taylor": taylor(coupling, source.batches(BATCH_SIZE))} if self.criterion == "taylor" else None
        scores = score(coupling, statistics, self.criterion, seed=self.seed, measured=measured)
        may = self._may_go(coupling)
        if self.channels is not None:
            queued = [queue for queue in queues(coupling, scores) if all(may[step.units].all() for step in queue.steps)]
            return by_fraction(coupling, queued, self.channels, widths(self.align).step)
        steps = [
            step
            for step in by_threshold(coupling, scores)
            if may[step.units].all() and (step.rank == np.inf or not self.dead_only)
        ]
        return take(coupling, aligned(coupling, steps, widths(self.align).block))

    def _may_go(self, coupling: Coupling) -> BoolArray:
        """Return which units are in groups that may lose some."""
        if self.only is None:
            return np.ones(coupling.units, dtype=np.bool_)
        known = {group.name: group.units for group in coupling.groups}
        may = np.zeros(coupling.units, dtype=np.bool_)
        for name in self.only:
            if name not in known:
                raise RecipeError(
                    f"there is no group {name!r} that may lose units",
                    where="trim(only=...)",
                    hint=f"there are {', '.join(known) or 'none'}",
                )
            may[known[name]] = True
        return may
