"""Stored bits of weights: formats, index codings, bounds."""

from __future__ import annotations

from math import ceil, comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwmodel import Granularity, IndexCoding, LayerConfig, LayerSpec, Op, SpecError, WeightFormat, weight_storage
from hwmodel.storage import index_bound_bits, rice_bits, rice_index_bits
from tests.hwmodel.conftest import conv

LAYER = conv("c", "input", 32, 64, 8)  # 18432 weights


def rice_length(positions: np.ndarray, parameter: int) -> int:
    """Bits of the gaps, coded one by one."""
    gaps = np.diff(np.concatenate([[-1], positions])) - 1
    return int(sum((gap >> parameter) + 1 + parameter for gap in gaps))


def test_dense_counts_everything() -> None:
    storage = weight_storage(LAYER, LayerConfig(4, 4))
    assert storage.value_bits == 4 * 18432
    assert storage.index_bits == 0
    assert storage.scale_bits == 16 * 64 + 16  # multipliers, two shifts of 8 bits
    assert storage.bias_bits == 16 * 64
    assert storage.total_bits == 4 * 18432 + 32 * 64 + 16
    assert storage.entropy_bound_bits == storage.total_bits


def test_binary_plus_sparse_keeps_the_whole_sign_plane() -> None:
    storage = weight_storage(LAYER, LayerConfig(1, 4, 0.99, WeightFormat.BINARY_PLUS_SPARSE))
    assert storage.kept_weights == 184
    assert storage.value_bits == 18432 + 184 * 8
    assert storage.index_coding is IndexCoding.RICE


@pytest.mark.parametrize(
    ("granularity", "kept_weights"),
    [("element", 1843), ("kernel", 205 * 9), ("channel_vector", 58 * 32), ("filter", 6 * 288)],
)
def test_groups_of_each_granularity(granularity: str, kept_weights: int) -> None:
    config = LayerConfig(4, 4, 0.9, WeightFormat.SPARSE, Granularity(granularity))
    assert weight_storage(LAYER, config).kept_weights == kept_weights


@pytest.mark.parametrize("groups", [50, 1000])
@pytest.mark.parametrize("density", [0.02, 0.1, 0.4])
def test_rice_bits_are_the_mean_over_random_positions(groups: int, density: float) -> None:
    kept = max(1, int(groups * density))
    parameter, bits = rice_index_bits(groups, kept)
    rng = np.random.default_rng(1)
    lengths = [rice_length(np.sort(rng.permutation(groups)[:kept]), parameter) for _ in range(2000)]
    assert bits == pytest.approx(np.mean(lengths) + 0.5, rel=0.02, abs=0.6)  # rounded up
    others = [
        np.mean([rice_length(np.sort(rng.permutation(groups)[:kept]), other) for _ in range(200)])
        for other in range(10)
        if other != parameter
    ]
    assert min(others) > 0.97 * bits - 1


@given(
    sparsity=st.floats(0, 1),
    bits=st.integers(1, 8),
    granularity=st.sampled_from(Granularity),
    weight_format=st.sampled_from([WeightFormat.SPARSE, WeightFormat.BINARY_PLUS_SPARSE]),
)
def test_index_is_the_cheapest_and_above_the_bound(
    sparsity: float, bits: int, granularity: Granularity, weight_format: WeightFormat
) -> None:
    bits = 1 if weight_format is WeightFormat.BINARY_PLUS_SPARSE else bits
    storage = weight_storage(LAYER, LayerConfig(bits, 4, sparsity, weight_format, granularity))
    groups = {"element": 18432, "kernel": 2048, "channel_vector": 576, "filter": 64}[granularity]
    assert storage.index_bits <= groups
    assert 0 <= storage.kept_groups <= groups
    assert storage.entropy_bound_bits <= storage.total_bits


@given(
    out_channels=st.integers(1, 70),
    in_channels=st.integers(1, 12),
    kernel=st.sampled_from([1, 3]),
    kept_share=st.floats(0, 1),
    granularity=st.sampled_from(Granularity),
    weight_format=st.sampled_from(WeightFormat),
)
def test_nothing_is_stored_in_less_than_the_bound(
    out_channels: int,
    in_channels: int,
    kernel: int,
    kept_share: float,
    granularity: Granularity,
    weight_format: WeightFormat,
) -> None:
    layer = conv("c", "input", in_channels, out_channels, 4, kernel)
    sparsity = 0.0 if weight_format is WeightFormat.DENSE else 1 - kept_share
    storage = weight_storage(layer, LayerConfig(1, 4, sparsity, weight_format, granularity))
    assert storage.total_bits - storage.index_bits <= storage.entropy_bound_bits <= storage.total_bits


@given(groups=st.integers(1, 400), share=st.floats(0, 1))
def test_bound_is_the_logarithm_of_the_number_of_placements(groups: int, share: float) -> None:
    kept = round(groups * share)
    ways = comb(groups, kept)
    exact = (ways - 1).bit_length()  # ceil(log2(ways)) in integers
    assert exact - 1 <= index_bound_bits(groups, kept) <= exact
    if ways & (ways - 1) and ways < 10**6:  # not so near to a power of two that rounding could hide the difference
        assert index_bound_bits(groups, kept) == exact


@pytest.mark.parametrize("groups", [2, 64, 4096, 1 << 20])
def test_bound_of_a_power_of_two_is_not_rounded_up(groups: int) -> None:
    """One of 2**n places is n bits, however logarithms of factorials round."""
    assert index_bound_bits(groups, 1) == groups.bit_length() - 1 == index_bound_bits(groups, groups - 1)


def test_few_filters_cost_less_than_their_entropy_with_replacement() -> None:
    """One of two filters: 1 bit; 32 of 64: 61 bits, not the 64 of independent draws."""
    layer = conv("c", "input", 3, 64, 8)
    storage = weight_storage(layer, LayerConfig(4, 4, 0.5, WeightFormat.SPARSE, Granularity.FILTER))
    assert storage.index_bits == 64
    assert storage.total_bits - storage.entropy_bound_bits == 64 - 61


def test_all_or_nothing_needs_no_index() -> None:
    for sparsity in (0.0, 1.0):
        storage = weight_storage(LAYER, LayerConfig(4, 4, sparsity, WeightFormat.SPARSE))
        assert storage.index_bits == 0
        assert storage.index_coding is IndexCoding.NONE


def test_layer_without_weights_is_refused() -> None:
    pool = LayerSpec("p", Op.MAX_POOL, ("input",), 4, 4, 4, 4, 2, 2, (2, 2), (2, 2))
    with pytest.raises(SpecError, match=r"layer 'p': op='max_pool' has no weights"):
        weight_storage(pool, LayerConfig(4, 4))


@pytest.mark.parametrize(("groups", "kept"), [(1000, 1), (36864, 46), (589824, 346), (4608, 4600), (64, 64), (1, 1)])
def test_rice_parameter_is_the_best_of_all(groups: int, kept: int) -> None:
    parameter, bits = rice_index_bits(groups, kept)
    each = [rice_bits(groups, kept, r) for r in range(groups.bit_length() + 2)]
    assert bits == ceil(min(each))
    assert parameter == int(np.argmin(each))
