"""Synthetic search problem: what a network's accuracy does under quantization, at no cost.

Layers have 1e3..1e6 weights.  A layer's damage is its sensitivity (heavy-tailed over layers) times the noise of its
choice; training repairs a part of it that differs from layer to layer; pairs of layers interact; accuracy saturates
in the total damage; an evaluation adds 0.2 points of noise.  The sensitivity profile is measured before training, so
it is wrong by a factor per layer and by the repair.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwmodel.network import LayerSpec, NetworkSpec, Op
from hwmodel.precision import NetworkConfig
from qat.search.noise import relative_noise
from qat.search.sensitivity import SensitivityProfile
from qat.search.space import LayerRule, SearchSpace, SpaceSettings
from qat.search.trial import Fidelity, FloatArray, IntArray

BRAM18_BITS = 18 * 1024
FLOAT_ACCURACY = 0.92
LARGEST_DROP = 0.82
OBSERVATION_NOISE = 0.002

FIDELITY = Fidelity("benchmark", 1)

RULE = LayerRule(
    weight_bit_widths=(1, 2, 3, 4, 5, 6, 7, 8),
    significant_densities=(0.01, 0.02, 0.05, 0.1),
    binary_densities=(0.5, 0.25, 0.1),
    sparse_densities=(0.5, 0.25, 0.1, 0.03),
)


@dataclass(frozen=True)
class SyntheticProblem:
    """One instance; the arrays are per layer, `damage` per layer and choice."""

    space: SearchSpace
    damage: tuple[FloatArray, ...]
    interactions: FloatArray  # (layers, layers), upper triangle
    profile: SensitivityProfile
    budget = 1.4
    widest_budget = 2.0  # of a front, whose narrowest is the least size that there is
    lowest_accuracy = 0.82  # of the point from which a front's hypervolume is measured

    def cost(self, indices: IntArray) -> dict[str, FloatArray]:
        """Exact costs; shape (n,) each, from layer indices (n, layers)."""
        return stored_costs(self.space, indices)

    def true_accuracy(self, indices: IntArray) -> FloatArray:
        """Accuracy without noise; shape (n,)."""
        layer = np.stack([row[indices[:, i]] for i, row in enumerate(self.damage)], axis=1)
        root = np.sqrt(layer)
        pairs = np.einsum("ni,ij,nj->n", root, self.interactions, root)
        total = np.maximum(layer.sum(axis=1) + pairs, 0.0)
        return FLOAT_ACCURACY - LARGEST_DROP * (1 - np.exp(-total))

    def reference_profile(self) -> SensitivityProfile:
        """The true damage of every layer."""
        return SensitivityProfile(self.space.dimensions, tuple(tuple(row) for row in self.damage))

    def evaluate(self, config: NetworkConfig, fidelity: Fidelity, seed: int) -> dict[str, float]:
        """A noisy evaluation, as the search calls it."""
        indices = self.space.layer_indices(np.array([self.space.point(config)]))
        noise = np.random.default_rng(seed).normal(0, OBSERVATION_NOISE)
        return {"accuracy": float(np.clip(self.true_accuracy(indices)[0] + noise, 0, 1))}

    def observe(self, point: IntArray, seed: int, number: int) -> float:
        """A noisy evaluation of one point; the same noise for the same seed and number."""
        return self.evaluate(self.space.config(point), FIDELITY, 100_000 * seed + number)["accuracy"]


def stored_costs(space: SearchSpace, indices: IntArray) -> dict[str, FloatArray]:
    """Stored bits and block RAM, a ceiling per layer; shape (n,) each, from layer indices (n, layers)."""
    bits = np.stack([np.array(row)[indices[:, i]] for i, row in enumerate(space.stored_bits)], axis=1)
    total = bits.sum(axis=1).astype(np.float64)
    weights = sum(space.weights)
    return {
        "stored_bits": total,
        "bits_per_weight": total / weights,
        "compression": 32 * weights / total,
        "bram18": np.ceil(bits / BRAM18_BITS).sum(axis=1),
    }


def synthetic_problem(layers: int, seed: int) -> SyntheticProblem:
    """An instance with this many layers."""
    rng = np.random.default_rng(seed)
    space = SearchSpace.from_network(_network(layers, rng), SpaceSettings(rule=RULE))
    sensitivity = rng.lognormal(0, 1.3, layers)
    repair = rng.uniform(0.6, 1.3, layers)
    damage = []
    measured = []
    for i, choices in enumerate(space.choices):
        noise = np.array([relative_noise(choice) for choice in choices])
        damage.append(sensitivity[i] * noise ** repair[i] * rng.lognormal(0, 0.15, len(choices)))
        measured.append(sensitivity[i] * rng.lognormal(0, 0.6) * noise * rng.lognormal(0, 0.1, len(choices)))
    one_bit = [[c.weight_bit_width == 1 and c.density == 1 for c in choices].index(True) for choices in space.choices]
    scale = 0.06 / sum(row[i] for row, i in zip(damage, one_bit, strict=True))  # 1 bit everywhere loses about 5 points
    interactions = np.triu(rng.normal(0, 1.0, (layers, layers)), 1) * (rng.random((layers, layers)) < 3 / layers)
    profile = SensitivityProfile(space.dimensions, tuple(tuple(row) for row in measured))
    return SyntheticProblem(space, tuple(row * scale for row in damage), 0.5 * interactions, profile)


def _network(layers: int, rng: np.random.Generator) -> NetworkSpec:
    """A chain of 1x1 convolutions and filters whose weights are log-uniform in 1e3..1e6."""
    specs = []
    channels = [16]
    for i in range(layers):
        weights = 10 ** rng.uniform(3, 6)
        out_channels = (
            int(np.clip(weights / channels[-1], 4, 1000)) if i % 2 else int(np.clip(np.sqrt(weights), 16, 1000))
        )
        channels.append(out_channels)
        producer = "input" if i == 0 else f"layer{i - 1}"
        specs.append(LayerSpec(f"layer{i}", Op.CONV, (producer,), channels[i], 8, 8, out_channels, 8, 8))
    return NetworkSpec(f"synthetic{layers}", 16, 8, 8, tuple(specs))
