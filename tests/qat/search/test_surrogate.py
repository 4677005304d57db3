from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qat.errors import SearchError
from qat.search.surrogate import AccuracySurrogate
from qat.search.trial import TrialState
from tests.qat.search.problems import Problem

PROBLEM = Problem(layers=10, seed=1)


def points(count: int, seed: int) -> np.ndarray:
    return PROBLEM.space.sample(count, np.random.default_rng(seed))


def test_predicts_accuracy_better_than_the_profile_alone() -> None:
    surrogate = AccuracySurrogate.fit(PROBLEM.space, PROBLEM.profile, PROBLEM.completed(points(40, 0)))
    held_out = points(200, 1)
    truth = PROBLEM.accuracy(held_out)
    mean, std = surrogate.predict(held_out)
    from_profile = np.corrcoef(-PROBLEM.profile.predicted(held_out), truth)[0, 1]
    assert np.corrcoef(mean, truth)[0, 1] > max(0.97, from_profile)
    assert (std > 0).all()
    # Calibration: most truths within three standard deviations, and the deviations not absurdly wide.
    assert np.mean(np.abs(mean - truth) < 3 * std) > 0.85
    assert std.mean() < truth.std()


def test_fit_is_deterministic() -> None:
    trials = PROBLEM.completed(points(12, 2))
    first = AccuracySurrogate.fit(PROBLEM.space, PROBLEM.profile, trials).predict(points(20, 3))
    second = AccuracySurrogate.fit(PROBLEM.space, PROBLEM.profile, trials).predict(points(20, 3))
    np.testing.assert_array_equal(first, second)


def test_noise_never_makes_damage_look_like_a_gain() -> None:
    noisy = Problem(layers=10, seed=1, noise_std=0.05)
    surrogate = AccuracySurrogate.fit(noisy.space, noisy.profile, noisy.completed(points(12, 2)))
    assert (surrogate.model.weights > 0).all() and (surrogate.model.effects > 0).all()
    point = points(1, 3)[0]
    for dimension, row in enumerate(noisy.profile.table):
        pair = np.stack([point, point])
        pair[:, dimension] = [0, int(np.argmin(row))]  # the cheapest choice, which is pruned, and the least damage
        worse, better = surrogate.posterior(pair)[0]
        assert worse <= better + 0.02  # up to the smooth term


def test_a_chance_level_trial_does_not_flatten_the_rest() -> None:
    trials = PROBLEM.completed(points(40, 4))
    broken = [replace(t, metrics={"accuracy": 0.1}) if t.id == 7 else t for t in trials]
    held_out = points(100, 5)
    mean, _ = AccuracySurrogate.fit(PROBLEM.space, PROBLEM.profile, broken).predict(held_out)
    assert np.corrcoef(mean, PROBLEM.accuracy(held_out))[0, 1] > 0.8


def test_pending_trials_count_at_their_prediction() -> None:
    trials = PROBLEM.completed(points(20, 6))
    at = points(1, 7)
    surrogate = AccuracySurrogate.fit(PROBLEM.space, PROBLEM.profile, trials)
    mean, std = surrogate.predict(at)
    waiting = replace(
        trials[0],
        id=21,
        point=tuple(at[0].tolist()),
        state=TrialState.RUNNING,
        metrics={},
        predicted=(float(mean[0]), float(std[0])),
        ended_s=None,
    )
    _, less = AccuracySurrogate.fit(PROBLEM.space, PROBLEM.profile, [*trials, waiting]).predict(at)
    assert less[0] < std[0]


def test_identical_accuracies_and_too_few_trials() -> None:
    trials = [replace(t, metrics={"accuracy": 0.5}) for t in PROBLEM.completed(points(4, 8))]
    mean, _ = AccuracySurrogate.fit(PROBLEM.space, PROBLEM.profile, trials).predict(points(5, 9))
    np.testing.assert_allclose(mean, 0.5, atol=1e-3)
    with pytest.raises(SearchError, match="at least 2 completed trials, got 1"):
        AccuracySurrogate.fit(PROBLEM.space, PROBLEM.profile, trials[:1])
