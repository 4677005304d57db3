"""Energy of a frame, from energies per operation.  Only ratios mean anything: see `relative` figures in `cost`.

Source:
    45 nm figures by Horowitz, ISSCC 2014, as fitted in google/qkeras (qtools/settings.py): addition 0.0031 pJ per
    bit, multiplication 0.003 pJ per bit squared, DRAM 20.3 pJ per bit; an 8 KB SRAM reads 64 bits for 10 pJ.  No
    open figure for block RAM was found, so the SRAM's stands for it.
"""

from __future__ import annotations

from typing import Any

from hwmodel.compute import accumulator_bits, folds
from hwmodel.dataflow import DataFlow, LayerSchedule
from hwmodel.network import LayerSpec
from hwmodel.precision import SIGNIFICANT_BIT_WIDTH, LayerConfig, WeightFormat
from hwmodel.storage import WeightBits

ADD_PJ_PER_BIT = 0.0031
MULTIPLY_PJ_PER_BIT2 = 0.003
SRAM_PJ_PER_BIT = 10 / 64
DRAM_PJ_PER_BIT = 20.3


def mac_energy_pj(layer: LayerSpec, config: LayerConfig, storage: WeightBits) -> Any:
    """Energy of a layer's multiplications and additions per frame, in pJ: a float, or an array of many densities."""
    sum_bits = accumulator_bits(layer, config.stored_bit_width, config.act_bit_width)
    addition = ADD_PJ_PER_BIT * sum_bits
    multiplication = MULTIPLY_PJ_PER_BIT2 * config.act_bit_width
    pixels = layer.out_height * layer.out_width
    if config.weight_format is WeightFormat.BINARY_PLUS_SPARSE:
        significant = storage.kept_weights * pixels
        return layer.macs * addition + significant * (multiplication * SIGNIFICANT_BIT_WIDTH + addition)
    macs = storage.kept_weights * pixels
    product = 0.0 if config.weight_bit_width == 1 else multiplication * config.weight_bit_width
    return macs * (product + addition)


def on_chip_energy_pj(layer: LayerSpec, config: LayerConfig, storage: WeightBits, plan: LayerSchedule) -> Any:
    """Energy of reading weights and activations from memories on chip per frame, in pJ: like `mac_energy_pj`."""
    pixels = layer.out_height * layer.out_width
    weight_reads = {
        DataFlow.ROW_PIXEL: pixels,
        DataFlow.ROW_PASS: layer.out_height,
        DataFlow.SPILLED: layer.out_height,
        DataFlow.FRAME: 1,
    }[plan.data_flow]
    # Columns slide through the window registers: a memory delivers one column of the window per output pixel.
    act_bits = folds(layer, plan.pe, plan.simd) * pixels * plan.simd * config.act_bit_width / layer.kernel_size[1]
    return SRAM_PJ_PER_BIT * (weight_reads * storage.weight_bits + act_bits)


def dram_energy_pj(bits: float) -> float:
    """Energy of off-chip traffic, in pJ."""
    return DRAM_PJ_PER_BIT * bits
