"""MAC arrays: LUTs against Yosys, DSP slices, load imbalance."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwmodel import DataFlow, LayerConfig, LayerSchedule, LayerSpec, Multiplier, Op, WeightPlace
from hwmodel.compute import (
    CONTROL_LUTS,
    ArrayUse,
    adder_tree_luts,
    expected_max_load,
    mac_array,
    products_per_dsp,
    sharing,
)
from hwmodel.cycles import layer_cycles
from hwmodel.memory import lutram_luts
from hwmodel.resources import SparseLanes, pipelined_array

# Yosys 0.23 on pipelined trees, benchmarks/yosys_mac.py; 1 bit: AND gates, without the shared sum.
SYNTHESIZED = json.loads((Path(__file__).parent / "data" / "yosys_mac.json").read_text(encoding="utf-8"))["rows"]


def array_of(row: dict[str, Any]) -> ArrayUse:
    """The array as the model has it, less accumulators and, for 1-bit weights, less the shared sum."""
    pe = 2 if row["multiplier"] == "dsp_packed" else 1
    bits = row["weight_bit_width"], row["act_bit_width"]
    array = mac_array(pe, row["products"], *bits, 0, Multiplier(row["multiplier"]), "7series")
    shared = adder_tree_luts(row["products"], bits[1]) if bits[0] == 1 else 0
    return ArrayUse(array.lut - shared, array.dsp)


def test_grid_is_covered() -> None:
    bits = {(row["products"], row["weight_bit_width"], row["act_bit_width"]) for row in SYNTHESIZED}
    assert {(products, w, a) for products in (16, 64) for w in (1, 2, 4, 8) for a in (4, 8)} <= bits


@pytest.mark.parametrize("row", SYNTHESIZED, ids=lambda row: "-".join(map(str, row.values())))
def test_arrays_are_as_synthesized(row: dict[str, Any]) -> None:
    array = array_of(row)
    assert array.lut == pytest.approx(row["lut"], rel=0.07)
    assert array.dsp == row["dsp"]


@given(terms=st.integers(0, 8).map(lambda level: 2**level), bits=st.integers(1, 16))
def test_adder_tree_is_the_sum_of_its_levels(terms: int, bits: int) -> None:
    total, count, width = 0, terms, bits
    while count > 1:
        count //= 2
        total += count * width
        width += 1
    assert adder_tree_luts(terms, bits) == total


def test_dsp_slices() -> None:
    assert mac_array(5, 16, 8, 6, 32, Multiplier.DSP, "7series").dsp == 80
    assert mac_array(8, 16, 8, 8, 32, Multiplier.DSP_PACKED, "7series").dsp == 64
    assert mac_array(8, 16, 4, 4, 32, Multiplier.DSP_PACKED, "ultrascale_plus").dsp == 32
    assert mac_array(8, 16, 1, 8, 32, Multiplier.DSP_PACKED, "7series").dsp == 0
    assert mac_array(8, 16, 4, 4, 32, Multiplier.LUT, "7series").dsp == 0
    assert products_per_dsp(8, 16, "ultrascale_plus") == 1


@pytest.mark.parametrize(("lanes", "items", "probability"), [(4, 100, 0.05), (16, 500, 0.02), (64, 64, 0.3)])
def test_fullest_lane(lanes: int, items: int, probability: float) -> None:
    drawn = np.random.default_rng(0).binomial(items, probability, (4000, lanes)).max(axis=1)
    assert expected_max_load(lanes, items, probability) == pytest.approx(drawn.mean(), rel=0.02)


@given(lanes=st.integers(1, 256), items=st.integers(0, 5000), probability=st.floats(0, 1))
def test_fullest_lane_is_between_mean_and_all(lanes: int, items: int, probability: float) -> None:
    load = expected_max_load(lanes, items, probability)
    assert items * probability - 1e-6 <= load <= items + 1e-6


def test_arrays_equal_scalars() -> None:
    pe, simd = np.array([1, 4, 8, 3]), np.array([9, 1, 16, 5])
    for weight_bit_width in (1, 3, 8):
        for multiplier in Multiplier:
            shared = np.array([1, 2, 8, 3])
            many = mac_array(pe, simd, weight_bit_width, 4, 20, multiplier, "7series", shared)
            for i in range(len(pe)):
                how = weight_bit_width, 4, 20, multiplier, "7series"
                one = mac_array(int(pe[i]), int(simd[i]), *how, int(shared[i]))
                assert (int(many.lut[i]), int(many.dsp[i])) == (one.lut, one.dsp)


@given(
    sets=st.integers(1, 16),
    each=st.integers(1, 16),
    simd=st.integers(1, 32),
    bits=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    multiplier=st.sampled_from(Multiplier),
    family=st.sampled_from(["7series", "ultrascale_plus"]),
)
def test_channel_groups_are_arrays_beside_each_other(
    sets: int, each: int, simd: int, bits: tuple[int, int], multiplier: Multiplier, family: str
) -> None:
    """Channels of different groups share no activation: neither a DSP slice nor the sum of activations."""
    one = mac_array(each, simd, *bits, 20, multiplier, family)
    all_of_them = mac_array(sets * each, simd, *bits, 20, multiplier, family, each)
    assert all_of_them.dsp == sets * one.dsp
    # Products in LUTs are rounded up once.
    assert sets * one.lut - sets < all_of_them.lut <= sets * one.lut


def depthwise(channels: int, size: int = 8) -> LayerSpec:
    shape = (channels, size, size)
    return LayerSpec("dw", Op.CONV, ("input",), *shape, *shape, (3, 3), padding=(1, 1), groups=channels)


def test_a_depthwise_layer_shares_nothing() -> None:
    layer = depthwise(64)
    assert [sharing(layer, pe) for pe in (1, 8, 64)] == [1, 1, 1]
    assert sharing(replace(layer, groups=16), np.array([1, 2, 16])).tolist() == [1, 2, 4]
    plan = LayerSchedule("dw", DataFlow.ROW_PIXEL, 8, 9, 8, Multiplier.DSP_PACKED, WeightPlace.BRAM)
    config = LayerConfig(4, 4)
    array = pipelined_array(layer, config, SparseLanes(0, 0), plan, False, "ultrascale_plus")
    assert array.dsp == 8 * 9
    full = pipelined_array(replace(layer, groups=1), config, SparseLanes(0, 0), plan, False, "ultrascale_plus")
    assert full.dsp == 8 * 9 // 4
    # Of its window 8 channels are read at once, of 64: as many words as a full convolution has for its 64 channels.
    assert array.lut - mac_array(8, 9, 4, 4, 12, Multiplier.DSP_PACKED, "ultrascale_plus", 1).lut == (
        CONTROL_LUTS + lutram_luts(8, 8 * 9 * 4, "ultrascale_plus")
    )


def test_a_depthwise_layer_gains_nothing_from_channels_in_parallel_on_the_shared_engine() -> None:
    """Its buffers deliver the activations of one channel group per cycle."""
    plans = [LayerSchedule("dw", DataFlow.FRAME, pe, 9, weight_place=WeightPlace.BRAM) for pe in (1, 8, 64)]
    assert len({layer_cycles(depthwise(64), plan) for plan in plans}) == 1
    grouped = replace(depthwise(64), groups=16)
    assert layer_cycles(grouped, plans[1]) < layer_cycles(grouped, plans[0]) / 3
