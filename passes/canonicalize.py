"""Bring a graph into the one form that the other passes expect, without changing what it computes.

Constant nodes become initializers, initializers are taken off the graph inputs, shape arithmetic is folded, identities
and dead nodes go. Every weight keeps its name and stays bit-identical.
"""

from __future__ import annotations

import onnx

from graphprune.ir import rewrite


def canonicalize(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the canonical form of a model.

    Parameters
    ----------
    proto : onnx.ModelProto
        Not changed.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    ModelError
        When shape inference finds the graph contradictory.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    rewrite.constants_to_initializers(result)
    rewrite.unlist_initializers(result)
    rewrite.fold_constants(result)
    rewrite.remove_identities(result)
    rewrite.drop_dead(result)
    rewrite.unlist_initializers(result)
    return result
