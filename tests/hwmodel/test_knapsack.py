"""The knapsack solver equals exhaustive search; larger problems keep their promises."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel import knapsack, problem
from hwmodel.choices import NO_LIMIT, Choices, outdone_from
from hwmodel.knapsack import NOTHING, Solution, cheapest, exchanged, least_bottleneck
from hwmodel.problem import PROVEN_GROUPS, Answers


def random_problem(seed: int) -> tuple[Choices, np.ndarray]:
    """Up to five groups of up to five options and up to three resources, budgets around the middle.

    In half of them options that are outdone are marked.
    """
    pick = np.random.default_rng(seed)
    count, resources = int(pick.integers(1, 6)), int(pick.integers(1, 4))
    sizes = pick.integers(1, 6, count)
    largest = int(pick.choice([3, 20]))
    keys = [pick.integers(0, largest, size) for size in sizes]
    uses = [pick.integers(0, largest, (size, resources)) for size in sizes]
    untils = [outdone_from(key, use) for key, use in zip(keys, uses, strict=True)] if seed % 2 else None
    return Choices.of(keys, uses, untils), pick.integers(largest * count // 4, 2 * largest * count // 3 + 1, resources)


def possible_keys(choices: Choices, budgets: np.ndarray) -> list[list[int]]:
    """Keys of all choices within the budgets."""
    found = []
    for rows in product(*(np.flatnonzero(choices.group == group) for group in range(choices.groups))):
        if (choices.use[list(rows)].sum(axis=0) <= budgets).all():
            found.append(choices.key[list(rows)].tolist())
    return found


def check(solution: Solution, choices: Choices, budgets: np.ndarray) -> list[int]:
    """The keys of a solution that is within the budgets and no better than its bound."""
    rows = list(solution.rows)
    assert choices.group[rows].tolist() == list(range(choices.groups))
    assert (choices.use[rows].sum(axis=0) <= budgets).all()
    assert solution.bound <= solution.value
    keys: list[int] = choices.key[rows].tolist()
    return keys


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), limit=st.sampled_from([10, 40, NO_LIMIT]), has_start=st.booleans())
def test_cheapest_choice(seed: int, limit: int, has_start: bool) -> None:
    choices, budgets = random_problem(seed)
    sums = [sum(keys) for keys in possible_keys(choices, budgets) if sum(keys) <= limit]
    start = least_bottleneck(choices, budgets).rows if has_start else ()
    solution = cheapest(choices, budgets, limit, start=start)
    assert solution.is_proven
    assert (not solution.is_found) == (not sums)
    if solution.is_found:
        assert solution.value == min(sums) == sum(check(solution, choices, budgets))


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), limit=st.sampled_from([10, NO_LIMIT]), floor=st.sampled_from([0, 8]))
def test_least_bottleneck(seed: int, limit: int, floor: int) -> None:
    choices, budgets = random_problem(seed)
    largest = [max(floor, *keys) for keys in possible_keys(choices, budgets) if max(keys) <= limit]
    solution = least_bottleneck(choices, budgets, floor, limit)
    assert solution.is_proven
    assert (not solution.is_found) == (not largest)
    if solution.is_found:
        assert solution.value == min(largest) == max(floor, *check(solution, choices, budgets))


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), better=st.integers(0, 3))
def test_exchanges_keep_what_they_are_given_or_find_something_better(seed: int, better: int) -> None:
    choices, budgets = random_problem(seed)
    start = least_bottleneck(choices, budgets)
    if not start.is_found:
        return
    sums = [sum(keys) for keys in possible_keys(choices, budgets)]
    limit = int(choices.key[list(start.rows)].sum()) - better
    # A row that is not among the options stands for none.
    solution = exchanged(choices, budgets, limit, (*start.rows, len(choices.key) + 5), (0.0,) * len(budgets))
    assert solution.is_found or better
    if solution.is_found:
        assert min(sums) <= solution.value == sum(check(solution, choices, budgets)) <= limit


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_options_are_outdone_where_another_one_uses_no_more(seed: int) -> None:
    pick = np.random.default_rng(seed)
    key, use = pick.integers(0, 4, 8), pick.integers(0, 3, (8, 2))
    until = outdone_from(key, use)
    for limit in range(5):
        within = np.flatnonzero(key <= limit)
        alive = np.flatnonzero((key <= limit) & (limit < until))
        # Each option is one of those that count, or one of those uses no more; none of them outdoes another.
        assert all((use[alive] <= use[row]).all(axis=1).any() for row in within)
        assert all((use[alive] <= use[row]).all(axis=1).sum() == 1 for row in alive)


@pytest.mark.parametrize("seed", [*range(8), 215, 263])  # the last two: a limit that few partial choices leave open
@pytest.mark.parametrize("most", [(0, 1, 2), (0, 1, 1), (2, 2, 3)])
def test_what_is_left_open_is_not_called_proven(
    seed: int, most: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knapsack, "PROVEN_GROUPS", most[0])
    for name, value in zip(("PROVEN_GROUPS", "FEW_PARTIAL", "MOST_PARTIAL"), most, strict=True):
        monkeypatch.setattr(problem, name, value)
    pick = np.random.default_rng(seed)
    groups, resources = 9, int(pick.integers(2, 5))
    uses = pick.integers(0, 1000, (groups, 3, resources))
    every = np.array(list(product(range(3), repeat=groups)))
    taken = uses[np.arange(groups), every].sum(axis=1)
    # So tight that few choices fit, or none.
    mean = taken.mean(axis=0)
    fullness = np.sort((taken / mean).max(axis=1))[pick.choice([0, 1, 3, 20])]
    budgets = np.floor(mean * (fullness - 1e-6)).astype(np.int64)
    fits, answers = (taken <= budgets).all(axis=1), Answers()
    for _ in range(3):
        keys = pick.integers(1, 9, (groups, 3))
        untils = [outdone_from(key, use) for key, use in zip(keys, uses, strict=True)]
        largest = keys[np.arange(groups), every].max(axis=1)
        least = int(largest[fits].min(initial=NO_LIMIT))
        solution = least_bottleneck(Choices.of(list(keys), list(uses), untils), budgets, answers=answers)
        assert solution.bound <= least <= solution.value


@pytest.mark.parametrize("seed", range(10))
def test_many_groups_come_close_to_a_proven_bound(seed: int) -> None:
    pick = np.random.default_rng(seed)
    groups = 4 * PROVEN_GROUPS
    keys, uses = zip(*((pick.integers(1, 500, 20), pick.integers(1, 100, (20, 4))) for _ in range(groups)), strict=True)
    choices, budgets = Choices.of(keys, uses), np.full(4, 40 * groups)
    total = cheapest(choices, budgets, gap=0.01)
    assert total.is_found
    assert sum(check(total, choices, budgets)) == total.value <= 1.05 * total.bound
    slowest = least_bottleneck(choices, budgets)
    assert slowest.is_found
    assert max(check(slowest, choices, budgets)) == slowest.value <= 1.05 * slowest.bound


def test_group_without_options_cannot_be_served() -> None:
    empty = Choices.of([np.zeros(0, int)], [np.zeros((0, 1), int)])
    assert cheapest(empty, np.array([5])) == NOTHING
    assert least_bottleneck(empty, np.array([5])) == NOTHING
