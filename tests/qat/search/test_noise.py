from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hwmodel.precision import Granularity, LayerConfig, WeightFormat
from qat.search.noise import UNIFORM_NOISE, at_least_as_precise, relative_noise

WEIGHTS = np.random.default_rng(0).standard_normal(400_000)


def simulated(config: LayerConfig) -> float:
    """Noise of actually quantizing Gaussian weights with the best scale of a grid."""
    order = np.argsort(-np.abs(WEIGHTS))
    kept = np.zeros(len(WEIGHTS), bool)
    kept[order[: round(config.density * len(WEIGHTS))]] = True
    if config.weight_format is WeightFormat.BINARY_PLUS_SPARSE:
        rest = WEIGHTS[~kept]
        return float(np.sum((rest - np.sign(rest) * np.abs(rest).mean()) ** 2) / len(WEIGHTS))
    stored = WEIGHTS[kept]
    if config.weight_bit_width == 1:
        quantized = np.sign(stored) * np.abs(stored).mean()
        return float((np.sum((stored - quantized) ** 2) + np.sum(WEIGHTS[~kept] ** 2)) / len(WEIGHTS))
    half = 2 ** (config.weight_bit_width - 1)
    errors = []
    for step in np.geomspace(0.01, 2, 60):
        levels = np.clip(np.floor(stored / step), -half, half - 1) + 0.5
        errors.append(np.sum((stored - levels * step) ** 2))
    return float((min(errors) + np.sum(WEIGHTS[~kept] ** 2)) / len(WEIGHTS))


@pytest.mark.parametrize(
    "config",
    [
        LayerConfig(1, 4),
        LayerConfig(2, 4),
        LayerConfig(4, 4),
        LayerConfig(1, 4, 0.5, WeightFormat.SPARSE),
        LayerConfig(1, 4, 0.9, WeightFormat.SPARSE),
        LayerConfig(1, 4, 0.95, WeightFormat.BINARY_PLUS_SPARSE),
        LayerConfig(1, 4, 0.8, WeightFormat.BINARY_PLUS_SPARSE),
    ],
)
def test_noise_is_that_of_quantized_gaussian_weights(config: LayerConfig) -> None:
    assert relative_noise(config) == pytest.approx(simulated(config), rel=0.03)


@pytest.mark.parametrize("group_weights", [2, 9, 400])
@pytest.mark.parametrize("sparsity", [0.5, 0.9])
@pytest.mark.parametrize("bits", [1, 4])
def test_noise_of_pruned_groups_is_that_of_gaussian_weights(group_weights: int, sparsity: float, bits: int) -> None:
    config = LayerConfig(bits, 4, sparsity, WeightFormat.SPARSE, Granularity.KERNEL)
    count = len(WEIGHTS) // group_weights
    groups = WEIGHTS[: count * group_weights].reshape(count, group_weights)
    order = np.argsort(-(groups**2).sum(axis=1))
    stored = groups[order[: round(config.density * count)]].ravel()
    if bits == 1:
        error = np.sum((np.abs(stored) - np.abs(stored).mean()) ** 2)
    else:
        half = 2 ** (bits - 1)
        steps = np.geomspace(0.01, 2, 60)[:, None]
        errors = [stored - (np.clip(np.floor(stored / step), -half, half - 1) + 0.5) * step for step in steps]
        error = min(float(np.sum(one**2)) for one in errors)
    dropped = groups[order[round(config.density * count) :]]
    simulated_noise = (error + np.sum(dropped**2)) / groups.size
    assert relative_noise(config, group_weights) == pytest.approx(simulated_noise, rel=0.03)


def test_noise_at_the_ends_of_density() -> None:
    assert relative_noise(LayerConfig(4, 4, 1.0, WeightFormat.SPARSE)) == 1
    assert relative_noise(LayerConfig(4, 4, 0.0, WeightFormat.SPARSE)) == UNIFORM_NOISE[4]
    assert relative_noise(LayerConfig(1, 4, 1.0, WeightFormat.BINARY_PLUS_SPARSE)) == UNIFORM_NOISE[1]
    assert relative_noise(LayerConfig(1, 4, 0.0, WeightFormat.BINARY_PLUS_SPARSE)) == pytest.approx(UNIFORM_NOISE[8])


def test_precision_is_a_partial_order_that_noise_respects() -> None:
    choices = [LayerConfig(b, 4) for b in range(1, 9)]
    choices += [LayerConfig(b, 4, s, WeightFormat.SPARSE) for b in (1, 2, 4) for s in (0.5, 0.9)]
    choices += [LayerConfig(1, 4, s, WeightFormat.BINARY_PLUS_SPARSE) for s in (0.9, 0.99)]
    choices += [replace(c, granularity=each) for c in choices if c.sparsity > 0 for each in list(Granularity)[1:]]
    weights = dict(zip(Granularity, (1, 9, 16, 144), strict=True))
    for a in choices:
        assert at_least_as_precise(a, a)
        for b in choices:
            if a != b and at_least_as_precise(a, b):
                assert not at_least_as_precise(b, a)
                noise = [relative_noise(choice, weights[choice.granularity]) for choice in (a, b)]
                assert noise[0] < noise[1]
    dense = LayerConfig(1, 4)
    ternary = LayerConfig(1, 4, 0.5, WeightFormat.SPARSE)
    assert not at_least_as_precise(dense, ternary)
    assert not at_least_as_precise(ternary, dense)
    kernel, vector = (replace(ternary, granularity=each) for each in (Granularity.KERNEL, Granularity.CHANNEL_VECTOR))
    assert not at_least_as_precise(kernel, vector) and not at_least_as_precise(vector, kernel)
    assert at_least_as_precise(LayerConfig(4, 4), replace(kernel, weight_bit_width=4))
