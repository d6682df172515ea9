"""The rules, a file per operator family; an operator absent from the table freezes what it touches."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint

from graphprune.ir.rules import (
    attention,
    control_flow,
    convolution,
    einsum,
    elementwise,
    fused,
    gather,
    matmul,
    movement,
    normalization,
    packed,
    pooling,
    positions,
    quantization,
    recurrent,
    reduction,
    repetition,
    resampling,
    reshape,
    rotary,
    scatter,
    shape,
    softmax,
)
from graphprune.ir.rules.plugins import find_plugins, load_rule
from graphprune.ir.rules.rule import Rule

RULES: dict[str, Rule] = {
    **attention.RULES,
    **control_flow.RULES,
    **convolution.RULES,
    **einsum.RULES,
    **elementwise.RULES,
    **fused.RULES,
    **gather.RULES,
    **matmul.RULES,
    **movement.RULES,
    **normalization.RULES,
    **packed.RULES,
    **pooling.RULES,
    **positions.RULES,
    **quantization.RULES,
    **recurrent.RULES,
    **reduction.RULES,
    **repetition.RULES,
    **resampling.RULES,
    **reshape.RULES,
    **rotary.RULES,
    **scatter.RULES,
    **shape.RULES,
    **softmax.RULES,
}

"""The built-in rules, by operator as in `graphprune.ir.graph.Node.op`."""


@cache
def rule_for(op: str) -> Rule | None:
    """Return an operator's rule: a built-in one, or that of an installed package (docs/rules.md).

    Parameters
    ----------
    op : str
        Operator as in `graphprune.ir.graph.Node.op`.

    Returns
    -------
    Rule or None
        None for an operator that nothing is known of.

    Raises
    ------
    PluginError
        When an installed package declares a rule for an operator that has one, or this operator's rule is unusable.
    """
    plugins = _plugins()
    return load_rule(plugins[op]) if op in plugins else RULES.get(op)


@cache
def _plugins() -> dict[str, EntryPoint]:
    return find_plugins(RULES)


__all__ = ["RULES", "Rule", "rule_for"]
