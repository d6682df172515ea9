"""The ONNX operators in torch: one table, filled by a small module for each family.

Every function follows the operator's page of the specification, https://onnx.ai/onnx/operators/. To add an operator,
write ``function(call, *inputs)`` in its family's module and name it in that module's ``OPERATORS``; attributes that it
cannot serve go into ``RESTRICTIONS``, so that they are refused when the module is made. Make tensors on the device of
the inputs, and give it an example in ``tests/finetune/cases.py``: outputs, gradients and device are tested with it.
"""

from __future__ import annotations

from graphprune.finetune.operators import (
    attention,
    control_flow,
    convolution,
    elementwise,
    fused,
    indexing,
    linear,
    normalization,
    pooling,
    positions,
    quantization,
    recurrent,
    reduction,
    resize,
    rotary,
    runtime_attention,
    sampling,
    scatter,
    shape,
)
from graphprune.finetune.operators.call import Call, Operator, Restriction

OPERATORS: dict[str, Operator] = {
    **attention.OPERATORS,
    **control_flow.OPERATORS,
    **convolution.OPERATORS,
    **elementwise.OPERATORS,
    **fused.OPERATORS,
    **indexing.OPERATORS,
    **linear.OPERATORS,
    **normalization.OPERATORS,
    **pooling.OPERATORS,
    **positions.OPERATORS,
    **quantization.OPERATORS,
    **recurrent.OPERATORS,
    **reduction.OPERATORS,
    **resize.OPERATORS,
    **rotary.OPERATORS,
    **runtime_attention.OPERATORS,
    **sampling.OPERATORS,
    **scatter.OPERATORS,
    **shape.OPERATORS,
}
"""Operators by type, with the domain in front where it is not ONNX's own; ``Constant`` is read when the module is made.
"""

RESTRICTIONS: dict[str, Restriction] = {
    **attention.RESTRICTIONS,
    **control_flow.RESTRICTIONS,
    **elementwise.RESTRICTIONS,
    **fused.RESTRICTIONS,
    **indexing.RESTRICTIONS,
    **normalization.RESTRICTIONS,
    **pooling.RESTRICTIONS,
    **positions.RESTRICTIONS,
    **quantization.RESTRICTIONS,
    **recurrent.RESTRICTIONS,
    **resize.RESTRICTIONS,
    **rotary.RESTRICTIONS,
    **runtime_attention.RESTRICTIONS,
    **sampling.RESTRICTIONS,
}
"""What an operator refuses, by type; absent = nothing."""

REFUSED: dict[str, tuple[str, str]] = {**quantization.REFUSED}
"""Operators that are left out on purpose: why, and what to do."""

__all__ = ["OPERATORS", "REFUSED", "RESTRICTIONS", "Call", "Operator", "Restriction"]
