"""How far predictions can be trusted, after what became of earlier ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qat.search.trial import Trial

SMALLEST_RADIUS = 2
RADIUS_GROWTH = 1.5
RADIUS_SHRINKAGE = 0.5
TOLERANCE = 2.0
"""A trial that ends further below its prediction than this many standard deviations disproves the surrogate."""


def trusted_radius(trials: Sequence[Trial], start: int, observation_std: float) -> int:
    """In how many dimensions proposals may differ from a good trial, after what became of earlier predictions.

    Args:
        trials: In the order of proposal; those with an accuracy and a prediction count, of whatever target.
        start: Radius before there is any, >= 1.
        observation_std: Standard deviation of one observation, as accuracy.

    Returns:
        `start`, grown by half for every trial that kept its promise and halved for every one that fell short by more
        than two standard deviations; at least 2.
    """
    radius = float(start)
    for trial in trials:
        if trial.is_completed and trial.predicted is not None:
            mean, std = trial.predicted
            short = mean - trial.accuracy > TOLERANCE * math.hypot(std, observation_std)
            radius = max(radius * (RADIUS_SHRINKAGE if short else RADIUS_GROWTH), SMALLEST_RADIUS)
            radius = min(radius, len(trial.point))
    return max(int(radius), min(start, SMALLEST_RADIUS))


def error_scale(trials: Sequence[Trial], observation_std: float) -> float:
    """By how much standard deviations at chosen points were too small so far, >= 1.

    The root mean square of past errors over their standard deviations, with four errors of 1 added: a choice seeks
    points whose prediction is too high.

    Args:
        trials: Those with an accuracy and a prediction count.
        observation_std: Standard deviation of one observation, as accuracy.
    """
    squares = [1.0] * 4
    for trial in trials:
        if trial.is_completed and trial.predicted is not None:
            mean, std = trial.predicted
            squares.append((trial.accuracy - mean) ** 2 / (std**2 + observation_std**2))
    return max(1.0, math.sqrt(sum(squares) / len(squares)))
