"""The knapsack solver equals exhaustive search."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel.knapsack import Group, feasible, solve


def random_problem(seed: int) -> tuple[list[Group], np.ndarray]:
    """Up to five groups of up to five options and up to three resources, budgets around the middle."""
    pick = np.random.default_rng(seed)
    count, resources = int(pick.integers(1, 6)), int(pick.integers(1, 4))
    groups = []
    for _ in range(count):
        size = int(pick.integers(1, 6))
        groups.append(Group(pick.integers(0, 20, size), pick.integers(0, 20, (size, resources))))
    return groups, pick.integers(5 * count, 13 * count, resources)


def exhaustive(groups: list[Group], budgets: np.ndarray) -> list[int]:
    """Costs of all choices within the budgets."""
    costs = []
    for options in product(*(range(len(group.cost)) for group in groups)):
        used = sum(group.use[option] for group, option in zip(groups, options, strict=True))
        if (used <= budgets).all():
            costs.append(sum(int(group.cost[option]) for group, option in zip(groups, options, strict=True)))
    return costs


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), limit=st.sampled_from([10, 40, 1000]))
def test_solution_is_the_cheapest(seed: int, limit: int) -> None:
    groups, budgets = random_problem(seed)
    costs = [cost for cost in exhaustive(groups, budgets) if cost <= limit]
    solution = solve(groups, budgets, limit)
    assert (solution is None) == (not costs)
    if solution is not None:
        assert solution.cost == min(costs)
        assert sum(int(g.cost[o]) for g, o in zip(groups, solution.options, strict=True)) == solution.cost
        used = sum(g.use[o] for g, o in zip(groups, solution.options, strict=True))
        assert (used <= budgets).all()


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_feasibility(seed: int) -> None:
    groups, budgets = random_problem(seed)
    options = feasible(groups, budgets)
    assert (options is None) == (not exhaustive(groups, budgets))
    if options is not None:
        used = sum(g.use[o] for g, o in zip(groups, options, strict=True))
        assert (used <= budgets).all()


def test_group_without_options_cannot_be_served() -> None:
    empty = Group(np.zeros(0, int), np.zeros((0, 1), int))
    assert solve([empty], np.array([5]), 100) is None
    assert feasible([empty], np.array([5])) is None
