"""Little is spent on bad configurations: which accuracy a trial must reach on the way to go on.

A trial is compared with the best third of the completed trials that were proposed for its target, by what these had
reached at the same point of their training.  A configuration that is as good as they are falls below the threshold in
one of a hundred cases at most, whatever the relation between early and late accuracy is: where early accuracy says
nothing, next to nothing is stopped, and by chance alone.  A search has fewer than a hundred good trials, so that it
hardly ever loses one; what is far outside the spread of the good ones it loses gladly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.stats import t as student

from qat.search.trial import ACCURACY, FloatArray, Screening, Target, Trial, TrialState

SMALLEST_GROUP = 3
"""Completed trials that a threshold needs: the spread of fewer is not known."""

SMALLEST_SPREAD = 0.03
"""Standard deviation that is assumed at least, that of an accuracy of one half counted on 300 images.  The best of few
trials are near each other by chance, or as variations of one design, and later proposals differ more: with 0.01, of 66
good trials in three recorded searches of digits six would have been stopped; with this none, by 10 points."""

FALSE_STOPS = 0.01
"""Chance that a configuration as good as the best third is stopped, at most.  With one in ten, searches of digits lost
accuracy: what was stopped there had been as good as what was kept."""


def screening_of(
    trials: Sequence[Trial], target: Target, cost: Mapping[str, float], share: float | None
) -> Screening | None:
    """How a new trial for a target is screened.

    Args:
        trials: All trials so far.
        target: What it is proposed for.
        cost: What it costs: for a front only trials that cost no more are compared with it.
        share: Of its training after which its accuracy is measured; `None` for no screening.
    """
    if share is None:
        return None
    peers = [
        trial
        for trial in _pairs(trials, share)
        if trial.target == target.name and target.admits(trial.cost) and target.compares(cost, trial.cost)
    ]
    best = sorted(peers, key=lambda t: (-t.accuracy, t.id))[: max(SMALLEST_GROUP, len(peers) // 3)]
    if len(best) < SMALLEST_GROUP:
        return Screening(share)
    return Screening(share, lower_limit(np.array([trial.screening_accuracy for trial in best])))


def lower_limit(values: FloatArray) -> float:
    """Below which a further value of the same normal distribution falls with the chance `FALSE_STOPS`; at least 0.

    Source: prediction interval of a normal sample of unknown mean and variance.

    >>> round(lower_limit(np.array([0.90, 0.91, 0.92])), 4)
    0.6687
    """
    count = len(values)
    spread = max(float(values.std(ddof=1)), SMALLEST_SPREAD) * math.sqrt(1 + 1 / count)
    quantile = float(student.ppf(FALSE_STOPS, count - 1))
    return max(0.0, float(values.mean()) + quantile * spread)


def with_estimates(trials: Sequence[Trial]) -> list[Trial]:
    """The trials as proposals see them: stopped ones count as completed at the accuracy that is expected of them.

    It is read from the increasing function of the accuracy at the screening that fits the completed trials best
    (isotonic regression), so that the surrogate learns where not to search.  Below the lowest of them, where stopped
    trials are, it falls in proportion: nothing then is nothing at the end.
    """
    return [_estimated(trial, trials) if trial.state is TrialState.STOPPED else trial for trial in trials]


def _estimated(trial: Trial, trials: Sequence[Trial]) -> Trial:
    pairs = _pairs(trials, trial.screening.share if trial.screening else None)
    if not pairs:
        return trial
    early, late = np.array([(t.screening_accuracy, t.accuracy) for t in pairs]).T
    order = np.argsort(early, kind="stable")
    expected = float(np.interp(trial.screening_accuracy, [0.0, *early[order]], [0.0, *increasing(late[order])]))
    return replace(trial, state=TrialState.COMPLETED, metrics={**trial.metrics, ACCURACY: expected})


def _pairs(trials: Sequence[Trial], share: float | None) -> list[Trial]:
    """Completed trials that were looked at after this share."""
    return [t for t in trials if t.is_completed and t.screening is not None and t.screening.share == share]


def increasing(values: FloatArray) -> FloatArray:
    """The non-decreasing sequence that is nearest in the sum of squares.

    Source: pool adjacent violators (Barlow et al., Statistical Inference under Order Restrictions, 1972).

    >>> increasing(np.array([1.0, 3.0, 2.0, 4.0])).tolist()
    [1.0, 2.5, 2.5, 4.0]
    """
    blocks: list[tuple[float, int]] = []
    for value in values.tolist():
        mean, size = value, 1
        while blocks and blocks[-1][0] >= mean:
            before, count = blocks.pop()
            mean, size = (before * count + mean * size) / (count + size), count + size
        blocks.append((mean, size))
    return np.concatenate([np.full(size, mean) for mean, size in blocks])
