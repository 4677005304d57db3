"""Multiple-choice knapsacks with several resources: every group takes one option, the sum of each resource is bounded.

- `least_bottleneck`: the largest key among the options taken is minimised (a frame interval).
- `cheapest`: the sum of their costs is minimised (block RAM).

Both price the resources: at any prices, the cheapest priced option of each group gives a lower bound.  The best prices,
and with them the linear relaxation, come by column generation (`hwmodel.pricing`).  The choices met on the way and
their mix suggest choices, which exchanges of single options bring within the budgets and improve (`hwmodel.descent`);
where that is hard, walks of such exchanges that may go uphill do so (`hwmodel.walks`).  When choice and bound meet, the
choice is optimal.  Whether there is any choice that this leaves open is decided by the partial choices that neither
prices nor other ones exclude (`hwmodel.enumeration`), unless there are far too many: first of the best few, then of all
if that comes to an end.  What is open after that is decided by HiGHS, for up to `PROVEN_GROUPS` groups.  With more the
best choice found stands, and the solution states the bound that is proven.

Source:
    Kellerer, Pferschy, Pisinger: Knapsack Problems, Springer 2004, chapters 9 and 11.  HiGHS: scipy.optimize.milp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from hwmodel.choices import NO_LIMIT, Choices
from hwmodel.descent import Exchanges, spread
from hwmodel.exchanges import Array, Floats
from hwmodel.problem import PROVEN_GROUPS, Answers, Effort, Problem

STRIDE = 4
"""How much further each step goes on the way to a limit with a choice."""

FAR = (0.05, 0.1)
"""Shares of a sum by which it is so far above its bound that walks look for a better choice; at the second they do so
again, from what the first ones have met."""


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
    choices: Choices,
    budgets: Array,
    floor: int = 0,
    limit: int = NO_LIMIT,
    answers: Answers | None = None,
    prices: Floats | None = None,
) -> Solution:
    """The choice whose largest key is least.

    Args:
        choices: The options.
        budgets: Shape (resources,), integers >= 0.
        floor: Keys below count as this.
        limit: Only keys up to this are taken.
        answers: What earlier searches found out about hard cases; it is added to.
        prices: Prices of the budgets to begin with, shape (prices, resources), each of sum 1.

    Returns:
        The best choice found within budgets and limit.
    """
    problem = Problem.of(choices, budgets, limit, answers)
    if problem is None:
        return NOTHING
    keys = problem.choices.key
    least = max(floor, int(np.minimum.reduceat(keys, problem.starts).max()))
    grid = np.array(sorted({least, *keys[keys > least].tolist()}))
    low, weights = problem.first_possible(grid, _equal_prices(budgets) if prices is None else prices)
    last, index, step, is_next_lowest = len(grid) - 1, low, 1, True
    best: Array | None = None
    excluding = tuple(weights.tolist()) if low else ()
    high, unproven = len(grid), NO_LIMIT
    while low < high:
        part = problem.up_to(int(grid[index]))
        found, is_proven = None, True
        effort = Effort.FEW if index == low else Effort.PRICES
        if best is not None or index == last:
            effort = Effort.ALL
        if part is not None:
            found, weights, is_proven = part.any_choice(weights, effort)
        if found is not None:
            # The choice may keep a smaller limit than the one it was asked to keep.
            slowest = int(keys[np.searchsorted(problem.choices.rows, found)].max())
            best, high = found, int(np.searchsorted(grid, max(floor, slowest)))
        elif not is_proven and effort is Effort.ALL:
            # What is possible at a smaller limit is possible at this one: all from the lowest on are open.
            low, unproven = index + 1, min(unproven, int(grid[low]))
        else:
            excluding = tuple(weights.tolist()) if is_proven else excluding
            low = problem.first_open(grid, max(low, index + 1 if is_proven else low), weights)
        if best is None:  # not yet: a larger limit, in growing steps
            index, step = min(max(low, index + step), last), STRIDE * step
        elif is_next_lowest:  # mostly the first limit that prices leave has a choice, which is worth solving for
            index, is_next_lowest = low, False
        else:  # halve what is between
            index = (low + high) // 2
    if best is None:
        return Solution(NO_LIMIT, unproven, (), excluding)
    return Solution(int(grid[high]), min(int(grid[high]), unproven), tuple(best.tolist()), excluding)


def _equal_prices(budgets: Array) -> Floats:
    return np.full((1, len(budgets)), 1 / len(budgets))


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
    problem = Problem.of(choices, budgets, NO_LIMIT)
    if problem is None:
        return NOTHING, weights
    rows, weights, is_proven = problem.any_choice(weights, Effort.ALL)
    if rows is None:
        return NOTHING if is_proven else Solution(NO_LIMIT, 0), weights
    return Solution(0, 0, tuple(rows.tolist())), weights


def cheapest(
    choices: Choices,
    budgets: Array,
    limit: int = NO_LIMIT,
    gap: float = 0.0,
    start: Sequence[int] = (),
) -> Solution:
    """The choice whose sum of keys is least.

    Args:
        choices: The options.
        budgets: Shape (resources,), integers >= 0.
        limit: Only sums up to this are taken.
        gap: With more than `PROVEN_GROUPS` groups, a known choice within this share of the bound is good enough.
        start: Rows of a choice within the budgets, to begin with.

    Returns:
        The best choice found within budgets and limit.
    """
    whole = Problem.of(choices, budgets, limit)
    if whole is None:
        return NOTHING
    is_small = choices.groups <= PROVEN_GROUPS
    key = whole.choices.key.astype(np.float64)
    best, upper = None, float(limit) + 1

    def offer(found: Array | None) -> None:
        nonlocal best, upper
        if found is not None and key[found].sum() < upper and whole.fits(found):
            best, upper = found, float(key[found].sum())

    if start:
        offer(whole.at_rows(start, key))
    gap = 0.0 if is_small else gap
    # Of what is better than the best so far, all is within the other budgets.
    binding = whole.binding(upper - 1)
    problem = whole.of_budgets(binding)
    relaxed = problem.priced(key, upper, gap)
    lower, best_price = relaxed.bound, relaxed.prices
    if ceil(lower - 1e-6) < upper * (1 - gap):
        exchanges = Exchanges(key, problem.share, problem.choices.group, best_price)
        for found in exchanges.from_relaxed(relaxed):
            offer(found)
        begins = spread(relaxed)
        for far in FAR:
            if lower < upper * (1 - far) and len(begins):
                begins = np.array(exchanges.from_walks(relaxed, begins))
                for found in begins:
                    offer(found)
    proven = min(ceil(lower - 1e-6), upper)
    if proven < upper and is_small:
        # An option is out if the bound with it is no better than the best choice.
        priced = key + problem.share @ best_price
        extra = priced - np.minimum.reduceat(priced, problem.starts)[problem.choices.group]
        better, is_certain = problem.branch_and_cut(key, np.flatnonzero(extra <= upper - 1 - lower + 1e-6))
        if better is not None and key[better].sum() < upper:
            best, upper = better, float(key[better].sum())
        proven = upper if is_certain else proven
    all_prices = np.zeros(len(budgets))
    all_prices[binding] = best_price
    found_prices = tuple(all_prices.tolist())
    if best is None:
        return Solution(NO_LIMIT, NO_LIMIT if proven > limit else round(proven), (), found_prices)
    return Solution(round(upper), round(proven), tuple(problem.choices.rows[best].tolist()), found_prices)


def exchanged(choices: Choices, budgets: Array, limit: int, start: Sequence[int], prices: Sequence[float]) -> Solution:
    """A choice of no larger sum of keys than a limit that exchanges reach from a choice of a similar problem.

    Args:
        choices: The options.
        budgets: Shape (resources,), integers >= 0.
        limit: The largest sum.
        start: Rows of the choice; groups that have none of them begin with their cheapest option.
        prices: Prices at which that problem is solved, as in `Solution`.
    """
    problem = Problem.of(choices, budgets, limit)
    if problem is None:
        return NOTHING
    key, price = problem.choices.key.astype(np.float64), np.array(prices)
    begin = problem.at_rows(start, key + problem.share @ price)
    exchanges = Exchanges(key, problem.share, problem.choices.group, price)
    for found in (*exchanges.by_singles(begin[None]), begin):
        if key[found].sum() <= limit and problem.fits(found):
            return Solution(round(key[found].sum()), 0, tuple(problem.choices.rows[found].tolist()))
    return Solution(NO_LIMIT, 0)
