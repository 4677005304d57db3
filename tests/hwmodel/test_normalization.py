"""What normalisations cost: their parameters, a map or pixel that waits, and a pass of the shared engine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hwmodel import (
    INPUT,
    CostReport,
    DataFlow,
    LayerSchedule,
    LayerSpec,
    NetworkSpec,
    Op,
    Schedule,
    SpecError,
    WeightPlace,
    estimate,
    load_board,
    uniform,
)
from hwmodel.compute import NORM_LANE_LUTS, ROOT_CYCLES, ROOT_LUTS
from hwmodel.traffic import place, waiting_rows
from tests.hwmodel.conftest import conv

BOARD = load_board("zcu104")
NORMS = ("stem_norm", "a1_norm", "length")


def report_of(network: NetworkSpec, flow: DataFlow, simd: int = 2) -> CostReport:
    plans = [
        LayerSchedule(
            layer.name, flow, 2, simd, weight_place=WeightPlace.BRAM if layer.has_weights else WeightPlace.NONE
        )
        for layer in network.layers
    ]
    return estimate(network, uniform(network, 4, 4, sum_bit_width=8), BOARD, Schedule(network.name, tuple(plans)))


def without_norms(network: NetworkSpec) -> NetworkSpec:
    """The same with batch norms that follow no convolution."""
    layers = (replace(one, op=Op.SCALE, groups=1) if one.name in NORMS else one for one in network.layers)
    return NetworkSpec(network.name, 3, 16, 16, tuple(layers))


def test_parameters_are_stored(normalizing_network: NetworkSpec) -> None:
    stored = {layer.name: layer.stored_bits for layer in report_of(normalizing_network, DataFlow.FRAME).layers}
    assert stored["length"] == 8 * (16 + 16) + 2 * 8  # a multiplier and a bias per channel, two shifts
    assert stored["stem_norm"] == stored["length"] + 64  # and epsilon


@pytest.mark.parametrize("simd", [1, 3, 8])
def test_the_shared_engine_passes_over_the_map_once_more(normalizing_network: NetworkSpec, simd: int) -> None:
    with_norms = report_of(normalizing_network, DataFlow.FRAME, simd)
    without = report_of(without_norms(normalizing_network), DataFlow.FRAME, simd)
    fold = -(-8 // simd)
    expected = {
        "stem_norm": 16 * 16 * fold + 4 * ROOT_CYCLES,
        "a1_norm": 16 * 16 * fold + 2 * ROOT_CYCLES,
        "length": 16 * 16 * ROOT_CYCLES,  # a root for each pixel takes longer than its channels
    }
    assert {layer.name: layer.cycles for layer in with_norms.layers if layer.name in NORMS} == expected
    assert with_norms.interval_cycles - without.interval_cycles == sum(expected.values())


def test_the_shared_engine_has_lanes_for_norms_once(normalizing_network: NetworkSpec) -> None:
    with_norms = report_of(normalizing_network, DataFlow.FRAME, simd=8)
    without = report_of(without_norms(normalizing_network), DataFlow.FRAME, simd=8)
    assert with_norms.dsp - without.dsp == 8 * 5  # those of a group norm do the division by length too
    arrays = [one.lut - sum(row.lutram_luts for row in one.memories) for one in (with_norms, without)]
    assert arrays[0] - arrays[1] == 8 * NORM_LANE_LUTS + ROOT_LUTS


@pytest.mark.parametrize(("name", "slices"), [("stem_norm", 5), ("length", 3)])
def test_a_norm_right_behind_the_cut_has_lanes(normalizing_network: NetworkSpec, name: str, slices: int) -> None:
    """Before convolutions that have none behind them, and as all that runs on the shared engine."""
    layers = normalizing_network.layers[:6]
    flows = [DataFlow.ROW_PIXEL] * [layer.name for layer in layers].index(name)
    flows += [DataFlow.FRAME] * (len(layers) - len(flows))
    reports = []
    for kept in ((name,), ()):
        changed = [
            replace(one, op=Op.SCALE, groups=1) if one.name in NORMS and one.name not in kept else one for one in layers
        ]
        network = NetworkSpec("behind", 3, 16, 16, tuple(changed))
        plans = [
            LayerSchedule(one.name, flow, 2, 8, weight_place=WeightPlace.BRAM if one.has_weights else WeightPlace.NONE)
            for one, flow in zip(changed, flows, strict=True)
        ]
        reports.append(estimate(network, uniform(network, 4, 4), BOARD, Schedule("behind", tuple(plans))))
    assert reports[0].dsp - reports[1].dsp == 8 * slices
    arrays = [one.lut - sum(row.lutram_luts for row in one.memories) for one in reports]
    assert arrays[0] - arrays[1] == 8 * NORM_LANE_LUTS + ROOT_LUTS


def test_what_is_normalised_lies_in_a_frame_buffer(normalizing_network: NetworkSpec) -> None:
    with_norms = report_of(normalizing_network, DataFlow.FRAME)
    without = report_of(without_norms(normalizing_network), DataFlow.FRAME)
    buffers = [sum(row.purpose == "frame_buffer" for row in one.memories) for one in (with_norms, without)]
    assert buffers[0] > buffers[1]
    spilled = (
        report_of(normalizing_network, DataFlow.SPILLED),
        report_of(without_norms(normalizing_network), DataFlow.SPILLED),
    )
    # Each map before a norm is written and read: 8 bits, as sums are.
    assert spilled[0].offchip_bits - spilled[1].offchip_bits == 3 * 2 * 8 * 16 * 16 * 8


def test_a_pipeline_holds_maps_and_pixels_twice(normalizing_network: NetworkSpec) -> None:
    report = report_of(normalizing_network, DataFlow.ROW_PIXEL)
    waiting = {row.owner: (row.purpose, row.depth, row.width) for row in report.memories if row.owner in NORMS}
    assert waiting["stem_norm"] == ("frame_buffer", 2 * 16 * 16 * 4, 2 * 8)
    assert waiting["length"] == ("pixel", 2 * 4, 2 * 8)
    # The shortcut waits for a whole map.
    rows = {row.purpose: row.depth for row in report.memories if row.owner == "add"}
    assert rows["shortcut"] >= 16 * 16 * 4
    without = report_of(without_norms(normalizing_network), DataFlow.ROW_PIXEL)
    assert report.interval_cycles == max(without.interval_cycles, 16 * 16 * ROOT_CYCLES)
    assert report.latency_cycles > without.latency_cycles + report.interval_cycles
    assert report.dsp - without.dsp == 2 * ((5 - 1) * 2 + (3 - 1))
    assert report.lut - without.lut >= 3 * (2 * NORM_LANE_LUTS + ROOT_LUTS)


def branch(norms: int) -> NetworkSpec:
    """A shortcut around some convolutions with group norms, then a convolution."""
    layers = [conv("stem", INPUT, 3, 8, 16)]
    for number in range(norms):
        layers.append(conv(f"conv{number}", layers[-1].name, 8, 8, 16))
        layers.append(LayerSpec(f"norm{number}", Op.GROUP_NORM, (f"conv{number}",), 8, 16, 16, 8, 16, 16))
    layers.append(LayerSpec("add", Op.ADD, (layers[-1].name, "stem"), 8, 16, 16, 8, 16, 16))
    return NetworkSpec("branch", 3, 16, 16, (*layers, conv("last", "add", 8, 4, 16)))


@pytest.mark.parametrize("norms", [1, 2, 3])
def test_a_shortcut_waits_for_every_group_norm(norms: int) -> None:
    """A map for each of them, and the rows of the kernels; none would wait for more than a map without."""
    rows = waiting_rows(branch(norms))["add", "stem"]
    assert 16 * norms < rows <= 16 * (norms + 1)


def test_maps_that_come_early_to_the_shared_engine_wait_for_the_late_ones() -> None:
    network = branch(2)
    flows = [
        DataFlow.ROW_PIXEL if layer.name != "add" and layer.name != "last" else DataFlow.FRAME
        for layer in network.layers
    ]
    held = [buffer.tensors for buffer in place(network, tuple(flows)).buffers]
    assert held.count(("norm1",)) == 2  # ping-pong
    assert held.count(("stem",)) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 3}, r"groups=3, expected a divisor of in_channels=8"),
        ({"out_channels": 4}, r"out_channels=4, expected in_channels=8"),
        ({"stride": (2, 2)}, r"stride=\(2, 2\), expected \(1, 1\) for op='group_norm'"),
    ],
)
def test_a_wrong_norm_is_refused(changes: dict[str, object], message: str) -> None:
    norm = LayerSpec("norm", Op.GROUP_NORM, (INPUT,), 8, 16, 16, 8, 16, 16, groups=2)
    with pytest.raises(SpecError, match=message):
        replace(norm, **changes)  # type: ignore[arg-type]


def test_a_division_by_length_has_no_groups() -> None:
    with pytest.raises(SpecError, match=r"layer 'norm': groups=4, expected 1: a pixel is divided by the length of all"):
        LayerSpec("norm", Op.L2_NORM, (INPUT,), 8, 16, 16, 8, 16, 16, groups=4)


def test_a_norm_before_all_weights_is_refused() -> None:
    norm = LayerSpec("norm", Op.L2_NORM, (INPUT,), 8, 16, 16, 8, 16, 16)
    with pytest.raises(SpecError, match=r"layer 'norm': op='l2_norm' needs a layer with weights before it"):
        NetworkSpec("first", 8, 16, 16, (norm, conv("after", "norm", 8, 8, 16)))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("verilator") is None or shutil.which("yosys") is None, reason="needs verilator, yosys")
def test_hardware_computes_the_same() -> None:
    """Inverse roots and normalised values of the RTL, and what they take."""
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "rtl_norm.py"
    command = [sys.executable, str(script), "--count", "3000", "--seed", "7"]
    done = subprocess.run(command, cwd=script.parents[1], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"3000 of 3000 exact; longest root {ROOT_CYCLES} cycles" in done.stdout
    # Other versions of Yosys may map a little differently.
    (root,) = re.findall(r"inverse_root {'lut': (\d+), 'dsp': 0}", done.stdout)
    (lane,) = re.findall(r"17 bits of a count: {'lut': (\d+), 'dsp': 3}", done.stdout)
    assert int(root) == pytest.approx(ROOT_LUTS, rel=0.1) and int(lane) == pytest.approx(NORM_LANE_LUTS, rel=0.1)
