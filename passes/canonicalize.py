"""Bring a graph into the one form that the other passes expect, without changing what it computes.

Constant nodes become initializers, initializers are taken off the graph inputs, shape arithmetic is folded, identities
and dead nodes go. Where the kept weights may change, BatchNormalization is folded into the convolution before it.
"""

from __future__ import annotations

import onnx

from graphprune.ir import rewrite


def canonicalize(proto: onnx.ModelProto, *, fold_weights: bool) -> onnx.ModelProto:
    """Return the canonical form of a model.

    Parameters
    ----------
    proto : onnx.ModelProto
        Not changed.
    fold_weights : bool
        Whether weights may be computed anew (BatchNormalization folded). Otherwise every weight keeps its name and
        stays bit-identical.

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
    if fold_weights:
        while rewrite.fold_batch_normalization(result):  # one may stand behind another
            pass
    rewrite.drop_dead(result)
    rewrite.unlist_initializers(result)
    return result
