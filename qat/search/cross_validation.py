"""How well the surrogate predicts: each trial foretold by the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qat.search.sensitivity import SensitivityProfile
from qat.search.space import SearchSpace
from qat.search.surrogate import AccuracySurrogate
from qat.search.trial import Trial

LEAST_TRIALS = 4
"""Completed trials below which leaving one out says nothing."""


@dataclass(frozen=True)
class Foretold:
    """One trial, predicted without it.

    Args:
        trial_id: Number of the trial.
        observed: Its accuracy.
        predicted: Median of the noise-free accuracy.
        std: Standard deviation of an observation around it: of the prediction and of one evaluation together.
    """

    trial_id: int
    observed: float
    predicted: float
    std: float


def leave_one_out(space: SearchSpace, profile: SensitivityProfile, trials: Sequence[Trial]) -> tuple[Foretold, ...]:
    """Every completed trial, predicted by a surrogate that is fitted to the others.

    Args:
        space: The choices.
        profile: Sensitivities of the space's dimensions.
        trials: Of one fidelity; those that are not completed are ignored.

    Returns:
        One entry per completed trial, in their order; none with fewer than `LEAST_TRIALS`.
    """
    completed = [trial for trial in trials if trial.is_completed]
    if len(completed) < LEAST_TRIALS:
        return ()
    found = []
    for trial in completed:
        surrogate = AccuracySurrogate.fit(space, profile, [other for other in completed if other.id != trial.id])
        median, std = surrogate.predict(np.array([trial.point], dtype=np.int64))
        spread = float(np.hypot(std[0], surrogate.observation_std))
        found.append(Foretold(trial.id, trial.accuracy, float(median[0]), spread))
    return tuple(found)
