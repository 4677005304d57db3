"""Many densities at once equal them one by one, integer for integer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel import (
    CostReport,
    LayerConfig,
    LayerSpec,
    NetworkConfig,
    NetworkSpec,
    Op,
    WeightFormat,
    estimate,
    estimate_many,
)
from hwmodel.compute import lane_load, lane_loads
from hwmodel.precision import kept_groups
from hwmodel.smooth import Smooth, ceilings
from hwmodel.storage import many_rice_index_bits, many_weight_bits, number_of_groups, rice_index_bits, weight_storage
from tests.hwmodel.conftest import conv
from tests.hwmodel.test_table import BOARD, some_schedule

GROUPS = st.one_of(st.integers(2, 200), st.sampled_from([1000, 4608, 36864, 589824, 2359296]))
FORMATS = st.sampled_from([WeightFormat.SPARSE, WeightFormat.BINARY_PLUS_SPARSE])
GRANULARITIES = st.sampled_from(["element", "kernel", "channel_vector", "filter"])


def some_kept(groups: int, seed: int, size: int) -> np.ndarray:
    """Ascending numbers of groups, most of them in a narrow range, so that pieces are interpolated."""
    rng = np.random.default_rng(seed)
    start, stop = np.sort(rng.uniform(-7, 7, 2))
    logits = np.concatenate([rng.uniform(start, stop, size), rng.uniform(-12, 12, size // 8)])
    return np.unique(np.clip((groups / (1 + np.exp(-logits))).astype(np.int64), 1, groups - 1))


@settings(max_examples=60, deadline=None)
@given(groups=GROUPS, seed=st.integers(0, 2**32 - 1))
def test_rice_bits(groups: int, seed: int) -> None:
    kept = some_kept(groups, seed, 300)
    assert many_rice_index_bits(groups, kept).tolist() == [rice_index_bits(groups, k)[1] for k in kept.tolist()]


@settings(max_examples=60, deadline=None)
@given(
    groups=GROUPS, lanes=st.one_of(st.integers(1, 40), st.sampled_from([64, 512, 2048])), seed=st.integers(0, 2**32 - 1)
)
def test_loads(groups: int, lanes: int, seed: int) -> None:
    densities = some_kept(groups, seed, 300) / groups
    assert lane_loads(lanes, groups, densities).tolist() == [lane_load(lanes, groups, d) for d in densities.tolist()]


@settings(max_examples=40, deadline=None)
@given(
    channels=st.sampled_from([1, 3, 64, 512]),
    filters=st.sampled_from([1, 8, 512]),
    kernel=st.sampled_from([1, 3]),
    weight_format=FORMATS,
    granularity=GRANULARITIES,
    seed=st.integers(0, 2**32 - 1),
)
def test_storage(
    channels: int, filters: int, kernel: int, weight_format: WeightFormat, granularity: str, seed: int
) -> None:
    layer = conv("c", "input", channels, filters, 8, kernel)
    config = LayerConfig(1, 4, 0.5, weight_format, granularity)
    groups = number_of_groups(layer, config)
    if groups < 3:
        return
    kept = some_kept(groups, seed, 200)
    many = many_weight_bits(layer, config, kept)
    ones = [weight_storage(layer, LayerConfig(1, 4, 1 - k / groups, weight_format, granularity)) for k in kept.tolist()]
    assert [one.kept_groups for one in ones] == kept.tolist()
    for name in ("value_bits", "index_bits", "entropy_bound_bits", "kept_weights", "total_bits", "weight_bits"):
        assert getattr(many, name).tolist() == [getattr(one, name) for one in ones], name


@given(groups=st.integers(1, 10**7), seed=st.integers(0, 2**32 - 1))
def test_kept_groups(groups: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sparsity = np.concatenate([rng.random(20), [0.0, 1.0, 0.5, 1 - 1e-12, 1e-12]])
    assert kept_groups(groups, sparsity).tolist() == [kept_groups(groups, s) for s in sparsity.tolist()]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), which=st.sampled_from(["residual", "sharing", "wide"]))
def test_costs(residual_network: NetworkSpec, sharing_network: NetworkSpec, seed: int, which: str) -> None:
    """Every column of `estimate_many` with densities of their own in each layer, edges included."""
    wide = NetworkSpec("wide", 3, 8, 8, (conv("a", "input", 3, 64, 8), conv("b", "a", 64, 256, 8)))
    network = {"residual": residual_network, "sharing": sharing_network, "wide": wide}[which]
    rng = np.random.default_rng(seed)
    plan = some_schedule(network, int(rng.integers(0, len(network.layers) + 1)), int(rng.integers(0, 3)), rng)
    kinds = {layer.name: some_kinds(rng) for layer in network.weighted}
    configs = []
    for _ in range(int(rng.choice([20, 70]))):  # enough to be looked up by value, or read as arrays
        drawn = {layer.name: draw(rng, kinds[layer.name]) for layer in network.weighted}
        pairs = [(layer.name, drawn[layer.weights_of or layer.name]) for layer in network.weighted]
        configs.append(NetworkConfig(tuple(pairs)))
    columns = estimate_many(network, configs, BOARD, plan)
    for row, config in enumerate(configs):
        assert_row_is(columns, row, estimate(network, config, BOARD, plan))


def assert_row_is(columns: dict[str, np.ndarray], row: int, report: CostReport) -> None:
    """Integers are equal, floats but for the order of their sums."""
    for name, values in columns.items():
        if values.dtype.kind == "f":
            assert values[row] == pytest.approx(getattr(report, name), rel=1e-12), name
        else:
            assert values[row] == getattr(report, name), name


def some_kinds(rng: np.random.Generator) -> list[tuple[int, int, str, str]]:
    """One or two of weight bits, activation bits, format and granularity."""
    kinds = []
    for _ in range(rng.integers(1, 3)):
        weight_format = str(rng.choice(["sparse", "binary_plus_sparse", "binary_plus_sparse", "dense"]))
        bits = 1 if weight_format == "binary_plus_sparse" else int(rng.integers(1, 9))
        granularity = str(rng.choice(["element", "element", "kernel", "channel_vector", "filter"]))
        kinds.append((bits, int(rng.choice([2, 4, 8, 16])), weight_format, granularity))
    return kinds


def draw(rng: np.random.Generator, kinds: list[tuple[int, int, str, str]]) -> LayerConfig:
    """A density of its own; now and then all or nothing."""
    bits, act, weight_format, granularity = kinds[rng.integers(len(kinds))]
    sparsity = float(rng.choice([rng.uniform(0, 1), rng.uniform(0.9, 1), 0.0, 1.0], p=[0.6, 0.36, 0.02, 0.02]))
    return LayerConfig(bits, act, 0.0 if weight_format == "dense" else sparsity, weight_format, granularity)


def test_pieces_that_do_not_fit_are_left_out() -> None:
    """A step is no polynomial: where it lies, nothing is interpolated, elsewhere it is."""
    step = Smooth(lambda density: float(density > 0.3), 1e-6)
    densities = np.linspace(0.01, 0.99, 4000)
    values = step.values(densities)
    known = ~np.isnan(values)
    assert not known[np.argmin(np.abs(densities - 0.3))]
    assert known.mean() > 0.9
    assert np.abs(values[known] - (densities[known] > 0.3)).max() < 1e-7


def test_doubtful_ceilings_are_asked_for() -> None:
    asked = []

    def exact(index: int) -> int:
        asked.append(index)
        return 70 + index

    values = np.array([1.5, 2.0, 2.0000001, 1.9999999, 2.1, np.nan])
    assert ceilings(values, 1e-6, exact).tolist() == [2, 71, 72, 73, 3, 75]
    assert asked == [1, 2, 3, 5]


def test_layer_without_groups_to_drop() -> None:
    """A single weight: nothing or all of it is kept."""
    network = NetworkSpec("one", 1, 1, 1, (LayerSpec("fc", Op.LINEAR, ("input",), 1, 1, 1, 1, 1, 1),))
    plan = some_schedule(network, 1, 0, np.random.default_rng(0))
    configs = [
        NetworkConfig((("fc", LayerConfig(1, 4, s, "binary_plus_sparse")),)) for s in np.linspace(0, 1, 40).tolist()
    ]
    columns = estimate_many(network, configs, BOARD, plan)
    for row, config in enumerate(configs):
        assert columns["lut"][row] == estimate(network, config, BOARD, plan).lut
