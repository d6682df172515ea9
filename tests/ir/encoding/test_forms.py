"""Places of entries as gaps and as bitmaps, and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.ir.encoding import forms

SETS = st.integers(1, 3000).flatmap(
    lambda size: st.tuples(st.just(size), st.sets(st.integers(0, size - 1), min_size=1, max_size=40).map(sorted))
)


@given(SETS)
def test_gaps_lead_to_the_places_and_to_nothing_but_zeros_on_the_way(case: tuple[int, list[int]]) -> None:
    size, places = case
    gaps = forms.to_gaps(np.array(places))
    back = forms.from_gaps(gaps, size).tolist()
    assert set(places) <= set(back)
    assert back == sorted(set(back))
    between = [0, *places]
    longest = sum((after - before - 1) // 255 for before, after in zip(between, places, strict=False) if after > before)
    assert len(back) - len(places) == longest


@pytest.mark.parametrize("distance", [1, 254, 255, 256, 509, 510, 511, 765, 100_000])
def test_a_long_gap_takes_as_many_bytes_as_it_has_stretches_of_255(distance: int) -> None:
    gaps = forms.to_gaps(np.array([3, 3 + distance]))
    assert gaps.sum(dtype=np.int64) == 3 + distance
    assert len(gaps) == 1 + -(-distance // 255)


@given(SETS)
def test_a_bitmap_leads_to_the_very_places(case: tuple[int, list[int]]) -> None:
    size, places = case
    bitmap = forms.to_bitmap(np.array(places), size)
    assert len(bitmap) == -(-size // 8)
    assert forms.from_bitmap(bitmap, size).tolist() == places


@pytest.mark.parametrize(
    ("gaps", "size", "why"),
    [
        ([], 5, "fit"),
        ([2, 3], 5, "fit"),
        ([255, 255], 300, "fit"),
        ([1, 0], 5, "one place"),
        ([0, 0, 1], 5, "one place"),
    ],
)
def test_gaps_that_lead_astray_are_refused(gaps: list[int], size: int, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        forms.from_gaps(np.array(gaps, dtype=np.uint8), size)


@pytest.mark.parametrize(("bitmap", "size"), [([255], 9), ([255, 0], 8), ([0], 8), ([1], 7)])
def test_bitmaps_of_another_size_are_refused(bitmap: list[int], size: int) -> None:
    with pytest.raises(ValueError, match="bitmap"):
        forms.from_bitmap(np.array(bitmap, dtype=np.uint8), size)


def test_only_plus_zero_is_nothing() -> None:
    values = np.array([0.0, -0.0, np.nan, 1e-45, np.inf, 0.0], dtype=np.float32)
    assert forms.occupied(values).tolist() == [1, 2, 3, 4]
    assert forms.occupied(np.zeros(4)).tolist() == [0]
