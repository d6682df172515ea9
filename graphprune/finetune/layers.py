"""What a module's graph says of its weights: which may be zeroed, which layer each is of, which Dropout thins it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import nn

from graphprune.errors import RecipeError
from graphprune.finetune.module import GraphModule
from graphprune.ir.coupling.walk import couple
from graphprune.ir.graph import Graph
from graphprune.ir.model import Model
from graphprune.ir.nodes import Node
from graphprune.passes.canonicalize import canonicalize
from graphprune.passes.sparsify import zeroable

CONVOLUTIONAL = frozenset({"Conv", "ConvTranspose", "com.microsoft.FusedConv"})
FULLY_CONNECTED = frozenset({"Gemm", "MatMul", "com.microsoft.FusedGemm", "com.microsoft.FusedMatMul"})

Weights = dict[int, tuple[str, ...]]
"""By index of the node that multiplies by them, ONNX names of weights."""


@dataclass(frozen=True)
class Layer:
    """A node that multiplies by stored weights.

    Attributes
    ----------
    op : str
        Its operator.
    weights, biases : tuple of str
        ONNX names of parameters.
    """

    op: str
    weights: tuple[str, ...]
    biases: tuple[str, ...]


@dataclass(frozen=True)
class Structure:
    """What a graph says of a module's parameters.

    Attributes
    ----------
    prunable : tuple of str
        ONNX names of the weights that may be zeroed (`graphprune.passes.sparsify.zeroable`): of two axes and more, and
        read by products alone.
    layers : tuple of Layer
        In the order of the graph.
    dropouts : dict of str to tuple of str
        For every Dropout of the main graph, by the name of its output, the weights of the layers that read what it
        leaves; where there are none, of those that make what it reads. Those of local functions are not among them.
    """

    prunable: tuple[str, ...]
    layers: tuple[Layer, ...]
    dropouts: Mapping[str, tuple[str, ...]]


_known: WeakKeyDictionary[GraphModule, tuple[Model, Structure]] = WeakKeyDictionary()


def find_graph(module: nn.Module) -> GraphModule:
    """Return the module made by `to_torch` that a module is, or holds.

    Parameters
    ----------
    module : torch.nn.Module
        The module itself, or what is around it: DistributedDataParallel, what ``torch.compile`` returns, a module with
        a loss.

    Raises
    ------
    RecipeError
        When it holds none, or more than one.
    """
    found = [part for part in module.modules() if isinstance(part, GraphModule)]
    if len(found) != 1:
        raise RecipeError(
            f"the module holds {len(found) or 'no'} modules made by to_torch, and needs one",
            where=type(module).__name__,
            hint="give the module that to_torch returned, or one that it is a part of" if not found else "give one",
        )
    return found[0]


def structure(module: GraphModule) -> Structure:
    """Return what a module's graph says of its parameters; it is worked out once for every graph."""
    model, found = _known.get(module, (None, None))
    if found is None or model is not module.model:
        found = _structure(module)
        _known[module] = (module.model, found)
    return found


def _structure(module: GraphModule) -> Structure:
    graph = Graph(canonicalize(module.model.proto, dropout=False))
    coupling = couple(graph)
    there = {module.initializer_names[torch_name] for torch_name, _ in module.named_parameters()}

    def stored(name: str) -> list[str]:
        return [source for source in graph.sources(name) if source in there]

    weights: Weights = {}
    for contraction in coupling.contractions:
        index = contraction.node.index
        found = stored(contraction.node.input(contraction.weight))
        weights[index] = tuple(dict.fromkeys((*weights.get(index, ()), *found)))
    weights = {index: names for index, names in sorted(weights.items()) if names}
    layers = tuple(
        Layer(graph.nodes[index].op, names, tuple(name for added in _added(graph, index) for name in stored(added)))
        for index, names in weights.items()
    )
    prunable = tuple(name for name in zeroable(graph, coupling.contractions) if name in there)
    own = {name for node in module.model.proto.graph.node for name in node.output}
    dropouts = {name: found for name, found in _dropouts(graph, weights) if name in own}
    return Structure(prunable, layers, dropouts)


def _added(graph: Graph, index: int) -> list[str]:
    """What is added to a product: the third input, or what an Add behind a matrix product adds that alone reads it."""
    node = graph.nodes[index]
    if node.op not in CONVOLUTIONAL | FULLY_CONNECTED:
        return []
    readers = graph.consumers.get(node.outputs[0], [])
    if node.input(2) or node.op in CONVOLUTIONAL or len(readers) != 1 or readers[0].op != "Add":
        return [node.input(2)]
    return [name for name in readers[0].inputs if name != node.outputs[0]]


def _dropouts(graph: Graph, weights: Weights) -> Iterator[tuple[str, tuple[str, ...]]]:
    def readers(node: Node) -> list[Node]:
        return [reader for name in node.outputs for reader in graph.consumers.get(name, [])]

    def makers(node: Node) -> list[Node]:
        return [graph.producer[name] for name in node.inputs if name in graph.producer]

    for node in graph.main:
        if node.op == "Dropout":
            yield node.outputs[0], _first(weights, node, readers) or _first(weights, node, makers)


def _first(weights: Weights, start: Node, following: Callable[[Node], list[Node]]) -> tuple[str, ...]:
    """Weights of the first layers on every way from a node."""
    found: dict[str, None] = {}
    pending, seen = following(start), set[int]()
    while pending:
        node = pending.pop(0)
        if node.index not in seen:
            seen.add(node.index)
            found.update(dict.fromkeys(weights.get(node.index, ())))
            pending.extend([] if node.index in weights else following(node))
    return tuple(found)
