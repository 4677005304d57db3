"""Codings of the positions of kept groups."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hwmodel.storage import IndexCoding, cheapest_index, index_bound_bits
from qat.export.bits import BitStream
from qat.export.index import (
    CodedIndex,
    decode,
    encode_bitmap,
    encode_cheapest,
    encode_lists,
    encode_rice,
)

Mask = NDArray[np.bool_]


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    shape = draw(st.integers(1, 8)), draw(st.integers(1, 40))
    density = draw(st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.random(shape) < density


def _decode(index: CodedIndex, mask: Mask) -> Mask:
    return decode(index, *mask.shape, int(mask.sum()))


@given(masks(), st.integers(0, 12))
def test_every_coding_comes_back(mask: Mask, parameter: int) -> None:
    for index in (encode_bitmap(mask), encode_rice(mask, parameter), encode_lists(mask), encode_cheapest(mask)):
        assert np.array_equal(_decode(index, mask), mask), index.coding


@given(masks())
def test_the_cheapest_is_cheapest(mask: Mask) -> None:
    chosen = encode_cheapest(mask)
    if mask.all() or not mask.any():
        assert (chosen.coding, chosen.bits) == (IndexCoding.NONE, 0)
        return
    others = [encode_bitmap(mask), encode_lists(mask), *(encode_rice(mask, r) for r in range(1, 8))]
    assert chosen.bits == min(index.bits for index in others)


def test_rice_as_specified() -> None:
    """Groups 3, 4 and 14 kept, r = 2: gaps 3, 0, 9 -> remainders 3, 0, 1, quotients 1 1 001 (first bit lowest)."""
    mask = np.zeros((2, 10), np.bool_)
    mask[0, 3] = mask[0, 4] = mask[1, 4] = True
    index = encode_rice(mask, 2)
    assert index.streams["index_remainders"].data.tolist() == [0b01_00_11]
    assert index.streams["index_quotients"].data.tolist() == [0b10011]
    assert index.bits == 11


def test_lists_as_specified() -> None:
    """Two filters of 5 groups: counts 3 bits, positions 3 bits."""
    mask = np.array([[0, 1, 0, 0, 1], [0, 0, 0, 0, 0]], np.bool_)
    index = encode_lists(mask)
    assert index.streams["index_counts"].data.tolist() == [0b000_010]
    assert index.streams["index_positions"].data.tolist() == [0b100_001]


@pytest.mark.parametrize("density", [0.01, 0.02, 0.05])
def test_near_the_entropy_bound(density: float) -> None:
    """Random positions cost at most 3 % more than the bound, and what hwmodel expects (within 1 %)."""
    groups, kept = 64 * 576, round(64 * 576 * density)
    mask = np.zeros(groups, np.bool_)
    mask[np.random.default_rng(1).permutation(groups)[:kept]] = True
    index = encode_cheapest(mask.reshape(64, 576))
    assert index.bits < 1.03 * index_bound_bits(groups, kept)
    coding, parameter, bits = cheapest_index(groups, kept, 64)
    assert (index.coding, index.parameter) == (coding, parameter)
    assert index.bits == pytest.approx(bits, rel=0.01)


MASK = np.zeros((4, 16), np.bool_)
MASK[1, 9] = MASK[2, 3] = MASK[3, 15] = True


def _changed(index: CodedIndex, name: str, data: list[int], bits: int | None = None) -> CodedIndex:
    old = index.streams[name]
    stream = BitStream(old.bits if bits is None else bits, np.array(data, np.uint8))
    return replace(index, streams={**index.streams, name: stream})


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (CodedIndex(IndexCoding.NONE), "3 of 64 groups are kept, but no index"),
        (_changed(encode_bitmap(MASK), "index_bitmap", [1, 0, 0, 0, 0, 0, 0, 0]), "bitmap has 1 groups, expected 3"),
        (_changed(encode_rice(MASK, 3), "index_quotients", [0xFF, 0xFF], 16), "end 16 gaps, expected 3"),
        (_changed(encode_rice(MASK, 3), "index_quotients", [0, 0, 7], 19), "position .* is outside the 64 groups"),
        (_changed(encode_rice(MASK, 3), "index_quotients", [7], 6), "end 3 gaps, expected 3"),
        (_changed(encode_lists(MASK), "index_counts", [0, 0, 0]), "lists of 0 groups"),
        (_changed(encode_lists(MASK), "index_counts", [3, 0, 0]), "do not rise"),
        (replace(encode_lists(MASK), coding=IndexCoding.RICE), "has streams"),
    ],
    ids=lambda case: case if isinstance(case, str) else case.coding,
)
def test_damaged_streams_are_refused(index: CodedIndex, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(index, 4, 16, 3)
