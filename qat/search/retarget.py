"""Search once, fit any board: what the trials already paid for say about another budget, or another front.

Accuracy does not depend on the board, and costs are exact: only the costs of the trials are counted anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hwmodel.precision import NetworkConfig
from qat.errors import SearchError
from qat.search.front import Front, select_front
from qat.search.proposer import Proposal, Proposer
from qat.search.sensitivity import SensitivityProfile
from qat.search.space import SearchSpace
from qat.search.trial import CostFunction, Target, Trial
from qat.search.winner import Winner, ended_at_highest_fidelity, select_winner


@dataclass(frozen=True)
class Retargeted:
    """The answer for one target.

    Args:
        target: The budget.
        evaluated: The best evaluated configuration that fits; `None` if none of them does.
        predicted: The configuration of the highest expected accuracy that fits, evaluated or not.
        expected_accuracy: Of `predicted`.
        std: Standard deviation of that expectation.
        cost: Exact cost columns of `predicted`.
        trials_inside: How many completed trials fit.
    """

    target: Target
    evaluated: Winner | None
    predicted: NetworkConfig
    expected_accuracy: float
    std: float
    cost: dict[str, float]
    trials_inside: int


@dataclass(frozen=True)
class RetargetedFront:
    """The answer for a front.

    Args:
        target: The front.
        evaluated: The trials of which it consists, by posterior mean, cheapest first; empty if none is inside.
        predicted: Configurations that were not evaluated and are expected to improve it, cheapest first.
        trials_inside: How many completed trials are inside the bounds.
    """

    target: Front
    evaluated: tuple[Winner, ...]
    predicted: tuple[Proposal, ...]
    trials_inside: int


def with_costs(trials: Sequence[Trial], space: SearchSpace, cost: CostFunction) -> tuple[Trial, ...]:
    """The trials with the costs of another board.

    Raises:
        SearchError: A trial is not of this search space.
    """
    if not trials:
        return ()
    columns = cost(space.layer_indices(np.array([space.point(trial.config) for trial in trials], dtype=np.int64)))
    return tuple(
        replace(trial, cost={name: float(values[row]) for name, values in columns.items()})
        for row, trial in enumerate(trials)
    )


def retarget(
    space: SearchSpace,
    profile: SensitivityProfile,
    trials: Sequence[Trial],
    cost: CostFunction,
    target: Target,
    seed: int = 0,
) -> Retargeted:
    """Answers a target from trials of whatever board.

    Args:
        space: The choices.
        profile: Sensitivities that the search used.
        trials: Of the search.
        cost: Exact costs on the new board.
        target: The new budget.
        seed: Of the local search.

    Raises:
        SearchError: Fewer than two trials are completed, or no configuration of the space meets the target.
    """
    recosted = _recosted(space, trials, cost)
    proposer = Proposer(space, cost, profile)
    proposer.check_reachable(target)
    best = proposer.best_predicted(recosted, target, np.random.default_rng(seed))
    if best.predicted is None:
        raise SearchError(f"target {target.name!r}: the best point has no prediction")
    return Retargeted(
        target=target,
        evaluated=select_winner(space, profile, recosted, target),
        predicted=space.config(best.point),
        expected_accuracy=best.predicted[0],
        std=best.predicted[1],
        cost=best.cost,
        trials_inside=sum(trial.is_completed and target.admits(trial.cost) for trial in recosted),
    )


def retarget_front(
    space: SearchSpace,
    profile: SensitivityProfile,
    trials: Sequence[Trial],
    cost: CostFunction,
    front: Front,
    predicted: int,
    seed: int = 0,
) -> RetargetedFront:
    """The front on another board, from trials of whatever board and whatever goal.

    Args:
        space: The choices.
        profile: Sensitivities that the search used.
        trials: Of the search.
        cost: Exact costs on the new board.
        front: Its columns and bounds.
        predicted: Most configurations to propose beside the evaluated ones, >= 0.
        seed: Of the local search.

    Raises:
        SearchError: Fewer than two trials are completed, no configuration of the space is inside the bounds, or the
            cost function lacks a column of the front.
    """
    recosted = _recosted(space, trials, cost)
    proposer = Proposer(space, cost, profile)
    proposer.check_reachable(front)
    return RetargetedFront(
        target=front,
        evaluated=select_front(space, profile, recosted, front, len(recosted)),
        predicted=tuple(proposer.predicted_front(recosted, front, predicted, np.random.default_rng(seed))),
        trials_inside=sum(trial.is_completed and front.admits(trial.cost) for trial in recosted),
    )


def _recosted(space: SearchSpace, trials: Sequence[Trial], cost: CostFunction) -> tuple[Trial, ...]:
    ended = ended_at_highest_fidelity(trials)
    completed = sum(trial.is_completed for trial in ended)
    if completed < 2:
        raise SearchError(f"retargeting needs at least 2 completed trials, the search has {completed}")
    return with_costs(ended, space, cost)
