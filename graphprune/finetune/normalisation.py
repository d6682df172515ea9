"""Train a network without BatchNormalization as if it had it still: exported models have theirs folded.

What was folded made training stable (Ioffe and Szegedy 2015), and without it a high learning rate diverges. So
BatchNormalization is put behind every convolution, with the statistics of its output, which changes nothing by itself;
after the training it is folded again, and the graph is the one that it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from graphprune.calib.probes import Probe
from graphprune.calib.run import calibrate
from graphprune.calib.sources import SourceLike, input_specs, open_source
from graphprune.calib.stats import FloatArray
from graphprune.errors import CalibrationError, RecipeError
from graphprune.finetune.distributed import demand_unwrapped
from graphprune.finetune.layers import find_graph
from graphprune.finetune.module import GraphModule, to_proto
from graphprune.ir.bodies import replace_nodes
from graphprune.ir.graph import Graph

EPSILON = 1e-5
MOMENTUM = 0.9
"""Part of the running statistics that stays in every step."""
CHANNELS = 1
"""The axis of channels."""


class Layer(NamedTuple):
    """What a convolution stores, by name."""

    weight: str
    bias: str


class Norm(NamedTuple):
    """Names of a normalisation that stands behind a convolution for a while: its input, and what it stores."""

    plain: str
    scale: str
    bias: str
    mean: str
    variance: str


@contextmanager
def normalised(module: nn.Module, calibration: SourceLike, *, custom_ops: Sequence[str] = ()) -> Iterator[list[str]]:
    """Put BatchNormalization behind every convolution while a block runs, and fold it when the block ends.

    In evaluation mode the module computes what it did before, at the beginning and at the end. In training mode every
    batch is normalised by its own statistics, as before the network was exported: learning rates for training from
    scratch do for training after pruning, too.

    Parameters
    ----------
    module : torch.nn.Module
        What `to_torch` returned, or a module that holds it.
    calibration : path-like, mapping, array, iterable or callable
        Inputs like those that the module is trained on, in numpy arrays; a few hundred samples say enough.
    custom_ops : sequence of str, default ()
        Shared libraries of ONNX Runtime custom operators, by path.

    Yields
    ------
    list of str
        The outputs of convolutions that are normalised: those that are trained (see `frozen`), with a stored weight and
        bias that nothing else reads, and no BatchNormalization behind them yet.

    Raises
    ------
    RecipeError
        When there is no such convolution, or the module is inside DistributedDataParallel.
    CalibrationError
        When the data cannot be used.
    ModelError
        When ONNX Runtime cannot run the model.

    Notes
    -----
    Weights and biases are the same parameters inside the block and after it; optimizers have to be made inside, so that
    they train scales and biases of the normalisation as well. Zeros stay zeros.
    """
    demand_unwrapped(module)
    if calibration is None:
        raise CalibrationError(
            "normalisation needs inputs to take statistics of",
            where="normalised(calibration=None)",
            hint="give inputs like those that the module is trained on; no labels are needed",
        )
    graph = find_graph(module)
    before = Graph(to_proto(graph))
    outputs = _bare(graph, before)
    if not outputs:
        raise RecipeError(
            "there is nothing to normalise",
            where="normalised",
            why="no convolution that is trained has a weight and bias of its own, and no BatchNormalization behind it",
            hint="train the module as it is",
        )
    norms = _insert(graph, before, _measured(before, outputs, calibration, custom_ops))
    try:
        yield outputs
    finally:
        _fold(graph, norms)


def _bare(module: GraphModule, graph: Graph) -> list[str]:
    """Outputs of the convolutions that can be normalised, and are not."""
    stored = _stored(module)
    trained = {name for name, value in stored.items() if isinstance(value, nn.Parameter) and value.requires_grad}
    found = []
    for node in graph.proto.graph.node:
        own = set(node.input[1:3])
        if node.op_type != "Conv" or len(own) < len(Layer._fields) or not own <= trained:
            continue
        behind = [reader.op for reader in graph.consumers.get(node.output[0], ())]
        if all(len(graph.consumers[name]) == 1 for name in own) and "BatchNormalization" not in behind:
            found.append(node.output[0])
    return found


def _stored(module: GraphModule) -> dict[str, Tensor]:
    """Parameters and buffers, by their names in the graph."""
    return {name: getattr(module, torch_name) for torch_name, name in module.initializer_names.items()}


def _measured(
    graph: Graph, outputs: Sequence[str], calibration: SourceLike, custom_ops: Sequence[str]
) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Mean and variance of the channels of tensors."""
    source = open_source(calibration, input_specs(graph.proto))
    probes = [Probe(name, CHANNELS, squares=True) for name in outputs]
    found = calibrate(graph, probes, source, custom_ops=custom_ops)
    result = {}
    for (name, _), moments in found.items():
        assert moments.squares is not None
        result[name] = moments.mean, np.maximum(moments.squares / max(moments.count, 1) - moments.mean**2, 0)
    return result


