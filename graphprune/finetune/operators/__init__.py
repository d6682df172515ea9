"""The ONNX operators in torch: one table, filled by a small module for each family.

Every function follows the operator's page of the specification, https://onnx.ai/onnx/operators/. To add an
operator, write ``function(call, *inputs)`` in its family's module and name it in that module's ``OPERATORS``;
attributes that it cannot serve go into ``RESTRICTIONS``, so that they are refused when the module is made.
"""

from __future__ import annotations

from graphprune.finetune.operators import (
    convolution,
    elementwise,
    indexing,
    linear,
    normalization,
    pooling,
    reduction,
    resize,
    shape,
)
from graphprune.finetune.operators.call import Call, Operator, Restriction

OPERATORS: dict[str, Operator] = {
    **convolution.OPERATORS,
    **elementwise.OPERATORS,
    **indexing.OPERATORS,
    **linear.OPERATORS,
    **normalization.OPERATORS,
    **pooling.OPERATORS,
    **reduction.OPERATORS,
    **resize.OPERATORS,
    **shape.OPERATORS,
}
"""Operators of the default domain by type; ``Constant`` is read when the module is made."""

RESTRICTIONS: dict[str, Restriction] = {
    **elementwise.RESTRICTIONS,
    **indexing.RESTRICTIONS,
    **normalization.RESTRICTIONS,
    **pooling.RESTRICTIONS,
    **resize.RESTRICTIONS,
}
"""What an operator refuses, by type; absent = nothing."""

__all__ = ["OPERATORS", "RESTRICTIONS", "Call", "Operator", "Restriction"]
