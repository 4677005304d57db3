"""Codes of any width <-> bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qat.export.bits import (
    CHUNK,
    BitStream,
    pack_codes,
    pack_fields,
    pack_flags,
    unpack_codes,
    unpack_fields,
    unpack_flags,
    unpack_int16,
)


def _bits_of(values: list[int], bit_width: int) -> bytes:
    """The same stream by the book: a large integer, the first field lowest."""
    total = sum((value & ((1 << bit_width) - 1)) << (place * bit_width) for place, value in enumerate(values))
    return total.to_bytes(-(-len(values) * bit_width // 8), "little")


@st.composite
def _codes(draw: st.DrawFn) -> tuple[int, list[int]]:
    bit_width = draw(st.integers(1, 8))
    half = 1 << (bit_width - 1)
    code = st.sampled_from([-1, 1]) if bit_width == 1 else st.integers(-half, half - 1)
    return bit_width, draw(st.lists(code, max_size=70))


@given(_codes())
def test_codes_are_stored_as_specified_and_come_back(case: tuple[int, list[int]]) -> None:
    bit_width, codes = case
    stream = pack_codes(np.array(codes, np.int8), bit_width)
    stored = [int(code < 0) for code in codes] if bit_width == 1 else codes
    assert stream.bits == len(codes) * bit_width
    assert stream.data.tobytes() == _bits_of(stored, bit_width)
    assert unpack_codes(stream, len(codes), bit_width).tolist() == codes


@given(st.integers(0, 32).flatmap(lambda b: st.tuples(st.just(b), st.lists(st.integers(0, (1 << b) - 1), max_size=40))))
def test_fields_are_stored_as_specified_and_come_back(case: tuple[int, list[int]]) -> None:
    bit_width, values = case
    stream = pack_fields(np.array(values, np.int64), bit_width)
    assert stream.data.tobytes() == _bits_of(values, bit_width)
    assert unpack_fields(stream, len(values), bit_width).tolist() == values


@given(st.lists(st.booleans(), max_size=40))
def test_flags_come_back(flags: list[bool]) -> None:
    stream = pack_flags(np.array(flags, np.bool_))
    assert stream.data.tobytes() == _bits_of([int(flag) for flag in flags], 1)
    assert unpack_flags(stream, len(flags)).tolist() == flags


@pytest.mark.parametrize("bit_width", range(1, 9))
@settings(deadline=None)
@given(extra=st.integers(-9, 9))
def test_codes_across_the_chunk_border(bit_width: int, extra: int) -> None:
    count = 2 * CHUNK + extra
    rng = np.random.default_rng(extra + 9)
    half = 1 << (bit_width - 1)
    codes = rng.integers(-half, half, count, dtype=np.int64) if bit_width > 1 else rng.choice([-1, 1], count)
    stream = pack_codes(codes.astype(np.int8), bit_width)
    assert np.array_equal(unpack_codes(stream, count, bit_width), codes)


def test_a_stream_of_another_size_is_refused() -> None:
    stream = pack_codes(np.zeros(5, np.int8), 3)
    with pytest.raises(ValueError, match="15 bits in 2 bytes, expected 18 in 3"):
        unpack_codes(stream, 6, 3)
    with pytest.raises(ValueError, match="expected 16 in 2"):
        unpack_int16(stream, 1)


def test_padding_that_is_not_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="unused bits"):
        unpack_codes(BitStream(15, np.array([0, 0x80], np.uint8)), 5, 3)
