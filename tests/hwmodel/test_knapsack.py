"""The knapsack solver equals exhaustive search; larger problems keep their promises."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel.knapsack import NO_LIMIT, NOTHING, PROVEN_GROUPS, Group, Solution, cheapest, least_bottleneck


def random_problem(seed: int) -> tuple[list[Group], np.ndarray]:
    """Up to five groups of up to five options and up to three resources, budgets around the middle."""
    pick = np.random.default_rng(seed)
    count, resources = int(pick.integers(1, 6)), int(pick.integers(1, 4))
    groups = []
    for _ in range(count):
        size = int(pick.integers(1, 6))
        groups.append(Group(pick.integers(0, 20, size), pick.integers(0, 20, (size, resources))))
    return groups, pick.integers(5 * count, 13 * count, resources)


def choices(groups: list[Group], budgets: np.ndarray) -> list[list[int]]:
    """Keys of all choices within the budgets."""
    found = []
    for options in product(*(range(len(group.key)) for group in groups)):
        taken = list(zip(groups, options, strict=True))
        if (sum(group.use[option] for group, option in taken) <= budgets).all():
            found.append([int(group.key[option]) for group, option in taken])
    return found


def check(solution: Solution, groups: list[Group], budgets: np.ndarray) -> list[int]:
    """The keys of a solution that is within the budgets and no better than its bound."""
    taken = list(zip(groups, solution.options, strict=True))
    assert (sum(group.use[option] for group, option in taken) <= budgets).all()
    assert solution.bound <= solution.value
    return [int(group.key[option]) for group, option in taken]


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), limit=st.sampled_from([10, 40, NO_LIMIT]))
def test_cheapest_choice(seed: int, limit: int) -> None:
    groups, budgets = random_problem(seed)
    sums = [sum(keys) for keys in choices(groups, budgets) if sum(keys) <= limit]
    solution = cheapest(groups, budgets, limit)
    assert solution.is_proven
    assert (not solution.is_found) == (not sums)
    if solution.is_found:
        assert solution.value == min(sums) == sum(check(solution, groups, budgets))


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), limit=st.sampled_from([10, NO_LIMIT]), floor=st.sampled_from([0, 8]))
def test_least_bottleneck(seed: int, limit: int, floor: int) -> None:
    groups, budgets = random_problem(seed)
    largest = [max(floor, *keys) for keys in choices(groups, budgets) if max(keys) <= limit]
    solution = least_bottleneck(groups, budgets, floor, limit)
    assert solution.is_proven
    assert (not solution.is_found) == (not largest)
    if solution.is_found:
        assert solution.value == min(largest) == max(floor, *check(solution, groups, budgets))


@pytest.mark.parametrize("seed", range(10))
def test_many_groups_come_close_to_a_proven_bound(seed: int) -> None:
    pick = np.random.default_rng(seed)
    groups = [Group(pick.integers(1, 500, 20), pick.integers(1, 100, (20, 4))) for _ in range(4 * PROVEN_GROUPS)]
    budgets = np.full(4, 40 * len(groups))
    total = cheapest(groups, budgets, gap=0.01)
    assert total.is_found
    assert sum(check(total, groups, budgets)) == total.value <= 1.05 * total.bound
    slowest = least_bottleneck(groups, budgets)
    assert slowest.is_found
    assert max(check(slowest, groups, budgets)) == slowest.value <= 1.05 * slowest.bound


def test_group_without_options_cannot_be_served() -> None:
    empty = Group(np.zeros(0, int), np.zeros((0, 1), int))
    assert cheapest([empty], np.array([5])) == NOTHING
    assert least_bottleneck([empty], np.array([5])) == NOTHING
