"""Memory mapping: golden shapes, bounds, thresholds."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwmodel import SpecError, map_memory
from hwmodel.memory import bram18_count, map_memories


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
        # more than 5 % of it is in use
        assert use.bram18 * 18 * 1024 * 0.05 < depth * width
    else:
        assert use.lutram_luts * 64 >= depth * width


@given(depth=st.integers(1, 40000), width=st.integers(1, 600))
def test_block_ram_grows_with_depth_and_width(depth: int, width: int) -> None:
    assert bram18_count(depth + 1, width) >= bram18_count(depth, width)
    assert bram18_count(depth, width + 1) >= bram18_count(depth, width)


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
    with pytest.raises(SpecError, match=r"depth=1.5, width=3: expected integers >= 0"):
        map_memory(1.5, 3, "7series")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"depth='64', width=3: expected integers >= 0"):
        map_memory("64", 3, "7series")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="family='spartan', expected one of"):
        map_memory(1, 3, "spartan")
    with pytest.raises(SpecError, match="profile='quartus', expected one of"):
        map_memory(1, 3, "7series", "quartus")


def synthesized(name: str) -> tuple[dict[str, object], list[tuple[int, int, int]]]:
    """Source of golden data, and (depth, width, RAMB18) of each memory; a RAMB36 counts as two."""
    data = json.loads((Path(__file__).parent / "data" / f"yosys_memory_{name}.json").read_text(encoding="utf-8"))
    rows = []
    for row in data["rows"]:
        blocks = sum((2 if "36" in cell else 1) * n for cell, n in row["cells"].items() if cell.startswith("RAMB"))
        rows.append((row["depth"], row["width"], blocks))
    return data["source"], rows


@pytest.mark.parametrize(("name", "family"), [("xc7", "7series"), ("xcup", "ultrascale_plus")])
def test_rams_are_as_yosys_maps_them(name: str, family: str) -> None:
    source, rows = synthesized(name)
    assert str(source["tool"]).startswith("Yosys 0.23")
    assert len(rows) >= 60
    counts = [(map_memory(depth, width, family, "yosys").bram18, blocks) for depth, width, blocks in rows]
    assert sum(mine == theirs for mine, theirs in counts) >= 0.97 * len(rows)
    assert all(mine >= theirs for mine, theirs in counts)
    assert sum(mine for mine, _ in counts) <= 1.01 * sum(theirs for _, theirs in counts)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("yosys") is None, reason="needs yosys")
@pytest.mark.parametrize(("depth", "width"), [(1536, 36), (300, 100)])
def test_rams_are_as_the_installed_yosys_maps_them(depth: int, width: int) -> None:
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "yosys_memory.py"
    cells = runpy.run_path(str(script))["map_with_yosys"](depth, width, "xc7")
    blocks = sum((2 if "36" in cell else 1) * n for cell, n in cells.items() if cell.startswith("RAMB"))
    assert map_memory(depth, width, "7series", "yosys").bram18 == blocks


def test_plain_rule_is_close() -> None:
    _, rows = synthesized("xc7")
    in_blocks = [(bram18_count(depth, width), blocks) for depth, width, blocks in rows if blocks]
    assert sum(mine == theirs for mine, theirs in in_blocks) >= 0.85 * len(in_blocks)
    # Below where the tool spends a few block RAMs more to save multiplexers between banks.
    assert sum(mine < theirs for mine, theirs in in_blocks) <= 0.03 * len(in_blocks)
    assert sum(mine for mine, _ in in_blocks) <= 1.03 * sum(theirs for _, theirs in in_blocks)


def test_roms_are_never_below() -> None:
    _, rows = synthesized("rom")
    assert all(map_memory(depth, width, "7series", "yosys").bram18 >= blocks for depth, width, blocks in rows)


@given(depth=st.integers(1, 20000), width=st.integers(1, 300), family=st.sampled_from(["7series", "ultrascale_plus"]))
def test_arrays_equal_scalars(depth: int, width: int, family: str) -> None:
    one = map_memory(depth, width, family)
    many = map_memories(np.array([depth, 5]), np.array([width, 7]), family)
    assert (many.bram18[0], many.lutram_luts[0]) == (one.bram18, one.lutram_luts)
