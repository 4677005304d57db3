"""Tables of lookups <-> streams of bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qat.export.bits import BitStream, byte_count
from qat.integer import Table

MAX_ENTRIES = 1 << 17
"""Most entries of a table: codes of 16 bits, signed or unsigned."""


@dataclass(frozen=True)
class TableShape:
    """What a manifest tells of a lookup's table.

    Args:
        first_code: Input code of the first entry.
        entries: Number of entries.
        quant_min: Smallest code of the ofm.
        quant_max: Largest code of the ofm.
    """

    first_code: int
    entries: int
    quant_min: int
    quant_max: int

    @property
    def bit_width(self) -> int:
        """Bits of an entry: what the range needs; signed if it goes below zero.

        >>> TableShape(-128, 256, 0, 15).bit_width, TableShape(-128, 256, -128, 127).bit_width
        (4, 8)
        """
        if self.quant_min < 0:
            return 1 + max((-self.quant_min - 1).bit_length(), self.quant_max.bit_length())
        return max(1, self.quant_max.bit_length())

    def check(self) -> None:
        """Raises ValueError for what is no table."""
        if any(type(value) is not int for value in vars(self).values()):
            raise ValueError(f"table is {self}, expected integers")
        if not 1 <= self.entries <= MAX_ENTRIES:
            raise ValueError(f"table has {self.entries} entries, expected 1..{MAX_ENTRIES}")
        if not -(1 << 15) <= self.quant_min <= self.quant_max < 1 << 16:
            raise ValueError(f"table has codes {self.quant_min}..{self.quant_max}, expected at most 16 bits")


def table_shape_of(table: Table) -> TableShape:
    """What a manifest tells of a table."""
    return TableShape(table.first_code, len(table.codes), table.quant_min, table.quant_max)


def pack_table(table: Table) -> BitStream:
    """Entries in order, each in two's complement or unsigned, the lowest bit first."""
    width = table_shape_of(table).bit_width
    bits = (table.codes[:, None] >> np.arange(width)) & 1
    return BitStream(bits.size, np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little"))


def unpack_table(stream: BitStream, shape: TableShape) -> Table:
    """Inverse of `pack_table`.

    Raises:
        ValueError: The stream has another size, or its padding is not 0.
    """
    size = byte_count(shape.entries * shape.bit_width)
    if stream.data.size != size or np.unpackbits(stream.data, bitorder="little")[stream.bits :].any():
        raise ValueError(f"the table's stream has {stream.data.size} bytes, expected {size} with padding of 0")
    bits = np.unpackbits(stream.data, count=stream.bits, bitorder="little").reshape(shape.entries, shape.bit_width)
    weights = 1 << np.arange(shape.bit_width, dtype=np.int64)
    if shape.quant_min < 0:
        weights[-1] = -weights[-1]
    codes = (bits.astype(np.int64) @ weights).astype(np.int32)
    return Table(codes, shape.first_code, shape.quant_min, shape.quant_max)
