"""Search methods under one interface: this project's, and plain ones to compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from search_problems import FIDELITY
from torch.quasirandom import SobolEngine

from qat.search.front import Front
from qat.search.proposer import Proposer, ProposerSettings
from qat.search.sensitivity import SensitivityProfile, gaussian_profile
from qat.search.space import SearchSpace
from qat.search.trial import CostColumns, FloatArray, IntArray, Target, Trial, TrialState

TURN = 5
"""Step from one budget of a front to the next one; has no factor in common with their number."""

FRONT_DESIGNS = 8
"""First designs of this project's search where a front is sought."""

INITIAL = 10
"""Quasi-random points with which methods without a profile begin."""


class Problem(Protocol):
    """What a method sees of a problem."""

    space: SearchSpace
    profile: SensitivityProfile

    def cost(self, indices: IntArray) -> CostColumns:
        """Exact costs."""

    def observe(self, point: IntArray, seed: int, number: int) -> float:
        """A noisy accuracy; every method sees the same noise at the same number."""


class Evaluations:
    """Evaluates points of one run and keeps them in order.

    A point outside the widest budget is repaired first: the cost is exact and free, so no method shall waste
    evaluations on it.  Layers are lowered by one choice at a time in an order that is fixed for the run, so that the
    same point is always repaired to the same one and a method's model stays valid.

    Args:
        problem: What is searched.
        targets: Budgets, the widest last: one for the best accuracy inside it, several for a front.
        count: Evaluations to spend.
        seed: Of the run.
    """

    def __init__(self, problem: Problem, targets: Sequence[Target], count: int, seed: int) -> None:
        self.problem, self.targets, self.count, self.seed = problem, tuple(targets), count, seed
        self.points: list[IntArray] = []
        self.values: list[float] = []
        self._order = np.random.default_rng(seed).permutation(len(problem.space.sizes))

    @property
    def target(self) -> Target:
        """The budget whose turn it is."""
        return self.targets[(TURN * len(self.points) - 1) % len(self.targets)]

    @property
    def is_front(self) -> bool:
        """Whether a front is sought."""
        return len(self.targets) > 1

    @property
    def done(self) -> bool:
        """Whether the budget of evaluations is spent."""
        return len(self.points) >= self.count

    def feasible(self, points: IntArray, target: Target | None = None) -> np.ndarray:
        """Which points are inside a target's bounds, by default the widest's."""
        return (target or self.targets[-1]).feasible(self.problem.cost(self.problem.space.layer_indices(points)))

    def bits(self, points: IntArray) -> FloatArray:
        """Stored bits per weight."""
        found: FloatArray = self.problem.cost(self.problem.space.layer_indices(points))["bits_per_weight"]
        return found

    def repaired(self, point: IntArray, target: Target | None = None) -> IntArray:
        """The point, or a cheaper one inside a target's bounds, by default the widest's."""
        point = np.clip(point, 0, self.problem.space.sizes - 1).astype(np.int64)
        while not self.feasible(point[None, :], target)[0]:
            for layer in self._order:
                if point[layer] > 0:
                    point[layer] -= 1
                    if self.feasible(point[None, :], target)[0]:
                        break
        return point

    def __call__(self, point: IntArray) -> float:
        """Evaluates the repaired point."""
        point = self.repaired(point)
        value = self.problem.observe(point, self.seed, len(self.points))
        self.points.append(point)
        self.values.append(value)
        return value


Method = Callable[[Evaluations], None]
"""Spends the evaluations."""


def _proposed(run: Evaluations, profile: SensitivityProfile) -> None:
    settings = ProposerSettings(initial_trials=FRONT_DESIGNS) if run.is_front else ProposerSettings()
    proposer = Proposer(run.problem.space, run.problem.cost, profile, settings)
    target = Front("front", run.targets[-1].bounds, ("bits_per_weight",)) if run.is_front else run.target
    trials: list[Trial] = []
    while not run.done:
        proposal = proposer.propose(trials, target, np.random.default_rng([run.seed, len(trials)]))
        metrics = {"accuracy": run(np.array(proposal.point))}
        config = run.problem.space.config(proposal.point)
        trials.append(
            Trial(len(trials) + 1, proposal.point, config, FIDELITY, 0, target.name, proposal.origin,
                  TrialState.COMPLETED, proposal.cost, metrics, proposal.predicted, ended_s=0.0)
        )  # fmt: skip


def ours(run: Evaluations) -> None:
    """This project's search."""
    _proposed(run, run.problem.profile)


def ours_without_profile(run: Evaluations) -> None:
    """This project's search without measured sensitivities."""
    _proposed(run, gaussian_profile(run.problem.space))


def sobol(run: Evaluations) -> None:
    """Quasi-random points."""
    quasi_random(run, run.count)


def quasi_random(run: Evaluations, count: int) -> None:
    """Evaluates Sobol points."""
    sizes = run.problem.space.sizes
    engine = SobolEngine(len(sizes), scramble=True, seed=run.seed)  # type: ignore[no-untyped-call]
    for row in engine.draw(min(count, run.count)).double().numpy():
        run((row * sizes).astype(np.int64))


def evolutionary(run: Evaluations) -> None:
    """Steady state: mutate 1..3 layers of the best of three survivors out of ten."""
    rng = np.random.default_rng(run.seed)
    sizes = run.problem.space.sizes
    quasi_random(run, INITIAL)
    while not run.done:
        ranked = np.argsort(run.values)[::-1][:10]
        child = run.points[ranked[rng.choice(len(ranked), 3).min()]].copy()
        layers = rng.choice(len(child), int(rng.integers(1, 4)), replace=False)
        child[layers] = rng.integers(0, sizes[layers])
        run(child)


METHODS: dict[str, Method] = {
    "ours": ours,
    "ours, no profile": ours_without_profile,
    "evolutionary": evolutionary,
    "Sobol": sobol,
}
