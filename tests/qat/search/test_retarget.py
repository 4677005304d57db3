from __future__ import annotations

import numpy as np
import pytest

from qat.errors import SearchError
from qat.search.retarget import retarget, with_costs
from qat.search.trial import FloatArray, IntArray, Target
from tests.qat.search.problems import Problem

PROBLEM = Problem(layers=8, seed=4)


def other_board(indices: IntArray) -> dict[str, FloatArray]:
    """A board on which the first four layers cost nothing."""
    bits = sum(np.array(row)[indices[:, i]] for i, row in enumerate(PROBLEM.space.stored_bits) if i >= 4)
    return {"late_bits": np.asarray(bits, dtype=np.float64)}


def test_answers_another_board_from_trials_already_paid_for() -> None:
    points = PROBLEM.space.sample(40, np.random.default_rng(0))
    trials = PROBLEM.completed(points)
    recosted = with_costs(trials, PROBLEM.space, other_board)
    assert all(set(trial.cost) == {"late_bits"} for trial in recosted)
    assert [t.metrics for t in recosted] == [t.metrics for t in trials]
    limit = float(np.median([t.cost["late_bits"] for t in recosted]))
    target = Target("late", {"late_bits": (None, limit)})
    answer = retarget(PROBLEM.space, PROBLEM.profile, trials, other_board, target)
    assert answer == retarget(PROBLEM.space, PROBLEM.profile, trials, other_board, target)
    assert answer.evaluated is not None
    assert answer.evaluated.trial.cost["late_bits"] <= limit
    assert answer.trials_inside == sum(t.cost["late_bits"] <= limit for t in recosted)
    assert answer.cost["late_bits"] <= limit
    truth = PROBLEM.accuracy(np.array([PROBLEM.space.point(answer.predicted)]))[0]
    inside = PROBLEM.accuracy(np.array([t.point for t in recosted if t.cost["late_bits"] <= limit]))
    assert truth > inside.max()
    assert abs(truth - answer.expected_accuracy) < 4 * answer.std + 0.01


def test_no_evaluated_trial_fits_but_a_predicted_one_does() -> None:
    expensive = np.tile(PROBLEM.space.sizes - 1, (3, 1))
    expensive[1, 0] -= 1
    expensive[2, 1] -= 1
    target = Target("late", {"late_bits": (None, float(other_board(expensive)["late_bits"].min()) / 3)})
    answer = retarget(PROBLEM.space, PROBLEM.profile, PROBLEM.completed(expensive), other_board, target)
    assert answer.evaluated is None and answer.trials_inside == 0
    assert target.admits(answer.cost)


def test_what_it_needs() -> None:
    trials = PROBLEM.completed(PROBLEM.space.sample(3, np.random.default_rng(0)))
    with pytest.raises(SearchError, match="needs at least 2 completed trials, the search has 1"):
        retarget(PROBLEM.space, PROBLEM.profile, trials[:1], other_board, Target("x", {"late_bits": (None, 1e9)}))
    with pytest.raises(SearchError, match=r"no configuration of the search space fits; late_bits must be <= 1"):
        retarget(PROBLEM.space, PROBLEM.profile, trials, other_board, Target("x", {"late_bits": (None, 1)}))
    assert with_costs([], PROBLEM.space, other_board) == ()
