"""The rules, a file per operator family; an operator absent from the table freezes what it touches."""

from __future__ import annotations

from graphprune.ir.rules import (
    convolution,
    elementwise,
    gather,
    matmul,
    movement,
    normalization,
    pooling,
    recurrent,
    reduction,
    repetition,
    resampling,
    reshape,
    softmax,
)
from graphprune.ir.rules.rule import Rule

RULES: dict[str, Rule] = {
    **convolution.RULES,
    **elementwise.RULES,
    **gather.RULES,
    **matmul.RULES,
    **movement.RULES,
    **normalization.RULES,
    **pooling.RULES,
    **recurrent.RULES,
    **reduction.RULES,
    **repetition.RULES,
    **resampling.RULES,
    **reshape.RULES,
    **softmax.RULES,
}

__all__ = ["RULES", "Rule"]
