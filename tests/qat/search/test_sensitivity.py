from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from hwmodel.precision import LayerConfig, NetworkConfig, WeightFormat, uniform
from qat.errors import SearchError
from qat.search.noise import activation_noise, at_least_as_precise, relative_noise
from qat.search.sensitivity import (
    MEASURED_DENSITIES,
    SensitivityProfile,
    gaussian_profile,
    lagrange_path,
    measure,
    monotone,
)
from qat.search.space import LayerRule, SearchSpace, SpaceSettings
from tests.qat.search.problems import RULE, chain

NETWORK = chain(4)
SPACE = SearchSpace.from_network(NETWORK, SpaceSettings(rule=RULE))
BASE = uniform(NETWORK, 8, 4)


def additive_loss(config: NetworkConfig) -> float:
    return 0.5 + sum((i + 1) * relative_noise(config[name]) for i, name in enumerate(config))


def test_measure_finds_each_layers_own_increase() -> None:
    seen: list[tuple[int, int]] = []
    profile = measure(additive_loss, SPACE, BASE, lambda done, total: seen.append((done, total)))
    best = relative_noise(LayerConfig(8, 8))
    for i, choices in enumerate(SPACE.choices):
        expected = [(i + 1) * (relative_noise(choice) - best) for choice in choices]
        np.testing.assert_allclose(profile.table[i], expected, atol=1e-12)
    total = 1 + int(SPACE.sizes.sum())
    assert seen == [(i, total) for i in range(1, total + 1)]
    assert SensitivityProfile.from_dict(profile.to_dict()) == profile


def test_measure_adds_what_weights_and_activations_lose() -> None:
    rule = replace(RULE, act_bit_widths=(2, 4, 8))
    space = SearchSpace.from_network(NETWORK, SpaceSettings(rule=rule))
    base = uniform(NETWORK, 8, 8)
    seen = []

    def loss_of(config: NetworkConfig) -> float:
        seen.append(config)
        return additive_loss(config) + sum(2.0**-layer.act_bit_width for _, layer in config.layers)

    profile = measure(loss_of, space, base)
    for i, choices in enumerate(space.choices):
        clean = [
            (i + 1) * (relative_noise(c) - relative_noise(LayerConfig(8, 8))) + 2.0**-c.act_bit_width - 2.0**-8
            for c in choices
        ]
        np.testing.assert_allclose(profile.table[i], clean, atol=1e-12)
    # Per layer its choices of weights and two narrower widths, not their product; 8 bits throughout are the base.
    weights = len(RULE.choices())
    assert len(seen) == 1 + 4 * (weights - 1) + 3 * 2


@pytest.mark.parametrize("widths", [(4,), (2, 4)])
def test_of_many_densities_some_are_measured(widths: tuple[int, ...]) -> None:
    """What lies between follows from a loss that is linear in the logarithm of the density."""
    densities = tuple(np.geomspace(0.01, 0.5, 40).round(4).tolist())
    rule = replace(RULE, significant_densities=densities, sparse_densities=(0.1, 0.5), act_bit_widths=widths)
    space = SearchSpace.from_network(NETWORK, SpaceSettings(rule=rule))
    seen = []

    def loss_of(config: NetworkConfig) -> float:
        seen.append(config)
        return sum(of_layer(layer) for _, layer in config.layers)

    def of_layer(layer: LayerConfig) -> float:
        """More precise choices lose less."""
        read = -layer.act_bit_width / 20
        if layer.weight_format is WeightFormat.BINARY_PLUS_SPARSE:
            return read + 1.0 - np.log(layer.density) / 8
        return read + 2.0 - layer.weight_bit_width / 5 - np.log(layer.density) / 10

    widest = {name: max(c.act_bit_width for c in choices) for name, choices in space.choices_by_layer.items()}
    base = NetworkConfig(tuple((name, LayerConfig(8, width)) for name, width in widest.items()))
    profile = measure(loss_of, space, base)
    few = len(rule.choices()) // len(widths) - 40 + MEASURED_DENSITIES
    assert len(seen) <= 1 + 4 * few + 3 * (len(widths) - 1)
    for name, choices, row in zip(space.layers, space.choices, profile.table, strict=True):
        family = [(c, loss) for c, loss in zip(choices, row, strict=True) if c.weight_format == "binary_plus_sparse"]
        assert len(family) == 40 * (1 if name == "conv0" else len(widths))
        for choice, loss in family:
            changed = tuple((n, choice if n == name else layer) for n, layer in base.layers)
            assert loss == pytest.approx(loss_of(replace(base, layers=changed)) - loss_of(base), abs=1e-9)


def test_narrower_activations_are_less_precise() -> None:
    rule = LayerRule(weight_bit_widths=(1, 4), significant_densities=(), sparse_densities=(), act_bit_widths=(2, 8))
    precise = {(a, b) for a, b in itertools.permutations(range(4), 2) if at_least_as_precise(*_pair(rule, a, b))}
    assert precise == {(1, 0), (2, 0), (3, 0), (3, 1), (3, 2)}  # 1 bit reading 8 and 4 bits reading 2: not comparable
    noise = [activation_noise(bits) for bits in (*range(1, 9), 16)]
    assert noise == sorted(noise, reverse=True)
    space = SearchSpace.from_network(NETWORK, SpaceSettings(rule=rule))
    profile = gaussian_profile(space)
    assert profile.table[1][0] - profile.table[1][1] == pytest.approx(activation_noise(2) - activation_noise(8))


