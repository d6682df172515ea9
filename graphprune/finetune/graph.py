"""Read an ONNX graph into steps and constants that torch can run: all that is decided before forward."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor

from graphprune.errors import ModelError, UnsupportedOperatorError
from graphprune.finetune.operators import OPERATORS, RESTRICTIONS, Call, Operator
from graphprune.finetune.tensors import to_tensor

DEFAULT_DOMAINS = ("", "ai.onnx")

OLDEST_OPSET = 7
"""Operator sets below broadcast by an attribute; ONNX Runtime does not promise to run them either."""

NOT_TRAINED: dict[str, frozenset[int]] = {
    "BatchNormalization": frozenset({3, 4}),
    "Clip": frozenset({1, 2}),
    "Dropout": frozenset({1}),
    "Pad": frozenset({2}),
    "Pow": frozenset({1}),
    "Resize": frozenset({1, 2}),
    "Upsample": frozenset({1}),
}
"""Positions of inputs that are settings or running statistics, not weights."""


@dataclass(frozen=True)
class Step:
    """One node, ready to run.

    Attributes
    ----------
    function : Operator
        What computes it.
    inputs, outputs : tuple of str
        Tensor names; empty where an optional one is left out.
    calls : tuple of Call
        What the function is told in evaluation mode and in training mode.
    last_uses : tuple of str
        Tensors that no later step and no graph output reads.
    """

    function: Operator
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    calls: tuple[Call, Call]
    last_uses: tuple[str, ...]

    def run(self, values: dict[str, Tensor], training: bool) -> None:
        """Compute the outputs into ``values`` and drop from it what is not read again."""
        results = self.function(self.calls[training], *(values.get(name) for name in self.inputs))
        if isinstance(results, Tensor):
            results = (results,)
        values.update(zip(self.outputs, results, strict=False))
        for name in self.last_uses:
            values.pop(name, None)


def default_opset(proto: onnx.ModelProto) -> int:
    """Return the version of the default operator set that a model imports.

    Raises
    ------
    ModelError
        When it is below 7.
    """
    version = max((entry.version for entry in proto.opset_import if entry.domain in DEFAULT_DOMAINS), default=1)
    if version < OLDEST_OPSET:
        raise ModelError(
            f"the model uses operator set {version}; the torch interpreter reads {OLDEST_OPSET} and newer",
            hint="convert the model with onnx.version_converter",
        )
    return int(version)


def steps(proto: onnx.ModelProto) -> tuple[Step, ...]:
    """Look up every node of the main graph, in the order of the graph, Constant nodes left out.

    Raises
    ------
    UnsupportedOperatorError
        When the table of operators lacks one, or lacks an attribute's setting.
    """
    opset = default_opset(proto)
    nodes = [node for node in proto.graph.node if not is_constant(node)]
    last_use: dict[str, int] = {}
    for position, node in enumerate(nodes):
        # An output that nobody reads is last "used" where it is made.
        last_use.update(dict.fromkeys([*node.input, *node.output], position))
    kept = {output.name for output in proto.graph.output}
    found = []
    for position, node in enumerate(nodes):
        attributes = {attribute.name: _value(attribute) for attribute in node.attribute}
        calls = tuple(Call(attributes, opset, len(node.output), training) for training in (False, True))
        drop = {n for n in [*node.input, *node.output] if last_use[n] == position and n not in kept}
        function = _function(node, calls[0])
        found.append(Step(function, tuple(node.input), tuple(node.output), (calls[0], calls[1]), tuple(sorted(drop))))
    return tuple(found)


def constants(proto: onnx.ModelProto) -> dict[str, Tensor]:
    """Return every initializer and Constant node of the main graph as a torch tensor, by tensor name.

    Raises
    ------
    ModelError
        When one is sparse, or of an element type that torch does not compute with.
    """
    if proto.graph.sparse_initializer:
        raise ModelError(
            "the torch interpreter does not read sparse initializers",
            where=proto.graph.sparse_initializer[0].values.name,
        )
    found = {tensor.name: to_tensor(tensor) for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if is_constant(node):
            found[node.output[0]] = _constant(node)
    return found


def trained(proto: onnx.ModelProto, values: dict[str, Tensor], candidates: Iterable[str]) -> set[str]:
    """Tell the weights among a graph's float constants.

    Settings and running statistics (`NOT_TRAINED`), also behind Identity nodes, are not weights, and neither
    are scalars of rank 0: exporters write mathematical constants so (the 0.5 of a GELU), while what was
    learnt has an axis.

    Parameters
    ----------
    proto : onnx.ModelProto
        The model.
    values : dict
        Its constants by name.
    candidates : iterable of str
        Names of float constants.

    Returns
    -------
    set of str
    """
    source: dict[str, str] = {}
    settings = set()
    for node in proto.graph.node:
        origin = [source.get(name, name) for name in node.input]
        if node.op_type == "Identity":
            source[node.output[0]] = origin[0]
        settings |= {origin[k] for k in NOT_TRAINED.get(node.op_type, ()) if k < len(origin)}
    return {name for name in candidates if name not in settings and values[name].dim() > 0}


def is_constant(node: onnx.NodeProto) -> bool:
    """Tell whether a node is the standard Constant."""
    return bool(node.op_type == "Constant" and node.domain in DEFAULT_DOMAINS)


def _constant(node: onnx.NodeProto) -> Tensor:
    attribute = node.attribute[0]
    value = _value(attribute)
    if attribute.name in ("value_float", "value_floats"):
        return torch.tensor(value, dtype=torch.float32)
    if attribute.name in ("value_int", "value_ints"):
        return torch.tensor(value, dtype=torch.int64)
    if not isinstance(value, Tensor):
        raise ModelError(f"the torch interpreter does not read a Constant's {attribute.name}", where=_where(node))
    return value


def _value(attribute: onnx.AttributeProto) -> Any:
    value: Any = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    return to_tensor(value) if isinstance(value, onnx.TensorProto) else value


def _function(node: onnx.NodeProto, call: Call) -> Operator:
    domain = node.domain or "ai.onnx"
    function = OPERATORS.get(node.op_type) if node.domain in DEFAULT_DOMAINS else None
    why = "" if function else "it is not in the table of operators"
    if function and node.op_type in RESTRICTIONS:
        why = RESTRICTIONS[node.op_type](call)
    if function is None or why:
        raise UnsupportedOperatorError(
            f"the torch interpreter cannot run {node.op_type} of domain {domain}",
            where=_where(node),
            why=why,
            hint="graphprune.finetune.operators.OPERATORS lists the operators it knows",
        )
    return function


def _where(node: onnx.NodeProto) -> str:
    return f"node {node.name!r}" if node.name else f"the node that makes {node.output[0]!r}"
