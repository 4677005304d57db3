from __future__ import annotations

import itertools

import numpy as np
import pytest

from qat.search.acquisition import LocalSearch
from tests.qat.search.problems import Problem


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