def _pair(rule: LayerRule, a: int, b: int) -> tuple[LayerConfig, LayerConfig]:
    choices = rule.choices()
    return choices[a], choices[b]


def test_measure_changes_tied_layers_together() -> None:
    space = SearchSpace.from_network(NETWORK, SpaceSettings(rule=RULE, groups=[["conv0", "fc"]]))
    changed = []

    def loss_of(config: NetworkConfig) -> float:
        changed.append([name for name in config if config[name].weight_bit_width != BASE[name].weight_bit_width])
        return 1.0

    measure(loss_of, space, BASE)
    assert {tuple(names) for names in changed} == {(), ("conv0", "fc"), ("conv1",), ("conv2",)}


def test_measure_with_losses_that_are_not_finite() -> None:
    def loss_of(config: NetworkConfig) -> float:
        return float("nan") if config["conv1"] == SPACE.choices[1][0] else additive_loss(config)

    profile = measure(loss_of, SPACE, BASE)
    assert profile.table[1][0] == pytest.approx(max(row.max() for row in profile.table), rel=0.5)
    with pytest.raises(SearchError, match="the loss of the base configuration is nan, expected a finite number"):
        measure(lambda _: float("nan"), SPACE, BASE)
    base = uniform(NETWORK, 5, 4, end_bit_width=5)
    with pytest.raises(SearchError, match="every measured loss is NaN or infinite"):
        measure(lambda config: 1.0 if config == base else float("inf"), SPACE, base)


@given(values=st.lists(st.floats(-1, 3), min_size=7, max_size=7))
@hypothesis_settings(max_examples=50, deadline=None)
def test_monotone_respects_precision_and_keeps_what_is_monotone(values: list[float]) -> None:
    choices = LayerRule(
        weight_bit_widths=(1, 2, 4), significant_densities=(0.05,), binary_densities=(0.5,), sparse_densities=(0.5,)
    ).choices()
    assert len(choices) == len(values)
    clean = monotone(np.array(values), choices)
    assert (clean >= 0).all()
    for (i, a), (j, b) in itertools.product(enumerate(choices), repeat=2):
        if at_least_as_precise(a, b):
            assert clean[i] <= clean[j] + 1e-12
    np.testing.assert_allclose(monotone(clean, choices), clean)


def test_monotone_averages_a_violation() -> None:
    clean = monotone(np.array([0.2, 0.4, 0.1]), [LayerConfig(1, 4), LayerConfig(2, 4), LayerConfig(4, 4)])
    np.testing.assert_allclose(clean, [0.3, 0.3, 0.1])


@given(seed=st.integers(0, 10_000))
@hypothesis_settings(max_examples=30, deadline=None)
def test_lagrange_path_is_optimal_for_every_lambda(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits = [np.sort(rng.uniform(1, 100, size)) for size in (3, 4, 2)]
    loss = [np.sort(rng.uniform(0, 5, len(row)))[::-1] for row in bits]
    profile = SensitivityProfile(("a", "b", "c"), tuple(tuple(row) for row in loss))
    path = lagrange_path(profile, bits)

    def total_bits(points: np.ndarray) -> np.ndarray:
        return sum(row[points[:, i]] for i, row in enumerate(bits))

    everything = np.array(list(itertools.product(range(3), range(4), range(2))))
    assert (np.diff(total_bits(path)) > 0).all()
    assert (np.diff(profile.predicted(path)) < 0).all()
    for price in np.geomspace(1e-4, 10, 40):
        best = (profile.predicted(everything) + price * total_bits(everything)).min()
        assert (profile.predicted(path) + price * total_bits(path)).min() == pytest.approx(best)


def test_lagrange_path_skips_choices_that_cost_more_and_lose_more() -> None:
    profile = SensitivityProfile(("a",), ((1.0, 1.2, 0.5, 0.0),))
    np.testing.assert_array_equal(lagrange_path(profile, [np.array([1.0, 2.0, 3.0, 4.0])])[:, 0], [0, 3])


def test_gaussian_profile_prefers_bits_and_density() -> None:
    profile = gaussian_profile(SPACE)
    assert profile.source == "gaussian"
    profile.check_matches(SPACE)
    by_choice = dict(zip(SPACE.choices[1], profile.table[1], strict=True))
    assert by_choice[LayerConfig(1, 4)] > by_choice[LayerConfig(1, 4, 0.98, WeightFormat.BINARY_PLUS_SPARSE)]
    assert by_choice[LayerConfig(4, 4, 0.5, WeightFormat.SPARSE)] > by_choice[LayerConfig(4, 4)]


def test_profiles_that_do_not_fit() -> None:
    other = SearchSpace.from_network(chain(5), SpaceSettings(rule=RULE))
    with pytest.raises(SearchError, match=r"profile is of another search space: dimensions .*; measure it again"):
        gaussian_profile(other).check_matches(SPACE)
    with pytest.raises(SearchError, match=r"'a' has \(0.1, -1.0\), expected finite values >= 0"):
        SensitivityProfile(("a",), ((0.1, -1.0),))
    with pytest.raises(SearchError, match=r"sensitivity profile: .*'scale'"):
        SensitivityProfile.from_dict({"dimensions": ["a"], "loss_increase": [[1]], "scale": 2})
