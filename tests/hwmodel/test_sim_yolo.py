"""Sim-YOLO-v2 on VC707 as published: the regression target of the whole model.

Source:
    Nguyen et al., "A High-Throughput and Power-Efficient FPGA Implementation of YOLO CNN for Object Detection",
    IEEE TVLSI 27(8), 2019: tables IV (layers, tiling, bits) and V (resources, speed) and the text.  The input leaves
    the host with 4 bytes per pixel, results leave as 32-bit sums of the last layer, which has no batch norm.
"""

from __future__ import annotations

import pytest

from hwmodel import (
    CostReport,
    DataFlow,
    HostInterface,
    LayerConfig,
    LayerSchedule,
    Multiplier,
    NetworkConfig,
    Schedule,
    WeightPlace,
    estimate,
    load_board,
    load_network,
)

# (Ti, To) of each convolution, table IV
TILES = (
    (3, 32), (8, 8), (8, 8), (8, 8), (8, 8), (8, 8), (8, 8), (8, 16), (16, 8),
    (8, 16), (16, 8), (8, 16), (16, 8), (8, 16), (16, 8), (8, 16), (16, 5),
)  # fmt: skip
# bits that each convolution reads: 6, and 4 behind the two layers whose outputs have 4
ACT_BITS = (8, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 4, 6, 4, 6)


@pytest.fixture(scope="module")
def published() -> CostReport:
    network = load_network("sim_yolo_v2_fpga")
    layers = [
        (layer.name, LayerConfig(8 if layer.name == "conv16" else 1, bits))
        for layer, bits in zip(network.weighted, ACT_BITS, strict=True)
    ]
    tiles = dict(zip((layer.name for layer in network.weighted), TILES, strict=True))
    plans, lanes = [], 1
    for layer in network.layers:
        if not layer.has_weights:
            plans.append(LayerSchedule(layer.name, DataFlow.ROW_PIXEL, 1, lanes))
            continue
        ti, lanes = tiles[layer.name]
        taps = layer.kernel_size[0] * layer.kernel_size[1]
        multiplier = Multiplier.DSP if layer.name == "conv16" else Multiplier.LUT
        plans.append(LayerSchedule(layer.name, DataFlow.ROW_PASS, lanes, ti * taps, ti, multiplier, WeightPlace.BRAM))
    schedule = Schedule(network.name, tuple(plans), HostInterface(pixel_word_bits=32, result_word_bits=32))
    return estimate(network, NetworkConfig(tuple(layers)), load_board("vc707"), schedule)


def test_work_and_size(published: CostReport) -> None:
    assert 2 * published.total_macs / 1e9 == pytest.approx(17.177, abs=5e-4)
    assert published.stored_bits / 8 / 2**20 == pytest.approx(1.88, abs=5e-3)


def test_dsp_slices(published: CostReport) -> None:
    assert published.dsp == 272


def test_offchip_bytes(published: CostReport) -> None:
    assert published.offchip_bits == 776_724 * 8
    assert published.offchip_weight_bits == 0


def test_block_ram(published: CostReport) -> None:
    assert published.bram18 == pytest.approx(1144, rel=0.13)


def test_frame_rate_of_a_batch(published: CostReport) -> None:
    assert published.fps == pytest.approx(109.3, rel=0.13)


def test_frame_rate_of_single_images(published: CostReport) -> None:
    assert 1 / published.latency_s == pytest.approx(60.72, rel=0.13)


def test_own_schedule_is_faster_within_the_same_board(published: CostReport) -> None:
    network = load_network("sim_yolo_v2_fpga")
    layers = [
        (layer.name, LayerConfig(8 if layer.name == "conv16" else 1, bits))
        for layer, bits in zip(network.weighted, ACT_BITS, strict=True)
    ]
    own = estimate(network, NetworkConfig(tuple(layers)), load_board("vc707"))
    assert own.fits
    assert own.offchip_weight_bits == 0
    assert own.fps > published.fps
