"""Fold BatchNormalization into the convolution before it, as the last pass where kept weights may change.

Last, because magnitudes say more before it: folding scales every output channel by gamma / sigma, and global magnitude
pruning of the scaled weights is far worse (resnet20 with BatchNormalization at 50 % zeros: 77 % top-1 ranked before
folding, 44 % after).
"""

from __future__ import annotations

import onnx

from graphprune.ir.rewriting import simplify


def fold(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with BatchNormalization folded where that is exact.

    Parameters
    ----------
    proto : onnx.ModelProto
        Not changed.

    Returns
    -------
    onnx.ModelProto
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    while simplify.fold_batch_normalization(result):  # one may stand behind another
        simplify.drop_dead(result)
    simplify.unlist_initializers(result)
    return result
