"""Equations of Einsum: which axes of the operands and of the result run together.

Reference: https://onnx.ai/onnx/operators/onnx__Einsum.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Labels = tuple[str, ...]
"""A label for every axis of a tensor: its letter, or for an axis within an ellipsis its place counted from the
ellipsis's end ("-1" is the last)."""


@dataclass(frozen=True)
class Equation:
    """An equation, axis by axis.

    Attributes
    ----------
    operands : tuple of tuple of str
        Labels of each operand's axes.
    result : tuple of str
        Labels of the result's axes.
    """

    operands: tuple[Labels, ...]
    result: Labels


def parse_equation(text: str, ranks: Sequence[int]) -> Equation | None:
    """Lay an equation out for operands of known rank.

    Parameters
    ----------
    text : str
        As in Einsum's attribute: ``"bhqd,bhkd->bhqk"``, ``"...mk,kn"``.
    ranks : sequence of int
        Number of axes of each operand.

    Returns
    -------
    Equation or None
        None when the equation does not fit the ranks.
    """
    left, arrow, right = text.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        return None
    covered = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    if any(extra < 0 or (extra > 0 and "..." not in term) for term, extra in zip(terms, covered, strict=True)):
        return None
    operands = tuple(_labels(term, extra) for term, extra in zip(terms, covered, strict=True))
    widest = max(covered, default=0)
    if arrow:
        return Equation(operands, _labels(right, widest))
    # Without an arrow the result has the ellipsis, then in alphabetic order the letters that occur once.
    once = sorted(letter for letter in set(left) - set(".,") if left.count(letter) == 1)
    return Equation(operands, (*_labels("..." if "..." in left else "", widest), *once))


def _labels(term: str, covered: int) -> Labels:
    before, dots, behind = term.partition("...")
    inside = [str(place) for place in range(-covered, 0)] if dots else []
    return (*before, *inside, *behind)
