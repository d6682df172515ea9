"""What an ONNX graph stores, as torch tensors: which of it is trained, which is settings, and where it is written back.

A graph is read with its bodies of control flow *open* (`graphprune.ir.bodies`): every name is different, and all
initializers are those of the main graph, so that a body's weights are weights like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import onnx
import torch
from torch import Tensor

from graphprune.errors import ModelError
from graphprune.finetune.tensors import to_tensor
from graphprune.ir.bodies import DEFAULT_DOMAINS, bodies, nodes_below
from graphprune.ir.rewriting.lifting import inline_functions, open_bodies

NOT_TRAINED: dict[str, frozenset[int]] = {
    "BatchNormalization": frozenset({3, 4}),
    "Clip": frozenset({1, 2}),
    "Dropout": frozenset({1}),
    "GRU": frozenset({5}),
    "LSTM": frozenset({5, 6}),
    "OneHot": frozenset({2}),
    "Pad": frozenset({2}),
    "Pow": frozenset({1}),
    "QuantizeLinear": frozenset({1}),
    "RNN": frozenset({5}),
    "Resize": frozenset({1, 2}),
    "RoiAlign": frozenset({1}),
    "RotaryEmbedding": frozenset({1, 2, 3}),
    "Upsample": frozenset({1}),
}
"""By operator type the slots of inputs that are settings or running statistics, not weights.

An initial state that a recurrent operator, Loop or Scan reads as it is stored has a value for every place in the
batch, so it cannot have been learnt: what was learnt is one for all, and expanded on the way.
"""

BOUND = 1e6
"""No weight is as large as this: a constant that is holds a mask that is added to scores."""

AS_ATTRIBUTES: dict[str, dict[int, str]] = {
    **{name: {1: "axes"} for name in ("Squeeze", "Unsqueeze")},
    **{f"Reduce{name}": {1: "axes"} for name in "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare".split()},
    "CumProd": {1: "axis"},
    "CumSum": {1: "axis"},
    "Expand": {1: "shape"},
    "OneHot": {1: "depth"},
    "Pad": {1: "pads", 2: "value", 3: "axes"},
    "Reshape": {1: "shape"},
    "Resize": {1: "roi", 2: "scales", 3: "sizes"},
    "Slice": {1: "starts", 2: "ends", 3: "axes", 4: "steps"},
    "Split": {1: "split"},
    "Tile": {1: "repeats"},
    "TopK": {1: "k"},
    "Trilu": {1: "k"},
    "Upsample": {1: "scales"},
}
"""By operator type the slots of inputs that say what to do, and are not computed with.

Stored ones are read once, when the module is made, and handed on as attributes of these names: on a device reading one
in every pass would wait for all work under way, and it would end the graphs of torch.compile.
"""


def opened(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return a model without local functions and with open bodies, and the names that its stored tensors have there.

    Parameters
    ----------
    proto : onnx.ModelProto
        Not changed.

    Returns
    -------
    onnx.ModelProto
        The very model given where nothing hides in it.
    tuple of str
        In the order of `stored`. What local functions store is not among them: they have it once for each call.
    """
    if not proto.functions and not any(True for _ in bodies(proto.graph)):
        return proto, tuple(name for name, _ in stored(proto))
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    open_bodies(result)
    names = tuple(name for name, _ in stored(result))
    if inline_functions(result):
        open_bodies(result)
    return result, names


