"""Codes of any width <-> streams of bits.

A stream is little-endian: its bit k is bit k % 8 of byte k // 8 (bit 0 is the lowest).  Fields lie side by side
without gaps, the lowest bit of each first; the unused bits of the last byte are 0.  Seen as words of any width,
lowest address first, the first field is in the lowest bits of the first word.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 17
"""Fields that are converted at a time, so that temporaries stay in the cache; a multiple of 8."""


@dataclass(frozen=True)
class BitStream:
    """Bits, and how many of them count.

    Args:
        bits: Payload bits; the padding of the last byte is not counted.
        data: uint8, ceil(bits / 8) bytes.
    """

    bits: int
    data: NDArray[np.uint8]


def byte_count(bits: int) -> int:
    """Bytes that hold a stream of `bits` bits."""
    return -(-bits // 8)


def pack_codes(codes: NDArray[np.int8], bit_width: int) -> BitStream:
    """Packs signed codes: two's complement; one bit is a sign, 1 for a negative code.

    Args:
        codes: Any shape, read in C order; -1 and +1 for one bit, else -2**(b-1) .. 2**(b-1) - 1.
        bit_width: 1..8.

    >>> pack_codes(np.array([1, -2, 3, -4], np.int8), 3).data.tolist()  # 001, 110, 011, 100 -> 1000 1111 0001
    [241, 8]
    """
    flat = np.ascontiguousarray(codes, np.int8).reshape(-1)
    if bit_width == 1:
        return BitStream(flat.size, np.packbits(flat < 0, bitorder="little"))
    return BitStream(flat.size * bit_width, _pack_bytes(flat.view(np.uint8), bit_width))


def unpack_codes(stream: BitStream, count: int, bit_width: int) -> NDArray[np.int8]:
    """Inverse of `pack_codes`.

    Args:
        stream: Packed codes.
        count: Number of codes.
        bit_width: 1..8.

    Returns:
        int8, shape (count,).

    Raises:
        ValueError: The stream has another size, or its padding is not 0.
    """
    _check_size(stream, count * bit_width)
    if bit_width == 1:
        negative = np.unpackbits(stream.data, count=count, bitorder="little").view(np.int8)
        negative *= -2
        negative += 1
        return negative
    fields = _unpack_bytes(stream.data, count, bit_width)
    half = np.uint8(1 << (bit_width - 1))
    fields ^= half
    fields -= half  # wraps: extends the sign
    return fields.view(np.int8)


def pack_fields(values: NDArray[np.integer], bit_width: int) -> BitStream:
    """Packs unsigned fields.

    Args:
        values: Shape (n,), each 0 .. 2**bit_width - 1.
        bit_width: 0..32.
    """
    bits = values.size * bit_width
    if bit_width <= 8:
        return BitStream(bits, _pack_bytes(np.ascontiguousarray(values, np.uint8), bit_width))
    places = np.arange(bit_width, dtype=np.uint64)
    columns = (values.astype(np.uint64)[:, None] >> places & np.uint64(1)).astype(np.uint8)
    return BitStream(bits, np.packbits(columns, bitorder="little"))


def unpack_fields(stream: BitStream, count: int, bit_width: int) -> NDArray[np.int64]:
    """Inverse of `pack_fields`.

    Returns:
        int64, shape (count,).

    Raises:
        ValueError: The stream has another size, or its padding is not 0.
    """
    _check_size(stream, count * bit_width)
    if bit_width <= 8:
        return _unpack_bytes(stream.data, count, bit_width).astype(np.int64)
    columns = np.unpackbits(stream.data, count=count * bit_width, bitorder="little").reshape(count, bit_width)
    return columns.astype(np.int64) @ (np.int64(1) << np.arange(bit_width, dtype=np.int64))


def pack_flags(flags: NDArray[np.bool_]) -> BitStream:
    """Packs booleans, one bit each."""
    return BitStream(flags.size, np.packbits(flags, bitorder="little"))


def unpack_flags(stream: BitStream, count: int) -> NDArray[np.bool_]:
    """Inverse of `pack_flags`; shape (count,).

    Raises:
        ValueError: The stream has another size, or its padding is not 0.
    """
    _check_size(stream, count)
    return np.unpackbits(stream.data, count=count, bitorder="little").view(np.bool_)


def pack_bytes(values: NDArray[np.generic]) -> BitStream:
    """A stream of whole bytes: the array's bytes, little-endian, in C order."""
    data = np.frombuffer(values.astype(values.dtype.newbyteorder("<")).tobytes(), np.uint8)
    return BitStream(data.size * 8, data)


