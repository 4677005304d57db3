"""How far a search is, from its store alone."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from qat.search.trial import Target, Trial, TrialState

RECENT = 5
"""Trials whose mean time says how long the rest will take."""


@dataclass(frozen=True)
class SearchProgress:
    """State of a search.

    Args:
        total: Trials that the search will have.
        states: Number of trials by state.
        best: By target name the trial of the highest observed accuracy inside the bounds, `None` if there is none.
        errors: Messages of failed trials and how often each came, most frequent first.
        running_s: By id of each running trial the seconds since it started.
        left_s: Estimate of the seconds until the end; `None` before a trial has ended.
    """

    total: int
    states: Mapping[TrialState, int]
    best: Mapping[str, Trial | None]
    errors: tuple[tuple[str, int], ...]
    running_s: Mapping[int, float]
    left_s: float | None

    @property
    def done(self) -> int:
        """Trials that have ended: completed, stopped or failed."""
        return sum(
            count for state, count in self.states.items() if state not in (TrialState.PENDING, TrialState.RUNNING)
        )


def progress_of(
    trials: Sequence[Trial], targets: Sequence[Target], total: int, now_s: float | None = None
) -> SearchProgress:
    """Sums a search up.

    Args:
        trials: All trials of the store.
        targets: Of the search.
        total: Trials that it will have.
        now_s: Seconds since the epoch, UTC; the present by default.
    """
    now = time.time() if now_s is None else now_s
    completed = [trial for trial in trials if trial.is_completed]
    best: dict[str, Trial | None] = {}
    for target in targets:
        inside = [trial for trial in completed if target.admits(trial.cost)]
        best[target.name] = max(inside, key=lambda t: (t.accuracy, -t.id), default=None)
    states = {state: sum(trial.state is state for trial in trials) for state in TrialState}
    ended = sorted((t for t in trials if t.ended_s is not None), key=lambda t: t.ended_s or 0.0)
    durations = [trial.duration_s for trial in ended[-RECENT:] if trial.duration_s is not None]
    running = [t for t in trials if t.state is TrialState.RUNNING and t.started_s is not None]
    left = max(0, total - sum(trial.has_ended for trial in trials))
    parallel = max(1, len(running))
    return SearchProgress(
        total=max(total, len(trials)),
        states=states,
        best=best,
        errors=tuple(Counter(t.error or "" for t in trials if t.state is TrialState.FAILED).most_common()),
        running_s={t.id: now - (t.started_s or now) for t in running},
        left_s=left * fmean(durations) / parallel if durations else None,
    )
