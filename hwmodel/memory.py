"""Depth x width -> RAMB18, UltraRAM or LUT memory, as a synthesizer maps a simple dual-port memory.

A RAMB36 counts as two RAMB18: in every shape it holds exactly what two of them hold.

Two tools, two rules:

- `vivado`: one aspect ratio for the whole memory, the best one.  Tools of the kind cut the memory into a grid of
  equal block RAMs; no rule for remainders is published.
- `yosys`: banks of depth are laid side by side, so that a block RAM can hold the end of one bank and the start of
  the next; block RAM or LUTs by estimated cost, multiplexers between banks included.

Source:
    Aspect ratios: AMD UG473 (7 series), UG573 (UltraScale), simple dual port.  UltraRAM: UG573.  LUT memories:
    UG474 (RAM32M, RAM64M: 32 x 6 and 64 x 3 in 4 LUTs), UG574 (RAM32M16, RAM64M8: 32 x 14 and 64 x 7 in 8 LUTs).
    `vivado`'s thresholds (about 1,024 bits; 5 % of the block RAM filled): the rules that Yosys 0.9 had for these
    devices, and the discussion of its pull request 1533.  `yosys`: costs stated in its
    xilinx memory library (version 0.23); checked against it in `tests/hwmodel/test_memory.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np

from hwmodel.board import FAMILIES
from hwmodel.errors import SpecError
from hwmodel.network import is_size

Count = Any
"""An int, or an integer array."""

RAMB18_WIDTHS = (1, 2, 4, 9, 18, 36)
"""Widths of a RAMB18 as simple dual-port memory; it is 16384 words deep at width 1, 512 at width 36."""

RAMB36_WIDTHS = (*RAMB18_WIDTHS, 72)
"""Widths of a RAMB36; 32768 words deep at width 1, 512 at width 72."""

URAM_SHAPE = (4096, 72)
"""Depth and width of an UltraRAM; fixed."""

RAMB18_BITS = 18 * 1024

VIVADO_LUTRAM_BITS = 1024
"""Largest memory that Vivado builds from LUTs in any case."""

VIVADO_MIN_FILL = 0.05
"""Block RAM is not taken where less than this share of it would be in use, as for wide and shallow memories."""


@dataclass(frozen=True)
class MemoryUse:
    """Resources of one memory."""

    bram18: Count = 0
    uram: Count = 0
    lutram_luts: Count = 0


def map_memory(depth: int, width: int, family: str, profile: str = "vivado") -> MemoryUse:
    """What a simple dual-port memory takes.

    Args:
        depth: Words, >= 0; 0 is no memory.
        width: Bits per word, >= 0; 0 is no memory.
        family: One of `hwmodel.board.FAMILIES`.
        profile: One of `PROFILES`: whose rule counts.

    Raises:
        SpecError: An argument is out of range.

    >>> map_memory(2304, 64, "7series").bram18
    10
    """
    try:
        return _map_memory(depth, width, family, profile)
    except TypeError:  # a list, an array: nothing that could be looked up
        raise SpecError(
            f"memory of depth={depth!r}, width={width!r}, family={family!r}, profile={profile!r}: expected integers "
            f">= 0, one of {list(FAMILIES)} and one of {list(PROFILES)}"
        ) from None


@lru_cache(maxsize=262144, typed=True)  # 16.0 equals 16, but is refused
def _map_memory(depth: int, width: int, family: str, profile: str) -> MemoryUse:
    if not (is_size(depth, 0) and is_size(width, 0)):
        raise SpecError(f"memory of depth={depth!r}, width={width!r}: expected integers >= 0")
    if family not in FAMILIES:
        raise SpecError(f"family={family!r}, expected one of {list(FAMILIES)}")
    if profile not in PROFILES:
        raise SpecError(f"profile={profile!r}, expected one of {list(PROFILES)}")
    if depth == 0 or width == 0:
        return MemoryUse()
    return PROFILES[profile](depth, width, family)


def map_uram(depth: Count, width: Count) -> MemoryUse:
    """What a memory takes that is told to lie in UltraRAM."""
    return MemoryUse(uram=-(-width // URAM_SHAPE[1]) * -(-depth // URAM_SHAPE[0]))


def map_memories(depth: Count, width: Count, family: str) -> MemoryUse:
    """`map_memory` of profile `vivado`, for integers or arrays of positive depths and widths."""
    if isinstance(depth, int) and isinstance(width, int):
        return map_memory(depth, width, family)
    bram18 = width * ((depth + 16383) >> 14)
    for i, bits in enumerate(RAMB18_WIDTHS[1:], 1):
        bram18 = np.minimum(bram18, -(-width // bits) * ((depth + (16384 >> i) - 1) >> (14 - i)))
    small = depth * width <= np.maximum(VIVADO_LUTRAM_BITS, VIVADO_MIN_FILL * RAMB18_BITS * bram18)
    return MemoryUse(np.where(small, 0, bram18), 0, np.where(small, lutram_luts(depth, width, family), 0))


def lutram_luts(depth: Count, width: Count, family: str) -> Count:
    """LUTs of a memory built from LUTs, read multiplexer included; integers or arrays."""
    bits, luts = (6, 4) if family == "7series" else (14, 8)
    is_deep = (depth > 32) * 1  # 64 words at half the width
    banks = (depth + 31 + 32 * is_deep) >> (5 + is_deep)
    memories = -(-width // bits)
    memories = memories + is_deep * (-(-width // (bits >> 1)) - memories)
    multiplexer = width * -(-(banks - 1) // 3)  # a 6-input LUT is a 4:1 multiplexer
    return banks * luts * memories + multiplexer


def _map_vivado(depth: int, width: int, family: str) -> MemoryUse:
    bram18 = bram18_count(depth, width)
    if depth * width <= max(VIVADO_LUTRAM_BITS, VIVADO_MIN_FILL * RAMB18_BITS * bram18):
        return MemoryUse(lutram_luts=lutram_luts(depth, width, family))
    return MemoryUse(bram18=bram18)


@lru_cache(maxsize=262144)
def bram18_count(depth: int, width: int) -> int:
    """RAMB18 of a memory in one aspect ratio, the best one.

    >>> bram18_count(512, 72), bram18_count(4096, 9), bram18_count(300, 100)
    (2, 2, 3)
    """
    return min(-(-width // bits) * -(-depth // (16384 >> i)) for i, bits in enumerate(RAMB18_WIDTHS))


@dataclass(frozen=True)
class _YosysRam:
    """A memory primitive as Yosys prices it: `cost` each, of which `per_width` only for the bits in use."""

    address_bits: int  # at the narrowest width
    widths: tuple[int, ...]
    byte_width: int  # write enables are this wide: words are padded to it
    cost: float
    per_width: float = 0.0


@dataclass(frozen=True)
class _Layout:
    cost: float
    count: int


YOSYS_RAMB18 = _YosysRam(14, RAMB18_WIDTHS, 9, 129)
YOSYS_RAMB36 = _YosysRam(15, RAMB36_WIDTHS, 9, 257)
YOSYS_LUTRAM = {
    "7series": (_YosysRam(5, (6,), 6, 8, 7), _YosysRam(6, (3,), 3, 8, 7)),
    "ultrascale": (_YosysRam(5, (14,), 14, 16, 16), _YosysRam(6, (7,), 7, 16, 16)),
}
"""LUT memories by family; UltraScale+ has those of UltraScale."""


def _lay_out(ram: _YosysRam, depth: int, width: int) -> _Layout:
    """The cheapest width of a primitive for a memory; half a unit per multiplexed bit and per decoded bank."""
    layouts = []
    for doubling, unit in enumerate(ram.widths):
        byte_width = min(ram.byte_width, unit)
        padded = -(-width // byte_width) * byte_width
        banks = -(-depth // (1 << (ram.address_bits - doubling)))
        count = -(-banks * padded // unit)
        logic = 0.5 * (banks - 1) * width + (0.5 * banks if banks > 1 else 0.0)
        cost = (ram.cost - ram.per_width) * count + ram.per_width * banks * width / unit + logic
        layouts.append(_Layout(cost, count))
    return min(layouts, key=lambda layout: layout.cost)


def _map_yosys(depth: int, width: int, family: str) -> MemoryUse:
    half, full = _lay_out(YOSYS_RAMB18, depth, width), _lay_out(YOSYS_RAMB36, depth, width)
    block = half if half.cost <= full.cost else full
    lutrams = YOSYS_LUTRAM["7series" if family == "7series" else "ultrascale"]
    if min(_lay_out(ram, depth, width).cost for ram in lutrams) < block.cost:
        return MemoryUse(lutram_luts=lutram_luts(depth, width, family))
    return MemoryUse(bram18=half.count if block is half else 2 * full.count)


PROFILES: Mapping[str, Callable[[int, int, str], MemoryUse]] = MappingProxyType(
    {"vivado": _map_vivado, "yosys": _map_yosys}
)
"""Rules by tool."""
