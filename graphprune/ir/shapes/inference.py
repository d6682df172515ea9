"""Shapes of all tensors of a model: ONNX's inference without the weights, and what it misses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from graphprune.errors import ModelError
from graphprune.ir.bodies import open_graphs
from graphprune.ir.shapes.flow import infer_flat
from graphprune.ir.shapes.readers import demanded_shapes
from graphprune.ir.shapes.stand_ins import with_stand_ins
from graphprune.ir.shapes.targets import computed_shapes
from graphprune.ir.tensors import FLOAT_TYPES

Dim = int | str | None
"""One extent of a shape: a number, a symbol, or nothing known."""
Shape = tuple[Dim, ...]

SMALL = 4096
"""Integer tensors of up to this many elements keep their values in a skeleton: shape inference needs them."""
SCALES = 16
"""The same for float tensors, for the scales of Resize."""


def infer_shapes(proto: onnx.ModelProto, input_shapes: Mapping[str, Shape] | None = None) -> onnx.ModelProto:
    """Run ONNX shape inference on the model without its weights.

    Parameters
    ----------
    proto : onnx.ModelProto
    input_shapes : mapping, optional
        Concrete shapes to assume for graph inputs, by name.

    Returns
    -------
    onnx.ModelProto
        A skeleton (see `skeleton`) with inferred ``value_info``, its control flow laid flat
        (`graphprune.ir.shapes.flow`). What the exporter noted there counts where it does not contradict what is
        inferred without it: ONNX Runtime takes stale notes, too. Where nothing is inferred nor noted, what a tensor's
        readers demand counts (`graphprune.ir.shapes.readers`).

    Raises
    ------
    ModelError
        When the graph contradicts itself.
    """
    bare = skeleton(proto)
    if input_shapes:
        del bare.graph.value_info[:]  # what the exporter noted holds for other input shapes
        for value in bare.graph.output:
            value.type.tensor_type.ClearField("shape")
    for value in bare.graph.input:
        for dim, extent in zip(
            value.type.tensor_type.shape.dim, (input_shapes or {}).get(value.name, ()), strict=False
        ):
            if isinstance(extent, int):
                dim.dim_value = extent
    notes = list(bare.graph.value_info)
    del bare.graph.value_info[:]
    inferred = _infer(bare)
    alone = _known_shapes(inferred)
    news = [v for v in notes if v.name not in alone or _adds(shape_of(v), alone[v.name])]
    known = {*alone, *(v.name for v in news)}
    nodes = (node for graph in open_graphs(proto) for node in graph.node)
    news += [v for name, v in demanded_shapes(proto.graph, nodes).items() if name not in known]
    if news:
        bare.graph.value_info.extend(news)
        inferred = _infer(bare)
    return _infer_computed(bare, inferred)


def _infer_computed(bare: onnx.ModelProto, inferred: onnx.ModelProto) -> onnx.ModelProto:
    """Infer again as long as numbers are found in the shapes that the graph computes.

    Symbols alone come one node further with every round, so they get no second one.
    """
    numbers_found, noted = True, dict[str, list[Dim]]()
    while True:
        known = _known_shapes(inferred)
        kinds = {v.name: v.type.tensor_type.elem_type for v in listed_values(inferred.graph)}
        found = computed_shapes(inferred.graph, known)
        news = {name: shape for name, shape in found.items() if kinds.get(name) and noted.get(name) != shape}
        more_numbers = any(_count_numbers(shape) > _count_numbers(known.get(name, ())) for name, shape in news.items())
        if not news or not (more_numbers or numbers_found):
            return inferred
        numbers_found = more_numbers
        noted.update(news)
        for value in [v for v in bare.graph.value_info if v.name in news]:
            bare.graph.value_info.remove(value)
        bare.graph.value_info.extend(
            onnx.helper.make_tensor_value_info(name, kinds[name], shape) for name, shape in news.items()
        )
        inferred = _infer(bare)


def _count_numbers(shape: Sequence[Dim]) -> int:
    return sum(isinstance(extent, int) for extent in shape)


def _known_shapes(inferred: onnx.ModelProto) -> dict[str, Shape]:
    shapes = {v.name: shape_of(v) for v in listed_values(inferred.graph) if v.type.tensor_type.HasField("shape")}
    return shapes | {t.name: tuple(t.dims) for t in inferred.graph.initializer}


def _infer(bare: onnx.ModelProto) -> onnx.ModelProto:
    return infer_flat(bare, _infer_nodes)


def _infer_nodes(bare: onnx.ModelProto) -> onnx.ModelProto:
    stood_in = with_stand_ins(bare)
    try:
        inferred = onnx.shape_inference.infer_shapes(stood_in, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError) as error:
        raise ModelError(
            "shape inference finds the graph contradictory",
            why=str(error).strip().splitlines()[0],
            hint="run onnx.checker.check_model(path, full_check=True) on it and mend the export",
        ) from error
    if stood_in is not bare:
        del inferred.graph.node[:]
        inferred.graph.node.extend(bare.graph.node)
    return inferred


def _adds(noted: Shape, known: Shape) -> bool:
    """Whether a note of the exporter says more than what is known, and does not contradict it."""
    if len(noted) != len(known):
        return False
    pairs = [(new, old) for new, old in zip(noted, known, strict=True) if isinstance(new, int)]
    return all(new == old or not isinstance(old, int) for new, old in pairs) and any(n != o for n, o in pairs)


def skeleton(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of the model in which large float initializers are inputs: the graph without its weights."""
    bare = onnx.ModelProto(ir_version=max(proto.ir_version, 4), producer_name=proto.producer_name)
    bare.opset_import.extend(proto.opset_import)
    bare.functions.extend(proto.functions)
    graph = bare.graph
    graph.name = proto.graph.name
    graph.node.extend(proto.graph.node)
    graph.output.extend(proto.graph.output)
    graph.value_info.extend(proto.graph.value_info)
    graph.sparse_initializer.extend(proto.graph.sparse_initializer)
    names = {t.name for t in proto.graph.initializer}
    graph.input.extend(v for v in proto.graph.input if v.name not in names)
    for tensor in proto.graph.initializer:
        size = int(np.prod(tensor.dims, dtype=np.int64))
        if size > (SCALES if tensor.data_type in FLOAT_TYPES else SMALL):
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        else:
            graph.initializer.append(tensor)
    return bare


def listed_values(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Return the notes on tensors that a graph holds: inputs, outputs and what lies between."""
    return [*graph.value_info, *graph.output, *graph.input]


def shape_of(value: onnx.ValueInfoProto) -> Shape:
    """Return the shape that a tensor of known rank is noted with."""
    return tuple(
        d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else (d.dim_param or None)
        for d in value.type.tensor_type.shape.dim
    )
