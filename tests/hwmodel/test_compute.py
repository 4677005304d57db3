"""MAC arrays: LUTs against Yosys, DSP slices, load imbalance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwmodel import Multiplier
from hwmodel.compute import adder_tree_luts, expected_max_load, luts_of_product, mac_array, products_per_dsp

# LUTs per product of pipelined trees of 64 products: Yosys 0.23, synth_xilinx -family xc7 -nodsp
TREES_OF_64 = {(2, 4): 14.8, (4, 4): 32.7, (8, 4): 72.9, (2, 8): 26.7, (4, 8): 72.8, (8, 8): 145.8}
# The same of 16 products; 1 bit: AND gates, without the shared sum
TREES_OF_16 = {
    (1, 2): 73, (1, 4): 135, (1, 6): 197, (1, 8): 259, (2, 2): 135, (2, 4): 229, (2, 6): 323, (2, 8): 417,
    (3, 2): 198, (3, 4): 280, (3, 6): 488, (3, 8): 710, (4, 2): 245,
}  # fmt: skip


def tree_luts(terms: int, weight_bit_width: int, act_bit_width: int) -> float:
    width = act_bit_width if weight_bit_width == 1 else weight_bit_width + act_bit_width
    return terms * luts_of_product(weight_bit_width, act_bit_width) + adder_tree_luts(terms, width)


@pytest.mark.parametrize("bits", sorted(TREES_OF_64))
def test_luts_of_64_products(bits: tuple[int, int]) -> None:
    assert tree_luts(64, *bits) / 64 == pytest.approx(TREES_OF_64[bits], rel=0.15)


@pytest.mark.parametrize("bits", sorted(TREES_OF_16))
def test_luts_of_16_products(bits: tuple[int, int]) -> None:
    assert tree_luts(16, *bits) == pytest.approx(TREES_OF_16[bits], rel=0.15)


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
