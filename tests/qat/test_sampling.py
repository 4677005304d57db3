"""Samples of large tensors."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from qat.sampling import spread_places


@given(size=st.integers(1, 5000), count=st.integers(1, 600))
def test_places_are_one_of_each_part(size: int, count: int) -> None:
    places = spread_places(size, count)
    part = max(1, size // count)
    assert torch.equal(places // part, torch.arange(size // part))
    assert min(size, count) <= len(places) < 2 * count or len(places) == size < 2 * count
    assert torch.equal(places, spread_places(size, count))


def test_places_do_not_keep_to_columns() -> None:
    counts = torch.bincount(spread_places(128 * 16 * 32 * 32, 1 << 16) % 32, minlength=32)
    assert counts.min() > 0.9 * (1 << 16) / 32
