"""Stored bits of weights: formats, index codings, bounds."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwmodel import Granularity, IndexCoding, LayerConfig, LayerSpec, Op, SpecError, WeightFormat, weight_storage
from hwmodel.storage import rice_bits, rice_index_bits
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
    # Rice's expectation may undercut the entropy of *fixed* counts by less than one bit per layer, never more.
    assert storage.entropy_bound_bits <= storage.total_bits + 64


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