def _insert(
    module: GraphModule, graph: Graph, measured: Mapping[str, tuple[FloatArray, FloatArray]]
) -> dict[str, Norm]:
    """Put a normalisation behind the convolutions that compute these tensors; return it by its output."""
    proto, values, nodes, norms = graph.proto, _stored(module), [], dict[str, Norm]()
    for node in list(proto.graph.node):
        nodes.append(node)
        if not node.output or node.output[0] not in measured:
            continue
        output, weight = node.output[0], node.input[1]
        mean, variance = measured[output]
        norm = Norm(*(graph.unused(f"{output}_{field}") for field in Norm._fields))
        stored = {norm.scale: np.sqrt(variance + EPSILON), norm.bias: mean, norm.mean: mean, norm.variance: variance}
        for name, value in stored.items():
            kind = onnx.helper.tensor_dtype_to_np_dtype(graph.element_types[weight])
            proto.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(kind), name))
            tensor = torch.from_numpy(value).to(values[weight].detach())
            values[name] = nn.Parameter(tensor) if name in (norm.scale, norm.bias) else tensor
        node.output[0] = norm.plain
        inputs = [norm.plain, *stored]
        made = onnx.helper.make_node("BatchNormalization", inputs, [output], epsilon=EPSILON, momentum=MOMENTUM)
        nodes.append(made)
        norms[output] = norm
    replace_nodes(proto.graph, nodes)
    module.replace_graph(proto, values)
    return norms


@torch.no_grad()
def _fold(module: GraphModule, norms: Mapping[str, Norm]) -> None:
    """Take the normalisation out again, into the weights and biases before it; some may have been pruned meanwhile."""
    # Whatever became of the weights: that they are not finite is for who writes them to say.
    proto, values = onnx.ModelProto(), _stored(module)
    proto.CopyFrom(module.model.proto)
    makers = {name: node for node in proto.graph.node for name in node.output}
    nodes = []
    for node in list(proto.graph.node):
        norm = norms.get(node.output[0]) if node.output else None
        if norm is None or node.op_type != "BatchNormalization":
            nodes.append(node)
            continue
        layer = Layer(*makers[node.input[0]].input[1:3])
        scale, bias, mean, variance = (values.pop(name).double() for name in norm[1:])
        factor = scale / (variance + EPSILON).sqrt()
        weight = values[layer.weight]
        weight.copy_(weight * factor.reshape(-1, *[1] * (weight.dim() - 1)))
        values[layer.bias].copy_((values[layer.bias] - mean) * factor + bias)
        makers[node.input[0]].output[0] = node.output[0]
    stored = {name for norm in norms.values() for name in norm[1:]}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name not in stored]
    replace_nodes(proto.graph, nodes)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    module.replace_graph(proto, values)
    for constraint in module.constraints:  # a zero times a negative factor is -0.0
        constraint()
