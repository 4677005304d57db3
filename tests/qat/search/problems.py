"""A small space with a known truth, for all tests of the search."""

from __future__ import annotations

import numpy as np

from hwmodel.network import LayerSpec, NetworkSpec, Op
from hwmodel.precision import NetworkConfig
from qat.search.noise import relative_noise
from qat.search.proposer import Proposer
from qat.search.sensitivity import SensitivityProfile
from qat.search.space import LayerRule, SearchSpace, SpaceSettings
from qat.search.trial import Fidelity, FloatArray, IntArray, Screening, Target, Trial, TrialState

FIDELITY = Fidelity("short", 1)
TARGET = Target("small", {"bits_per_weight": (None, 2.5)})
RULE = LayerRule(
    weight_bit_widths=(1, 2, 4, 8), significant_densities=(0.02,), binary_densities=(0.5,), sparse_densities=(0.5,)
)


def chain(layers: int = 10, channels: int = 32) -> NetworkSpec:
    """1x1 convolutions `conv0`, `conv1`, ... and a classifier `fc` on 4x4 maps; every other one is wider."""
    widths = [16] + [channels * (4 if i % 2 else 1) for i in range(layers - 1)]
    specs = []
    for i in range(layers - 1):
        producer = f"conv{i - 1}" if i else "input"
        specs.append(LayerSpec(f"conv{i}", Op.CONV, (producer,), widths[i], 4, 4, widths[i + 1], 4, 4))
    last = specs[-1]
    pool = LayerSpec(
        "pool", Op.AVG_POOL, (last.name,), last.out_channels, 4, 4, last.out_channels, 1, 1, (4, 4), (4, 4)
    )
    fc = LayerSpec("fc", Op.LINEAR, ("pool",), last.out_channels, 1, 1, 10, 1, 1)
    return NetworkSpec("chain", 16, 4, 4, (*specs, pool, fc))


class Problem:
    """Accuracy 0.9 less a saturating sum of sensitivity times noise, with known sensitivities."""

    def __init__(self, layers: int = 10, seed: int = 0, noise_std: float = 0.001) -> None:
        rng = np.random.default_rng(seed)
        self.space = SearchSpace.from_network(chain(layers), SpaceSettings(rule=RULE))
        self.sensitivity = rng.lognormal(0, 1.2, layers)
        self.sensitivity *= 0.3 / self.sensitivity.sum()
        self.noise = [np.array([relative_noise(choice) for choice in choices]) for choices in self.space.choices]
        self.noise_std = noise_std
        wrong = self.sensitivity * rng.lognormal(0, 0.5, layers)
        rows = tuple(tuple(s * row) for s, row in zip(wrong, self.noise, strict=True))
        self.profile = SensitivityProfile(self.space.dimensions, rows)

    def cost(self, indices: IntArray) -> dict[str, FloatArray]:
        bits = sum(np.array(row)[indices[:, i]] for i, row in enumerate(self.space.stored_bits))
        weights = sum(self.space.weights)
        return {"stored_bits": bits, "bits_per_weight": bits / weights, "compression": 32 * weights / bits}

    def accuracy(self, points: IntArray) -> FloatArray:
        damage = sum(self.sensitivity[i] * row[points[:, i]] for i, row in enumerate(self.noise))
        return 0.9 * np.exp(-damage)

    def evaluate(
        self, config: NetworkConfig, fidelity: Fidelity, seed: int, screening: Screening | None = None
    ) -> dict[str, float]:
        """On the way the accuracy is 20 points less, with noise of its own."""
        del fidelity
        noise = np.random.default_rng(seed).normal(0, self.noise_std, 2)
        accuracy = float(self.accuracy(np.array([self.space.point(config)]))[0])
        found = {"accuracy": accuracy + noise[0], "loss": 1.0}
        if screening is None:
            return found
        early = {"screening_accuracy": accuracy - 0.2 + noise[1]}
        return early if early["screening_accuracy"] < screening.least else found | early

    def unlucky(
        self, config: NetworkConfig, fidelity: Fidelity, seed: int, screening: Screening | None = None
    ) -> dict[str, float]:
        """One in four evaluations, by its seed, is 40 points behind, on the way too: that is not by chance."""
        found = self.evaluate(config, fidelity, seed, screening and Screening(screening.share))
        if seed % 4 == 0:
            found |= {name: found[name] - 0.4 for name in found if name.endswith("accuracy")}
        if screening and found["screening_accuracy"] < screening.least:
            return {"screening_accuracy": found["screening_accuracy"]}
        return found

    def completed(self, points: IntArray, target: str = TARGET.name) -> list[Trial]:
        """Completed trials at these points."""
        costs = self.cost(self.space.layer_indices(points))
        trials = []
        for number, point in enumerate(points.tolist()):
            config = self.space.config(point)
            trials.append(
                Trial(
                    number + 1,
                    tuple(point),
                    config,
                    FIDELITY,
                    number,
                    target,
                    "random",
                    TrialState.COMPLETED,
                    {name: float(values[number]) for name, values in costs.items()},
                    self.evaluate(config, FIDELITY, number),
                    started_s=0.0,
                    ended_s=1.5,
                )
            )
        return trials


PROBLEM_FOR_CRASHES = Problem(layers=3)
"""For tests whose processes must start fast: nothing here imports torch."""


def searched(problem: Problem, proposer: Proposer, target: Target, count: int, seed: int) -> list[Trial]:
    """Proposes and evaluates without a store."""
    trials: list[Trial] = []
    for number in range(count):
        proposal = proposer.propose(trials, target, np.random.default_rng([seed, number]))
        config = problem.space.config(proposal.point)
        metrics = problem.evaluate(config, FIDELITY, 1000 * seed + number)
        trials.append(
            Trial(
                number + 1, proposal.point, config, FIDELITY, 0, target.name, proposal.origin, TrialState.COMPLETED,
                proposal.cost, metrics, proposal.predicted, ended_s=1.0,
            )
        )  # fmt: skip
    return trials
