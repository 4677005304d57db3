"""Which groups are in the sparse plane: three codings of positions, the cheapest of which is stored.

Groups are numbered filter by filter, 0 .. groups - 1, as many per filter.

| coding   | streams                             | content                                                      |
|----------|-------------------------------------|--------------------------------------------------------------|
| `none`   |                                     | all groups or no group                                       |
| `bitmap` | `index_bitmap`                      | one bit per group, 1 = kept                                  |
| `rice`   | `index_quotients`, `index_remainders` | gaps between kept groups, r = parameter >= 1               |
| `lists`  | `index_counts`, `index_positions`   | kept groups per filter; position of each inside its filter   |

A gap is the number of groups skipped before a kept one.  `rice` stores its low r bits among the remainders, and
the rest in unary among the quotients: as many 0 as the rest says, then a 1.  Two streams instead of one mean two
read pointers, but fixed places for the remainders: a decoder finds the next 1 (a priority encoder), reads r bits
and adds.

Source: Rice and Plaunt, IEEE Trans. Comm. 19(6), 1971 (codes); the split into two streams as in Elias, J. ACM
21(2), 1974.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hwmodel.storage import IndexCoding
from qat.export.bits import BitStream, pack_fields, pack_flags, unpack_fields, unpack_flags

STREAMS: Mapping[IndexCoding, tuple[str, ...]] = {
    IndexCoding.NONE: (),
    IndexCoding.BITMAP: ("index_bitmap",),
    IndexCoding.RICE: ("index_quotients", "index_remainders"),
    IndexCoding.LISTS: ("index_counts", "index_positions"),
}
"""Names of the streams of each coding, in the order in which they are stored."""

MAX_PARAMETER = 32
"""Largest parameter of `rice` and `lists`."""


@dataclass(frozen=True)
class CodedIndex:
    """Positions of kept groups, coded.

    Args:
        coding: How.
        parameter: Remainder bits r of `rice`, bits of a position of `lists`, else 0.
        streams: By the names of `STREAMS`.
    """

    coding: IndexCoding
    parameter: int = 0
    streams: Mapping[str, BitStream] = field(default_factory=dict)

    @property
    def bits(self) -> int:
        """Payload bits of all streams."""
        return sum(stream.bits for stream in self.streams.values())


def encode_cheapest(mask: NDArray[np.bool_]) -> CodedIndex:
    """Codes positions with the fewest bits; ties go to the simpler coding.

    Args:
        mask: Shape (filters, groups per filter), True where a group is kept.

    >>> mask = np.zeros((4, 100), bool)
    >>> mask[2, 7] = True
    >>> encode_cheapest(mask).coding
    <IndexCoding.RICE: 'rice'>
    """
    filters, per_filter = mask.shape
    kept = int(np.count_nonzero(mask))
    if kept in (0, mask.size):
        return CodedIndex(IndexCoding.NONE)
    if 2 * kept >= mask.size:  # the others need two bits and more per kept group
        return encode_bitmap(mask)
    parameter, rice_bits = _best_rice_parameter(_gaps(np.flatnonzero(mask)))
    position_bits, count_bits = list_field_bits(per_filter)
    sizes = {
        IndexCoding.BITMAP: mask.size,
        IndexCoding.RICE: rice_bits,
        IndexCoding.LISTS: kept * position_bits + filters * count_bits,
    }
    coding = min(sizes, key=lambda name: sizes[name])
    if coding is IndexCoding.BITMAP:
        return encode_bitmap(mask)
    return encode_rice(mask, parameter) if coding is IndexCoding.RICE else encode_lists(mask)


def encode_bitmap(mask: NDArray[np.bool_]) -> CodedIndex:
    """One bit per group."""
    return CodedIndex(IndexCoding.BITMAP, 0, {"index_bitmap": pack_flags(mask.reshape(-1))})


def encode_rice(mask: NDArray[np.bool_], parameter: int) -> CodedIndex:
    """Gaps with `parameter` remainder bits, 0..32."""
    gaps = _gaps(np.flatnonzero(mask))
    stops = np.cumsum((gaps >> parameter) + 1) - 1
    unary = np.zeros(int(stops[-1]) + 1 if stops.size else 0, np.bool_)
    unary[stops] = True
    remainders = pack_fields(gaps & ((1 << parameter) - 1), parameter)
    return CodedIndex(
        IndexCoding.RICE, parameter, {"index_quotients": pack_flags(unary), "index_remainders": remainders}
    )


def encode_lists(mask: NDArray[np.bool_]) -> CodedIndex:
    """Per filter a count, and the position of every kept group inside its filter."""
    position_bits, count_bits = list_field_bits(mask.shape[1])
    counts = np.count_nonzero(mask, axis=1)
    positions = np.flatnonzero(mask) % mask.shape[1]
    streams = {
        "index_counts": pack_fields(counts, count_bits),
        "index_positions": pack_fields(positions, position_bits),
    }
    return CodedIndex(IndexCoding.LISTS, position_bits, streams)


def list_field_bits(per_filter: int) -> tuple[int, int]:
    """Bits of a position (0 .. per_filter - 1) and of a count (0 .. per_filter) in `lists`.

    >>> list_field_bits(64)
    (6, 7)
    """
    return (per_filter - 1).bit_length(), per_filter.bit_length()


def decode(index: CodedIndex, filters: int, per_filter: int, kept: int) -> NDArray[np.bool_]:
    """Inverse of the encoders.

    Args:
        index: Coded positions.
        filters: Output channels.
        per_filter: Groups per filter.
        kept: Groups in the sparse plane.

    Returns:
        Mask of shape (filters, per_filter) with exactly `kept` True entries.

    Raises:
        ValueError: The streams do not hold `kept` positions of that grid.
    """
    groups = filters * per_filter
    if set(index.streams) != set(STREAMS[index.coding]):
        raise ValueError(f"coding {index.coding} has streams {sorted(index.streams)}, not {STREAMS[index.coding]}")
    if index.coding is IndexCoding.NONE:
        if kept not in (0, groups):
            raise ValueError(f"{kept} of {groups} groups are kept, but no index says which")
        return np.full((filters, per_filter), kept > 0)
    if index.coding is IndexCoding.BITMAP:
        mask = unpack_flags(index.streams["index_bitmap"], groups)
        if np.count_nonzero(mask) != kept:
            raise ValueError(f"the bitmap has {np.count_nonzero(mask)} groups, expected {kept}")
        return mask.reshape(filters, per_filter)
    if index.coding is IndexCoding.RICE:
        positions = _decode_rice(index, kept)
    else:
        positions = _decode_lists(index, filters, per_filter, kept)
    if positions.size and (positions[-1] >= groups or positions[0] < 0):
        raise ValueError(f"position {positions[-1]} is outside the {groups} groups")
    mask = np.zeros(groups, np.bool_)
    mask[positions] = True
    return mask.reshape(filters, per_filter)


def _decode_rice(index: CodedIndex, kept: int) -> NDArray[np.int64]:
    quotients = index.streams["index_quotients"]
    unary = unpack_flags(quotients, quotients.bits)
    stops = np.flatnonzero(unary)
    if stops.size != kept or (quotients.bits and not unary[-1]):
        raise ValueError(f"the quotients end {stops.size} gaps, expected {kept}")
    quotient = np.diff(stops, prepend=-1) - 1
    gaps = (quotient << index.parameter) + unpack_fields(index.streams["index_remainders"], kept, index.parameter)
    return np.cumsum(gaps + 1) - 1


def _decode_lists(index: CodedIndex, filters: int, per_filter: int, kept: int) -> NDArray[np.int64]:
    position_bits, count_bits = list_field_bits(per_filter)
    counts = unpack_fields(index.streams["index_counts"], filters, count_bits)
    if index.parameter != position_bits or counts.sum() != kept:
        raise ValueError(
            f"lists of {counts.sum()} groups, {index.parameter} bits each; expected {kept}, {position_bits}"
        )
    local = unpack_fields(index.streams["index_positions"], kept, position_bits)
    positions = np.repeat(np.arange(filters) * per_filter, counts) + local
    if np.any(local >= per_filter) or np.any(np.diff(positions) <= 0):
        raise ValueError("positions in the lists do not rise")
    return positions


def _gaps(positions: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.diff(positions, prepend=-1) - 1


def _best_rice_parameter(gaps: NDArray[np.int64]) -> tuple[int, int]:
    """Parameter (>= 1: 0 is a bitmap by another name) and bits of the cheapest Rice code.

    The cost is convex in the parameter.
    """

    def bits(parameter: int) -> int:
        return gaps.size * (parameter + 1) + int((gaps >> parameter).sum())

    # For geometric gaps the best r is near log2(mean * ln 2); from there downhill.
    parameter = max(1, int(gaps.mean() * 0.7).bit_length() - 1)
    best = bits(parameter)
    for step in (1, -1):
        while 1 <= parameter + step <= MAX_PARAMETER and (candidate := bits(parameter + step)) < best:
            parameter, best = parameter + step, candidate
    return parameter, best
