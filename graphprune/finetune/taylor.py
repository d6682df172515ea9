"""Importance of units by the first-order Taylor expansion of a loss that needs no labels.

Molchanov et al. 2017 (Pruning convolutional neural networks for resource efficient inference) and 2019 (Importance
estimation for neural network pruning, equation 8): a unit's importance is the square of the change of the loss that
its removal leads to, to first order: of the sum of w * dL/dw over the weights w that consume it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from graphprune.errors import CalibrationError, ModelError, UnsupportedOperatorError
from graphprune.finetune.graph import Step, with_changed
from graphprune.finetune.module import GraphModule, to_torch
from graphprune.finetune.operators import Call
from graphprune.finetune.tensors import TORCH_TYPES
from graphprune.ir.coupling.atoms import IdArray
from graphprune.ir.coupling.units import FROZEN, Contraction, Coupling
from graphprune.ir.weights import consumed_units

FloatArray = npt.NDArray[np.float64]

HINT = "choose another --criterion: taylor runs the model in torch and takes its gradients"
ROUNDING = 1e-3
"""How far from 1 the sum of probabilities may be."""


@dataclass(frozen=True)
class Gate:
    """Ones that the weight of a contraction is multiplied with.

    The loss's derivative by a gate is the sum of w * dL/dw over the weights w behind it, those of this use of the
    weight alone where others share it.

    Attributes
    ----------
    contraction : Contraction
    units : list of ndarray, each of shape (positions,)
        What it consumes.
    ones : torch.Tensor
        Broadcastable to the weight: one for each position that is summed over, in every group of a convolution.
    """

    contraction: Contraction
    units: list[IdArray]
    ones: Tensor

    def by_position(self, derivative: Tensor) -> FloatArray:
        """Return the derivative by position of the activation that is summed over."""
        found = np.asarray(derivative.double().numpy())
        groups = self.contraction.groups
        if groups == 1:
            return found.ravel()
        # Rows of one group share their columns with those of the others.
        rows = np.moveaxis(found, (self.contraction.weight_axis, self.contraction.output_axis), (0, 1))
        return np.asarray(rows.reshape(len(rows), groups, -1).sum(axis=2).T.ravel())


def taylor(coupling: Coupling, batches: Iterable[Mapping[str, npt.NDArray[Any]]]) -> FloatArray:
    """Score units by how little the loss changes without them.

    The loss is `own_loss`, a mean over the samples of a batch; the squares are averaged over the batches. Within
    a batch gradients of different signs cancel, so batches should be small: of 8 samples, say.

    Parameters
    ----------
    coupling : Coupling
    batches : iterable of feeds
        Inputs by name; walked once.

    Returns
    -------
    ndarray of float64, shape (units,)
        Minus the importance: the higher, the sooner a unit goes. NaN for units that no contraction consumes, or that
        one consumes which no float output depends on.

    Raises
    ------
    UnsupportedOperatorError
        When the torch interpreter does not know an operator.
        Or what it consumes has no weight for each position: the bias of MultiHeadAttention.
    ModelError
        When torch cannot run the model, or its gradients are not finite.
    CalibrationError
        When there is no batch.
    """
    module, gates = _gated(coupling)
    squares, count = np.zeros(coupling.units), 0
    for batch in batches:
        squares += _effects(coupling.units, module, gates, batch) ** 2
        count += 1
    if not count:
        raise CalibrationError("the calibration data holds no sample", hint="give at least one sample")
    consumed = [units[units != FROZEN] for gate in gates for units in gate.units]
    known = np.isin(np.arange(coupling.units), np.concatenate([*consumed, np.zeros(0, np.int64)]))
    return np.where(known, -squares / count, np.nan)


def own_loss(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> Tensor:
    """Return how unsure a model is of what it says itself; no labels are needed.

    Parameters
    ----------
    outputs : sequence of torch.Tensor
    inputs : sequence of torch.Tensor

    Returns
    -------
    torch.Tensor
        The sum over all float outputs of: where the output holds classes, that is, is [N, K] with K > 1 (axes of size 1
        may follow) and not of the shape of an input, the mean over the samples of the cross entropy between the most
        probable class and the output (logits; probabilities where all rows are >= 0 and sum to 1); otherwise half the
        mean of the squared values.
    """
    shapes = {value.shape for value in inputs}
    loss = torch.zeros(())
    for output in outputs:
        if output.is_floating_point():
            values = output.to(torch.promote_types(output.dtype, torch.float32))
            holds_classes = values.dim() > 1 and values.shape[1] > 1 and values[0].numel() == values.shape[1]
            if holds_classes and values.shape not in shapes:
                loss = loss + _cross_entropy(values.flatten(1))
            else:
                loss = loss + 0.5 * values.square().mean()
    return loss


def _cross_entropy(values: Tensor) -> Tensor:
    """Between the most probable class of each row, and the row."""
    best = values.max(dim=1).values
    whole = (values.detach().sum(dim=1) - 1).abs().max() < ROUNDING
    if whole and values.detach().min() >= 0:
        return -best.log().mean()
    return (values.logsumexp(dim=1) - best).mean()


def _gated(coupling: Coupling) -> tuple[GraphModule, list[Gate]]:
    """Make the torch module, with a gate on the weight of every contraction that consumes units."""
    try:
        module = to_torch(coupling.graph.proto)
    except ModelError as error:
        raise type(error)(error.what, where=error.where, why=error.why, hint=HINT) from error
    module.requires_grad_(False)
    gates: dict[tuple[str, ...], list[Gate]] = {}  # by the outputs of the node
    for contraction in coupling.contractions:
        units = [found for found in consumed_units(coupling, contraction) if (found != FROZEN).any()]
        if units:
            gate = Gate(contraction, units, _ones(coupling, contraction))
            _demand_fit(gate)
            gates.setdefault(contraction.node.outputs, []).append(gate)
    module.steps = with_changed(
        module.steps, lambda step: _multiplied(step, gates[step.outputs]) if step.outputs in gates else step
    )
    return module, [gate for found in gates.values() for gate in found]


def _demand_fit(gate: Gate) -> None:
    """Refuse a contraction whose weight has other positions than what it consumes: a bias inside attention."""
    node, axis = gate.contraction.node, gate.contraction.weight_axis
    positions = gate.ones.shape[axis] * gate.contraction.groups
    if any(len(found) != positions for found in gate.units):
        raise UnsupportedOperatorError(
            f"the taylor criterion cannot weigh what {node.op} consumes",
            where=node.label,
            why=f"input {gate.contraction.data} is consumed without a weight for each of its positions",
            hint="choose another --criterion",
        )


def _ones(coupling: Coupling, contraction: Contraction) -> Tensor:
    name = contraction.node.input(contraction.weight)
    extents: Sequence[Any] = coupling.graph.shape(name) or ()
    axes = {contraction.weight_axis, *([contraction.output_axis] if contraction.groups > 1 else [])}
    dtype = TORCH_TYPES[coupling.graph.element_types[name]]
    return torch.ones([extent if k in axes else 1 for k, extent in enumerate(extents)], dtype=dtype, requires_grad=True)


def _multiplied(step: Step, gates: Sequence[Gate]) -> Step:
    """Put gates in front of a node."""

    def function(call: Call, *inputs: Any) -> Tensor | tuple[Tensor, ...]:
        gated = list(inputs)
        for gate in gates:
            gated[gate.contraction.weight] = gated[gate.contraction.weight] * gate.ones
        return step.function(call, *gated)

    return replace(step, function=function)


def _effects(
    units: int, module: GraphModule, gates: Sequence[Gate], batch: Mapping[str, npt.NDArray[Any]]
) -> FloatArray:
    """What each unit adds to the loss of one batch, to first order; NaN where no output tells."""
    inputs = [torch.from_numpy(np.array(batch[name])) for name in module.input_names]
    try:
        outputs = module(*inputs)
        loss = own_loss([outputs] if isinstance(outputs, Tensor) else outputs, inputs)
        derivatives = _derivatives(loss, gates)
    except RuntimeError as error:  # NotImplementedError is one
        raise ModelError("torch cannot run the model, or not backwards", why=str(error), hint=HINT) from error
    effects = np.zeros(units)
    for gate, derivative in zip(gates, derivatives, strict=True):
        for found in gate.units:
            free = found != FROZEN
            np.add.at(effects, found[free], np.nan if derivative is None else gate.by_position(derivative)[free])
    return effects


def _derivatives(loss: Tensor, gates: Sequence[Gate]) -> Sequence[Tensor | None]:
    """Derivatives by the gates, None for those that the loss does not depend on."""
    if not loss.requires_grad:
        return [None] * len(gates)
    derivatives = torch.autograd.grad(loss, [gate.ones for gate in gates], allow_unused=True)
    if not all(found is None or found.isfinite().all() for found in (loss.detach(), *derivatives)):
        raise ModelError("the gradients of the model are infinite or not numbers", hint=HINT)
    return derivatives