def stored(proto: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Walk the tensors that a model's initializers and Constant nodes hold, in bodies too, with their names.

    The order is the same for a model and for what `opened` makes of it.
    """
    for graph in (proto.graph, *bodies(proto.graph)):
        yield from ((tensor.name, tensor) for tensor in graph.initializer)
    for node in nodes_below(proto.graph.node):
        if is_constant(node):
            yield from ((node.output[0], entry.t) for entry in node.attribute if entry.name == "value")


def constants(proto: onnx.ModelProto) -> dict[str, Tensor]:
    """Return what the initializers and Constant nodes of an opened model hold, by tensor name.

    Raises
    ------
    ModelError
        When one is sparse, or of an element type that torch does not compute with.
    """
    for graph in (proto.graph, *bodies(proto.graph)):
        if graph.sparse_initializer:
            raise ModelError(
                "the torch interpreter does not read sparse initializers",
                where=graph.sparse_initializer[0].values.name,
                hint="store the weight as a dense initializer",
            )
    return {name: _read(source) for name, source in _sources(proto).items()}


def settings(proto: onnx.ModelProto) -> dict[str, list[Any]]:
    """Return by tensor name the numbers of what is stored and named in `AS_ATTRIBUTES`."""
    sources = _sources(proto)
    wanted = {
        node.input[slot]
        for node in nodes_below(proto.graph.node)
        if node.domain in DEFAULT_DOMAINS
        for slot in AS_ATTRIBUTES.get(node.op_type, ())
        if slot < len(node.input)
    }
    return {name: _read(sources[name]).reshape(-1).tolist() for name in wanted & sources.keys()}


def trained(proto: onnx.ModelProto, values: dict[str, Tensor], candidates: Iterable[str]) -> set[str]:
    """Tell the weights among a graph's float constants.

    Settings and running statistics (`NOT_TRAINED`), also behind Identity nodes, are not weights, nor are scalars of
    rank 0: exporters write mathematical constants so (the 0.5 of a GELU), while what was learnt has an axis. A constant
    that is not finite, or as large as `BOUND`, is a mask.

    Parameters
    ----------
    proto : onnx.ModelProto
        The opened model.
    values : dict
        Its constants by name.
    candidates : iterable of str
        Names of float constants.

    Returns
    -------
    set of str
    """
    source: dict[str, str] = {}
    fixed = set()
    for node in nodes_below(proto.graph.node):
        origin = [source.get(name, name) for name in node.input]
        if node.op_type == "Identity":
            source[node.output[0]] = origin[0]
        fixed |= {origin[slot] for slot in _settings(node) if slot < len(origin)}
    free = {name for name in candidates if name not in fixed and values[name].dim() > 0}
    return {name for name in free if bool((values[name].abs() < BOUND).all())}


def _settings(node: onnx.NodeProto) -> Iterable[int]:
    """Return the slots of a node's inputs that are no weights; of Scan's, those in front of what is scanned."""
    if node.op_type == "Scan":
        scanned = next(a.i for a in node.attribute if a.name == "num_scan_inputs")
        return range(len(node.input) - scanned)
    return range(2, len(node.input)) if node.op_type == "Loop" else NOT_TRAINED.get(node.op_type, ())


def is_constant(node: onnx.NodeProto) -> bool:
    """Tell whether a node is the standard Constant."""
    return bool(node.op_type == "Constant" and node.domain in DEFAULT_DOMAINS)


def attribute_value(attribute: onnx.AttributeProto) -> Any:
    """Return an attribute's value, text as str and a tensor as a torch tensor."""
    value: Any = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        return [text.decode() for text in value]
    return to_tensor(value) if isinstance(value, onnx.TensorProto) else value


def place(node: onnx.NodeProto) -> str:
    """Return what a user calls a node."""
    return f"node {node.name!r}" if node.name else f"the node that makes {node.output[0]!r}"


def _sources(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto | onnx.NodeProto]:
    found: dict[str, onnx.TensorProto | onnx.NodeProto] = {tensor.name: tensor for tensor in proto.graph.initializer}
    found.update((node.output[0], node) for node in nodes_below(proto.graph.node) if is_constant(node))
    return found


def _read(source: onnx.TensorProto | onnx.NodeProto) -> Tensor:
    """Read an initializer or a Constant node."""
    if isinstance(source, onnx.TensorProto):
        return to_tensor(source)
    attribute = source.attribute[0]
    value = attribute_value(attribute)
    if attribute.name in ("value_float", "value_floats"):
        return torch.tensor(value, dtype=torch.float32)
    if attribute.name in ("value_int", "value_ints"):
        return torch.tensor(value, dtype=torch.int64)
    if not isinstance(value, Tensor):
        raise ModelError(f"the torch interpreter does not read a Constant's {attribute.name}", where=place(source))
    return value
