from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qat.search.progress import progress_of
from qat.search.trial import Target, TrialState
from tests.qat.search.problems import TARGET, Problem

PROBLEM = Problem(layers=4)


def test_sums_a_search_up() -> None:
    trials = PROBLEM.completed(PROBLEM.space.sample(6, np.random.default_rng(0)))
    trials[1] = replace(trials[1], state=TrialState.FAILED, metrics={}, error="ValueError: shape")
    trials[2] = replace(trials[2], state=TrialState.STOPPED, metrics={"screening_accuracy": 0.5})
    trials[5] = replace(trials[5], state=TrialState.RUNNING, metrics={}, started_s=90.0, ended_s=None)
    found = progress_of(trials, [TARGET, Target("none", {"compression": (1000, None)})], 10, now_s=100.0)
    assert (found.done, found.total) == (5, 10)
    assert found.states[TrialState.COMPLETED] == 3 and found.states[TrialState.STOPPED] == 1
    assert found.states[TrialState.RUNNING] == 1
    assert found.errors == (("ValueError: shape", 1),)
    assert found.running_s == {6: 10.0}
    assert found.left_s == pytest.approx(5 * 1.5)  # each took 1.5 s
    inside = [t for t in trials if t.is_completed and TARGET.admits(t.cost)]
    assert found.best == {TARGET.name: max(inside, key=lambda t: t.accuracy, default=None), "none": None}


def test_nothing_yet() -> None:
    found = progress_of([], [TARGET], 10)
    assert (found.done, found.left_s, found.best, found.errors) == (0, None, {TARGET.name: None}, ())
