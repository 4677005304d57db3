from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from qat.search.display import SearchDisplay
from qat.search.trial import TrialState
from tests.qat.search.problems import TARGET, Problem

PROBLEM = Problem(layers=4)
POINTS = np.array([[0, 0, 0, 0], [8, 8, 8, 8], [1, 0, 1, 0]])


@pytest.mark.parametrize("is_terminal", [True, False])
def test_shows_every_trial(is_terminal: bool) -> None:
    trials = [
        replace(t, cost=t.cost | {"bram18": 7.0, "offchip_bits": 8192.0 * 1234}, metrics={"accuracy": accuracy})
        for t, accuracy in zip(PROBLEM.completed(POINTS), (0.5, 0.9, 0.625), strict=True)
    ]
    failed = replace(trials[2], id=4, state=TrialState.FAILED, metrics={}, error="RuntimeError")
    stopped = replace(trials[1], id=5, state=TrialState.STOPPED, metrics={"screening_accuracy": 0.1})
    text = io.StringIO()
    console = Console(file=text, force_terminal=is_terminal, width=160)
    display = SearchDisplay(PROBLEM.space, [TARGET], console)
    display.search_started(trials[:1], 8)
    for trial in (*trials[1:], failed, stopped):
        display.trial_started(replace(trial, state=TrialState.RUNNING, metrics={}, ended_s=None))
        display.trial_ended(trial)
    display.search_ended()
    shown = text.getvalue()
    for part in ("62.50 %", "failed", "stopped", "1,234", "4", "small", "best", "RAMB18", "about 4.5 s left"):
        assert part in shown
    # The second trial is outside the target's bounds: the best stays the first one, then the third.
    assert [display.cells(t)[6] for t in trials] == ["50.00 %", "50.00 %", "62.50 %"]
    assert display.cells(trials[0])[9:] == ("7", "1,234", "1.5 s")
    if not is_terminal:
        assert "search: 1 of 8 trials done" in shown
        assert "\x1b" not in shown


def test_the_time_left_is_shared_among_trials_that_run_at_once() -> None:
    text = io.StringIO()
    display = SearchDisplay(PROBLEM.space, [TARGET], Console(file=text, width=160))
    display.search_started([], 9)
    trials = PROBLEM.completed(POINTS)
    for trial in trials:
        display.trial_started(replace(trial, state=TrialState.RUNNING, metrics={}, ended_s=None))
    display.trial_ended(trials[0])
    assert "about 4.0 s left" in text.getvalue()  # 8 trials of 1.5 s, three at once


def test_costs_that_are_absent_show_a_dash() -> None:
    display = SearchDisplay(PROBLEM.space, [TARGET], Console(file=io.StringIO()))
    trial = PROBLEM.completed(POINTS)[0]
    assert display.cells(trial)[9:11] == ("-", "-")
