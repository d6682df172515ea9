"""Atoms and their union-find."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from graphprune.ir.coupling.atoms import Atoms, IdArray, Reason, along, collapse, lift, support

WHY = Reason("node", "Op", "because")
LATER = Reason("other", "Op", "another reason")


def joined(atoms: Atoms) -> tuple[IdArray, IdArray]:
    """Return what every id is joined with, where there are no products, and the reasons that freeze it."""
    resolved = atoms.resolve()
    assert len(resolved.members) == 1
    return resolved.members[0], resolved.frozen


def smallest_members(count: int, pairs: list[tuple[int, int]]) -> list[int]:
    """The smallest element of every element's class, by merging sets."""
    classes = [{element} for element in range(count)]
    for left, right in pairs:
        if classes[left] is not classes[right]:
            merged = classes[left] | classes[right]
            for element in merged:
                classes[element] = merged
    return [min(own) for own in classes]


@given(
    st.integers(1, 40).flatmap(
        lambda count: st.tuples(
            st.just(count), st.lists(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=60)
        )
    )
)
def test_resolve_finds_connected_components(case: tuple[int, list[tuple[int, int]]]) -> None:
    count, pairs = case
    atoms = Atoms()
    ids = atoms.new((count,))
    for left, right in pairs:
        atoms.join(ids[left : left + 1], ids[right : right + 1])
    roots, reason_of = joined(atoms)
    assert roots.tolist() == smallest_members(count, pairs)
    assert (reason_of == -1).all()


def test_resolve_handles_a_long_chain_in_any_order() -> None:
    atoms = Atoms()
    ids = atoms.new((10_000,))
    order = np.random.default_rng(0).permutation(9_999)
    atoms.join(ids[order], ids[order + 1])
    roots, _ = joined(atoms)
    assert (roots == 0).all()


def test_new_ids_are_all_different() -> None:
    atoms = Atoms()
    first, second = atoms.new((2, 3)), atoms.new((4,))
    assert first.shape == (2, 3)
    assert sorted([*first.ravel(), *second]) == list(range(10))


def test_join_broadcasts() -> None:
    atoms = Atoms()
    matrix, row = atoms.new((2, 3)), atoms.new((1, 3))
    atoms.join(matrix, row)
    roots, _ = joined(atoms)
    assert roots[matrix].tolist() == [[0, 1, 2], [0, 1, 2]]
    assert roots[row].tolist() == [[0, 1, 2]]


def test_freezing_reaches_all_that_is_joined_and_the_first_reason_stays() -> None:
    atoms = Atoms()
    left, right, apart = atoms.new((2,)), atoms.new((2,)), atoms.new((1,))
    atoms.join(left, right)
    atoms.freeze(right[1:], WHY)
    atoms.freeze(left, LATER)
    _, reason_of = joined(atoms)
    assert [atoms.reasons[index] for index in reason_of[right]] == [LATER, WHY]
    assert reason_of[left].tolist() == reason_of[right].tolist()
    assert reason_of[apart].tolist() == [-1]


def test_one_reason_is_noted_once() -> None:
    atoms = Atoms()
    ids = atoms.new((2,))
    atoms.freeze(ids[:1], WHY)
    atoms.freeze(ids[1:], WHY)
    assert atoms.reasons == [WHY]


def test_no_atoms_at_all() -> None:
    roots, reason_of = joined(Atoms())
    assert roots.size == reason_of.size == 0


def test_collapse_shrinks_axes_along_which_nothing_changes() -> None:
    ids = np.broadcast_to(np.arange(3).reshape(1, 3, 1), (2, 3, 4))
    assert collapse(ids).shape == (1, 3, 1)
    assert collapse(ids).ravel().tolist() == [0, 1, 2]
    both = np.arange(6).reshape(2, 3)
    assert collapse(both).shape == (2, 3)


def test_support_along_and_lift() -> None:
    vector = along(np.arange(3), 4, 1)
    assert vector.shape == (1, 3, 1, 1)
    assert support(vector) == (1,)
    assert lift(vector, 6).shape == (1, 1, 1, 3, 1, 1)
    assert support(lift(vector, 6)) == (3,)
    assert support(np.zeros((2, 1, 3), dtype=np.int64)) == (0, 2)
