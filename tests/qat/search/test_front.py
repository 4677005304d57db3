from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from botorch.acquisition.analytic import _log_ei_helper
from botorch.utils.multi_objective.hypervolume import Hypervolume as Reference
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from qat.errors import ConfigError
from qat.search.front import Front, Hypervolume, log_improvement, non_dominated, select_front
from qat.search.proposer import Proposer, ProposerSettings
from qat.search.trial import FloatArray, Trial
from qat.search.winner import hypervolume, pareto_front
from tests.qat.search.problems import Problem, searched

PROBLEM = Problem(layers=8, seed=3)
FRONT = Front("front", {"bits_per_weight": (None, 4.0)}, ("bits_per_weight",))
TWO = Front("two", {"bits_per_weight": (None, 4.0)}, ("stored_bits", "steps"))


def cost(indices: np.ndarray) -> dict[str, FloatArray]:
    """The problem's, and a column that contradicts size: choices above the cheapest one in every other layer."""
    return {**PROBLEM.cost(indices), "steps": (20 - indices[:, ::2].sum(axis=1)).astype(np.float64)}


def search(front: Front, count: int, seed: int = 0) -> list[Trial]:
    proposer = Proposer(PROBLEM.space, cost, PROBLEM.profile, ProposerSettings(initial_trials=6))
    return searched(PROBLEM, proposer, front, count, seed)


def volume_of(accuracy: FloatArray, costs: FloatArray, worst: FloatArray, lowest: float) -> float:
    """By BoTorch, which maximises everything."""
    points = torch.from_numpy(np.column_stack([accuracy, -costs])[non_dominated(accuracy, costs)])
    reference = torch.from_numpy(np.concatenate([[lowest], -worst]))
    return float(Reference(reference).compute(points[(points > reference).all(dim=1)]))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(0, 8), columns=st.integers(1, 2), grid=st.booleans())
def test_a_gain_is_the_difference_of_two_hypervolumes(seed: int, count: int, columns: int, grid: bool) -> None:
    rng = np.random.default_rng(seed)
    accuracy, costs = rng.normal(size=count + 1), rng.uniform(0, 1.1, size=(count + 1, columns))
    if grid:  # ties
        accuracy, costs = accuracy.round(), costs.round(1)
    worst = np.ones(columns)
    found = Hypervolume.of(accuracy[:count], costs[:count], worst, -1.0).gain(accuracy[count:], costs[count:])
    before = volume_of(accuracy[:count], costs[:count], worst, -1.0)
    assert found[0] == pytest.approx(volume_of(accuracy, costs, worst, -1.0) - before, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), columns=st.integers(1, 2))
def test_the_expected_gain_is_the_mean_of_the_gains(seed: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    volume = Hypervolume.of(rng.normal(size=5), rng.uniform(size=(5, columns)), np.ones(columns))
    costs, mean, std = rng.uniform(size=(1, columns)), rng.normal(), rng.uniform(0.1, 1)
    exact = quad(
        lambda y: volume.gain(np.array([y]), costs)[0] * norm.pdf(y, mean, std), mean - 9 * std, mean + 9 * std,
        points=np.clip(volume.levels, mean - 9 * std, mean + 9 * std), limit=200,
    )[0]  # fmt: skip
    found = volume.log_expected_gain(np.array([mean]), np.array([std]), costs)[0]
    assert np.exp(found) == pytest.approx(exact, rel=1e-6, abs=1e-12)


def test_improvements_do_not_underflow() -> None:
    scaled = np.concatenate([-np.logspace(-3, 7, 80), [0.0], np.logspace(-3, 3, 40)])
    expected = _log_ei_helper(torch.from_numpy(scaled)).numpy()
    np.testing.assert_allclose(log_improvement(scaled), expected, rtol=1e-7, atol=1e-12)


def test_beyond_the_reference_there_is_nothing_to_gain() -> None:
    volume = Hypervolume.of(np.array([0.5]), np.array([[1.0]]), np.array([2.0]))
    assert volume.log_expected_gain(np.ones(1), np.ones(1), np.array([[2.5]]))[0] == -np.inf
    assert volume.shortfall(np.ones(2), np.array([[2.5], [1.5]])).tolist() == [np.inf, 0.0]
    assert volume.shortfall(np.array([0.2]), np.array([[1.5]]))[0] == pytest.approx(0.3)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), columns=st.integers(1, 2))
