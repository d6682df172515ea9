"""Values of the weights that contractions read, by the position that they are contracted over."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import onnx
from onnx.reference import ReferenceEvaluator

from graphprune.errors import GraphPruneError
from graphprune.ir.coupling.atoms import IdArray
from graphprune.ir.coupling.units import Contraction, Coupling
from graphprune.ir.graph import Graph
from graphprune.ir.session import open_session, run_session
from graphprune.ir.tensors import array

FloatArray = npt.NDArray[np.float64]

SCALED = ("Gemm", "com.microsoft.FusedGemm", "com.microsoft.FusedMatMul")
"""Operators whose attribute ``alpha`` multiplies the weight."""
PRODUCTS = ("MatMul", "Einsum", "com.microsoft.FusedMatMul")
"""Operators whose weight may be a batch of matrices."""


def constant_value(graph: Graph, name: str) -> npt.NDArray[np.generic] | None:
    """Return the value of an initializer, or of what is computed from initializers alone; None otherwise.

    None also where neither the reference implementation nor ONNX Runtime knows an operator on the way.
    """
    if name in graph.initializers:
        return array(graph.initializers[name])
    if name not in graph.constants:
        return None
    nodes, names, pending = set(), set(), [name]
    while pending:
        current = pending.pop()
        if current in graph.initializers:
            names.add(current)
        elif current:
            nodes.add(graph.producer[current].index)
            pending.extend(graph.producer[current].inputs)
    output = onnx.ValueInfoProto(name=name)
    small = onnx.helper.make_graph(
        [graph.nodes[index].proto for index in sorted(nodes)],
        "constant",
        [],
        [output],
        [graph.initializers[source] for source in names],
    )
    model = onnx.helper.make_model(
        small,
        opset_imports=graph.proto.opset_import,
        functions=graph.proto.functions,
        ir_version=graph.proto.ir_version,
    )
    try:
        (value,) = ReferenceEvaluator(model).run([name], {})
    except (RuntimeError, TypeError, ValueError):  # NotImplementedError is a RuntimeError
        return _run(model, name)
    return np.asarray(value)


def _run(model: onnx.ModelProto, name: str) -> npt.NDArray[np.generic] | None:
    """Let ONNX Runtime compute a value; it knows DequantizeLinear of older operator sets, for one."""
    try:
        (value,) = run_session(open_session(model, threads=1, optimise=False), {}, [name])
    except GraphPruneError:
        return None
    return np.asarray(value)


def contracted_matrix(graph: Graph, contraction: Contraction) -> FloatArray | None:
    """Return the weight as [contracted positions, output channels], its other axes summed up.

    Parameters
    ----------
    graph : Graph
    contraction : Contraction
        One that sums over units.

    Returns
    -------
    ndarray of float64, shape (positions, outputs), or None
        Entry (i, o) is the sum of the weights between input position i and output channel o, 0 where they are in
        different groups; None when the weight's value is not known, or it is a batch of matrices.
    """
    by_position = _by_position(graph, contraction)
    if by_position is None or (contraction.node.op in PRODUCTS and by_position.shape[2] > 1):
        return None
    summed: FloatArray = by_position.sum(axis=2, dtype=np.float64)
    if contraction.groups == 1:
        return summed
    per_group, outputs = summed.shape
    matrix = np.zeros((per_group * contraction.groups, outputs))
    for group in range(contraction.groups):
        columns = slice(group * outputs // contraction.groups, (group + 1) * outputs // contraction.groups)
        matrix[group * per_group : (group + 1) * per_group, columns] = summed[:, columns]
    return matrix


def consumed_units(coupling: Coupling, contraction: Contraction) -> list[IdArray]:
    """Return the units that a contraction consumes, by position as in `contracted_norms`.

    Returns
    -------
    list of ndarray, each of shape (positions,)
        Unit numbers of the activation's axis, or where the units never leave the node those of the weight that they
        meet; see `Coupling.along`.
    """
    if contraction.data_axis is None:
        # Groups share the columns of their weight: there, no column is one unit.
        name = contraction.node.input(contraction.weight)
        return coupling.along(name, contraction.weight_axis) if contraction.groups == 1 else []
    return coupling.along(contraction.node.input(contraction.data), contraction.data_axis)


def contracted_norms(graph: Graph, contraction: Contraction) -> FloatArray:
    """Return the squared norm of the weights that read each contracted position.

    Returns
    -------
    ndarray of float64, shape (positions,)
        Ones when the weight's value is not known: an activation, too, say.
    """
    squares = _powers(graph, contraction, 2)
    if squares is None:
        extent = (graph.shape(contraction.node.input(contraction.data)) or ())[contraction.data_axis or 0]
        return np.ones(extent if isinstance(extent, int) else 1)
    return np.asarray(squares.reshape(len(squares), contraction.groups, -1).sum(axis=2).T.ravel())


def produced_norms(graph: Graph, contraction: Contraction, order: int = 2) -> FloatArray | None:
    """Return the norm of the weights that make each output channel, to the power of its order.

    Parameters
    ----------
    graph : Graph
    contraction : Contraction
    order : {1, 2}, default 2
        Sum of absolute values, or sum of squares.

    Returns
    -------
    ndarray of float64, shape (extent of the weight's output axis,), or None
        None when the weight's value is not known.
    """
    powers = _powers(graph, contraction, order)
    return None if powers is None else np.asarray(powers.sum(axis=0))


def _powers(graph: Graph, contraction: Contraction, order: int) -> FloatArray | None:
    """Sums of |w| ** order by [positions of one group, output channels], in float64 without a copy of w in it."""
    by_position = _by_position(graph, contraction)
    if by_position is None:
        return None
    if order == 1:
        return np.asarray(np.abs(by_position).sum(axis=2, dtype=np.float64))
    return np.asarray(np.einsum("pok,pok->po", by_position, by_position, dtype=np.float64))


def _by_position(graph: Graph, contraction: Contraction) -> npt.NDArray[np.floating] | None:
    """The weight as [positions of one group, output channels, everything else], by what the operator scales it with."""
    name = contraction.node.input(contraction.weight)
    value = constant_value(graph, name)
    if value is None:
        return None
    if name in graph.quantized:
        value = graph.quantized[name].numbers(value)
    axes = (contraction.weight_axis, contraction.output_axis)
    scale = float(contraction.node.attributes.get("alpha", 1.0)) if contraction.node.op in SCALED else 1.0
    wide: npt.NDArray[np.floating] = np.asarray(value, np.float64 if value.dtype == np.float64 else np.float32)
    moved = np.moveaxis(wide if scale == 1.0 else wide * scale, axes, (0, 1))
    return np.asarray(moved.reshape(*moved.shape[:2], math.prod(moved.shape[2:])))
