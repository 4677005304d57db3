"""A multiply-accumulate (MAC) array: folds, LUTs, DSP slices.

Folding: `pe` output channels and `simd` products of each are computed in one cycle.  One output pixel takes
`folds = ceil(M / pe) * ceil(K*K*C/groups / simd)` cycles.

Foldings may be integers or integer arrays: `Count` stands for both, and the same formulas serve one folding and a
grid of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, log2
from typing import Any

import numpy as np

from hwmodel.names import Names
from hwmodel.network import LayerSpec
from hwmodel.smooth import Array, Floats, Smooth, ceilings

Count = Any
"""An int, or an integer array of foldings."""

RESCALE_LUTS = 30
"""LUTs per output lane beside the DSP that rescales it: rounding, clamping, bias selection."""
CONTROL_LUTS = 300
"""LUTs of the control of one engine.  Source: FINN's constant for a matrix-vector unit."""
POOL_LUTS_PER_BIT = 1.5
"""LUTs per bit and lane of an operation without weights: comparator or adder, and selection."""

ROOT_CYCLES = 73
"""Cycles of an inverse root, one bit of it per cycle.  Source: simulated, `benchmarks/rtl_norm.py`."""
ROOT_LUTS = 283
"""LUTs of the unit that makes them one after the other.  Source: Yosys, 7-series, `benchmarks/rtl_norm.py`."""
NORM_LANE_LUTS = 234
"""LUTs per lane of a normalisation, most of them a shift by any number of bits.  Source: as `ROOT_LUTS`, of 8-bit codes
and up to 2**17 values in a group, with 3 DSP slices."""


class Multiplier(Names):
    """What multiplies."""

    LUT = "lut"
    DSP = "dsp"  # one product per DSP slice
    DSP_PACKED = "dsp_packed"  # several products that share an activation in one DSP slice


@dataclass(frozen=True)
class ArrayUse:
    """LUTs and DSP slices of an array."""

    lut: Count
    dsp: Count


def reduction_length(layer: LayerSpec) -> int:
    """Products per output value: K*K*C/groups; 1 for layers without weights."""
    if not layer.has_weights:
        return 1
    _, in_channels, rows, columns = layer.weight_shape
    return in_channels * rows * columns


