"""Cycles of a streaming engine: against RTL simulation, and against a walk over every window."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hwmodel import INPUT, DataFlow, LayerSchedule, LayerSpec, Op, WeightPlace
from hwmodel.compute import folds
from hwmodel.cycles import array_depth, layer_cycles, pixel_order_cycles, pixel_order_latency
from hwmodel.folding import channels_read, ingest_channels

# Verilator counted them on benchmarks/rtl/conv_stream.sv, whose every output was compared with a plain convolution.
SIMULATED = json.loads((Path(__file__).parent / "data" / "verilator_cycles.json").read_text(encoding="utf-8"))


def convolution(c: int, m: int, k: int, s: int, p: int, height: int, width: int) -> LayerSpec:
    rows, columns = ((size + 2 * p - k) // s + 1 for size in (height, width))
    return LayerSpec("conv", Op.CONV, (INPUT,), c, height, width, m, rows, columns, (k, k), (s, s), (p, p))


def test_enough_engines_were_simulated() -> None:
    rows = SIMULATED["rows"]
    assert len(rows) >= 50
    assert str(SIMULATED["source"]["tool"]).startswith("Verilator 5")
    assert {row["K"] for row in rows} == {1, 2, 3, 4, 5}
    assert {row["S"] for row in rows} == {1, 2}
    assert any(row["P"] for row in rows)


@pytest.mark.parametrize("row", SIMULATED["rows"], ids=lambda row: "-".join(map(str, row.values())))
def test_interval_and_latency_are_those_of_the_simulation(row: dict[str, int]) -> None:
    layer = convolution(*(row[name] for name in ("C", "M", "K", "S", "P", "H", "W")))
    pixel_folds, ingest_cycles = folds(layer, row["PE"], row["SIMD"]), row["C"] // row["IC"]
    assert pixel_order_cycles(layer, pixel_folds, ingest_cycles) == row["interval_cycles"]
    assert pixel_order_latency(layer, pixel_folds, row["SIMD"], ingest_cycles) == row["latency_cycles"]
    plan = LayerSchedule("conv", DataFlow.ROW_PIXEL, row["PE"], row["SIMD"], row["IC"], weight_place=WeightPlace.BRAM)
    assert layer_cycles(layer, plan) == row["interval_cycles"]


def windows(layer: LayerSpec, frames: int) -> list[int]:
    """Pixels, padding included, that have entered when each window of some frames is complete."""
    padded_width = layer.in_width + 2 * layer.padding[1]
    padded_height = layer.in_height + 2 * layer.padding[0]
    return [
        frame * padded_height * padded_width
        + (row * layer.stride[0] + layer.kernel_size[0] - 1) * padded_width
        + column * layer.stride[1]
        + layer.kernel_size[1]
        for frame in range(frames)
        for row in range(layer.out_height)
        for column in range(layer.out_width)
    ]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("verilator") is None, reason="needs verilator")
def test_simulation_of_fresh_engines() -> None:
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "verilator_cycles.py"
    command = [sys.executable, str(script), "--count", "2", "--seed", "11"]
    done = subprocess.run(command, cwd=script.parents[1], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 exact" in done.stdout


@given(
    k=st.integers(1, 5),
    s=st.integers(1, 3),
    p=st.integers(0, 2),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    pixel_folds=st.integers(1, 40),
    ingest_cycles=st.integers(1, 6),
)
def test_formulas_equal_a_walk_over_all_windows(
    k: int, s: int, p: int, height: int, width: int, pixel_folds: int, ingest_cycles: int
) -> None:
    assume(min(height, width) + 2 * p >= k)
    layer = convolution(2, 4, k, s, p, height, width)
    entered, handed_over, results = 0, 0, []
    for needed in windows(layer, frames=3):
        complete = handed_over + (needed - entered) * ingest_cycles
        free = handed_over + pixel_folds if results else 0
        handed_over, entered = max(complete, free), needed
        results.append(handed_over + pixel_folds)
    per_frame = layer.out_height * layer.out_width
    assert pixel_order_cycles(layer, pixel_folds, ingest_cycles) == results[-1] - results[-1 - per_frame]
    latency = pixel_order_latency(layer, pixel_folds, 8, ingest_cycles)
    assert latency == results[per_frame - 1] + array_depth(8)


@given(k=st.integers(1, 5), size=st.integers(5, 12), pixel_folds=st.integers(1, 60))
def test_valid_convolution_is_the_short_formula(k: int, size: int, pixel_folds: int) -> None:
    layer = convolution(1, 1, k, 1, 0, size, size)
    rows = columns = size - k + 1
    short = rows * columns * pixel_folds + (rows - 1) * max(0, k - pixel_folds)
    assert pixel_order_cycles(layer, pixel_folds) == short + max(0, (k - 1) * size + k - pixel_folds)


@given(stride=st.integers(1, 3), ingest=st.sampled_from([1, 2, 4, 8]), flow=st.sampled_from(["row_pass", "row_pixel"]))
def test_no_pipelined_layer_is_faster_than_its_pixels_arrive(stride: int, ingest: int, flow: str) -> None:
    layer = convolution(8, 8, 3, stride, 1, 16, 12)
    plan = LayerSchedule("conv", DataFlow(flow), 8, 72, ingest, weight_place=WeightPlace.BRAM)
    assert layer_cycles(layer, plan) >= 16 * 12 * 8 // ingest - 12


@given(channels=st.integers(1, 8), rows=st.integers(1, 8), lanes=st.sampled_from([1, 2, 4]))
def test_what_turns_pixels_into_channels_takes_the_cycles_of_its_values(channels: int, rows: int, lanes: int) -> None:
    size = 2 * rows
    plan = LayerSchedule("r", DataFlow.ROW_PIXEL, 1, lanes)
    reorg = LayerSpec("r", Op.REORG, (INPUT,), channels, size, size, 4 * channels, rows, rows, stride=(2, 2))
    flat = LayerSpec("r", Op.FLATTEN, (INPUT,), channels, size, size, channels * size * size, 1, 1)
    assert layer_cycles(reorg, plan) == layer_cycles(flat, plan) == size * size * -(-channels // lanes)


def test_channels_into_the_line_buffer_keep_up_with_the_array() -> None:
    layer = convolution(64, 64, 3, 2, 1, 56, 56)
    assert ingest_channels(layer, 8, 64) == 4  # of 4 pixels in for each out, within 72 cycles
    assert channels_read(layer, 8, 9 * 16) == 16 and channels_read(layer, 8, 16) == 16
    grouped = replace(layer, groups=8)
    assert channels_read(grouped, 16, 9 * 2) == 4  # of two groups
    for flow, least in ((DataFlow.ROW_PIXEL, 1), (DataFlow.ROW_PASS, 64)):
        assert ingest_channels(convolution(64, 64, 3, 1, 1, 56, 56), 1, 64, flow) == least
