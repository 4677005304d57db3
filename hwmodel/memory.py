"""Depth x width -> RAMB18, UltraRAM or LUT memory, as a synthesizer maps a simple dual-port memory.

A RAMB36 counts as two RAMB18: in every shape it holds exactly what two of them hold.

Source:
    Aspect ratios: AMD UG473 (7 series), UG573 (UltraScale).  UltraRAM: UG573.  LUT memory: UG474, UG574
    (RAM64M: 64 x 3 in 4 LUTs, RAM64M8: 64 x 7 in 8 LUTs).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from hwmodel.board import FAMILIES
from hwmodel.errors import SpecError

RAMB18_SHAPES = ((36, 512), (18, 1024), (9, 2048), (4, 4096), (2, 8192), (1, 16384))
"""(width, depth) of a RAMB18 as simple dual-port memory; the same in all families."""

URAM_SHAPE = (72, 4096)
"""(width, depth) of an UltraRAM; fixed."""


@dataclass(frozen=True)
class MemoryUse:
    """Resources of one memory."""

    bram18: int = 0
    uram: int = 0
    lutram_luts: int = 0


@dataclass(frozen=True)
class ToolProfile:
    """When a tool takes LUTs instead of a block RAM.

    Args:
        lutram_max_bits: Largest memory that goes to LUTs.
        lutram_max_depth: Any memory shallower than this goes to LUTs too.

    Source:
        `vivado`: about 1,024 bits, as noted in the discussion of Yosys pull request 1533.  `yosys`: Yosys 0.23,
        measured: memories under 128 words or of at most 4,096 bits.
    """

    lutram_max_bits: int
    lutram_max_depth: int


PROFILES = {"vivado": ToolProfile(1024, 1), "yosys": ToolProfile(4096, 128)}
"""Tool profiles by name."""


@lru_cache(maxsize=262144)
def map_memory(depth: int, width: int, family: str, profile: str = "vivado") -> MemoryUse:
    """What a simple dual-port memory takes.

    Args:
        depth: Words, >= 0; 0 is no memory.
        width: Bits per word, >= 0; 0 is no memory.
        family: One of `hwmodel.board.FAMILIES`.
        profile: One of `PROFILES`: whose threshold between LUTs and block RAM.

    Raises:
        SpecError: An argument is out of range.

    >>> map_memory(2304, 64, "7series").bram18
    10
    """
    if depth < 0 or width < 0:
        raise SpecError(f"memory of depth={depth}, width={width}: expected integers >= 0")
    if family not in FAMILIES:
        raise SpecError(f"family={family!r}, expected one of {list(FAMILIES)}")
    if profile not in PROFILES:
        raise SpecError(f"profile={profile!r}, expected one of {list(PROFILES)}")
    if depth == 0 or width == 0:
        return MemoryUse()
    tool = PROFILES[profile]
    if depth * width <= tool.lutram_max_bits or depth < tool.lutram_max_depth:
        return MemoryUse(lutram_luts=lutram_luts(depth, width, family))
    return MemoryUse(bram18=bram18_count(depth, width))


def lutram_luts(depth: int, width: int, family: str) -> int:
    """LUTs of a memory built from LUTs, read multiplexer included."""
    banks = -(-depth // 64)
    bits_per_group, luts_per_group = (3, 4) if family == "7series" else (7, 8)
    cells = banks * luts_per_group * -(-width // bits_per_group)
    return cells + width * -(-(banks - 1) // 3)  # a 6-input LUT is a 4:1 multiplexer


@lru_cache(maxsize=262144)
def bram18_count(depth: int, width: int) -> int:
    """RAMB18 of a memory: the best single aspect ratio.

    >>> bram18_count(512, 72), bram18_count(4096, 9), bram18_count(300, 100)
    (2, 2, 3)
    """
    return min(-(-width // w) * -(-depth // d) for w, d in RAMB18_SHAPES)


def map_uram(depth: int, width: int) -> MemoryUse:
    """What a memory takes that is told to lie in UltraRAM."""
    return MemoryUse(uram=uram_count(depth, width))


def uram_count(depth: int, width: int) -> int:
    """UltraRAMs of a memory."""
    return -(-width // URAM_SHAPE[0]) * -(-depth // URAM_SHAPE[1])
