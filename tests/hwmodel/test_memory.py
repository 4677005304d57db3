"""Memory mapping: golden shapes, bounds, thresholds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwmodel import SpecError, map_memory


@pytest.mark.parametrize(
    ("depth", "width", "bram18"),
    # Yosys 0.23 synth_xilinx, simple dual port, equal for xc7 and xcup; RAMB36 counted as two
    [(1024, 36, 2), (512, 72, 2), (4096, 9, 2), (16384, 1, 1), (2048, 32, 4), (300, 100, 3), (2304, 64, 10)],
)
def test_shapes_as_synthesized(depth: int, width: int, bram18: int) -> None:
    for family in ("7series", "ultrascale_plus"):
        assert map_memory(depth, width, family).bram18 == bram18


@given(depth=st.integers(1, 40000), width=st.integers(1, 600), family=st.sampled_from(["7series", "ultrascale_plus"]))
def test_never_less_than_the_bits(depth: int, width: int, family: str) -> None:
    use = map_memory(depth, width, family)
    assert (use.bram18 == 0) != (use.lutram_luts == 0)
    if use.bram18:
        assert use.bram18 * 18 * 1024 >= depth * width
        # a wider or deeper memory never takes less
        assert map_memory(depth + 1, width, family).bram18 >= use.bram18
        assert map_memory(depth, width + 1, family).bram18 >= use.bram18
    else:
        assert use.lutram_luts * 64 >= depth * width


def test_threshold_belongs_to_the_profile() -> None:
    assert map_memory(64, 16, "7series", "vivado").bram18 == 0
    assert map_memory(64, 17, "7series", "vivado").bram18 == 1
    assert map_memory(64, 16, "7series", "yosys").bram18 == 0
    assert map_memory(512, 16, "7series", "yosys").bram18 == 1
    # RAM64M: three bits by 64 words in four LUTs
    assert map_memory(64, 16, "7series").lutram_luts == 24


def test_nothing_takes_nothing() -> None:
    assert map_memory(0, 8, "7series") == map_memory(8, 0, "7series")
    assert map_memory(0, 8, "7series").bram18 == 0


def test_bad_input() -> None:
    with pytest.raises(SpecError, match="depth=-1, width=3"):
        map_memory(-1, 3, "7series")
    with pytest.raises(SpecError, match="family='spartan', expected one of"):
        map_memory(1, 3, "spartan")
    with pytest.raises(SpecError, match="profile='quartus', expected one of"):
        map_memory(1, 3, "7series", "quartus")
