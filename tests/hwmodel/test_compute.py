"""MAC arrays: LUTs against Yosys, DSP slices, load imbalance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwmodel import Multiplier
from hwmodel.compute import ArrayUse, adder_tree_luts, expected_max_load, mac_array, products_per_dsp

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
            many = mac_array(pe, simd, weight_bit_width, 4, 20, multiplier, "7series")
            for i in range(len(pe)):
                one = mac_array(int(pe[i]), int(simd[i]), weight_bit_width, 4, 20, multiplier, "7series")
                assert (int(many.lut[i]), int(many.dsp[i])) == (one.lut, one.dsp)
