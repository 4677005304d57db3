from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qat.search.front import Front
from qat.search.screening import FALSE_STOPS, increasing, lower_limit, screening_of, with_estimates
from qat.search.trial import Screening, Target, Trial, TrialState
from tests.qat.search.problems import TARGET, Problem

PROBLEM = Problem(layers=4)
(ONE,) = PROBLEM.completed(np.array([[0, 0, 0, 0]]))
INSIDE = {"bits_per_weight": 1.0}


def screened(
    number: int, early: float, late: float, share: float = 0.5, bits: float = 1.0, target: str = TARGET.name
) -> Trial:
    metrics = {"accuracy": late, "screening_accuracy": early}
    cost = {"bits_per_weight": bits}
    return replace(ONE, id=number, cost=cost, metrics=metrics, screening=Screening(share), target=target)


def stopped(number: int, early: float, share: float = 0.5) -> Trial:
    trial = screened(number, early, 0.0, share)
    return replace(trial, state=TrialState.STOPPED, metrics={"screening_accuracy": early})


def test_nothing_is_stopped_before_three_trials_are_there() -> None:
    assert screening_of([], TARGET, INSIDE, None) is None
    trials = [screened(1, 0.8, 0.9), screened(2, 0.8, 0.9)]
    strangers = [
        screened(3, 0.9, 0.9, share=0.25),
        screened(4, 0.9, 0.9, bits=9.0),
        stopped(5, 0.7),
        screened(8, 0.9, 0.9, target="other"),
        replace(screened(6, 0.9, 0.9), screening=None),
    ]
    assert screening_of([*trials, *strangers], TARGET, INSIDE, 0.5) == Screening(0.5)
    full = screening_of([*trials, *strangers, screened(7, 0.8, 0.9)], TARGET, INSIDE, 0.5)
    assert full is not None
    assert full.least == lower_limit(np.full(3, 0.8))
    assert full.least == pytest.approx(0.8 - 0.2413, abs=1e-4)  # all three reached the same, by chance it may be
    assert screening_of([*trials, screened(7, 0.8, 0.9)], TARGET, INSIDE, None) is None


def test_the_best_third_sets_the_limit() -> None:
    best = [screened(i, 0.8 + 0.01 * i, 0.95) for i in range(4)]
    rest = [screened(10 + i, 0.2, 0.5) for i in range(8)]
    found = screening_of([*rest, *best], TARGET, INSIDE, 0.5)
    assert found is not None
    assert found.least == pytest.approx(lower_limit(np.array([0.8, 0.81, 0.82, 0.83])))
    assert 0.6 < found.least < 0.7


def test_on_a_front_only_trials_that_cost_no_more_are_compared() -> None:
    front = Front(TARGET.name, {"bits_per_weight": (None, 32.0)}, ("bits_per_weight",))
    trials = [screened(i, 0.3 + 0.1 * i, 0.5 + 0.05 * i, bits=1.0 + i) for i in range(6)]
    small, middle, large = (screening_of(trials, front, {"bits_per_weight": bits}, 0.5) for bits in (2.5, 3.5, 9.0))
    assert small == Screening(0.5)
    assert middle is not None and middle.least == pytest.approx(lower_limit(np.array([0.3, 0.4, 0.5])))
    assert large is not None and large.least == pytest.approx(lower_limit(np.array([0.6, 0.7, 0.8])))


@pytest.mark.parametrize("count", [3, 8])
def test_equals_are_stopped_as_often_as_stated(count: int) -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(9.0, 0.5, (8000, count + 1))
    share = np.mean([row[-1] < lower_limit(row[:-1]) for row in samples])
    assert share == pytest.approx(FALSE_STOPS, abs=0.003)


def test_a_wide_spread_stops_nothing() -> None:
    assert lower_limit(np.array([0.1, 0.5, 0.9])) == 0.0


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20))
def test_increasing_is_the_nearest_increasing_sequence(values: list[float]) -> None:
    given_values = np.array(values)
    found = increasing(given_values)
    assert (np.diff(found) >= 0).all()
    np.testing.assert_allclose(increasing(found), found)
    np.testing.assert_allclose(found.sum(), given_values.sum(), atol=1e-9)
    # Optimality: the residual is orthogonal to the fit, and no increasing direction reduces the error.
    residual = given_values - found
    assert residual @ found == pytest.approx(0, abs=1e-9)
    assert all(residual[i:].sum() <= 1e-9 for i in range(len(values)))


def test_stopped_trials_are_estimated_from_the_like() -> None:
    trials = [
        screened(1, 0.8, 0.95),
        screened(2, 0.6, 0.7),
        screened(3, 0.7, 0.85),
        screened(4, 0.1, 0.1, share=0.25),
        stopped(5, 0.65),
        stopped(6, 0.3),
        stopped(7, 0.5, share=0.1),
    ]
    seen = with_estimates(trials)
    assert seen[:4] == trials[:4]
    assert seen[4].is_completed and seen[4].accuracy == pytest.approx(0.775)
    assert seen[4].screening_accuracy == 0.65
    assert seen[5].accuracy == pytest.approx(0.35)  # half of what the worst that was seen had early, half of its end
    assert seen[6] == trials[6]  # nothing to compare with


def test_bounds_of_other_targets() -> None:
    trials = [screened(i, 0.5 + 0.01 * i, 0.9, bits=1.0 + i) for i in range(4)]
    wide, narrow = (Target(TARGET.name, {"bits_per_weight": (None, bits)}) for bits in (9.0, 2.5))
    assert screening_of(trials, wide, INSIDE, 0.5) != Screening(0.5)
    assert screening_of(trials, narrow, INSIDE, 0.5) == Screening(0.5)


def test_a_uniform_design_that_is_far_behind_is_stopped_as_the_others_are_there_first() -> None:
    """One-shot and final accuracies of the first designs of a search of digits, two targets, in the order of now."""
    wide, tight = Target("wide", {"bits_per_weight": (None, 1.5)}), Target("tight", {"bits_per_weight": (None, 1.0)})
    designs = [(0.907, 0.95, "wide"), (0.857, 0.933, "tight"), (0.910, 0.97, "wide"), (0.78, 0.94, "tight")]
    designs += [(0.903, 0.963, "wide"), (0.797, 0.947, "tight")]
    trials = [
        screened(number, early, late, 0.0, 1.5 if target == "wide" else 1.0, target)
        for number, (early, late, target) in enumerate(designs)
    ]
    for target, bits, uniform in ((wide, 1.5, 0.517), (tight, 1.0, 0.137)):
        found = screening_of(trials, target, {"bits_per_weight": bits}, 0.0)
        assert found is not None
        assert uniform < found.least
        # None of the later proposals of that search and of another one, all of which ended well, would be.
        assert found.least < (0.853 if target is wide else 0.647)