def test_non_dominated_points(seed: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    accuracy, costs = rng.integers(0, 4, 12).astype(float), rng.integers(0, 4, (12, columns)).astype(float)
    kept = non_dominated(accuracy, costs)
    better = (accuracy[:, None] >= accuracy) & (costs[:, None] <= costs).all(axis=2)  # [a, b]: a at least as good as b
    strictly = better & ~better.T
    assert not strictly[:, kept].any()
    assert better[kept].any(axis=0).all()
    assert not (better & better.T & ~np.eye(12, dtype=bool))[np.ix_(kept, kept)].any()


@pytest.mark.parametrize("front", [FRONT, TWO], ids=["one cost", "two costs"])
def test_proposals_are_new_and_inside_and_always_the_same(front: Front) -> None:
    trials = search(front, 12)
    assert len({t.point for t in trials}) == 12
    assert all(front.admits(t.cost) for t in trials)
    assert [t.origin for t in trials[:6]] == ["lagrange", "lagrange", "uniform", "perturbed", "lagrange", "uniform"]
    assert all(t.origin == "acquisition" and t.predicted is not None for t in trials[6:])
    assert search(front, 12) == trials


def test_first_designs_are_the_ends_of_the_front() -> None:
    first, second = search(FRONT, 2)
    bits = PROBLEM.cost(np.zeros((1, 8), dtype=np.int64))["bits_per_weight"][0]
    assert second.cost["bits_per_weight"] == bits
    assert first.cost["bits_per_weight"] > 3.5


def test_a_front_grows_beyond_its_first_designs_and_beyond_chance() -> None:
    trials = search(FRONT, 20)

    def volume(some: list[Trial]) -> float:
        exact = [replace(t, metrics={"accuracy": float(PROBLEM.accuracy(np.array([t.point]))[0])}) for t in some]
        return hypervolume(exact, "bits_per_weight", 4.0, 0.6)

    sample = PROBLEM.space.sample(400, np.random.default_rng(0))
    inside = sample[FRONT.feasible(PROBLEM.cost(sample))][:20]
    assert len(inside) == 20
    assert volume(trials) > volume(trials[:6]) > volume(PROBLEM.completed(inside))


def test_points_of_a_front_that_are_kept() -> None:
    trials = search(FRONT, 16)
    front = pareto_front(trials, "bits_per_weight")
    kept = select_front(PROBLEM.space, PROBLEM.profile, trials, FRONT, 3)
    assert len(kept) == 3
    bits = [winner.trial.cost["bits_per_weight"] for winner in kept]
    assert bits == sorted(bits)
    assert all(winner.std > 0 for winner in kept)
    every = select_front(PROBLEM.space, PROBLEM.profile, trials, FRONT, 99)
    assert {w.trial.id for w in kept} <= {w.trial.id for w in every}
    assert len(every) >= len(front) - 4
    # Wide apart: together they dominate most of what the whole front does.
    wide = [hypervolume([w.trial for w in some], "bits_per_weight", 4.0, 0.6) for some in (kept, every)]
    assert wide[0] > 0.8 * wide[1]


def test_kept_points_of_known_accuracy() -> None:
    """Two trials are too few for a model: observed accuracies count, and one of them is dominated."""
    trials = PROBLEM.completed(PROBLEM.space.sample(2, np.random.default_rng(0)))
    rows = [(1.0, 0.8), (2.0, 0.7)]
    trials = [
        replace(t, cost={"bits_per_weight": bits}, metrics={"accuracy": value})
        for t, (bits, value) in zip(trials, rows, strict=True)
    ]
    (only,) = select_front(PROBLEM.space, PROBLEM.profile, trials, FRONT, 4)
    assert (only.trial.id, only.expected_accuracy) == (1, 0.8)
    outside = [replace(t, cost={"bits_per_weight": 9.0}) for t in trials]
    assert select_front(PROBLEM.space, PROBLEM.profile, outside, FRONT, 4) == ()


def test_columns_of_which_more_is_better() -> None:
    front = Front("fast", {"fps": (10, None)}, ("fps", "bram18"))
    costs = front.costs({"fps": np.array([20.0, 30.0]), "bram18": np.array([5.0, 7.0])})
    assert costs.tolist() == [[-20.0, 5.0], [-30.0, 7.0]]
    assert front.worst(costs).tolist() == [-10.0, 7.0]
    assert front.to_dict() == {"name": "fast", "bounds": {"fps": [10.0, None]}, "columns": ["fps", "bram18"]}


@pytest.mark.parametrize("columns", [(), ("fps", "fps"), ("a", "b", "c")])
def test_numbers_of_columns(columns: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"front 'f': columns=\[.*\], expected one or two cost columns"):
        Front("f", {"fps": (1, None)}, columns)
