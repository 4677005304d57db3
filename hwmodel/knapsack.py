"""Multiple-choice knapsacks with several resources: every group takes one option, the sum of each resource is bounded.

- `least_bottleneck`: the largest key among the options taken is minimised (a frame interval).
- `cheapest`: the sum of their costs is minimised (block RAM).

Both price the resources: at any prices, the cheapest priced option of each group gives a lower bound.  Prices move
towards what is over budget, the choice that they suggest is repaired by exchanges of single options, and when choice
and bound meet, the choice is optimal.  What that leaves open is decided by HiGHS: for up to `PROVEN_GROUPS` groups by
branch and cut; with more by the linear relaxation, which proves that there is no choice or is rounded to one.  Among
the options that its prices leave, if they are few, exchanges of pairs look for a choice, then branch and cut.
Where none succeeds the best choice found stands, and the solution states the bound that is proven.

Source:
    Kellerer, Pferschy, Pisinger: Knapsack Problems, Springer 2004, chapters 9 and 11.  Multiplicative weights: Arora,
    Hazan, Kale, Theory of Computing 8(6), 2012.  HiGHS: scipy.optimize.milp, linprog.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from hwmodel.exchanges import TINY, Array, Floats, improved, paired, repaired
from hwmodel.highs import branch_and_cut, relaxed

Mask = NDArray[np.bool_]

Answers = dict[bytes, tuple[Array | None, bool]]
"""By shares and groups of the options that prices left: any choice of them or None, and whether that is proven."""

PROVEN_GROUPS = 16
"""Groups up to which every answer is proven."""

STEPS = 24
"""Changes of the prices before exchanges (and the solver) have to decide."""

CORE_OPTIONS = 150
"""Options up to which branch and cut is tried with more groups, where exchanges of pairs have found nothing."""

CORE_NODES = 100
"""Nodes after which that is given up."""

NO_LIMIT = 1 << 60


@dataclass(frozen=True)
class Choices:
    """Options of all groups, one group after the other; of each group one option is taken.

    Args:
        key: Shape (options,), integers >= 0.
        use: Shape (options, resources), integers >= 0.
        group: Shape (options,), ascending: the group of each option.
        until: Shape (options,): at limits of the key from this one on another option of the group uses no more of
            anything, so that this one need not be looked at; see `outdone_from`.
        rows: Shape (options,): where an option stood before others were left out.
        groups: Number of groups.
    """

    key: Array
    use: Array
    group: Array
    until: Array
    rows: Array
    groups: int

    @classmethod
    def of(cls, keys: Sequence[Array], uses: Sequence[Array], untils: Sequence[Array] | None = None) -> Choices:
        """Options by group: keys of shape (options,), uses of shape (options, resources)."""
        group = np.repeat(np.arange(len(keys)), [len(key) for key in keys])
        until = np.full(len(group), NO_LIMIT) if untils is None else np.concatenate(untils)
        return cls(np.concatenate(keys), np.concatenate(uses), group, until, np.arange(len(group)), len(keys))

    def only(self, keep: Mask) -> Choices | None:
        """The options where `keep` is true; None if a group has none."""
        index = np.flatnonzero(keep)
        group = self.group[index]
        if not len(index) or np.count_nonzero(np.diff(group)) + 1 < self.groups:
            return None
        return Choices(self.key[index], self.use[index], group, self.until[index], self.rows[index], self.groups)

    def up_to(self, limit: int) -> Choices | None:
        """The options that count where no key may be larger than `limit`; None if a group has none."""
        return self.only((self.key <= limit) & (limit < self.until))

    def at_cost(self, cost: Array) -> Choices:
        """The same options with other keys, all of them to be looked at."""
        return Choices(cost, self.use, self.group, np.full(len(cost), NO_LIMIT), self.rows, self.groups)


def outdone_from(key: Array, use: Array) -> Array:
    """The least key from which on an option of one group is outdone: another one uses no more of anything.

    Args:
        key: Shape (options,).
        use: Shape (options, resources).

    Returns:
        Shape (options,); `NO_LIMIT` where no option of the group uses as little.
    """
    no_more = (use[:, None, :] <= use[None, :, :]).all(axis=2)  # [i, j]: i uses no more than j
    # Of options with equal use, the one with the smaller key stays, then the first.
    first = np.lexsort((np.arange(len(key)), key))
    rank = np.empty(len(key), dtype=np.int64)
    rank[first] = np.arange(len(key))
    outdoes = no_more & (~no_more.T | (rank[:, None] < rank[None, :]))
    until: Array = np.where(outdoes, key[:, None], NO_LIMIT).min(axis=0, initial=NO_LIMIT)
    return until


@dataclass(frozen=True)
class Solution:
    """The best choice found.

    Args:
        value: Largest key, or sum of keys; `NO_LIMIT` if no choice was found within budgets and limit.
        bound: No choice within the budgets has a smaller value than this; equal to `value` if that is proven.
        rows: The row of the option that each group takes; none if no choice was found.
        prices: Prices of whole budgets, in units of the key, that gave the bound of `cheapest`.
    """

    value: int
    bound: int
    rows: tuple[int, ...] = ()
    prices: tuple[float, ...] = ()

    @property
    def is_found(self) -> bool:
        """Whether there is a choice."""
        return bool(self.rows)

    @property
    def is_proven(self) -> bool:
        """Whether there is no better choice, or none at all."""
        return self.bound == self.value


NOTHING = Solution(NO_LIMIT, NO_LIMIT)
"""There is no choice."""


def least_bottleneck(
    choices: Choices, budgets: Array, floor: int = 0, limit: int = NO_LIMIT, answers: Answers | None = None
) -> Solution:
    """The choice whose largest key is least.

    Args:
        choices: The options.
        budgets: Shape (resources,), integers >= 0.
        floor: Keys below count as this.
        limit: Only keys up to this are taken.
        answers: What earlier searches found out about hard cases; it is added to.

    Returns:
        The best choice found within budgets and limit.
    """
    problem = _Problem.of(choices.only(choices.key <= limit), budgets, answers)
    if problem is None:
        return NOTHING
    keys = problem.choices.key
    grid = np.unique(np.maximum(keys, floor))
    grid = grid[grid >= np.minimum.reduceat(keys, problem.starts).max()]
    weights = np.full(len(budgets), 1 / len(budgets))
    low, last, index, step = 0, len(grid) - 1, 0, 1
    best: Array | None = None
    prices: tuple[float, ...] = ()
    high, unproven = len(grid), NO_LIMIT
    while low < high:
        part = problem.up_to(int(grid[index]))
        found, is_proven = None, True
        if part is not None:
            found, weights, is_proven = part.any_choice(weights, may_solve=best is not None or index == last)
        if found is not None:
            # The choice may keep a smaller limit than the one it was asked to keep.
            slowest = int(keys[np.isin(problem.choices.rows, found)].max())
            best, high = found, int(np.searchsorted(grid, max(floor, slowest)))
        elif not is_proven and (best is not None or index == last):
            # What is possible at a smaller limit is possible at this one: all from the lowest on are open.
            low, unproven = index + 1, min(unproven, int(grid[low]))
        else:
            prices = tuple(weights.tolist()) if is_proven else prices
            low = problem.first_open(grid, max(low, index + 1 if is_proven else low), weights)
        if best is None:  # not yet: a larger limit, in growing steps; then halve what is between
            index, step = min(max(low, index + step), last), 2 * step
        else:
            index = (low + high) // 2
    if best is None:
        return Solution(NO_LIMIT, unproven, (), prices)
    return Solution(int(grid[high]), min(int(grid[high]), unproven), tuple(best.tolist()), prices)


def any_choice(choices: Choices, budgets: Array, weights: Floats) -> tuple[Solution, Floats]:
    """Any choice within the budgets.

    Args:
        choices: The options.
        budgets: Shape (resources,), integers >= 0.
        weights: Shape (resources,), of sum 1: prices of the budgets to begin with.

    Returns:
        A solution of value 0, or one without rows, whose bound is 0 if it is not proven that there is none; and the
        last prices, which prove it.
    """
    problem = _Problem.of(choices, budgets)
    if problem is None:
        return NOTHING, weights
    rows, weights, is_proven = problem.any_choice(weights, may_solve=True)
    if rows is None:
        return NOTHING if is_proven else Solution(NO_LIMIT, 0), weights
    return Solution(0, 0, tuple(rows.tolist())), weights


def cheapest(
    choices: Choices,
    budgets: Array,
    limit: int = NO_LIMIT,
    gap: float = 0.0,
    start: Sequence[int] = (),
    prices: Sequence[float] = (),
) -> Solution:
    """The choice whose sum of keys is least.

    Args:
        choices: The options.
        budgets: Shape (resources,), integers >= 0.
        limit: Only sums up to this are taken.
        gap: With more than `PROVEN_GROUPS` groups, a choice within this share of the bound is good enough.
        start: Rows of a choice within the budgets, to begin with.
        prices: Prices to begin with, such as those of a similar problem.

    Returns:
        The best choice found within budgets and limit.
    """
    problem = _Problem.of(choices.only(choices.key <= limit), budgets)
    if problem is None:
        return NOTHING
    is_small = choices.groups <= PROVEN_GROUPS
    key = problem.choices.key.astype(np.float64)
    best, upper = None, float(limit) + 1

    def offer(chosen: Array | None) -> None:
        nonlocal best, upper
        if chosen is not None and problem.fits(chosen):
            found = problem.improved(chosen)
            if key[found].sum() < upper:
                best, upper = found, float(key[found].sum())

    offer(problem.at_rows(start))
    price = np.array(prices) if prices else np.zeros(len(budgets))
    best_price, lower, agility, stale = price, -np.inf, 1.0, 0
    first_repair = 0 if prices else 7  # without prices the cheapest options are far over budget
    for step in range(4 * STEPS):
        priced = key + problem.share @ price
        chosen = problem.cheapest(priced)
        bound = float(priced[chosen].sum() - price.sum())
        if bound > lower + 1e-9:
            lower, best_price, stale = bound, price, 0
        else:
            stale += 1
        if ceil(lower - 1e-6) >= upper - (0.0 if is_small else gap * upper):
            break
        used = problem.share[chosen].sum(axis=0)
        if step % 8 == first_repair or (key[chosen].sum() < upper and problem.fits(chosen)):
            offer(problem.repaired(chosen))
        if agility < 1e-3:
            break
        if stale == 4:
            agility, stale, price = agility / 2, 0, best_price
            continue
        slope = used - 1
        norm = float((slope[(price > 0) | (slope > 0)] ** 2).sum())
        if norm < 1e-12:
            break
        target = upper if best is not None else bound + max(1.0, 0.1 * abs(bound))
        price = np.maximum(0.0, price + agility * max(target - bound, 0.5) / norm * slope)
    proven = min(ceil(lower - 1e-6), upper)
    if proven < upper and is_small:
        # An option is out if the bound with it is no better than the best choice.
        priced = key + problem.share @ best_price
        extra = priced - np.minimum.reduceat(priced, problem.starts)[problem.choices.group]
        better, _ = problem.branch_and_cut(key, np.flatnonzero(extra <= upper - 1 - lower + 1e-6))
        if better is not None and key[better].sum() < upper:
            best, upper = better, float(key[better].sum())
        proven = upper
    found_prices = tuple(best_price.tolist())
    if best is None:
        return Solution(NO_LIMIT, NO_LIMIT if proven > limit else round(proven), (), found_prices)
    return Solution(round(upper), round(proven), tuple(problem.choices.rows[best].tolist()), found_prices)


class _Problem:
    """Options that fit the budgets each on its own.

    Args:
        choices: The options.
        budgets: Shape (resources,).
        answers: What similar problems found out about the options that prices left; it is added to.
    """

    def __init__(self, choices: Choices, budgets: Array, answers: Answers | None = None) -> None:
        self.choices = choices
        self.budgets = budgets
        self.answers: Answers = {} if answers is None else answers
        self.share = choices.use / np.maximum(budgets, 1)
        self.starts = np.searchsorted(choices.group, np.arange(choices.groups))

    @classmethod
    def of(cls, choices: Choices | None, budgets: Array, answers: Answers | None = None) -> _Problem | None:
        """The problem, or None if a group has no option within the budgets."""
        if choices is None:
            return None
        is_within: Mask = np.asarray((choices.use <= budgets).all(axis=1))
        fitting = choices.only(is_within)
        return None if fitting is None else cls(fitting, budgets, answers)

    def up_to(self, limit: int) -> _Problem | None:
        """The problem where no key may be larger than `limit`; None if a group has no such option."""
        choices = self.choices.up_to(limit)
        return None if choices is None else _Problem(choices, self.budgets, self.answers)

    def at_rows(self, rows: Sequence[int]) -> Array | None:
        """The choice with these rows, or None if one of them is not among the options."""
        place = {row: index for index, row in enumerate(self.choices.rows.tolist())} if rows else {}
        if not rows or any(row not in place for row in rows):
            return None
        return np.array([place[row] for row in rows])

    def fits(self, chosen: Array) -> bool:
        """Whether a choice is within all budgets."""
        return bool((self.choices.use[chosen].sum(axis=0) <= self.budgets).all())

    def first_open(self, grid: Array, low: int, weights: Floats) -> int:
        """The first limit from `low` on that the bound at these prices does not exclude; `len(grid)` if none."""
        priced, keys = self.share @ weights, self.choices.key

        def is_open(index: int) -> bool:
            least = np.minimum.reduceat(np.where(keys <= grid[index], priced, np.inf), self.starts)
            return float(least.sum()) <= 1 + TINY

        step, high = 1, low
        while high < len(grid) and not is_open(high):
            low, high, step = high + 1, high + step, 2 * step
        high = min(high, len(grid))
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if is_open(middle) else (middle + 1, high)
        return high

    def cheapest(self, priced: Floats) -> Array:
        """Index of each group's cheapest option."""
        group = self.choices.group
        least = np.minimum.reduceat(priced, self.starts)
        is_least = np.flatnonzero(priced <= least[group])
        return is_least[np.searchsorted(group[is_least], np.arange(len(self.starts)))]

    def any_choice(self, weights: Floats, *, may_solve: bool) -> tuple[Array | None, Floats, bool]:
        """Any choice within the budgets.

        Args:
            weights: Prices to begin with, of sum 1.
            may_solve: Whether HiGHS may be asked.

        Returns:
            Rows of the choice; the last prices; whether it is proven that there is none, if none was found.
        """
        nearest, least_excess = None, np.inf
        weights = 0.99 * weights + 0.01 / len(weights)  # a price of 0 would stay 0
        for step in range(STEPS):
            priced = self.share @ weights
            chosen = self.cheapest(priced)
            if priced[chosen].sum() > 1 + TINY:
                return None, weights, True
            used = self.share[chosen].sum(axis=0)
            excess = float(used.max()) - 1
            if excess < least_excess:
                nearest, least_excess = chosen, excess
            if excess <= TINY:
                break
            weights = weights * np.exp((used - 1) / max(abs(excess), 0.1) / (1 + step) ** 0.5)
            weights /= weights.sum()
        assert nearest is not None
        found: Array | None = self.repaired(nearest)
        if found is not None and not self.fits(found) and chosen is not nearest:
            found = self.repaired(chosen)
        is_proven = False
        if found is not None and not self.fits(found):
            found, is_proven = None, False
            if may_solve:
                found, is_proven, weights = self._decided(weights)
        return None if found is None else self.choices.rows[found], weights, is_proven

    def repaired(self, chosen: Array) -> Array:
        """A choice with as little excess over the budgets as exchanges of single options reach."""
        return repaired(self.choices.key, self.share, self.choices.group, chosen)

    def improved(self, chosen: Array) -> Array:
        """A choice within the budgets whose keys exchanges of single options no longer lower."""
        return improved(self.choices.key, self.choices.use, self.choices.group, self.budgets, chosen)

    def _decided(self, weights: Floats) -> tuple[Array | None, bool, Floats]:
        """Any choice within the budgets, whether it is proven that there is none, and prices, at best those that prove.

        Args:
            weights: The prices if there are no better ones.
        """
        if len(self.starts) <= PROVEN_GROUPS:
            return *self.branch_and_cut(np.zeros(len(self.share)), np.arange(len(self.share))), weights
        fill, mix, duals = relaxed(self.share, self.choices.group)
        chosen = self.cheapest(-mix)
        weights = duals if duals.sum() > 0 else weights
        if fill > 1 + 1e-6:
            return None, True, weights
        chosen = self.repaired(chosen)
        if self.fits(chosen):
            return chosen, False, weights
        # An option is out if the bound with it is over the budgets; where the budgets are tight, few are left.
        priced = self.share @ weights
        least = np.minimum.reduceat(priced, self.starts)
        extra, gap = priced - least[self.choices.group], float(1 - least.sum())
        core = np.flatnonzero(extra <= gap + 1e-6)
        # Neighbouring limits often leave the same options.
        share, group = self.share[core], self.choices.group[core]
        question = share.tobytes() + group.tobytes()
        if question not in self.answers:
            self.answers[question] = self._core_choice(core, extra[core], gap)
        found, is_proven = self.answers[question]
        return None if found is None else core[found], is_proven, weights

    def _core_choice(self, core: Array, extra: Floats, gap: float) -> tuple[Array | None, bool]:
        """Any choice of the options that prices leave, as indices of them, or None, and whether that is proven.

        Args:
            core: Shape (options left,).
            extra: Shape (options left,): how much dearer an option is than the cheapest of its group.
            gap: How much dearer a choice may be at most than the cheapest one.
        """
        found = paired(self.share[core], self.choices.group[core], extra, gap)
        if found is not None and self.fits(core[found]):
            return found, False
        if len(core) > CORE_OPTIONS:
            return None, False
        whole, is_proven = self.branch_and_cut(np.zeros(len(self.share)), core, CORE_NODES)
        return None if whole is None else np.searchsorted(core, whole), is_proven

    def branch_and_cut(self, cost: Floats, allowed: Array, nodes: int | None = None) -> tuple[Array | None, bool]:
        """`hwmodel.highs.branch_and_cut` of the allowed options; the choice as indices of all."""
        choices = self.choices
        found, is_proven = branch_and_cut(
            cost[allowed], choices.use[allowed], choices.group[allowed], self.budgets, choices.groups, nodes
        )
        return None if found is None else allowed[found], is_proven
