"""The rules, a file per operator family; an operator absent from the table freezes what it touches."""

from __future__ import annotations

from graphprune.ir.rules import (
    convolution,
    elementwise,
    matmul,
    movement,
    normalization,
    pooling,
    recurrent,
    reduction,
    reshape,
    softmax,
)
from graphprune.ir.rules.rule import Rule

RULES: dict[str, Rule] = {
    **convolution.RULES,
    **elementwise.RULES,
    **matmul.RULES,
    **movement.RULES,
    **normalization.RULES,
    **pooling.RULES,
    **recurrent.RULES,
    **reduction.RULES,
    **reshape.RULES,
    **softmax.RULES,
}

__all__ = ["RULES", "Rule"]
