"""Go over to a smaller graph: parameters, buffers, masks and what optimizers remember, cut alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
from torch import Tensor, nn
from torch.optim import Optimizer

from graphprune.finetune.masks import masks_of
from graphprune.finetune.module import GraphModule
from graphprune.finetune.optimizers import cut, cut_states, join_group, replace_parameters
from graphprune.finetune.tensors import to_tensor
from graphprune.ir.coupling.units import BoolArray
from graphprune.ir.graph import Graph
from graphprune.ir.tensors import float_tensors
from graphprune.passes import compensate
from graphprune.passes.criteria import FloatArray


def shrink(
    module: GraphModule,
    trimmed: onnx.ModelProto,
    keeps: Mapping[str, BoolArray | None],
    constants: Mapping[str, FloatArray],
    optimizers: Sequence[Optimizer],
) -> None:
    """Let a module interpret a trimmed graph, and all that holds its parameters go over to what is left of them.

    Parameters
    ----------
    module : GraphModule
    trimmed : onnx.ModelProto
        It is changed.
    keeps : mapping of str to ndarray of bool or None
        What stays of every initializer, None for all.
    constants : mapping of str to ndarray of float64
        What to add to the outputs of layers (`graphprune.passes.compensate.plan`).
    optimizers : sequence of torch.optim.Optimizer
    """
    stored = {name: getattr(module, torch_name) for torch_name, name in module.initializer_names.items()}
    losing = {name: keep for name, keep in keeps.items() if keep is not None and name in stored}
    there = {tensor.name for tensor in trimmed.graph.initializer}
    values = {name: _cut_value(value, losing.get(name)) for name, value in stored.items() if name in there}
    parameters = {name: value for name, value in stored.items() if isinstance(value, nn.Parameter)}
    states = cut_states(optimizers, {parameters[name]: keep for name, keep in losing.items() if name in parameters})
    biases = _add_constants(trimmed, values, constants)
    module.replace_graph(trimmed, values)
    for name in biases.changed:
        values[name].data.copy_(to_tensor(biases.changed[name]))
    left = {name: value for name, value in values.items() if isinstance(value, nn.Parameter)}
    now = {value: left.get(name) for name, value in parameters.items() if left.get(name) is not value}
    for optimizer, known in zip(optimizers, states, strict=True):
        replace_parameters(optimizer, now, known)
        for name, other in biases.beside.items():
            join_group(optimizer, left[other], left[name], name)
    for masks in masks_of(module):
        masks.follow(lambda name, zeros: zeros if name not in losing else cut(zeros, losing[name]))


def _cut_value(value: Tensor, keep: BoolArray | None) -> Tensor:
    """What a parameter or buffer becomes; the very same where it loses nothing."""
    if keep is None:
        return value
    if not isinstance(value, nn.Parameter):
        return cut(value, keep)
    parameter = nn.Parameter(cut(value.detach(), keep), requires_grad=value.requires_grad)
    parameter.grad = None if value.grad is None else cut(value.grad, keep)
    return parameter


@dataclass(frozen=True)
class _Biases:
    """What adding constants to the outputs of layers has done to a graph.

    Attributes
    ----------
    changed : dict of str to onnx.TensorProto
        Float initializers that were there, with their new values.
    beside : dict of str to str
        New ones, each with the weight of its layer.
    """

    changed: dict[str, onnx.TensorProto]
    beside: dict[str, str]


def _add_constants(trimmed: onnx.ModelProto, values: dict[str, Tensor], constants: Mapping[str, FloatArray]) -> _Biases:
    """Add constants to the outputs of layers, in place; new biases become parameters among the values."""
    before = {name: tensor.SerializeToString() for name, tensor in float_tensors(trimmed).items()}
    compensate.apply(trimmed, {output: added for output, added in constants.items() if added.any()})
    graph, biases = Graph(trimmed), _Biases({}, {})
    for name, tensor in float_tensors(trimmed).items():
        if name in values and tensor.SerializeToString() != before[name]:
            biases.changed[name] = tensor
        elif name not in before:
            reader = graph.consumers[name][0]
            makers = [graph.producer[read] for read in reader.inputs if read in graph.producer]
            sources = [source for node in (reader, *makers) for read in node.inputs for source in graph.sources(read)]
            weight = next((source for source in sources if isinstance(values.get(source), nn.Parameter)), None)
            if weight is not None:
                like = values[weight]
                values[name] = nn.Parameter(to_tensor(tensor).to(like), requires_grad=like.requires_grad)
                biases.beside[name] = weight
    return biases
