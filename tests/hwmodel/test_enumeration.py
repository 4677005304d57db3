"""Enumeration finds a choice within the budgets wherever there is one, and says when it stopped before."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel import enumeration
from hwmodel.choices import NO_LIMIT, Choices
from hwmodel.enumeration import ROUNDING, _log_choices, any_within, is_crowd, least_of
from hwmodel.exchanges import Array, Floats, starts_of
from hwmodel.knapsack import least_bottleneck
from hwmodel.problem import Problem


def random_shares(pick: np.random.Generator) -> tuple[Floats, Array]:
    """Options of up to seven groups, of which about half of all choices fit."""
    groups, resources = int(pick.integers(1, 8)), int(pick.integers(1, 5))
    group = np.repeat(np.arange(groups), pick.integers(1, 5, groups))
    return pick.random((len(group), resources)) * 2 / groups, group


@settings(max_examples=400, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1.0, 1.5, 2.0]),
    most=st.sampled_from([1, 4, 10**6]),
    gives_up=st.booleans(),
)
def test_a_choice_is_found_if_there_is_one(seed: int, scale: float, most: int, gives_up: bool) -> None:
    pick = np.random.default_rng(seed)
    share, group = random_shares(pick)
    share = np.ceil(share * scale * 20) / 20 if seed % 2 else share * scale  # many equal sums, or none
    weights = pick.dirichlet(np.ones(share.shape[1]), int(pick.integers(1, 6)))
    found, is_certain = any_within(share, group, weights, most, gives_up=gives_up)
    assert is_certain or most < 10**6
    members = [np.flatnonzero(group == one).tolist() for one in range(group[-1] + 1)]
    fits = [(share[list(choice)].sum(axis=0) <= 1 + 1e-9).all() for choice in product(*members)]
    assert (found is not None) == any(fits) or not is_certain
    if found is not None:
        assert group[found].tolist() == list(range(len(members)))
        assert (share[found].sum(axis=0) <= 1 + 1e-9).all()


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), slack=st.floats(0, 1))
def test_no_fewer_choices_are_counted_than_prices_leave(seed: int, slack: float) -> None:
    pick = np.random.default_rng(seed)
    share, group = random_shares(pick)
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    extra = share[:, 0] - np.minimum.reduceat(share[:, 0], starts)[group]
    members = [extra[group == one].tolist() for one in range(len(starts))]
    left = sum(sum(choice) <= slack for choice in product(*members))
    counted = _log_choices(extra, starts, slack)
    assert np.log(left) <= counted + 1e-9
    assert counted <= np.log(np.bincount(group)).sum() + enumeration.RATES[0]


def test_a_crowd_is_more_choices_than_enumeration_comes_to_an_end_with(monkeypatch: pytest.MonkeyPatch) -> None:
    share, group = random_shares(np.random.default_rng(2))
    starts = starts_of(group)
    weights = np.full(share.shape[1], 1 / share.shape[1])
    priced = share @ weights
    least = np.minimum.reduceat(priced, starts)
    counted = _log_choices(priced - least[group], starts, 1 - float(least.sum()))
    monkeypatch.setattr(enumeration, "HOPELESS", counted - 1e-6)
    assert is_crowd(share, group, weights)
    monkeypatch.setattr(enumeration, "HOPELESS", counted + 1e-6)
    assert not is_crowd(share, group, weights)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_is_given_up_where_there_is_too_much(seed: int) -> None:
    pick = np.random.default_rng(seed)
    groups = 6
    group = np.repeat(np.arange(groups), 2)
    # What one budget gains the other one loses, and no two sums are equal: no partial choice outdoes another.
    gain = np.ravel([[0.0, 2.0**-one] for one in range(groups)])[:, None]
    share = (np.hstack([gain, -gain]) + 2) / (20 * groups)
    share = share[np.argsort(2 * group + pick.random(2 * groups), kind="stable")]
    assert any_within(share, group, np.eye(2), 2**groups - 1, gives_up=True) == (None, False)
    for most, gives_up in ((2**groups, True), (2**groups - 1, False)):
        found, is_certain = any_within(share, group, np.eye(2), most, gives_up=gives_up)
        assert is_certain
        assert found is not None


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_rows_that_are_above_no_other_one(seed: int) -> None:
    pick = np.random.default_rng(seed)
    shape = (int(pick.integers(0, 600)), int(pick.integers(1, 5)))
    rows = pick.integers(0, int(pick.choice([2, 8, 60, 2**20])), shape) / 2**20 + pick.integers(-4, 5, shape) * 1e-16
    kept = rows[least_of(rows)]
    assert (kept[:, None] <= rows + ROUNDING).all(axis=2).any(axis=0).all()
    assert ((kept[:, None] <= kept + ROUNDING).all(axis=2) == np.eye(len(kept), dtype=bool)).all()


def test_what_a_crowd_leaves_out_is_not_certain() -> None:
    # Of the first group the crowd leaves out the last option, which alone leads to a choice; one of the others stays.
    share = np.array([[0.5, 0.1], [0.5, 0.15], [0.1, 0.6], [0.6, 0.2], [0.65, 0.2]])
    group, weights = np.array([0, 0, 0, 1, 1]), np.array([[0.5, 0.5]])
    assert any_within(share, group, weights, 1, gives_up=False) == (None, False)
    found, _ = any_within(share, group, weights, 2, gives_up=False)
    assert found is not None
    assert found.tolist() == [2, 3]


def test_a_crowd_keeps_what_leaves_most_of_the_budgets() -> None:
    share = np.array([[0.6, 0.05], [0.05, 0.65], [0.3, 0.3], [0.5, 0.5], [0.52, 0.5]])
    found, _ = any_within(share, np.array([0, 0, 0, 1, 1]), np.array([[0.5, 0.5]]), 1, gives_up=False)
    assert found is not None
    assert found.tolist() == [2, 3]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_options_that_prices_exclude_are_in_no_choice_that_fits(seed: int) -> None:
    """With more groups than branch and cut proves, a bottleneck is what trying everything says."""
    pick = np.random.default_rng(seed)
    groups = 17
    sizes = np.ones(groups, dtype=np.int64)
    sizes[pick.choice(groups, 8, replace=False)] = 3
    uses = [pick.integers(1, 60, (size, 2)) for size in sizes]
    keys = [pick.integers(1, 9, size) for size in sizes]
    budgets = sum(use.mean(axis=0) for use in uses).astype(np.int64) - pick.integers(0, 60, 2)
    solution = least_bottleneck(Choices.of(keys, uses), budgets)
    want = min(
        (
            max(int(key[i]) for key, i in zip(keys, picks, strict=True))
            for picks in product(*map(range, sizes))
            if (sum(use[i] for use, i in zip(uses, picks, strict=True)) <= budgets).all()
        ),
        default=None,
    )
    assert solution.is_proven
    assert (solution.value if solution.is_found else None) == want
    problem = Problem.of(Choices.of(keys, uses), budgets, NO_LIMIT)
    assert (problem is None) <= (want is None)
