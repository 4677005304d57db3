from __future__ import annotations

import itertools

import numpy as np
import pytest

from qat.search.acquisition import LocalSearch, log_expected_improvement
from tests.qat.search.problems import Problem


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
    got = log_expected_improvement(np.array(list(golden)), np.ones(len(golden)), 0.0)
    np.testing.assert_allclose(got, list(golden.values()), rtol=1e-6)
    assert log_expected_improvement(np.array([3.0]), np.array([2.0]), 1.0)[0] == pytest.approx(
        log_expected_improvement(np.array([1.0]), np.array([1.0]), 0.0)[0] + np.log(2)
    )


def test_local_search_reaches_the_optimum_of_a_small_constrained_problem() -> None:
    problem = Problem(layers=4)
    space = problem.space
    everything = np.array(list(itertools.product(*(range(size) for size in space.sizes))))
    budget = 2.2

    def inside(points: np.ndarray) -> np.ndarray:
        return problem.cost(space.layer_indices(points))["bits_per_weight"] <= budget

    best = problem.accuracy(everything[inside(everything)]).max()
    starts = everything[inside(everything)][:3]
    found, scores = LocalSearch(space, patience=4).run(starts, problem.accuracy, inside, np.random.default_rng(0))
    assert inside(found).all()
    assert (np.diff(scores) <= 0).all()
    np.testing.assert_allclose(scores, problem.accuracy(found))
    assert scores[0] == pytest.approx(best, rel=1e-3)
    np.testing.assert_array_equal(starts, everything[inside(everything)][:3])  # not changed in place
