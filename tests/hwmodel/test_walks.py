"""Walks meet choices within the budgets, wherever they begin and whatever an excess costs at first, and good ones."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel import walks
from hwmodel.exchanges import Array, Floats
from hwmodel.walks import walked


def random_problem(pick: np.random.Generator, most: int) -> tuple[Floats, Floats, Array]:
    """Keys, shares and groups of up to so many groups; some have one option, and an option of each group fits."""
    groups, resources = int(pick.integers(1, most + 1)), int(pick.integers(1, 4))
    group = np.repeat(np.arange(groups), pick.integers(1, 5, groups))
    share = pick.random((len(group), resources)) * 2 / groups
    return pick.integers(0, 50, len(group)).astype(np.float64), share, group


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), to_first=st.booleans(), cost=st.sampled_from([1e-3, 1.0, 1e4]))
def test_choices_that_are_met_are_within_the_budgets_and_sorted(seed: int, to_first: bool, cost: float) -> None:
    pick = np.random.default_rng(seed)
    key, share, group = random_problem(pick, 12)
    members = [np.flatnonzero(group == one) for one in range(group[-1] + 1)]
    starts = np.array([[pick.choice(one) for one in members] for _ in range(3)])
    guides = key + pick.random((3, 1)) * share.sum(axis=1)
    before = starts.copy()
    found = walked(key, guides, share, group, starts, np.full(share.shape[1], cost), to_first=to_first)
    assert (starts == before).all()
    assert len(found) <= len(starts)
    for chosen in found:
        assert group[chosen].tolist() == list(range(len(members)))
        assert (share[chosen].sum(axis=0) <= 1 + 1e-9).all()
    sums = [key[chosen].sum() for chosen in found]
    assert sums == sorted(sums)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_best_of_few_choices_is_met_if_walks_begin_at_another_one(seed: int) -> None:
    pick = np.random.default_rng(seed)
    key, share, group = random_problem(pick, 2)
    members = [np.flatnonzero(group == one).tolist() for one in range(group[-1] + 1)]
    choices = np.array(list(product(*members)))
    fits = (share[choices].sum(axis=1) <= 1 + 1e-9).all(axis=1)
    sums = np.where(fits, key[choices].sum(axis=1), np.inf)
    best = int(sums.argmin())
    starts = np.delete(choices, best, axis=0)
    if not fits[best] or not len(starts):
        return
    guides = np.repeat(key[None], len(starts), axis=0)
    found = walked(key, guides, share, group, starts, np.full(share.shape[1], key.sum() + 1), to_first=False)
    assert found
    assert key[found[0]].sum() == sums[best]


@pytest.mark.parametrize("cost", [1e-4, 1e3])
def test_what_an_excess_costs_follows_from_the_walk(cost: float, monkeypatch: pytest.MonkeyPatch) -> None:
    pick = np.random.default_rng(0)
    groups, options = 30, 6
    share = np.sort(pick.random((groups, options)), axis=1).reshape(-1, 1) / groups * 1.8
    key = np.sort(pick.random((groups, options)), axis=1)[:, ::-1].reshape(-1)
    group, starts = np.repeat(np.arange(groups), options), options * np.arange(groups)[None]

    def reached() -> list[Array]:
        return walked(key, key[None], share, group, starts + options - 1, np.full(1, cost), to_first=False)

    adapted = reached()
    assert key[adapted[0]].sum() < 1.1 * key[options * np.arange(groups) + 2].sum()
    monkeypatch.setattr(walks, "DEARER", 1.0)
    monkeypatch.setattr(walks, "CHEAPER", 1.0)
    fixed = reached()
    assert not fixed or key[fixed[0]].sum() > key[adapted[0]].sum()


def test_nothing_is_met_where_nothing_can_be_exchanged() -> None:
    starts = np.array([[0, 1]])
    found = walked(
        np.ones(2), np.ones((1, 2)), np.ones((2, 1)) / 4, np.array([0, 1]), starts, np.ones(1), to_first=False
    )
    assert found == []
