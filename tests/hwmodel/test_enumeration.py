"""Enumeration finds every choice within the budgets, and says when it stopped before."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel.enumeration import enumerated
from hwmodel.exchanges import Array, Floats
from hwmodel.knapsack import least_bottleneck
from hwmodel.problem import Choices, Problem


def random_shares(pick: np.random.Generator) -> tuple[Floats, Array]:
    """Options of up to seven groups, of which about half of all choices fit."""
    groups, resources = int(pick.integers(1, 8)), int(pick.integers(1, 5))
    group = np.repeat(np.arange(groups), pick.integers(1, 5, groups))
    return pick.random((len(group), resources)) * 2 / groups, group


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_nothing_that_fits_is_left_out(seed: int) -> None:
    pick = np.random.default_rng(seed)
    share, group = random_shares(pick)
    weights = pick.dirichlet(np.ones(share.shape[1]), int(pick.integers(1, 6)))
    found, is_all = enumerated(share, group, weights, 10**6)
    assert is_all
    choices = set(map(tuple, found.tolist()))
    assert len(choices) == len(found)
    members = [np.flatnonzero(group == one).tolist() for one in range(group[-1] + 1)]
    for choice in product(*members):
        used = share[list(choice)].sum(axis=0)
        assert (choice in choices) == bool((weights @ used <= 1 + 1e-9).all())
        assert choice in choices or used.max() > 1


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_is_given_up_where_there_is_too_much(seed: int) -> None:
    pick = np.random.default_rng(seed)
    share, group = random_shares(pick)
    members = np.bincount(group)
    found, is_all = enumerated(share / 100, group, np.eye(share.shape[1]), int(members.prod()) - 1)
    assert not is_all
    assert found.shape == (0, len(members))
    assert enumerated(share / 100, group, np.eye(share.shape[1]), int(members.prod()))[1]


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
    problem = Problem.of(Choices.of(keys, uses), budgets)
    assert (problem is None) <= (want is None)
