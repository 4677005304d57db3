"""Multiple-choice knapsacks with several resources: every group takes one option, the sum of each resource is bounded.

- `least_bottleneck`: the largest key among the options taken is minimised (a frame interval).
- `cheapest`: the sum of their costs is minimised (block RAM).

Both price the resources: at any prices, the cheapest priced option of each group gives a lower bound.  Prices move
towards what is over budget, the choice that they suggest is repaired by exchanges of single options, and when choice
and bound meet, the choice is optimal.  What that leaves open is decided by HiGHS: for up to `PROVEN_GROUPS` groups by
branch and cut; with more by the linear relaxation, which proves that there is no choice or is rounded to one.  Where
neither succeeds the best choice found stands, and the solution states the bound that is proven.

Source:
    Kellerer, Pferschy, Pisinger: Knapsack Problems, Springer 2004, chapters 9 and 11.  Multiplicative weights: Arora,
    Hazan, Kale, Theory of Computing 8(6), 2012.  HiGHS: scipy.optimize.milp, linprog.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.int64]
Floats = NDArray[np.float64]

PROVEN_GROUPS = 16
"""Groups up to which every answer is proven."""

STEPS = 24
"""Changes of the prices before exchanges (and the solver) have to decide."""

NO_LIMIT = 1 << 60

TINY = 1e-9
"""Slack for rounding, relative to the budgets."""


@dataclass(frozen=True)
class Group:
    """Options of which one is taken.

    Args:
        key: Shape (options,), integers >= 0: what is minimised.
        use: Shape (options, resources), integers >= 0.
    """

    key: Array
    use: Array


@dataclass(frozen=True)
class Solution:
    """The best choice found.

    Args:
        value: Largest key, or sum of keys; `NO_LIMIT` if no choice was found within budgets and limit.
        bound: No choice within the budgets has a smaller value than this; equal to `value` if that is proven.
        options: The option that each group takes; none if no choice was found.
    """

    value: int
    bound: int
    options: tuple[int, ...] = ()

    @property
    def is_found(self) -> bool:
        """Whether there is a choice."""
        return bool(self.options)

    @property
    def is_proven(self) -> bool:
        """Whether there is no better choice, or none at all."""
        return self.bound == self.value


NOTHING = Solution(NO_LIMIT, NO_LIMIT)
"""There is no choice."""


def least_bottleneck(groups: Sequence[Group], budgets: Array, floor: int = 0, limit: int = NO_LIMIT) -> Solution:
    """The choice whose largest key is least.

    Args:
        groups: At least one group.
        budgets: Shape (resources,), integers >= 0.
        floor: Keys below count as this.
        limit: Only keys up to this are taken.

    Returns:
        The best choice found within budgets and limit.
    """
    problem = _Problem.of(groups, budgets, limit)
    if problem is None:
        return NOTHING
    keys = np.maximum(problem.key, floor)
    grid = np.unique(keys[keys >= np.minimum.reduceat(keys, problem.starts).max()])
    weights = np.full(len(budgets), 1 / len(budgets))
    low, weights, chosen = _reprice(problem, keys, grid, 0, weights)
    if low == len(grid):
        return NOTHING
    best = problem.repaired(chosen, keys <= grid[low])
    if problem.fits(best):
        return problem.solution(int(grid[low]), int(grid[low]), best)
    # The least possible key is at `low` or above: find a choice with a larger one, then halve what is between.
    step, high = 1, low
    while not problem.fits(best) and high < len(grid) - 1:
        high = min(high + step, len(grid) - 1)
        high, weights, chosen = _reprice(problem, keys, grid, high, weights)
        if high == len(grid):
            return NOTHING
        best, step = problem.repaired(chosen, keys <= grid[high]), 2 * step
    unproven = NO_LIMIT
    if not problem.fits(best):
        found, is_proven = problem.decided(keys <= grid[high])
        if found is None:
            return NOTHING if is_proven else Solution(NO_LIMIT, int(grid[low]))
        best = found
    while low < high:
        middle = (low + high) // 2
        reached, weights, chosen = _reprice(problem, keys, grid, middle, weights)
        if reached > middle:
            low = min(reached, high)
            continue
        choice: Array | None = problem.repaired(chosen, keys <= grid[middle])
        if choice is not None and not problem.fits(choice):
            choice, is_proven = problem.decided(keys <= grid[middle])
            if choice is None and not is_proven:
                unproven = min(unproven, int(grid[middle]))
        if choice is None:
            low = middle + 1
        else:
            best, high = choice, middle
    return problem.solution(int(grid[high]), min(int(grid[high]), unproven), best)


def _reprice(problem: _Problem, keys: Array, grid: Array, low: int, weights: Floats) -> tuple[int, Floats, Array]:
    """Moves prices towards what is over budget, and the index of the least possible key with the bound.

    Returns:
        Index into `grid`, prices, and the choice with the least excess at that key.
    """
    nearest, least_excess = np.zeros(0, dtype=np.int64), np.inf
    for step in range(STEPS if low < len(grid) else 0):
        priced = problem.share @ weights
        start = low

        def is_open(index: int, priced: Floats = priced) -> bool:
            return problem.bound(priced, keys <= grid[index]) <= 1 + TINY

        low = _first_from(low, len(grid), is_open)
        if low == len(grid):
            break
        chosen = problem.cheapest(np.where(keys <= grid[low], priced, np.inf))
        used = problem.share[chosen].sum(axis=0)
        excess = float(used.max()) - 1
        if excess < least_excess or low > start:
            nearest, least_excess = chosen, excess
        if excess <= TINY:
            break
        weights = weights * np.exp((used - 1) / max(abs(excess), 0.1) / (1 + step) ** 0.5)
        weights /= weights.sum()
    return low, weights, nearest


def cheapest(groups: Sequence[Group], budgets: Array, limit: int = NO_LIMIT, gap: float = 0.0) -> Solution:
    """The choice whose sum of keys is least.

    Args:
        groups: At least one group.
        budgets: Shape (resources,), integers >= 0.
        limit: Only sums up to this are taken.
        gap: With more than `PROVEN_GROUPS` groups, a choice within this share of the bound is good enough.

    Returns:
        The best choice found within budgets and limit.
    """
    problem = _Problem.of(groups, budgets, limit)
    if problem is None:
        return NOTHING
    gap = gap if len(groups) > PROVEN_GROUPS else 0.0
    key = problem.key.astype(np.float64)
    anything = np.ones(len(key), dtype=bool)
    prices, best_prices, lower = np.zeros(len(budgets)), np.zeros(len(budgets)), -np.inf
    best: Array | None = None
    upper, agility, stale = float(limit) + 1, 1.0, 0
    for step in range(4 * STEPS):
        priced = key + problem.share @ prices
        chosen = problem.cheapest(priced)
        bound = float(priced[chosen].sum() - prices.sum())
        if bound > lower + 1e-9:
            lower, best_prices, stale = bound, prices, 0
        else:
            stale += 1
        used = problem.share[chosen].sum(axis=0)
        if step % 8 == 0 or problem.fits(chosen):
            found = problem.improved(problem.repaired(chosen, anything))
            if problem.fits(found) and key[found].sum() < upper:
                best, upper = found, float(key[found].sum())
        if ceil(lower - 1e-6) >= upper - gap * upper or agility < 1e-3:
            break
        if stale == 4:
            agility, stale, prices = agility / 2, 0, best_prices
            continue
        slope = used - 1
        norm = float((slope[(prices > 0) | (slope > 0)] ** 2).sum())
        if norm < 1e-12:
            break
        target = upper if best is not None else bound + max(1.0, 0.1 * abs(bound))
        prices = np.maximum(0.0, prices + agility * max(target - bound, 0.5) / norm * slope)
    proven = min(ceil(lower - 1e-6), upper)
    if proven < upper and len(groups) <= PROVEN_GROUPS:
        # An option is out if the bound with it is no better than the best choice.
        priced = key + problem.share @ best_prices
        extra = priced - np.minimum.reduceat(priced, problem.starts)[problem.group_of]
        better = problem.branch_and_cut(key, extra <= upper - 1 - lower + 1e-6)
        if better is not None and key[better].sum() < upper:
            best, upper = better, float(key[better].sum())
        proven = upper
    if best is None:
        return Solution(NO_LIMIT, NO_LIMIT if proven > limit else round(proven))
    return problem.solution(round(upper), round(proven), best)


def _first_from(low: int, size: int, holds: Callable[[int], bool]) -> int:
    """The first index from `low` on for which a monotone condition holds; `size` if there is none."""
    step, high = 1, low
    while high < size and not holds(high):
        low, high, step = high + 1, high + step, 2 * step
    high = min(high, size)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high


class _Problem:
    """The options that can be taken at all, of all groups, one after the other.

    Args:
        groups: As given.
        kept: Indices of the options of all groups that are within budgets and limit.
        budgets: As given.
    """

    def __init__(self, groups: Sequence[Group], kept: Array, group_of: Array, budgets: Array) -> None:
        offsets = np.concatenate([[0], np.cumsum([len(group.key) for group in groups])[:-1]])
        self.key = np.concatenate([group.key for group in groups])[kept]
        self.use = np.concatenate([group.use for group in groups])[kept]
        self.budgets = budgets
        self.share = self.use / np.maximum(budgets, 1)
        self.group_of = group_of[kept]
        self.starts = np.searchsorted(self.group_of, np.arange(len(groups)))
        self._option = kept - offsets[self.group_of]

    @classmethod
    def of(cls, groups: Sequence[Group], budgets: Array, limit: int) -> _Problem | None:
        """The problem, or None if a group has no option within budgets and limit."""
        is_within = [(group.use <= budgets).all(axis=1) & (group.key <= limit) for group in groups]
        if not all(keep.any() for keep in is_within):
            return None
        group_of = np.repeat(np.arange(len(groups)), [len(group.key) for group in groups])
        return cls(groups, np.flatnonzero(np.concatenate(is_within)), group_of, budgets)

    def solution(self, value: int, bound: int, chosen: Array) -> Solution:
        """A choice, in the numbering of the groups as given."""
        return Solution(value, bound, tuple(int(option) for option in self._option[chosen]))

    def fits(self, chosen: Array) -> bool:
        """Whether a choice is within all budgets."""
        return bool((self.use[chosen].sum(axis=0) <= self.budgets).all())

    def bound(self, priced: Floats, allowed: NDArray[np.bool_]) -> float:
        """Sum over groups of the cheapest allowed option."""
        return float(np.minimum.reduceat(np.where(allowed, priced, np.inf), self.starts).sum())

    def cheapest(self, priced: Floats) -> Array:
        """Index of each group's cheapest option."""
        least = np.minimum.reduceat(priced, self.starts)
        is_least = np.flatnonzero(priced <= least[self.group_of])
        return is_least[np.searchsorted(self.group_of[is_least], np.arange(len(self.starts)))]

    def repaired(self, chosen: Array, allowed: NDArray[np.bool_]) -> Array:
        """A choice with as little excess over the budgets as exchanges of single allowed options reach."""
        chosen = chosen.copy()
        used = self.share[chosen].sum(axis=0)
        for _ in range(2 * len(self.starts)):
            excess = np.maximum(0.0, used - 1).sum()
            if excess <= TINY:
                break
            rest = used - self.share[chosen]
            after = np.maximum(0.0, rest[self.group_of] + self.share - 1).sum(axis=1)
            fewer = np.where(allowed, excess - after, 0.0)
            # What the exchange takes of the budgets that are not exceeded counts against it.
            takes = np.maximum(0.0, self.share - self.share[chosen][self.group_of]).sum(axis=1)
            takes += np.maximum(0, self.key - self.key[chosen][self.group_of]) / max(1, int(self.key.max()))
            pick = int(np.argmax(np.where(fewer > TINY, fewer / (takes + 0.01), -1.0)))
            if fewer[pick] <= TINY:
                break
            group = self.group_of[pick]
            used = rest[group] + self.share[pick]
            chosen[group] = pick
        return chosen

    def improved(self, chosen: Array) -> Array:
        """A choice within the budgets whose keys exchanges of single options no longer lower."""
        chosen = chosen.copy()
        while self.fits(chosen):
            spare = self.budgets - self.use[chosen].sum(axis=0)
            gain = self.key[chosen][self.group_of] - self.key
            allowed = (self.use - self.use[chosen][self.group_of] <= spare).all(axis=1)
            pick = int(np.argmax(np.where(allowed, gain, 0)))
            if gain[pick] <= 0 or not allowed[pick]:
                break
            chosen[self.group_of[pick]] = pick
        return chosen

    def decided(self, allowed: NDArray[np.bool_]) -> tuple[Array | None, bool]:
        """Any choice of allowed options within the budgets, and whether the answer is proven."""
        if len(self.starts) <= PROVEN_GROUPS:
            return self.branch_and_cut(np.zeros(len(allowed)), allowed), True
        fill, chosen = self._relaxed(allowed)
        if fill > 1 + 1e-6:
            return None, True
        chosen = self.repaired(chosen, allowed)
        return (chosen, True) if self.fits(chosen) else (None, False)

    def _relaxed(self, allowed: NDArray[np.bool_]) -> tuple[float, Array]:
        """The least fill of the fullest budget if options may be mixed, and the largest share of each group's mix.

        All but as many groups as there are budgets take one option whole.
        """
        from scipy.optimize import linprog
        from scipy.sparse import csr_array

        kept = np.flatnonzero(allowed)
        size, resources = len(kept), len(self.budgets)
        one_each = csr_array(
            (np.ones(size), (self.group_of[kept], np.arange(size))), shape=(len(self.starts), size + 1)
        )
        result = linprog(
            np.append(np.zeros(size), 1.0),
            A_ub=np.column_stack([self.share[kept].T, -np.ones(resources)]),
            b_ub=np.zeros(resources),
            A_eq=one_each,
            b_eq=np.ones(len(self.starts)),
            method="highs-ds",
        )
        mix = np.zeros(len(allowed))
        mix[kept] = result.x[:-1]
        return float(result.x[-1]), self.cheapest(np.where(allowed, -mix, np.inf))

    def branch_and_cut(self, cost: Floats, allowed: NDArray[np.bool_]) -> Array | None:
        """The cheapest choice of allowed options, proven; None if there is none."""
        # Here, so that whoever only reads packed files or costs needs numpy alone.
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array, vstack

        kept = np.flatnonzero(allowed)
        size, groups = len(kept), len(self.starts)
        if len(np.unique(self.group_of[kept])) < groups:
            return None
        one_each = csr_array((np.ones(size), (self.group_of[kept], np.arange(size))), shape=(groups, size))
        constraints = [LinearConstraint(one_each, 1, 1), LinearConstraint(self.share[kept].T, -np.inf, 1)]
        excluded = csr_array((0, size))
        while True:
            cuts = [LinearConstraint(excluded, -np.inf, groups - 1)] if excluded.shape[0] else []
            result = milp(
                cost[kept],
                constraints=[*constraints, *cuts],
                integrality=np.ones(size),
                bounds=Bounds(0, 1),
                options={"mip_rel_gap": 0.0},
            )
            if result.x is None:
                return None
            taken = np.flatnonzero(result.x > 0.5)
            if self.fits(kept[taken]):
                return kept[taken]
            # Within the solver's tolerance, but not within the budget: exclude exactly this choice, ask again.
            row = csr_array((np.ones(len(taken)), (np.zeros(len(taken), dtype=int), taken)), shape=(1, size))
            excluded = vstack([excluded, row], format="csr")