def unpack_int16(stream: BitStream, count: int) -> NDArray[np.int16]:
    """Inverse of `pack_bytes` for int16; shape (count,).

    Raises:
        ValueError: The stream has another size.
    """
    _check_size(stream, count * 16)
    return stream.data.view("<i2").astype(np.int16)


def _check_size(stream: BitStream, bits: int) -> None:
    if stream.bits != bits or stream.data.size != byte_count(bits):
        raise ValueError(f"{stream.bits} bits in {stream.data.size} bytes, expected {bits} in {byte_count(bits)}")
    if bits % 8 and stream.data[-1] >> (bits % 8):
        raise ValueError("the unused bits of the last byte are not 0")


# Eight fields at a time: as bytes of a 64-bit word they are moved together (or apart) in three steps, neighbours
# first: 8 lanes of b bits -> 4 lanes of 2b bits -> 2 of 4b -> 8b bits, which are b bytes.


def _lane_steps(bit_width: int) -> tuple[tuple[np.uint64, np.uint64, np.uint64, np.uint64], ...]:
    """Per step: mask of even lanes, mask of odd lanes apart, mask of odd lanes together, distance to move."""
    steps = []
    for lane in (8, 16, 32):
        field = (1 << (bit_width * lane // 8)) - 1
        even = sum(field << start for start in range(0, 64, 2 * lane))
        move = lane - bit_width * lane // 8
        odd = even << lane
        steps.append((np.uint64(even), np.uint64(odd), np.uint64(odd >> move), np.uint64(move)))
    return tuple(steps)


def _pack_bytes(values: NDArray[np.uint8], bit_width: int) -> NDArray[np.uint8]:
    """Low `bit_width` bits (0..8) of each byte, side by side."""
    if bit_width == 8:
        return values.copy()
    if bit_width == 0:
        return np.zeros(0, np.uint8)
    out = np.empty(-(-values.size // 8) * bit_width, np.uint8)
    for start in range(0, values.size, CHUNK):
        part = values[start : start + CHUNK]
        words = np.zeros(-(-part.size // 8), "<u8")
        words.view(np.uint8)[: part.size] = part
        moved = np.empty_like(words)
        for even, odd, _, move in _lane_steps(bit_width):
            np.bitwise_and(words, odd, out=moved)
            moved >>= move
            words &= even
            words |= moved
        target = out[start // 8 * bit_width :][: words.size * bit_width]
        target.reshape(-1, bit_width)[:] = words.view(np.uint8).reshape(-1, 8)[:, :bit_width]
    return out[: byte_count(values.size * bit_width)]


def _unpack_bytes(data: NDArray[np.uint8], count: int, bit_width: int) -> NDArray[np.uint8]:
    """Inverse of `_pack_bytes`, shape (count,)."""
    if bit_width == 8:
        return data.copy()
    out = np.zeros(count, np.uint8)
    if bit_width == 0:
        return out
    steps = _lane_steps(bit_width)[::-1]
    for start in range(0, count, CHUNK):
        target = out[start : start + CHUNK]
        words = np.zeros(-(-target.size // 8), "<u8")
        source = data[start // 8 * bit_width :][: words.size * bit_width]
        rows = words.view(np.uint8).reshape(-1, 8)
        whole = source.size // bit_width
        rows[:whole, :bit_width] = source[: whole * bit_width].reshape(-1, bit_width)
        if whole < words.size:
            rows[whole, : source.size - whole * bit_width] = source[whole * bit_width :]
        moved = np.empty_like(words)
        for even, _, together, move in steps:
            np.bitwise_and(words, together, out=moved)
            moved <<= move
            words &= even
            words |= moved
        target[:] = words.view(np.uint8)[: target.size]
    return out
