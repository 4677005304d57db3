"""What a search found: the winner under each target and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qat.search.screening import with_estimates
from qat.search.sensitivity import SensitivityProfile
from qat.search.space import SearchSpace
from qat.search.surrogate import AccuracySurrogate
from qat.search.trial import Target, Trial


@dataclass(frozen=True)
class Winner:
    """The configuration that a search recommends under a target.

    Args:
        target: The budget.
        trial: The evaluated configuration.
        expected_accuracy: Posterior mean at the trial, which averages observation noise out; the observed accuracy
            where too few trials ended to model it.
        std: Standard deviation of the posterior there; NaN where it is not modelled.
    """

    target: Target
    trial: Trial
    expected_accuracy: float
    std: float


def highest_fidelity(trials: Sequence[Trial]) -> list[Trial]:
    """The completed trials of the highest fidelity that any completed trial has."""
    completed = [trial for trial in trials if trial.is_completed]
    top = max((trial.fidelity.effort for trial in completed), default=0.0)
    return [trial for trial in completed if trial.fidelity.effort == top]


def ended_at_highest_fidelity(trials: Sequence[Trial]) -> list[Trial]:
    """All trials that ended at the fidelity of `highest_fidelity`: what stopped and failed is knowledge too."""
    top = {trial.fidelity.effort for trial in highest_fidelity(trials)}
    return [trial for trial in trials if trial.has_ended and trial.fidelity.effort in top]


def select_winner(
    space: SearchSpace, profile: SensitivityProfile, trials: Sequence[Trial], target: Target
) -> Winner | None:
    """The best completed trial inside the target's bounds, at the highest fidelity that has one.

    Best means the highest posterior mean among the evaluated configurations: with noisy evaluations the highest
    observation is the luckiest one.  Stopped trials inform it as they inform proposals.  Ties go to the higher
    observation, then to the earlier trial.

    Returns:
        The winner, or `None` if no completed trial is inside the bounds.
    """
    inside = highest_fidelity([t for t in trials if t.is_completed and target.admits(t.cost)])
    if not inside:
        return None
    peers = [t for t in with_estimates(trials) if t.is_completed and t.fidelity == inside[0].fidelity]
    if len(peers) < 3:
        seen = max(inside, key=lambda t: (t.accuracy, -t.id))
        return Winner(target, seen, seen.accuracy, float("nan"))
    surrogate = AccuracySurrogate.fit(space, profile, peers)
    means, stds = surrogate.predict(np.array([t.point for t in inside], dtype=np.int64))
    best = max(range(len(inside)), key=lambda i: (means[i], inside[i].accuracy, -inside[i].id))
    return Winner(target, inside[best], float(means[best]), float(stds[best]))


def pareto_front(trials: Sequence[Trial], column: str, *, maximise: bool = False) -> tuple[Trial, ...]:
    """Completed trials that no other beats in both observed accuracy and one cost column, cheapest first.

    Args:
        trials: Any trials; those of the highest fidelity count.
        column: Cost column.
        maximise: Whether a higher value of the column is better (`compression`, `fps`).
    """
    sign = -1.0 if maximise else 1.0
    front: list[Trial] = []
    for trial in sorted(highest_fidelity(trials), key=lambda t: (sign * t.cost[column], -t.accuracy, t.id)):
        if not front or trial.accuracy > front[-1].accuracy:
            front.append(trial)
    return tuple(front)


def hypervolume(trials: Sequence[Trial], column: str, worst_cost: float, worst_accuracy: float) -> float:
    """Area that the front of accuracy against a cost column (less is better) dominates.

    Args:
        trials: Any trials; those of the highest fidelity count.
        column: Cost column.
        worst_cost: Cost of the reference point; trials above it do not count.
        worst_accuracy: Accuracy of the reference point; trials below it do not count.
    """
    front = [t for t in pareto_front(trials, column) if t.cost[column] < worst_cost and t.accuracy > worst_accuracy]
    area = 0.0
    right = worst_cost
    for trial in reversed(front):
        area += (right - trial.cost[column]) * (trial.accuracy - worst_accuracy)
        right = trial.cost[column]
    return area
