"""Configurations as arrays: the same costs as one by one, and bad values refused by layer, field and value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel import (
    ConfigArrays,
    Granularity,
    NetworkConfig,
    NetworkSpec,
    SpecError,
    WeightFormat,
    estimate,
    estimate_arrays,
    estimate_many,
    uniform,
)
from tests.hwmodel.conftest import conv
from tests.hwmodel.test_densities import assert_row_is
from tests.hwmodel.test_table import BOARD, some_schedule

AB = ("a", "b")
WIDE = NetworkSpec("wide", 3, 8, 8, (conv("a", "input", 3, 64, 8), conv("b", "a", 64, 256, 8)))


def some_arrays(network: NetworkSpec, rng: np.random.Generator, size: int) -> ConfigArrays:
    """Any formats, granularities, bits and densities; layers that share weights alike."""
    shape = (size, len(network.weighted))
    formats = rng.choice([str(name) for name in WeightFormat], shape)
    sparsity = np.where(
        rng.random(shape) < 0.2, rng.integers(0, 2, shape), rng.random(shape)
    )  # now and then all or none
    fields = {
        "weight_bit_width": np.where(formats == "binary_plus_sparse", 1, rng.integers(1, 9, shape)),
        "act_bit_width": rng.choice([2, 4, 8, 16], shape),
        "sparsity": np.where(formats == "dense", 0, sparsity),
        "weight_format": formats,
        "granularity": rng.choice([str(name) for name in Granularity], shape),
    }
    names = [layer.name for layer in network.weighted]
    owners = [names.index(layer.weights_of or layer.name) for layer in network.weighted]
    picked = {name: values[:, owners] for name, values in fields.items()}
    if rng.random() < 0.5:  # one precision of each layer, in which only densities differ
        picked = {name: values[0] for name, values in picked.items()}
        picked["sparsity"] = np.where(picked["weight_format"] == "dense", 0, sparsity[:, owners])
    return ConfigArrays(tuple(names), **picked, sum_bit_width=int(rng.choice([4, 8, 16])))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    which=st.sampled_from(["residual", "sharing", "wide"]),
    size=st.sampled_from([1, 3, 20, 60]),
)
def test_costs_are_those_of_the_reference(
    residual_network: NetworkSpec, sharing_network: NetworkSpec, seed: int, which: str, size: int
) -> None:
    network = {"residual": residual_network, "sharing": sharing_network, "wide": WIDE}[which]
    rng = np.random.default_rng(seed)
    plan = some_schedule(network, int(rng.integers(0, len(network.layers) + 1)), int(rng.integers(0, 3)), rng)
    arrays = some_arrays(network, rng, size)
    columns = estimate_arrays(network, arrays, BOARD, plan)
    for row in rng.permutation(len(arrays))[:8].tolist():
        assert_row_is(columns, row, estimate(network, arrays.config(row), BOARD, plan))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), times=st.sampled_from([1, 2, 5]))
def test_reading_objects_gives_the_arrays_back(sharing_network: NetworkSpec, seed: int, times: int) -> None:
    """Whether each is given once, or few stand for many."""
    arrays = some_arrays(sharing_network, np.random.default_rng(seed), 9)
    configs = [arrays.config(row) for row in range(len(arrays))]
    again = ConfigArrays.read([configs[0], *configs * times], sharing_network)
    for name, values in arrays.fields.items():
        assert np.array_equal(again.fields[name][1:], np.tile(values, (times, 1))), name
    assert again.config(len(arrays)) == configs[-1]


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u8"])
def test_any_integers_cost_the_same(residual_network: NetworkSpec, dtype: str) -> None:
    plan = some_schedule(residual_network, 2, 1, np.random.default_rng(3))
    shape = (3, len(residual_network.weighted))
    names = tuple(layer.name for layer in residual_network.weighted)
    bits = np.random.default_rng(0).integers(1, 9, shape)
    columns = [
        estimate_arrays(residual_network, ConfigArrays(names, bits.astype(kind), np.full(shape, 8, kind)), BOARD, plan)
        for kind in (dtype, "i8")
    ]
    for name, values in columns[0].items():
        np.testing.assert_array_equal(values, columns[1][name])


def test_one_row_and_one_value_stand_for_all() -> None:
    arrays = ConfigArrays(AB, 1, [4, 8], [[0.5, 0.25], [0.75, 1.0], [0, 0]], "sparse", ["kernel", "filter"])
    assert len(arrays) == 3
    assert [arrays.config(1)[name].sparsity for name in AB] == [0.75, 1.0]
    assert [arrays.config(2)[name].act_bit_width for name in AB] == [4, 8]
    assert arrays.config(0)["b"].granularity is Granularity.FILTER
    assert len(ConfigArrays(AB, 4, 4)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_bit_width": [[1, 1], [1, 9]]}, r"layer 'b', configuration 1: weight_bit_width=9, expected 1\.\.8"),
        ({"weight_bit_width": [0, 1]}, r"layer 'a', configuration 0: weight_bit_width=0, expected 1\.\.8"),
        ({"weight_bit_width": 2.0}, "weight_bit_width of dtype float64, expected integers"),
        ({"act_bit_width": [4, 12]}, r"layer 'b', configuration 0: act_bit_width=12, expected 1\.\.8 or 16"),
        ({"act_bit_width": True}, "act_bit_width of dtype bool, expected integers"),
        ({"sparsity": [[0, 1.5]]}, r"layer 'b', configuration 0: sparsity=1.5, expected a number in 0\.\.1"),
        ({"sparsity": [float("nan"), 0]}, r"layer 'a', configuration 0: sparsity=nan, expected a number in 0\.\.1"),
        ({"sparsity": "half"}, "sparsity of dtype <U4, expected numbers"),
        ({"sparsity": [[0.1], [0.2]], "weight_format": "dense"}, "sparsity=0.1, expected 0 for weight_format='dense'"),
        ({"weight_format": "binary_plus_sparse", "weight_bit_width": 2}, "weight_bit_width=2, expected 1 for weight_"),
        (
            {"weight_format": ["sparse", "coo"]},
            r"layer 'b', .*: weight_format='coo', expected one of \['dense', ",
        ),
        ({"weight_format": [0, 3]}, r"layer 'b', configuration 0: weight_format=3, expected one of \['dense'"),
        ({"granularity": "block"}, "layer 'a', configuration 0: granularity='block', expected one of"),
        ({"granularity": 0.5}, "granularity=0.5, expected one of"),
        ({"sparsity": [0.1, 0.2, 0.3]}, r"sparsity of shape \(3,\), expected \(configurations, 2 layers\)"),
        ({"sparsity": np.zeros((2, 2, 2))}, r"sparsity of shape \(2, 2, 2\), expected"),
        ({"sparsity": np.zeros((3, 2)), "act_bit_width": np.ones((2, 2), int)}, "act_bit_width of 2 configurations, "),
        ({"sparsity": np.zeros((0, 2))}, "at least 1"),
        ({"sum_bit_width": 9}, "sum_bit_width=9, expected one of"),
    ],
)
def test_wrong_values_are_refused(changes: dict[str, Any], message: str) -> None:
    fields = {"weight_bit_width": 1, "act_bit_width": 4, "weight_format": "sparse", **changes}
    with pytest.raises(SpecError, match=message):
        ConfigArrays(AB, **fields)


def test_layers_are_those_of_the_network(sharing_network: NetworkSpec) -> None:
    plan = some_schedule(sharing_network, 2, 0, np.random.default_rng(0))
    with pytest.raises(SpecError, match=r"layers=\['a', 'b'\] do not match network 'sharing': its layers with weights"):
        estimate_arrays(sharing_network, ConfigArrays(AB, 4, 4), BOARD, plan)
    names = tuple(layer.name for layer in sharing_network.weighted)
    bits = np.full((2, len(names)), 4)
    bits[1, names.index("head2.1")] = 3
    with pytest.raises(
        SpecError,
        match="layer 'head2.1' uses the weights of 'head2', but weight_bit_width of configuration 1 is 3, not 4",
    ):
        estimate_arrays(sharing_network, ConfigArrays(names, bits, 4), BOARD, plan)
    config = uniform(sharing_network, 4, 4)
    other = replace(config["head2"], weight_bit_width=3)
    pairs = tuple((name, other if name == "head2" else layer) for name, layer in config.layers)
    with pytest.raises(SpecError, match="layer 'head2.1' uses the weights of 'head2', but weight_bit_width of"):
        estimate_many(sharing_network, [config, NetworkConfig(pairs)], BOARD, plan)
