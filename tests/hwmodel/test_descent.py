"""Where exchanges set out from: what they offer are choices, sorted, and one within the budgets where that is hard."""

from __future__ import annotations

import numpy as np
import pytest

from hwmodel import descent
from hwmodel.choices import NO_LIMIT, Choices
from hwmodel.descent import Exchanges, spread
from hwmodel.pricing import Relaxed
from hwmodel.problem import Problem

GROUPS, OPTIONS = 30, 12


def problem_of(seed: int, fullness: float) -> Problem:
    """Groups of options whose key falls as what they take rises; budgets so many times what the leanest ones take."""
    pick = np.random.default_rng(seed)
    uses = [np.sort(pick.integers(1, 200, (OPTIONS, 3)), axis=0) for _ in range(GROUPS)]
    keys = [np.sort(pick.integers(0, 500, OPTIONS))[::-1].copy() for _ in range(GROUPS)]
    budgets = (fullness * np.sum([use.min(axis=0) for use in uses], axis=0)).astype(int)
    found = Problem.of(Choices.of(keys, uses), budgets, NO_LIMIT)
    assert found is not None
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fullness", [1.1, 3.0])
def test_offers_are_choices_and_one_keeps_the_budgets(seed: int, fullness: float) -> None:
    problem = problem_of(seed, fullness)
    key = problem.choices.key.astype(float)
    relaxed = problem.priced(key, float(NO_LIMIT), 0.0)
    exchanges = Exchanges(key, problem.share, problem.choices.group, relaxed.prices)
    few, many = list(exchanges.from_relaxed(relaxed)), exchanges.from_walks(relaxed, spread(relaxed))
    for chosen in (*few, *many):
        assert problem.choices.group[chosen].tolist() == list(range(GROUPS))
    within = [[key[chosen].sum() for chosen in found if problem.fits(chosen)] for found in (few, many)]
    assert relaxed.bound <= min(within[0]) <= 1.1 * relaxed.bound
    assert min(within[1]) <= 1.1 * relaxed.bound


def test_single_exchanges_give_different_choices_best_first() -> None:
    problem = problem_of(0, 2.0)
    key, starts = problem.choices.key.astype(float), np.arange(GROUPS) * OPTIONS
    exchanges = Exchanges(key, problem.share, problem.choices.group, np.full(3, 4000.0))
    begins = np.array([starts, starts, starts + OPTIONS - 1, starts + OPTIONS // 2])
    found = exchanges.by_singles(begins)
    assert len({chosen.tobytes() for chosen in found}) == len(found) < len(begins)
    over = np.maximum(0.0, problem.share[found].sum(axis=1) - 1).sum(axis=1)
    values = key[found].sum(axis=1) + descent.PENALTY * 12_000 * over
    assert (np.diff(values) > 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_walks_find_any_choice_within_the_budgets(seed: int) -> None:
    problem = problem_of(seed, 1.1)
    weights = np.full(3, 1 / 3)
    chosen = problem.cheapest(problem.share @ weights)
    bound = float((problem.share @ weights)[chosen].sum())
    relaxed = Relaxed(bound, weights, weights[None], chosen[None], chosen)
    exchanges = Exchanges(np.zeros(len(problem.share)), problem.share, problem.choices.group, weights)
    assert problem.fits(exchanges.to_any(relaxed)[0])


@pytest.mark.parametrize("seed", range(5))
def test_walks_keep_budgets_that_cost_nothing_in_the_relaxation(seed: int) -> None:
    """The relaxation may leave them free where whole options cannot."""
    problem = problem_of(seed, 1.1)
    key, free = problem.choices.key.astype(float), np.zeros(3)
    chosen = problem.cheapest(key)
    assert not problem.fits(chosen)
    relaxed = Relaxed(float(key[chosen].sum()), free, free[None], chosen[None], chosen)
    found = Exchanges(key, problem.share, problem.choices.group, free).from_walks(relaxed, chosen[None])[0]
    assert problem.fits(found)
