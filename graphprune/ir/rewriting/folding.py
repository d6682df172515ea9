"""Values of tensors that do not depend on any input or weight: shape arithmetic, mostly."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER

from graphprune.errors import ModelError
from graphprune.ir.bodies import defined, drop_nodes, open_graphs
from graphprune.ir.graph import Graph
from graphprune.ir.session import quiet_sessions
from graphprune.ir.shapes.entries import numbers
from graphprune.ir.shapes.inference import infer_shapes, skeleton

ROUNDS = 3
"""Each round of folding lets shape inference see further, which lets the next fold more."""


def constant_values(proto: onnx.ModelProto) -> dict[str, npt.NDArray[np.generic]]:
    """Compute every integer or boolean node output that is the same for all inputs.

    Parameters
    ----------
    proto : onnx.ModelProto
        Weights are not looked at, so what is computed from them is not found.

    Returns
    -------
    dict of str to ndarray
        By tensor name; also what follows from the known extents of otherwise dynamic shapes.

    Raises
    ------
    ModelError
        When shape inference finds the graph contradictory.
    """
    G_LOGGER.severity = G_LOGGER.CRITICAL
    logging.getLogger("onnx_graphsurgeon").setLevel(logging.CRITICAL)
    produced = {name for graph in open_graphs(proto) for node in graph.node for name in node.output if name}
    found: dict[str, npt.NDArray[np.generic]] = {}
    plain = skeleton(proto)
    bare = infer_shapes(plain)
    for _ in range(ROUNDS):
        before = len(found)
        try:
            with quiet_sessions():
                graph = gs.import_onnx(bare).fold_constants(recurse_subgraphs=False, recurse_functions=False)
        except Exception as error:  # graphsurgeon raises its own, ORT's and numpy's
            raise ModelError("the graph's shape arithmetic cannot be folded", why=str(error)) from error
        for name, tensor in graph.tensors().items():
            if name in produced and isinstance(tensor, gs.Constant):
                value = np.asarray(tensor.values)
                if value.dtype.kind in "iub":
                    found[name] = value
        found |= {name: value for name, value in _entry_by_entry(bare).items() if name in produced}
        if len(found) == before:
            break
        bare = infer_shapes(_with_values(plain, found))
    return found


def _entry_by_entry(bare: onnx.ModelProto) -> dict[str, npt.NDArray[np.generic]]:
    """Integers that follow from the known extents of shapes of which others are dynamic."""
    known: dict[str, npt.NDArray[np.generic]] = {}
    for name, entries in Graph(bare).entries.items():
        values = numbers(entries)
        if values and entries.flat[0].dtype.kind in "iub":
            known[name] = np.array(values, dtype=entries.flat[0].dtype).reshape(entries.shape)
    return known


def _with_values(bare: onnx.ModelProto, values: dict[str, npt.NDArray[np.generic]]) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(bare)
    drop_nodes(result, lambda node: all(name in values for name in node.output if name))
    made = {name for graph in open_graphs(result) for name in defined(graph)}
    for name, value in values.items():
        if name not in made:
            result.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return result
