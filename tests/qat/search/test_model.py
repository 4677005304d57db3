"""The surrogate behind BoTorch's interface."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from botorch.acquisition.analytic import LogExpectedImprovement, LogProbabilityOfImprovement
from botorch.exceptions import UnsupportedError

from qat.search.model import SurrogateModel, log_expected_improvement
from qat.search.sensitivity import gaussian_profile
from qat.search.surrogate import AccuracySurrogate
from tests.qat.search.problems import Problem

PROBLEM = Problem(layers=6)


def _model(means: list[float], stds: list[float]) -> SurrogateModel:
    """A model that knows the points 0, 1, 2, ... of one dimension."""
    table = np.array([means, stds])
    return SurrogateModel(SimpleNamespace(posterior=lambda points: tuple(table[:, points[:, 0]])))  # type: ignore[arg-type]


def test_log_expected_improvement_to_the_far_tail() -> None:
    # log(phi(z) + z Phi(z)) for these z, computed with 60 digits (mpmath).
    golden = {
        5.0: 1.6094379234262,
        1.0: 0.0800262188483,
        0.0: -0.918938533204673,
        -0.999: -2.4832171154456,
        -1.001: -2.4870256579554,
        -3.0: -7.8696859073957,
        -40.0: -808.29859835666,
        -900.0: -405014.5237317637,
        -1100.0: -605014.9250719302,
    }
    points = np.arange(len(golden))[:, None]
    got = log_expected_improvement(_model(list(golden), [1.0] * len(golden)), points, 0.0)
    np.testing.assert_allclose(got, list(golden.values()), rtol=1e-6)
    scaled = log_expected_improvement(_model([3.0], [2.0]), np.array([[0]]), 1.0)
    assert scaled[0] == pytest.approx(golden[1.0] + np.log(2))


def test_the_posterior_is_the_surrogates() -> None:
    rng = np.random.default_rng(0)
    trials = PROBLEM.completed(PROBLEM.space.sample(12, rng))
    surrogate = AccuracySurrogate.fit(PROBLEM.space, gaussian_profile(PROBLEM.space), trials)
    points = PROBLEM.space.sample(20, rng)
    mean, std = surrogate.posterior(points)
    posterior = SurrogateModel(surrogate).posterior(torch.from_numpy(points).double()[:, None, :])
    assert posterior.mean.dtype == torch.float64
    assert posterior.mean.shape == (20, 1, 1)
    np.testing.assert_allclose(posterior.mean[:, 0, 0].numpy(), mean)
    np.testing.assert_allclose(posterior.variance[:, 0, 0].sqrt().numpy(), std)


def test_other_acquisitions_of_botorch_take_the_model() -> None:
    points = torch.tensor([[[0.0]], [[1.0]]], dtype=torch.float64)
    for acquisition in (LogExpectedImprovement, LogProbabilityOfImprovement):
        values = acquisition(_model([0.0, 1.0], [1.0, 1.0]), best_f=0.5)(points)
        assert values[1] > values[0]


def test_joint_posteriors_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="q = 1"):
        _model([0.0, 1.0], [1.0, 1.0]).posterior(torch.zeros(1, 2, 1, dtype=torch.float64))
