"""The model's estimates beside published accelerators: the tables of `docs/validation.md`.

    python benchmarks/published.py

Nothing is fitted to any row: bits, tiling and clock are those that were published.
"""

from __future__ import annotations

from hwmodel import (
    CostReport,
    DataFlow,
    HostInterface,
    LayerConfig,
    LayerSchedule,
    LayerSpec,
    Multiplier,
    NetworkConfig,
    NetworkSpec,
    Op,
    Schedule,
    WeightPlace,
    estimate,
    load_board,
    load_network,
    uniform,
)
from hwmodel.compute import folds
from hwmodel.cycles import pixel_order_cycles

SIM_YOLO_TILES = (
    (3, 32), (8, 8), (8, 8), (8, 8), (8, 8), (8, 8), (8, 8), (8, 16), (16, 8),
    (8, 16), (16, 8), (8, 16), (16, 8), (8, 16), (16, 8), (8, 16), (16, 5),
)  # fmt: skip
"""(Ti, To) of each convolution of Sim-YOLO-v2.  Source: Nguyen et al., IEEE TVLSI 27(8), 2019, table IV."""

SIM_YOLO_ACT_BITS = (8, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 4, 6, 4, 6)
"""Bits that each convolution reads: 6, and 4 behind the two layers whose outputs have 4.  Source: the same table."""


def sim_yolo_config() -> NetworkConfig:
    """Published precision of Sim-YOLO-v2: 1-bit weights, 8 bits in the last layer."""
    network = load_network("sim_yolo_v2_fpga")
    layers = [
        (layer.name, LayerConfig(8 if layer.name == "conv16" else 1, bits))
        for layer, bits in zip(network.weighted, SIM_YOLO_ACT_BITS, strict=True)
    ]
    return NetworkConfig(tuple(layers))


def sim_yolo_report() -> CostReport:
    """Sim-YOLO-v2 on VC707 with its published tiling."""
    network = load_network("sim_yolo_v2_fpga")
    tiles = dict(zip((layer.name for layer in network.weighted), SIM_YOLO_TILES, strict=True))
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
    return estimate(network, sim_yolo_config(), load_board("vc707"), schedule)


def radioml_fps(clock_hz: int = 250_000_000) -> float:
    """Frames per second of FINN's RadioML VGG10: its first layer takes 1,024 samples, one per cycle."""
    layer = LayerSpec("conv", Op.CONV, ("input",), 2, 1, 1024, 64, 1, 1024, (1, 3), padding=(0, 1))
    return clock_hz / pixel_order_cycles(layer, folds(layer, 64, 6))


def yolov2_zu3eg_s(data_flow: DataFlow, clock_hz: int = 190_000_000) -> float:
    """Seconds per frame that an array of 8 x 24 products computes YOLOv2, weights off chip."""
    network = load_network("yolov2_voc")
    plans = [
        LayerSchedule(
            layer.name,
            data_flow,
            24,
            8,
            weight_place=WeightPlace.STREAMED if layer.has_weights else WeightPlace.NONE,
        )
        for layer in network.layers
    ]
    # Cycles of the array do not depend on bits; the model has no 16-bit weights.
    schedule = Schedule(network.name, tuple(plans))
    report = estimate(network, uniform(network, 8, 8), load_board("ultra96_v2"), schedule)
    return sum(layer.cycles for layer in report.layers) / clock_hz


def saved_traffic(network: NetworkSpec) -> CostReport:
    """8-bit network on KCU1500 under the best schedule."""
    return estimate(network, uniform(network, 8, 8), load_board("kcu1500"))


def row(what: str, published: float, model: float, unit: str) -> str:
    """A line of the table."""
    return f"| {what} | {published:,.6g} {unit} | {model:,.6g} {unit} | {100 * (model / published - 1):+.1f} % |"


def main() -> None:
    """Command line."""
    report = sim_yolo_report()
    print("| Sim-YOLO-v2, VC707, 200 MHz | published | model | error |\n|---|---|---|---|")
    print(row("operations", 17.177, 2 * report.total_macs / 1e9, "GOP"))
    print(row("weights", 1.88, report.stored_bits / 8 / 2**20, "MiB"))
    print(row("DSP slices", 272, report.dsp, ""))
    print(row("off chip per frame", 776_724, report.offchip_bits / 8, "bytes"))
    print(row("block RAM", 1144, report.bram18, "RAMB18"))
    print(row("frames per second, batch", 109.3, report.fps, ""))
    print(row("frames per second, single", 60.72, 1 / report.latency_s, ""))
    print(row("LUT", 155_200, report.lut, ""))
    network = load_network("sim_yolo_v2_fpga")
    own = estimate(network, sim_yolo_config(), load_board("vc707"))
    print(f"\nown schedule: {own.fps:.1f} fps, {own.gops:,.0f} GOP/s, single {1 / own.latency_s:.1f} fps, ", end="")
    print(f"RAMB18 {own.bram18}, LUT {own.lut:,}, DSP {own.dsp}, off chip {own.offchip_bits // 8:,} bytes")
    print("\n| other boards | published | model | error |\n|---|---|---|---|")
    print(row("RadioML VGG10, ZCU104, 250 MHz", 230_000, radioml_fps(), "fps"))
    for flow in (DataFlow.FRAME, DataFlow.SPILLED):
        print(row(f"YOLOv2 16 bit, ZU3EG, 190 MHz, as `{flow}`", 469, 1e3 * yolov2_zu3eg_s(flow), "ms"))
    print("\n| 8 bit on KCU1500 | off chip, model | layer by layer | saved |\n|---|---|---|---|")
    for name in ("yolov3", "resnet152", "resnet50", "retinanet_r50"):
        saved = saved_traffic(load_network(name))
        mib = (bits / 8 / 2**20 for bits in (saved.offchip_bits, saved.baseline_offchip_bits))
        print("| {} | {:.1f} MiB | {:.1f} MiB |".format(name, *mib), end="")
        print(f" {100 * (1 - saved.offchip_bits / saved.baseline_offchip_bits):.1f} % |", flush=True)


if __name__ == "__main__":
    main()
