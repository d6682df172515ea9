"""A read-only view of a model: nodes, shapes, constants, producers and consumers, in the bodies of control flow too."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import numpy.typing as npt
import onnx

from graphprune.ir.bodies import DEFAULT_DOMAINS, nodes_below
from graphprune.ir.nodes import Node, list_nodes
from graphprune.ir.quantized import Quantized, find_quantized
from graphprune.ir.shapes.entries import Entries, find_entries
from graphprune.ir.shapes.inference import Shape, infer_shapes, listed_values, shape_of
from graphprune.ir.tensors import FLOAT_TYPES, array

RANDOM = frozenset("Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split())
"""Operators whose outputs differ from run to run."""


class Graph:
    """A read-only view of a model.

    Attributes
    ----------
    nodes : list of Node
        All nodes in an order in which they can be computed; those of a body stand before the node that holds it.
    main : tuple of Node
        Those of the main graph.

    Parameters
    ----------
    proto : onnx.ModelProto
        The model; it must not be changed while the view is in use.
    input_shapes : mapping, optional
        Concrete shapes to assume for graph inputs, by name.

    Raises
    ------
    ModelError
        When shape inference finds the graph contradictory.
    """

    def __init__(self, proto: onnx.ModelProto, input_shapes: Mapping[str, Shape] | None = None) -> None:
        self.proto = proto
        self.initializers = {t.name: t for t in proto.graph.initializer}
        self.inputs = [v.name for v in proto.graph.input if v.name not in self.initializers]
        self.outputs = [v.name for v in proto.graph.output]
        self.nodes, self.main = list_nodes(proto)
        self.producer = {name: node for node in self.nodes for name in node.outputs if name}
        self.consumers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.reads:
                if name in node.inputs or name not in node.captured or not node.bodies:
                    self.consumers.setdefault(name, []).append(node)
        self._input_shapes = input_shapes or {}

    @cached_property
    def opset(self) -> int:
        """Version of ONNX's own operator set that the model imports (1 when it imports none)."""
        return next((o.version for o in self.proto.opset_import if o.domain in DEFAULT_DOMAINS), 1)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Shape of every tensor whose rank is known."""
        shapes = {v.name: shape_of(v) for v in self._values if v.type.tensor_type.HasField("shape")}
        shapes.update({name: tuple(t.dims) for name, t in self.initializers.items()})
        return shapes

    @cached_property
    def element_types(self) -> dict[str, int]:
        """Element type of every tensor, as in ``onnx.TensorProto``, where it is known."""
        types = {v.name: v.type.tensor_type.elem_type for v in self._values if v.type.tensor_type.elem_type}
        types.update({name: t.data_type for name, t in self.initializers.items()})
        return types

    @cached_property
    def _inferred(self) -> onnx.GraphProto:
        return infer_shapes(self.proto, self._input_shapes).graph

    @property
    def _values(self) -> list[onnx.ValueInfoProto]:
        return listed_values(self._inferred)

    def shape(self, name: str) -> Shape | None:
        """Return a tensor's shape, None when not even its rank is known."""
        return self.shapes.get(name)

    @cached_property
    def entries(self) -> dict[str, Entries]:
        """What is known, entry by entry, of small tensors that hold shapes and the like."""
        return find_entries(self._inferred, self.shapes)

    def value(self, name: str) -> npt.NDArray[np.generic] | None:
        """Return the value of an initializer, None when the tensor is no initializer."""
        tensor = self.initializers.get(name)
        return None if tensor is None else array(tensor)

    def unused(self, name: str) -> str:
        """Return a tensor name that is not taken: this one, with underscores behind it if need be."""
        while name in self.initializers or name in self.producer or name in self.inputs or name in self.handed:
            name += "_"
        return name

    @cached_property
    def handed(self) -> set[str]:
        """Names of what control flow hands to its bodies: states, scanned positions, the number of the iteration."""
        return {name for node in self.nodes for body in node.bodies.values() for name in body.inputs}

    def is_inside(self, name: str) -> bool:
        """Return whether a tensor is only known in a body."""
        return name in self.handed or (name in self.producer and self.producer[name].inside)

    def is_float(self, name: str) -> bool:
        """Return whether the tensor is a float initializer."""
        return name in self.initializers and self.initializers[name].data_type in FLOAT_TYPES

    @cached_property
    def quantized(self) -> dict[str, Quantized]:
        """By name, integer initializers and Constant nodes that hold quantised numbers, and what these mean."""
        return find_quantized(self)

    def is_weight(self, name: str) -> bool:
        """Return whether the tensor is an initializer of weights: float numbers, or quantised ones."""
        return self.is_float(name) or (name in self.initializers and name in self.quantized)

    @cached_property
    def constants(self) -> set[str]:
        """Names of all tensors computed from initializers alone and without chance, initializers included."""
        functions = {(function.domain, function.name): function for function in self.proto.functions}
        found = set(self.initializers)
        for node in self.nodes:
            names = [name for name in node.inputs if name]
            fixed = names and not node.captured and not node.bodies and all(name in found for name in names)
            if fixed and not _is_random(node.proto, functions):
                found.update(name for name in node.outputs if name)
        return found

    def sources(self, name: str) -> list[str]:
        """Return the initializers of weights that a constant tensor is computed from."""
        found: dict[str, None] = {}
        pending = [name]
        while pending:
            current = pending.pop()
            if self.is_weight(current):
                found[current] = None
            elif current in self.producer and current in self.constants:
                pending.extend(n for n in self.producer[current].inputs if n)
        return list(found)


def _is_random(proto: onnx.NodeProto, functions: Mapping[tuple[str, str], onnx.FunctionProto]) -> bool:
    """Whether the node, its subgraphs or the local function that it calls draw random numbers."""
    if proto.domain in DEFAULT_DOMAINS and proto.op_type in RANDOM:
        return True
    function = functions.get((proto.domain, proto.op_type))
    inner = list(function.node) if function is not None else []
    inner += list(nodes_below([proto]))[1:]
    return any(_is_random(node, functions) for node in inner)