def folds(layer: LayerSpec, pe: Count, simd: Count) -> Count:
    """Cycles per output pixel of a convolution or fully connected layer.

    >>> from hwmodel.network import Op
    >>> folds(LayerSpec("fc", Op.LINEAR, ("input",), 64, 1, 1, 10, 1, 1), pe=5, simd=8)
    16
    """
    return -(-layer.out_channels // pe) * -(-reduction_length(layer) // simd)


def sharing(layer: LayerSpec, pe: Count) -> Count:
    """Of the output channels in parallel, those that read the same activations: no more than are in a group.

    >>> from hwmodel.network import Op
    >>> sharing(LayerSpec("dw", Op.CONV, ("input",), 64, 8, 8, 64, 8, 8, groups=64), pe=8)
    1
    """
    return smaller(pe, layer.out_channels // layer.groups)


def accumulator_bits(layer: LayerSpec, weight_bit_width: int, act_bit_width: int) -> int:
    """Bits of a sum that cannot overflow: product bits plus log2 of the number of products."""
    return weight_bit_width + act_bit_width + ceil(log2(reduction_length(layer)))


def products_per_dsp(weight_bit_width: int, act_bit_width: int, family: str) -> int:
    """Products with a shared activation that one DSP slice computes.

    Source:
        AMD WP486 (two 8-bit products in a DSP48E2; its 27-bit port; on the 25-bit port of a DSP48E1 two 8-bit
        products fit without headroom to add before they are split) and WP521 (four 4-bit products, DSP48E2).
    """
    widest = max(weight_bit_width, act_bit_width)
    if widest > 8:
        return 1
    if widest > 4 or family == "7series":
        return 2
    return 4


PRODUCT_WEIGHT_BITS = (2, 3, 4, 8)
PRODUCT_ACT_BITS = (2, 4, 8)
PRODUCT_LUTS = ((4.0, 8.0, 16.0), (7.0, 10.3, 33.4), (9.0, 23.0, 59.0), (16.0, 59.0, 128.0))
"""LUTs of a signed times unsigned product, rows by weight bits, columns by activation bits.

Source:
    Yosys 0.23, synth_xilinx -family xc7 -nodsp, pipelined trees of 16 and 64 products less their adders
    (`benchmarks/yosys_mac.py`); 8 x 2 by symmetry with 2 x 8.
"""


@lru_cache(maxsize=1024)
def luts_of_product(weight_bit_width: int, act_bit_width: int) -> float:
    """LUTs of one product in LUTs, between the measured ones by interpolation.

    1 bit: the gates of the shared-sum form, sum(a) - 2*sum(w and a).

    >>> luts_of_product(1, 4), luts_of_product(8, 8)
    (4.0, 128.0)
    """
    if weight_bit_width == 1:
        return float(act_bit_width)
    act = min(act_bit_width, PRODUCT_ACT_BITS[-1])
    by_weight = [float(np.interp(act, PRODUCT_ACT_BITS, row)) for row in PRODUCT_LUTS]
    return float(np.interp(weight_bit_width, PRODUCT_WEIGHT_BITS, by_weight)) * act_bit_width / act


def adder_tree_luts(terms: Count, bit_width: int) -> Count:
    """LUTs of a tree of adders, one per bit of each sum; each level is a bit wider.

    >>> adder_tree_luts(16, 8)
    131
    """
    levels = np.ceil(np.log2(terms))
    levels = levels.astype(np.int64) if isinstance(levels, np.ndarray) else int(levels)
    return bit_width * (terms - 1) + (terms - 1 - levels)


def mac_array(
    pe: Count,
    simd: Count,
    weight_bit_width: int,
    act_bit_width: int,
    sum_bits: int,
    multiplier: Multiplier,
    family: str,
    shared: Count | None = None,
) -> ArrayUse:
    """LUTs and DSP slices of `pe * simd` products with their adder trees and accumulators, without rescaling.

    Args:
        pe: Output channels in parallel.
        simd: Products per output channel in parallel.
        weight_bit_width: 1..8.
        act_bit_width: 1..16.
        sum_bits: Bits of an accumulator.
        multiplier: What multiplies; products with a 1-bit weight are additions, in LUTs always.
        family: Device family.
        shared: Output channels of them that read the same activations (`sharing`); by default all.

    Source:
        Within 7 % of Yosys 0.23 for 16 and 64 products, DSP slices exact: `tests/hwmodel/test_compute.py`.
    """
    accumulators = pe * sum_bits
    shared = pe if shared is None else shared
    sets = -(-pe // shared)  # of activations
    if weight_bit_width == 1:
        tree = adder_tree_luts(simd, act_bit_width)
        # One tree more for sum(a), which the output channels of a set share.
        return ArrayUse(pe * simd * act_bit_width + (pe + sets) * tree + accumulators, 0 * pe)
    width = weight_bit_width + act_bit_width
    trees = pe * adder_tree_luts(simd, width)
    if multiplier is Multiplier.LUT:
        products = round_up(pe * simd * luts_of_product(weight_bit_width, act_bit_width))
        return ArrayUse(products + trees + accumulators, 0 * pe)
    if multiplier is Multiplier.DSP:  # the adder behind a slice's multiplier takes the product of its neighbour
        return ArrayUse(trees - pe * (simd // 2) * width + accumulators, pe * simd)
    packed = products_per_dsp(weight_bit_width, act_bit_width, family)
    return ArrayUse(trees + accumulators, sets * -(-shared // packed) * simd)


def larger(first: Count, second: Count) -> Count:
    """The larger of two numbers, or of each two in arrays."""
    if isinstance(first, int) and isinstance(second, int):
        return max(first, second)
    return np.maximum(first, second)


def smaller(first: Count, second: Count) -> Count:
    """The smaller of two numbers, or of each two in arrays."""
    return -larger(-first, -second)


def round_up(value: Any) -> Count:
    """The next integer, of a number or of each in an array."""
    return np.ceil(value).astype(np.int64) if isinstance(value, np.ndarray) else ceil(value)


@lru_cache(maxsize=65536)
def expected_max_load(lanes: int, items_per_lane: int, probability: float) -> float:
    """Expected maximum over lanes of binomial(items_per_lane, probability): the load of the slowest lane.

    Kept weights fall on lanes at random, and the array waits for the fullest one.

    Args:
        lanes: Number of lanes, >= 1.
        items_per_lane: Groups of a lane, >= 0.
        probability: Density, 0..1.

    Returns:
        Items; between the mean and `items_per_lane`.

    >>> expected_max_load(1, 100, 0.25)
    25.0
    """
    mean = items_per_lane * probability
    if lanes == 1 or probability in (0.0, 1.0) or items_per_lane == 0:
        return mean
    deviation = (mean * (1 - probability)) ** 0.5
    low = max(0, int(mean - 12 * deviation - 12))
    high = min(items_per_lane, int(mean + 12 * deviation + 30))
    count = np.arange(low, high + 1, dtype=np.float64)
    # log of the binomial's ratio P(k+1)/P(k), summed from its start and normalised: no factorials of large numbers
    ratio = np.log((items_per_lane - count[:-1]) / (count[:-1] + 1)) + np.log(probability / (1 - probability))
    log_mass = np.concatenate([[0.0], np.cumsum(ratio)])
    mass = np.exp(log_mass - log_mass.max())
    cumulative = np.minimum(np.cumsum(mass / mass.sum()), 1.0)
    return float(low + np.sum(1.0 - cumulative[:-1] ** lanes))


LOAD_MARGIN = 1e-6
"""Items within which interpolated loads may be wrong."""


def lane_load(lanes: int, groups: int, density: float) -> int:
    """Groups that the fullest of some lanes is expected to hold, rounded up.

    Args:
        lanes: Number of lanes, >= 1.
        groups: Groups of all lanes.
        density: Share of the groups that are kept, 0..1.
    """
    return ceil(expected_max_load(lanes, -(-groups // lanes), density) - 1e-9)


def lane_loads(lanes: int, groups: int, densities: Floats) -> Array:
    """`lane_load` of many densities, equal to it.

    Args:
        lanes: Number of lanes, >= 1.
        groups: Groups of all lanes.
        densities: Shape (n,), ascending, strictly between 0 and 1.

    Returns:
        Groups, shape (n,).
    """
    if lanes == 1:
        return np.ceil(groups * densities - 1e-9).astype(np.int64)
    values = _load(lanes, -(-groups // lanes)).values(densities)
    return ceilings(values - 1e-9, LOAD_MARGIN, lambda index: lane_load(lanes, groups, float(densities[index])))


@lru_cache(maxsize=4096)
def _load(lanes: int, items_per_lane: int) -> Smooth:
    return Smooth(lambda density: expected_max_load(lanes, items_per_lane, density), LOAD_MARGIN)
