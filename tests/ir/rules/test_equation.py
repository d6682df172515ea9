"""Einsum's equations, against numpy's reading of them."""

from __future__ import annotations

import numpy as np
import pytest

from graphprune.ir.rules.equation import Equation, parse_equation

CASES = [
    ("ij,jk->ik", [(2, 3), (3, 4)]),
    ("ij, jk", [(2, 3), (3, 4)]),
    ("zb,ba", [(2, 3), (3, 4)]),
    ("bhqd,bhkd->bhqk", [(2, 3, 4, 5), (2, 3, 6, 5)]),
    ("...ij,...jk->...ik", [(2, 5, 3, 4), (5, 4, 6)]),
    ("i...,...i", [(2, 3, 4), (3, 4, 2)]),
    ("...,...->...", [(2, 3), (3,)]),
    ("ii->i", [(3, 3)]),
    ("a,b,c->cab", [(2,), (3,), (4,)]),
    ("i,i->", [(3,), (3,)]),
]


@pytest.mark.parametrize(("text", "shapes"), CASES)
def test_the_result_has_the_shape_that_its_labels_say(text: str, shapes: list[tuple[int, ...]]) -> None:
    operands = [np.ones(shape) for shape in shapes]
    equation = parse_equation(text, [len(shape) for shape in shapes])
    assert equation is not None
    extents = {
        label: extent
        for labels, shape in zip(equation.operands, shapes, strict=True)
        for label, extent in zip(labels, shape, strict=True)
    }
    assert [extents[label] for label in equation.result] == list(np.einsum(text, *operands).shape)


def test_an_ellipsis_is_laid_out_from_its_end() -> None:
    expected = Equation((("-2", "-1", "i"), ("-1", "i", "j")), ("-2", "-1", "j"))
    assert parse_equation("...i,...ij->...j", [3, 3]) == expected


@pytest.mark.parametrize(("text", "ranks"), [("ij,jk->ik", [2]), ("ij->i", [3]), ("ij...->i", [1])])
def test_an_equation_that_does_not_fit_is_none(text: str, ranks: list[int]) -> None:
    assert parse_equation(text, ranks) is None
