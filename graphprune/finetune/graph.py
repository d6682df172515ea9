"""Read an ONNX graph into steps that torch can run: all that is decided before forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import onnx
from torch import Tensor

from graphprune.errors import ModelError, UnsupportedOperatorError
from graphprune.finetune.constants import AS_ATTRIBUTES, attribute_value, is_constant, place, settings
from graphprune.finetune.operators import OPERATORS, REFUSED, RESTRICTIONS, Call, Operator
from graphprune.ir.bodies import DEFAULT_DOMAINS, captured, is_control_flow

OLDEST_OPSET = 7
"""Operator sets below broadcast by an attribute; ONNX Runtime does not promise to run them either."""
BRANCHES = ("then_branch", "else_branch", "body")
"""The attributes that hold bodies, in the order in which an operator is given them."""


@dataclass(frozen=True)
class Body:
    """A branch of If, or the body of Loop or Scan, ready to run.

    Attributes
    ----------
    inputs, outputs : tuple of str
        Tensor names. All names of the model are different, so that a body computes in its surroundings.
    steps : tuple of Step
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]

    def run(self, values: dict[str, Tensor], training: bool, *given: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs from what the node hands in and from what stands around it, in ``values``."""
        values.update(zip(self.inputs, given, strict=True))
        for step in self.steps:
            step.run(values, training)
        return tuple(values[name] for name in self.outputs)


@dataclass(frozen=True)
class Step:
    """One node, ready to run.

    Attributes
    ----------
    function : Operator
        What computes it.
    inputs, outputs : tuple of str
        Tensor names; empty where an optional one is left out, and where an input has become an attribute.
    calls : tuple of Call
        What the function is told in evaluation mode and in training mode.
    last_uses : tuple of str
        Tensors that no later step and no graph output reads.
    bodies : tuple of Body
        Of control flow: given to the function as functions, before its inputs.
    """

    function: Operator
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    calls: tuple[Call, Call]
    last_uses: tuple[str, ...]
    bodies: tuple[Body, ...] = ()

    def run(self, values: dict[str, Tensor], training: bool) -> None:
        """Compute the outputs into ``values`` and drop from it what is not read again."""
        bodies = [partial(body.run, values, training) for body in self.bodies]
        results = self.function(self.calls[training], *bodies, *(values.get(name) for name in self.inputs))
        if isinstance(results, Tensor):
            results = (results,)
        # An output without a name is not asked for, and must not pass for an input that is left out.
        values.update((name, made) for name, made in zip(self.outputs, results, strict=False) if name)
        for name in self.last_uses:
            values.pop(name, None)


def with_changed(steps: Iterable[Step], change: Callable[[Step], Step]) -> tuple[Step, ...]:
    """Return steps of which each is what a function makes of it, those in bodies too.

    Parameters
    ----------
    steps : iterable of Step
    change : callable
        From a step, whose bodies are changed already, to another one; names are those of the model, and differ.
    """
    return tuple(
        change(replace(step, bodies=tuple(replace(b, steps=with_changed(b.steps, change)) for b in step.bodies)))
        for step in steps
    )


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
    """Look up every node of an opened model, in the order of the graph, Constant nodes left out.

    Raises
    ------
    UnsupportedOperatorError
        When the table of operators lacks one, or lacks an attribute's setting.
    """
    return _steps(proto.graph, default_opset(proto), settings(proto))


def _steps(graph: onnx.GraphProto, opset: int, stored: Mapping[str, list[Any]]) -> tuple[Step, ...]:
    nodes = [node for node in graph.node if not is_constant(node)]
    touched = [{*node.input, *captured(node), *_made(node)} for node in nodes]
    # An output that nobody reads is last "used" where it is made.
    last_use = {name: position for position, names in enumerate(touched) for name in names}
    kept = {output.name for output in graph.output}
    # What is defined around a body may be read again, in its next run or behind it.
    own = {value.name for value in graph.input} | {name for node in nodes for name in _made(node)}
    found = []
    for position, node in enumerate(nodes):
        drop = [n for n in touched[position] if last_use[n] == position and n in own and n not in kept]
        found.append(_step(node, opset, stored, drop))
    return tuple(found)


def _made(node: onnx.NodeProto) -> list[str]:
    """What a node makes, in its bodies as far as it hands it on, too."""
    made = list(node.output)
    for body in _bodies(node):
        computed = {name for inner in body.node if not is_constant(inner) for name in inner.output}
        made.extend(value.name for value in body.output if value.name in computed)
    return made


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    if not is_control_flow(node):
        return []
    by_name = {attribute.name: attribute.g for attribute in node.attribute}
    return [by_name[name] for name in BRANCHES if name in by_name]


def _step(node: onnx.NodeProto, opset: int, stored: Mapping[str, list[Any]], drop: Iterable[str]) -> Step:
    inputs = list(node.input)
    attributes = {a.name: attribute_value(a) for a in node.attribute if not a.HasField("g")}
    for slot, name in AS_ATTRIBUTES.get(node.op_type, {}).items() if node.domain in DEFAULT_DOMAINS else ():
        if slot < len(inputs) and inputs[slot] in stored:
            attributes[name] = stored[inputs[slot]]
            inputs[slot] = ""
    given = tuple(bool(name) for name in node.input)
    evaluating, training = (Call(attributes, opset, len(node.output), mode, given) for mode in (False, True))
    function = _function(node, evaluating)
    inside = tuple(
        Body(
            tuple(value.name for value in body.input),
            tuple(value.name for value in body.output),
            _steps(body, opset, stored),
        )
        for body in _bodies(node)
    )
    return Step(function, tuple(inputs), tuple(node.output), (evaluating, training), tuple(sorted(drop)), inside)


def _function(node: onnx.NodeProto, call: Call) -> Operator:
    standard = node.domain in DEFAULT_DOMAINS
    op = node.op_type if standard else f"{node.domain}.{node.op_type}"
    function = OPERATORS.get(op)
    why, hint = "", "graphprune.finetune.operators.OPERATORS lists the operators it knows"
    if function is None:
        why, hint = REFUSED.get(op, ("it is not in the table of operators", hint))
    elif op in RESTRICTIONS:
        why = RESTRICTIONS[op](call)
    if function is None or why:
        raise UnsupportedOperatorError(
            f"the torch interpreter cannot run {node.op_type} of domain {node.domain or 'ai.onnx'}",
            where=place(node),
            why=why,
            hint=hint,
        )
    return function
