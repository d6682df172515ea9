"""What Han et al. 2015 (Learning both weights and connections) add to training: penalties, and Dropout that shrinks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from graphprune.errors import RecipeError
from graphprune.finetune.graph import default_opset
from graphprune.finetune.layers import find_graph, structure
from graphprune.finetune.module import GraphModule
from graphprune.ir.edit import set_attribute, set_input
from graphprune.ir.graph import Graph

RATIO_IS_INPUT = 12
"""Since this operator set Dropout's ratio is an input."""
DEFAULT_RATIO = 0.5


def l1_penalty(module: nn.Module, strength: float) -> Tensor:
    """Return strength times the sum of |w| over the weights that may be zeroed, to be added to the loss.

    It pushes weights to zero before they are pruned (Han et al. 2015, section 3.1). Weights that are zero add nothing,
    and no gradient either; biases and normalisation parameters are left alone.

    Parameters
    ----------
    module : torch.nn.Module
        What `to_torch` returned, or a module that holds it.
    strength : float
        At least 0.

    Returns
    -------
    torch.Tensor
        A number that gradients run through.

    Raises
    ------
    RecipeError
        When the strength is below 0 or not a number.
    """
    return _penalty(module, strength, 1)


def l2_penalty(module: nn.Module, strength: float) -> Tensor:
    """Return strength times the sum of w ** 2 over the weights that may be zeroed, to be added to the loss.

    It keeps what stays small, so that more of it can go in the next round. SGD's ``weight_decay`` is the same with half
    of it as strength, on all parameters. Otherwise as `l1_penalty`.

    Parameters
    ----------
    module : torch.nn.Module
    strength : float

    Returns
    -------
    torch.Tensor
    """
    return _penalty(module, strength, 2)


def _penalty(module: nn.Module, strength: float, order: int) -> Tensor:
    if not strength >= 0:
        raise RecipeError(f"strength must be at least 0, not {strength!r}", where=f"l{order}_penalty(strength=...)")
    graph = find_graph(module)
    weights = [graph.parameter_of(name) for name in structure(graph).prunable]
    sums = [weight.abs().sum() if order == 1 else weight.square().sum() for weight in weights]
    return strength * torch.stack(sums).sum() if sums else torch.zeros(())


@dataclass(frozen=True)
class Connections:
    """How a module is connected at some time.

    Attributes
    ----------
    counts : dict of str to int
        By ONNX name of a weight that may be zeroed, how many of its entries are not zero.
    ratios : dict of str to float
        Of every Dropout of the main graph, by the name of its output, in [0, 1); without those that compute it.
    """

    counts: Mapping[str, int]
    ratios: Mapping[str, float]


def connections(module: nn.Module) -> Connections:
    """Count a module's connections, before it is pruned, for `dropout_ratios`.

    Parameters
    ----------
    module : torch.nn.Module
        What `to_torch` returned, or a module that holds it.
    """
    graph = find_graph(module)
    found = structure(graph)
    counts = {name: int(graph.parameter_of(name).detach().count_nonzero()) for name in found.prunable}
    ratios = {name: ratio for name in found.dropouts if (ratio := _ratio(graph, name)) is not None}
    return Connections(counts, ratios)


def dropout_ratios(module: nn.Module, before: Connections) -> dict[str, float]:
    """Set the ratio of every Dropout to what its layers still need after pruning.

    D_r = D_o sqrt(C_r / C_o) (Han et al. 2015, equation 2), with the ratio D_o and the connections C_o before, and C_r
    now. Connections are the entries that are not zero of the weights of the layers that read what Dropout leaves (of
    those that make what it reads, where none does). The ratios are the graph's own: `to_onnx` writes them.

    Parameters
    ----------
    module : torch.nn.Module
        What `to_torch` returned, or a module that holds it.
    before : Connections
        From `connections`, before any pruning; the same in every round.

    Returns
    -------
    dict of str to float
        The new ratios, by the name of the Dropout's output. Empty where the graph has no Dropout (exporters leave it
        out unless they are told to export for training): then there is nothing to set.

    Raises
    ------
    RecipeError
        When there are more connections than before, so that `before` is of another module or time.
    """
    graph = find_graph(module)
    now = connections(module)
    found: dict[str, float] = {}
    for name, weights in structure(graph).dropouts.items():
        known = [weight for weight in weights if weight in before.counts and weight in now.counts]
        earlier, later = (sum(counts[weight] for weight in known) for counts in (before.counts, now.counts))
        if later > earlier:
            raise RecipeError(
                "there are more connections than before",
                where=f"Dropout {name!r}",
                why=f"{later:,} weights that are not zero, {earlier:,} before",
                hint="take connections(module) before the module is pruned",
            )
        if earlier and name in before.ratios:
            found[name] = before.ratios[name] * math.sqrt(later / earlier)
    _set_ratios(graph, found)
    return found


def _dropout(proto: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in proto.graph.node if name in node.output)


def _ratio(module: GraphModule, name: str) -> float | None:
    """Return the ratio of a Dropout as it is now; None where it is computed."""
    node = _dropout(module.model.proto, name)
    if default_opset(module.model.proto) < RATIO_IS_INPUT:
        return next((attribute.f for attribute in node.attribute if attribute.name == "ratio"), DEFAULT_RATIO)
    if len(node.input) < 2 or not node.input[1]:
        return DEFAULT_RATIO
    stored = _stored(module).get(node.input[1])
    return None if stored is None else float(stored)


def _stored(module: GraphModule) -> dict[str, Tensor]:
    """By ONNX name, a module's float parameters and buffers."""
    return {name: getattr(module, torch_name) for torch_name, name in module.initializer_names.items()}


def _set_ratios(module: GraphModule, ratios: Mapping[str, float]) -> None:
    """Write ratios into the graph: attributes, or initializers that no other node reads."""
    values, changed = _stored(module), onnx.ModelProto()
    changed.CopyFrom(module.model.proto)
    graph, rewritten = Graph(module.model.proto), False
    for name, ratio in ratios.items():
        node = _dropout(changed, name)
        read = node.input[1] if len(node.input) > 1 else ""
        if default_opset(changed) < RATIO_IS_INPUT:
            set_attribute(node, "ratio", ratio)
        elif read and len(graph.consumers[read]) == 1:
            values[read].fill_(ratio)
            continue
        else:
            made = graph.unused(f"{name}_ratio")
            changed.graph.initializer.append(numpy_helper.from_array(np.array(ratio, dtype=np.float32), made))
            set_input(node, 1, made)
        rewritten = True
    if rewritten:
        module.replace_graph(changed, values)
