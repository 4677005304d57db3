from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qat.search.screening import with_estimates
from qat.search.trial import Fidelity, Screening, Target, TrialState
from qat.search.winner import hypervolume, pareto_front, select_winner
from tests.qat.search.problems import TARGET, Problem

PROBLEM = Problem(layers=6, seed=4, noise_std=0.01)
TRIALS = PROBLEM.completed(PROBLEM.space.sample(60, np.random.default_rng(1)))


def test_winner_is_feasible_and_less_lucky_than_the_best_observation() -> None:
    truth = {t.id: PROBLEM.accuracy(np.array([t.point]))[0] for t in TRIALS}
    wide = Target("wide", {"bits_per_weight": (None, 4.0)})
    winner = select_winner(PROBLEM.space, PROBLEM.profile, TRIALS, wide)
    assert winner is not None
    assert wide.admits(winner.trial.cost)
    luckiest = max((t for t in TRIALS if wide.admits(t.cost)), key=lambda t: t.accuracy)
    assert truth[winner.trial.id] >= truth[luckiest.id]
    assert abs(winner.expected_accuracy - truth[winner.trial.id]) < 0.01
    assert 0 < winner.std < 0.02


def test_the_highest_fidelity_decides() -> None:
    cheap = replace(TRIALS[0], cost={"bits_per_weight": 1.0}, metrics={"accuracy": 0.99})
    full = replace(TRIALS[1], cost={"bits_per_weight": 1.0}, metrics={"accuracy": 0.6}, fidelity=Fidelity("full", 30))
    winner = select_winner(PROBLEM.space, PROBLEM.profile, [cheap, full], TARGET)
    assert winner is not None
    assert winner.trial is full
    assert winner.expected_accuracy == 0.6


def test_no_winner_without_a_completed_trial_inside() -> None:
    failed = replace(TRIALS[0], state=TrialState.FAILED, metrics={}, cost={"bits_per_weight": 1.0})
    outside = replace(TRIALS[1], cost={"bits_per_weight": 9.0})
    assert select_winner(PROBLEM.space, PROBLEM.profile, [failed, outside], TARGET) is None


def test_front_and_hypervolume() -> None:
    def trial(number: int, bits: float, accuracy: float) -> object:
        return replace(TRIALS[number], cost={"bits": bits, "compression": 32 / bits}, metrics={"accuracy": accuracy})

    trials = [trial(0, 1, 0.5), trial(1, 2, 0.4), trial(2, 2, 0.7), trial(3, 4, 0.7), trial(4, 5, 0.8)]
    front = pareto_front(trials, "bits")
    assert [t.id for t in front] == [1, 3, 5]
    assert pareto_front(trials, "compression", maximise=True) == front
    assert hypervolume(trials, "bits", 6.0, 0.4) == pytest.approx(1 * 0.1 + 3 * 0.3 + 1 * 0.4)
    assert hypervolume(trials, "bits", 1.0, 0.4) == 0


def test_stopped_trials_inform_the_choice_of_the_winner() -> None:
    """As those of proposals, the posterior knows what they are expected to reach; they do not win."""
    problem = Problem(layers=4, seed=1, noise_std=0.0)
    points = problem.space.sample(14, np.random.default_rng(3))
    trials = [
        replace(t, metrics={**t.metrics, "screening_accuracy": t.accuracy}, screening=Screening(0.5))
        for t in problem.completed(points)
    ]
    lowest = min(trials, key=lambda t: t.accuracy)
    metrics = {"screening_accuracy": lowest.screening_accuracy}
    stopped = [replace(t, state=TrialState.STOPPED, metrics=metrics) if t is lowest else t for t in trials]
    anything = Target("any", {"bits_per_weight": (None, 99.0)})
    found = select_winner(problem.space, problem.profile, stopped, anything)
    estimated = select_winner(problem.space, problem.profile, with_estimates(stopped), anything)
    without = select_winner(problem.space, problem.profile, [t for t in trials if t is not lowest], anything)
    assert found is not None and estimated is not None and without is not None
    assert found.trial.is_completed and found.trial in trials
    assert found.expected_accuracy == estimated.expected_accuracy != without.expected_accuracy
