from __future__ import annotations

from dataclasses import replace

import numpy as np

from qat.search.cross_validation import LEAST_TRIALS, leave_one_out
from tests.qat.search.problems import Problem

PROBLEM = Problem(layers=6, seed=1)
TRIALS = PROBLEM.completed(PROBLEM.space.sample(12, np.random.default_rng(0)))


def test_trials_are_foretold_from_the_others() -> None:
    found = leave_one_out(PROBLEM.space, PROBLEM.profile, TRIALS)
    assert [one.trial_id for one in found] == [trial.id for trial in TRIALS]
    assert [one.observed for one in found] == [trial.accuracy for trial in TRIALS]
    assert np.corrcoef([one.observed for one in found], [one.predicted for one in found])[0, 1] > 0.8
    assert all(one.std > 0 for one in found)


def test_a_trial_has_no_say_in_its_own_prediction() -> None:
    first, *rest = TRIALS
    lied = [replace(first, metrics={"accuracy": 0.01}), *rest]
    honest, other = (leave_one_out(PROBLEM.space, PROBLEM.profile, trials)[0] for trials in (TRIALS, lied))
    assert other.observed == 0.01
    assert (other.predicted, other.std) == (honest.predicted, honest.std)


def test_few_trials_say_nothing() -> None:
    assert leave_one_out(PROBLEM.space, PROBLEM.profile, TRIALS[: LEAST_TRIALS - 1]) == ()
