"""Published accelerators.  Sim-YOLO-v2 on VC707 is the regression target of the whole model.

Source:
    Nguyen et al., "A High-Throughput and Power-Efficient FPGA Implementation of YOLO CNN for Object Detection",
    IEEE TVLSI 27(8), 2019: tables IV (layers, tiling, bits) and V (resources, speed) and the text.  The input leaves
    the host with 4 bytes per pixel, results leave as 32-bit sums of the last layer, which has no batch norm.
"""

from __future__ import annotations

import pytest

from benchmarks.published import radioml_fps, saved_traffic, sim_yolo_config, sim_yolo_report, yolov2_zu3eg_s
from hwmodel import CostReport, DataFlow, LayerConfig, estimate, load_board, load_network, weight_storage


@pytest.fixture(scope="module")
def published() -> CostReport:
    return sim_yolo_report()


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


def test_luts(published: CostReport) -> None:
    assert published.lut == pytest.approx(155_200, rel=0.05)


def test_own_schedule_is_faster_within_the_same_board(published: CostReport) -> None:
    own = estimate(load_network("sim_yolo_v2_fpga"), sim_yolo_config(), load_board("vc707"))
    assert own.fits
    assert own.offchip_weight_bits == 0
    assert own.fps > 2 * published.fps


@pytest.mark.parametrize(
    ("name", "gop", "mib"),
    # Table of accuracy and size of the same paper: operations in float, MB (of 2**20 bytes) with 1-bit weights.
    [("sim_yolo_v2_fpga", 17.18, 1.88), ("yolov2_tiny_voc", None, 2.01), ("yolo_voc_2_0", 34.9, 8.1)],
)
def test_sizes_with_one_bit(name: str, gop: float | None, mib: float) -> None:
    network = load_network(name)
    last = network.weighted[-1].name
    layers = {layer.name: LayerConfig(8 if layer.name == last else 1, 6) for layer in network.weighted}
    bits = sum(weight_storage(layer, layers[layer.name]).total_bits for layer in network.weighted)
    assert bits / 8 / 2**20 == pytest.approx(mib, rel=0.01)
    if gop is not None:
        assert 2 * network.total_macs / 1e9 == pytest.approx(gop, rel=1e-3)


def test_streaming_frame_rate_of_finn() -> None:
    # finn-examples, RadioML VGG10 w4a4 on ZCU104 at 250 MHz: about 230,000 frames per second.
    assert radioml_fps() == pytest.approx(230_000, rel=0.10)


def test_shared_engine_of_another_group() -> None:
    # dhm2013724/yolov2_xilinx_fpga, ZU3EG at 190 MHz, 8 x 24 products: 0.469 s per frame.
    assert yolov2_zu3eg_s(DataFlow.FRAME) == pytest.approx(0.469, rel=0.10)


def test_saved_traffic_is_in_the_published_range() -> None:
    # ShortcutFusion, arXiv 2106.08167: 47.8 to 84.8 % less than layer by layer, 8 bits on KCU1500.
    report = saved_traffic(load_network("yolov3"))
    assert 0.478 <= 1 - report.offchip_bits / report.baseline_offchip_bits <= 0.848
