"""Search methods under one interface: this project's, and plain ones to compare with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from search_problems import FIDELITY
from torch.quasirandom import SobolEngine

from qat.search.acquisition import LocalSearch, log_expected_improvement
from qat.search.proposer import Proposer
from qat.search.sensitivity import SensitivityProfile, gaussian_profile
from qat.search.space import SearchSpace
from qat.search.trial import CostColumns, FloatArray, IntArray, Target, Trial, TrialState

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

    A point outside the budget is repaired first: the cost is exact and free, so no method shall waste evaluations on
    it.  Layers are lowered by one choice at a time in an order that is fixed for the run, so that the same point is
    always repaired to the same one and a method's model stays valid.
    """

    def __init__(self, problem: Problem, target: Target, count: int, seed: int) -> None:
        self.problem, self.target, self.count, self.seed = problem, target, count, seed
        self.points: list[IntArray] = []
        self.values: list[float] = []
        self._order = np.random.default_rng(seed).permutation(len(problem.space.sizes))

    @property
    def done(self) -> bool:
        """Whether the budget of evaluations is spent."""
        return len(self.points) >= self.count

    def feasible(self, points: IntArray) -> np.ndarray:
        """Which points are inside the target's bounds."""
        return self.target.feasible(self.problem.cost(self.problem.space.layer_indices(points)))

    def repaired(self, point: IntArray) -> IntArray:
        """The point, or a cheaper one inside the bounds."""
        point = np.clip(point, 0, self.problem.space.sizes - 1).astype(np.int64)
        while not self.feasible(point[None, :])[0]:
            for layer in self._order:
                if point[layer] > 0:
                    point[layer] -= 1
                    if self.feasible(point[None, :])[0]:
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
    proposer = Proposer(run.problem.space, run.problem.cost, profile)
    trials: list[Trial] = []
    while not run.done:
        proposal = proposer.propose(trials, run.target, np.random.default_rng([run.seed, len(trials)]))
        metrics = {"accuracy": run(np.array(proposal.point))}
        config = run.problem.space.config(proposal.point)
        trials.append(
            Trial(len(trials) + 1, proposal.point, config, FIDELITY, 0, run.target.name, proposal.origin,
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
    _sobol(run, run.count)


def _sobol(run: Evaluations, count: int) -> None:
    sizes = run.problem.space.sizes
    engine = SobolEngine(len(sizes), scramble=True, seed=run.seed)  # type: ignore[no-untyped-call]
    for row in engine.draw(min(count, run.count)).double().numpy():
        run((row * sizes).astype(np.int64))


def evolutionary(run: Evaluations) -> None:
    """Steady state: mutate 1..3 layers of the best of three survivors out of ten."""
    rng = np.random.default_rng(run.seed)
    sizes = run.problem.space.sizes
    _sobol(run, INITIAL)
    while not run.done:
        ranked = np.argsort(run.values)[::-1][:10]
        child = run.points[ranked[rng.choice(len(ranked), 3).min()]].copy()
        layers = rng.choice(len(child), int(rng.integers(1, 4)), replace=False)
        child[layers] = rng.integers(0, sizes[layers])
        run(child)


def plain_logei(run: Evaluations) -> None:
    """BoTorch's default Gaussian process over all dimensions, LogEI climbed inside the budget."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of linear_operator, on import
        from botorch.fit import fit_gpytorch_mll
        from botorch.models import SingleTaskGP
        from botorch.models.transforms import Standardize
        from gpytorch.mlls import ExactMarginalLogLikelihood

    rng = np.random.default_rng(run.seed)
    space = run.problem.space
    scale = np.maximum(space.sizes - 1, 1)
    _sobol(run, INITIAL)
    while not run.done:
        known = np.array(run.points)
        model = SingleTaskGP(
            torch.from_numpy(known / scale),
            torch.tensor(run.values)[:, None].double(),
            outcome_transform=Standardize(m=1),
        )
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        model.eval()

        def posterior(rows: IntArray, model: SingleTaskGP = model) -> tuple[FloatArray, FloatArray]:
            chunks = []
            with torch.no_grad():
                for part in np.array_split(rows, max(1, len(rows) // 500)):
                    found = model.posterior(torch.from_numpy(part / scale))
                    chunks.append((found.mean[:, 0].numpy(), found.variance[:, 0].sqrt().numpy()))
            return np.concatenate([c[0] for c in chunks]), np.concatenate([c[1] for c in chunks])

        best = posterior(known)[0].max()
        taken = {tuple(point) for point in known.tolist()}

        def score(rows: IntArray, best: float = best) -> FloatArray:
            return log_expected_improvement(*posterior(rows), best)

        def allowed(rows: IntArray, taken: set[tuple[int, ...]] = taken) -> np.ndarray:
            return run.feasible(rows) & np.array([tuple(row) not in taken for row in rows.tolist()])

        climb = LocalSearch(space, steps=20)
        starts = np.array([run.repaired(point) for point in space.sample(20, rng)])
        near = climb.neighbours(known[np.argsort(run.values)[::-1][:3]], rng)
        starts = np.concatenate([starts, near[allowed(near)][:200]])
        starts = starts[allowed(starts)]
        starts = starts[np.argsort(-score(starts))[:4]]
        run(climb.run(starts, score, allowed, rng)[0][0])


METHODS: dict[str, Method] = {
    "ours": ours,
    "ours, no profile": ours_without_profile,
    "BoTorch LogEI": plain_logei,
    "evolutionary": evolutionary,
    "Sobol": sobol,
}
