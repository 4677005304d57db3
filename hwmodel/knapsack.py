"""Multiple-choice knapsack with several resources, solved exactly.

Every group takes exactly one of its options; the sum of costs is minimised while the sum of each resource stays
within its budget.  A Lagrangian bound with a few subgradient steps, and exchanges of single options, often find the
optimum and prove it (or prove that there is none).  What they leave open goes to HiGHS, a branch-and-cut solver,
without the options that the bound excludes.

Source:
    Kellerer, Pferschy, Pisinger: Knapsack Problems, Springer 2004, chapters 9 and 11.  HiGHS: scipy.optimize.milp.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Array = NDArray[np.int64]

STEPS = 30
"""Subgradient steps; they decide how much is left to the solver, not the result."""

NODES = 100
"""Nodes of the solver's search tree after which its best solution stands unproven.  Networks of a dozen layers need
far fewer; large ones meet the limit where a few block RAMs or cycles are at stake."""

TINY = 1e-6
"""Slack for rounding of bounds; costs are integers."""


@dataclass(frozen=True)
class Group:
    """Options of which one is taken.

    Args:
        cost: Shape (options,), integers >= 0.
        use: Shape (options, resources), integers >= 0.
    """

    cost: Array
    use: Array


@dataclass(frozen=True)
class Solution:
    """Cost, and the option that each group takes."""

    cost: int
    options: tuple[int, ...]


def solve(groups: Sequence[Group], budgets: Array, limit: int, relative_gap: float = 0.0) -> Solution | None:
    """The cheapest choice within the budgets.

    Args:
        groups: At least one group; an empty group makes the problem infeasible.
        budgets: Shape (resources,), integers >= 0.
        limit: Only solutions that cost at most this count.
        relative_gap: Stop when the solution is proven to be within this share of the optimum.

    Returns:
        An optimal solution, or None if there is none within budgets and limit.
    """
    if any(len(group.cost) == 0 for group in groups):
        return None
    least = np.array([group.use.min(axis=0) for group in groups])
    if (least.sum(axis=0) > budgets).any() or sum(int(group.cost.min()) for group in groups) > limit:
        return None
    return _Problem(groups, budgets, limit, relative_gap).solve()


def feasible(groups: Sequence[Group], budgets: Array) -> tuple[int, ...] | None:
    """The option that each group takes in any choice within the budgets, whatever it costs; None if there is none."""
    if any(len(group.cost) == 0 for group in groups):
        return None
    if (np.array([group.use.min(axis=0) for group in groups]).sum(axis=0) > budgets).any():
        return None
    free = [Group(np.zeros_like(group.cost), group.use) for group in groups]
    solution = _Problem(free, budgets, 0, 0.0).solve()
    return None if solution is None else solution.options


def resource_prices(groups: Sequence[Group], budgets: Array, limit: int) -> NDArray[np.float64]:
    """Prices of the resources that give a good lower bound: sum of cheapest priced options less priced budgets."""
    return _Problem(groups, budgets, limit, 0.0)._price()[0]


class _Problem:
    def __init__(self, groups: Sequence[Group], budgets: Array, limit: int, relative_gap: float) -> None:
        self.groups = groups
        self.relative_gap = relative_gap
        self.budgets = budgets
        self.bound = limit + 1  # solutions must cost less
        self.best: Solution | None = None
        sizes = np.array([len(group.cost) for group in groups])
        self.starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self.group_of = np.repeat(np.arange(len(groups)), sizes)
        self.cost = np.concatenate([group.cost for group in groups]).astype(np.float64)
        self.use = np.concatenate([group.use for group in groups]).astype(np.float64)
        self.scale = np.maximum(budgets, 1).astype(np.float64)

    def solve(self) -> Solution | None:
        prices, lower = self._surrogate() if not self.cost.any() else self._price()
        if self.best is not None and self.bound - lower <= self.relative_gap * self.bound:
            return self.best
        if lower <= self.bound - 1 + TINY:
            self._search(prices, lower)
        return self.best

    def _surrogate(self) -> tuple[NDArray[np.float64], float]:
        """Prices that sum to one at which the cheapest choice exceeds the priced budgets most."""
        weights = np.ones(len(self.budgets)) / len(self.budgets)
        best_prices, best_lower = weights / self.scale, -np.inf
        for step in range(STEPS):
            prices = weights / self.scale
            chosen, lower = self._relax(prices)
            if step % 4 == 0 or step == STEPS - 1:
                self._improve(chosen)
            if lower > best_lower:
                best_prices, best_lower = prices, lower
            if best_lower > TINY or self.best is not None:
                break
            excess = self.use[chosen].sum(axis=0) / self.scale - 1
            weights = weights * np.exp(excess / max(1e-9, float(np.abs(excess).max())) * 2 / (1 + step) ** 0.5)
            weights /= weights.sum()
        return best_prices, best_lower

    def _price(self) -> tuple[NDArray[np.float64], float]:
        """Prices of the resources with the best lower bound found, and that bound."""
        prices = np.zeros(len(self.budgets))
        best_prices, best_lower, agility, stale = prices, -np.inf, 1.0, 0
        for step in range(4 * STEPS):
            chosen, lower = self._relax(prices)
            if lower > best_lower + 1e-9:
                best_lower, best_prices, stale = lower, prices, 0
            else:
                stale += 1
                if stale == 4:
                    agility, stale, prices = agility / 2, 0, best_prices
                    continue
            if step % 4 == 0:
                self._improve(chosen)
            if best_lower > self.bound - 1 + TINY or agility < 1e-3:
                break
            slope = self.use[chosen].sum(axis=0) / self.scale - 1
            norm = float((slope[(prices > 0) | (slope > 0)] ** 2).sum())
            if norm < 1e-12:
                break
            target = self.bound if self.best is not None else lower + max(1.0, 0.1 * abs(lower))
            prices = np.maximum(0.0, prices + agility * max(target - lower, 0.5) / norm * slope / self.scale)
        return best_prices, best_lower

    def _improve(self, chosen: Array) -> None:
        """Repairs a choice that exceeds a budget, then lowers its cost, one exchange of an option at a time."""
        chosen = chosen.copy()
        used = self.use[chosen].sum(axis=0)
        for _ in range(4 * len(self.groups)):
            after = used - self.use[chosen][self.group_of] + self.use
            gain = self.cost[chosen][self.group_of] - self.cost
            excess = np.maximum(0.0, after / self.scale - self.budgets / self.scale).sum(axis=1)
            now = float(np.maximum(0.0, used / self.scale - self.budgets / self.scale).sum())
            if now > 0:
                fewer = now - excess
                rate = np.where(fewer > 1e-12, fewer / (1.0 + np.maximum(0.0, -gain)), -1.0)
                pick = int(np.argmax(rate))
                if rate[pick] <= 0:
                    return
            else:
                pick = int(np.argmax(np.where(excess <= 0, gain, -1.0)))
                if excess[pick] > 0 or gain[pick] <= 0:
                    break
            group = self.group_of[pick]
            used = after[pick]
            chosen[group] = pick
        if (used <= self.budgets).all():
            self._offer(round(float(self.cost[chosen].sum())), chosen - self.starts)

    def _relax(self, prices: NDArray[np.float64]) -> tuple[Array, float]:
        """Index of each group's cheapest option at these prices, and the lower bound."""
        priced = self.cost + self.use @ prices
        least = np.minimum.reduceat(priced, self.starts)
        is_least = np.flatnonzero(priced <= least[self.group_of])
        _, first = np.unique(self.group_of[is_least], return_index=True)
        return is_least[first], float(least.sum() - prices @ self.budgets)

    def _offer(self, cost: int, options: Array) -> None:
        if cost < self.bound:
            self.bound = cost
            self.best = Solution(cost, tuple(int(option) for option in options))

    def _search(self, prices: NDArray[np.float64], lower: float) -> None:
        """Solves what is left: options whose bound is no better than the best solution are out."""
        # Here, so that whoever only reads packed files or costs needs numpy alone.
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array, vstack

        priced = self.cost + self.use @ prices
        least = np.minimum.reduceat(priced, self.starts)
        keep = np.flatnonzero(priced - least[self.group_of] <= self.bound - 1 - lower + TINY)
        if len(np.unique(self.group_of[keep])) < len(self.groups):
            return
        size = len(keep)
        one_each = csr_array((np.ones(size), (self.group_of[keep], np.arange(size))), shape=(len(self.groups), size))
        limits = (self.use[keep] / self.scale).T, self.budgets / self.scale
        excluded = csr_array((0, size))
        while True:
            constraints = [LinearConstraint(one_each, 1, 1), LinearConstraint(limits[0], -np.inf, limits[1])]
            if excluded.shape[0]:
                constraints.append(LinearConstraint(excluded, -np.inf, len(self.groups) - 1))
            result = milp(
                self.cost[keep],
                constraints=constraints,
                integrality=np.ones(size),
                bounds=Bounds(0, 1),
                options={"mip_rel_gap": self.relative_gap, "node_limit": NODES, "disp": False},
            )
            if result.status == 2:  # infeasible
                return
            if result.status != 0:  # the node limit, reported in several ways
                logger.info("knapsack of %d groups is not proven: %s", len(self.groups), result.message)
                if result.x is None:
                    return
            taken = np.flatnonzero(result.x > 0.5)
            chosen = keep[taken]
            if (self.use[chosen].sum(axis=0) <= self.budgets).all():
                self._offer(round(float(self.cost[chosen].sum())), chosen - self.starts)
                return
            # Within the solver's tolerance, but not within the budget: exclude exactly this choice, ask again.
            row = csr_array((np.ones(len(taken)), (np.zeros(len(taken), dtype=int), taken)), shape=(1, size))
            excluded = vstack([excluded, row], format="csr")
