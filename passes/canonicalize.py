"""Bring a graph into the one form that the other passes expect, without changing what it computes.

Local functions are inlined, and the branch of an If that is always taken. Constant nodes become initializers, those of
bodies too; initializers are taken off the graph inputs, shape arithmetic is folded, identities, requantisations between
moves and dead nodes go. Every weight keeps its name and stays bit-identical.
"""

from __future__ import annotations

import onnx

from graphprune.ir.rewriting import lifting, simplify


def canonicalize(proto: onnx.ModelProto, *, dropout: bool = True) -> onnx.ModelProto:
    """Return the canonical form of a model.

    Parameters
    ----------
    proto : onnx.ModelProto
        Not changed.
    dropout : bool, default True
        Whether Dropout goes, which does nothing at inference; False for a model that is trained further.

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
    lifting.inline_functions(result)
    lifting.open_bodies(result)
    simplify.constants_to_initializers(result)
    simplify.unlist_initializers(result)
    simplify.fold_constants(result)
    while lifting.inline_branches(result):  # what is known then may settle the condition of another If
        simplify.fold_constants(result)
    simplify.correct_ranks(result)
    simplify.settle_reshapes(result)
    simplify.drop_zero_states(result)
    simplify.remove_identities(result, dropout=dropout)
    simplify.remove_requantizations(result)
    simplify.drop_dead(result)
    simplify.unlist_initializers(result)
    return result
