"""A multiple-choice knapsack, and what prices and exchanges find in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from enum import Enum
from math import ceil

import numpy as np

from hwmodel.choices import Choices, Mask
from hwmodel.descent import Exchanges
from hwmodel.enumeration import any_within, is_crowd
from hwmodel.exchanges import TINY, Array, Floats, repaired, starts_of
from hwmodel.highs import branch_and_cut
from hwmodel.pricing import Game, Relaxed

Answers = dict[bytes, tuple[Array | None, bool]]
"""By shares and groups of the options that prices left: any choice of them or None, and whether that is proven."""

PROVEN_GROUPS = 16
"""Groups up to which every answer is proven."""

STEPS = 60
"""Most changes of the prices before exchanges (and the solver) have to decide; nearly always fewer are needed."""

NEAR = 1e-4
"""Gap between the bound and the linear relaxation at which prices are good enough if the latter is within the budgets.
"""

STEEPEST = 40
"""Largest sum of prices of whole budgets, in units of the largest sum of costs."""

PRICES = 12
"""The last prices that were tried, those that count beside the best to exclude options."""

NEARBY = (0.2, 0.1, 0.05, 0.02)
"""Shares by which prices near the best ones differ from them: they exclude other options, the first ones most."""

FEW_PARTIAL = 32
"""Partial choices that enumeration keeps at first: where there is a choice, mostly one of them leads to it."""

MOST_PARTIAL = 2_000
"""Partial choices at which it is given up."""


class Effort(Enum):
    """How far it is decided whether there is any choice where prices leave that open."""

    PRICES = "prices"
    """Not at all: one repaired choice is looked at."""
    FEW = "few"
    """By `FEW_PARTIAL` partial choices."""
    ALL = "all"
    """By up to `MOST_PARTIAL` partial choices and by exchanges too, and HiGHS for up to `PROVEN_GROUPS` groups."""


class Problem:
    """Options that fit the budgets each on its own.

    Args:
        choices: The options.
        budgets: Shape (resources,).
        answers: What similar problems found out about the options that prices left; it is added to.
        share: Shape (options, resources): what an option takes of each budget, if that is known.
    """

    def __init__(
        self, choices: Choices, budgets: Array, answers: Answers | None = None, share: Floats | None = None
    ) -> None:
        self.choices = choices
        self.budgets = budgets
        self.answers: Answers = {} if answers is None else answers
        self.share: Floats = choices.use / np.maximum(budgets, 1) if share is None else share
        self.starts = choices.starts

    @classmethod
    def of(cls, choices: Choices, budgets: Array, limit: int, answers: Answers | None = None) -> Problem | None:
        """The problem of keys up to a limit, or None if a group has no option within it and the budgets."""
        keep: Mask = choices.key <= limit
        for taken, budget in zip(choices.use.T, budgets.tolist(), strict=True):
            keep &= taken <= budget
        fitting = choices.only(np.flatnonzero(keep))
        return None if fitting is None else cls(fitting, budgets, answers)

    def up_to(self, limit: int) -> Problem | None:
        """The problem where no key may be larger than `limit`; None if a group has no such option."""
        kept = self.choices.counting(limit)
        choices = self.choices.only(kept)
        return None if choices is None else Problem(choices, self.budgets, self.answers, self.share.take(kept, axis=0))

    def binding(self, most: float) -> Array:
        """Numbers of the budgets that a choice can exceed whose sum of keys is at most `most`."""
        use, largest = self.choices.use, np.maximum.reduceat(self.choices.use, self.starts).sum(axis=0)
        is_within = (use <= self.choices.key[:, None]).all(axis=0) & (most <= self.budgets)
        return np.flatnonzero(~is_within & (largest > self.budgets))

    def of_budgets(self, numbers: Array) -> Problem:
        """The problem where only these budgets count."""
        choices = replace(self.choices, use=self.choices.use.take(numbers, axis=1))
        return Problem(choices, self.budgets[numbers])

    def at_rows(self, rows: Sequence[int], priced: Floats) -> Array:
        """The choice with these rows; the cheapest of a group's options where it has none of them."""
        chosen, wanted = self.cheapest(priced), np.array(rows, dtype=np.int64)
        place = np.minimum(np.searchsorted(self.choices.rows, wanted), len(self.choices.rows) - 1)
        place = place[self.choices.rows[place] == wanted]
        chosen[self.choices.group[place]] = place
        return chosen

    def fits(self, chosen: Array) -> bool:
        """Whether a choice is within all budgets."""
        return bool((np.add.reduce(self.choices.use.take(chosen, axis=0)) <= self.budgets).all())

    def first_open(self, grid: Array, low: int, weights: Floats) -> int:
        """The first limit from `low` on that the bound at these prices does not exclude; `len(grid)` if none."""
        priced, keys = self.share @ weights, self.choices.key

        def is_open(index: int) -> bool:
            least = np.minimum.reduceat(np.where(keys <= grid[index], priced, np.inf), self.starts)
            return float(np.add.reduce(least)) <= 1 + TINY

        step, high = 1, low
        while high < len(grid) and not is_open(high):
            low, high, step = high + 1, high + step, 2 * step
        high = min(high, len(grid))
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if is_open(middle) else (middle + 1, high)
        return high

    def first_possible(self, grid: Array, pool: Floats) -> tuple[int, Floats]:
        """The first limit that none of some prices excludes, `len(grid)` if there is none; and the tightest of them.

        Args:
            grid: Limits, ascending.
            pool: Shape (prices, resources), each of sum 1.
        """
        low, weights = self.first_open(grid, 0, pool[-1]), pool[-1]
        while low < len(grid):
            part = self.up_to(int(grid[low]))
            assert part is not None
            fill = np.minimum.reduceat(part.share @ pool.T, part.starts).sum(axis=0)
            tightest = int(fill.argmax())
            weights = pool[tightest]
            if fill[tightest] <= 1 + TINY:
                break
            low = self.first_open(grid, low + 1, weights)
        return low, weights

    def cheapest(self, priced: Floats) -> Array:
        """Index of each group's cheapest option."""
        group = self.choices.group
        least = np.minimum.reduceat(priced, self.starts)
        is_least: Array = (priced <= least.take(group)).nonzero()[0]
        if len(is_least) == len(least):
            return is_least
        first: Array = is_least[np.searchsorted(group[is_least], np.arange(len(least)))]
        return first

    def any_choice(self, weights: Floats, effort: Effort) -> tuple[Array | None, Floats, bool]:
        """Any choice within the budgets.

        Args:
            weights: Prices to begin with, of sum 1.
            effort: How far what prices leave open is decided.

        Returns:
            Rows of the choice; the prices that prove that there is none, or the best ones; whether that is proven, if
            none was found.
        """
        game, columns, tried = Game(len(weights)), list[Array](), list[Floats]()
        nearest, least_excess, fill, largest = None, np.inf, np.inf, -np.inf
        for _ in range(STEPS):
            priced = self.share.dot(weights)  # quicker than `@`
            chosen = self.cheapest(priced)
            bound = float(np.add.reduce(priced.take(chosen)))
            if bound > 1 + TINY:
                return None, weights, True
            if bound > largest:
                largest, best_weights = bound, weights
            used = np.add.reduce(self.share.take(chosen, axis=0))
            excess = max(used.tolist()) - 1
            if excess < least_excess:
                nearest, least_excess = chosen, excess
            if excess <= TINY or largest > fill - (NEAR if fill <= 1 else TINY):
                break
            columns.append(chosen)
            tried.append(weights)
            weights, value = game.add(used + 1)  # payoffs have to be positive
            fill = value - 1
            # Half way from the best prices so far: extreme prices swing, and exclude little else.
            weights = (weights + best_weights) / 2
        weights = best_weights
        assert nearest is not None
        found, is_proven = self.repaired(nearest), False
        if self.fits(found):
            return self.choices.rows[found], weights, False
        answer = None
        if columns and effort is not Effort.PRICES:
            mixed = self._mixed(columns, game)
            relaxed = Relaxed(largest, weights, np.array(tried), np.array(columns), mixed)
            answer, is_proven = self._decided(relaxed, effort)
        return None if answer is None else self.choices.rows[answer], weights, is_proven

    def _mixed(self, columns: Sequence[Array], game: Game) -> Array:
        """Of each group the option that has the largest share of a mix of choices."""
        numbers, shares = game.mix()
        weight = np.zeros(len(self.share))
        for number, share in zip(numbers.tolist(), shares.tolist(), strict=True):
            weight[columns[number]] += share
        return self.cheapest(-weight)

    def priced(self, key: Floats, upper: float, gap: float) -> Relaxed:
        """Prices of the budgets at which the bound of the sum of keys is nearly as large as it can be.

        Args:
            key: Shape (options,).
            upper: The sum of a known choice, or more than is allowed.
            gap: Share of `upper` up to which a bound is good enough.
        """
        # No prices of a larger sum are looked for.  The last row is the rest of that sum.
        most = STEEPEST * max(1.0, float(np.maximum.reduceat(key, self.starts).sum()))
        price = np.zeros(self.share.shape[1])
        game, columns = Game(len(price) + 1), list[Array]()
        lower, mixture, best = -np.inf, np.inf, price
        takes = np.column_stack([self.share, key])
        payoffs, weights = np.empty(len(price) + 1), np.ones(len(price) + 1)
        for _ in range(STEPS):
            weights[:-1] = price
            chosen = self.cheapest(takes.dot(weights))
            columns.append(chosen)
            taken = np.add.reduce(takes.take(chosen, axis=0))
            used, cost = taken[:-1], float(taken[-1])
            bound = cost + float((used - 1).dot(price))
            if bound > lower:
                lower, best = bound, price
            if ceil(lower - 1e-6) >= upper * (1 - gap) or lower >= mixture - NEAR * abs(mixture):
                break
            # Payoffs have to be positive.
            payoffs[:-1] = used + (cost / most + 1)
            payoffs[-1] = cost / most + 2
            shares, value = game.add(payoffs)
            price, mixture = most * shares[:-1], most * (value - 2)
        mixed = self._mixed(columns, game) if len(columns) > 1 else columns[0]
        return Relaxed(lower, best, np.array([best]), np.array(columns), mixed)

    def repaired(self, chosen: Array) -> Array:
        """A choice with as little excess over the budgets as exchanges of single options reach."""
        return repaired(self.choices.key, self.share, self.choices.group, chosen)

    def _decided(self, relaxed: Relaxed, effort: Effort) -> tuple[Array | None, bool]:
        """Any choice within the budgets, and whether it is proven that there is none.

        Args:
            relaxed: The linear relaxation without costs.
            effort: See `any_choice`.
        """
        core, weights = self._core(relaxed)
        if len(starts_of(self.choices.group[core])) < len(self.starts):
            return None, True
        # Neighbouring limits often leave the same options.
        question = self.share.take(core, axis=0).tobytes() + self.choices.group[core].tobytes()
        if question not in self.answers:
            found, is_proven = self._searched(relaxed, core, weights, effort)
            if found is not None and not np.isin(found, core).all():
                return found, False
            if found is None and not is_proven and effort is not Effort.ALL:
                return None, False
            self.answers[question] = None if found is None else np.searchsorted(core, found), is_proven
        answer, is_proven = self.answers[question]
        return None if answer is None else core[answer], is_proven

    def _core(self, relaxed: Relaxed) -> tuple[Array, Floats]:
        """Options that no prices exclude, and the prices: an option is out if the bound with it is over the budgets.

        Where a group has none left there is no choice, and not all prices are tried.
        """
        weights = np.vstack([nearby(relaxed.prices), np.eye(len(self.budgets)), relaxed.tried[-PRICES:]])
        core, prices = np.arange(len(self.share)), weights[:1]  # the best alone exclude most
        while True:
            priced = prices @ self.share.take(core, axis=0).T
            group = self.choices.group.take(core)
            starts = starts_of(group)
            if len(starts) < len(self.starts):
                return core, weights
            least = np.minimum.reduceat(priced, starts, axis=1)
            most = least + (1 - least.sum(axis=1, keepdims=True) + 1e-6)
            kept = (priced <= most.take(group, axis=1)).all(axis=0)
            if kept.all() and len(prices) == len(weights):
                return core, weights
            core, prices = core[kept], weights

    def _searched(self, relaxed: Relaxed, core: Array, weights: Floats, effort: Effort) -> tuple[Array | None, bool]:
        """A choice of the options of a core within the budgets, and whether it is proven that there is none."""
        exchanges = Exchanges(np.zeros(len(self.share)), self.share, self.choices.group, relaxed.prices)
        # What costs little comes first.
        fitting = self._first_that_fits(exchange(relaxed.mixed) for exchange in (self.repaired, exchanges.by_pairs))
        if fitting is not None:
            return fitting, False
        share, group = self.share.take(core, axis=0), self.choices.group[core]
        found, is_proven = None, False
        if not is_crowd(share, group, weights[0]):
            found, is_proven = any_within(share, group, weights, FEW_PARTIAL, gives_up=False)
            if not is_proven and effort is Effort.ALL:
                found, is_proven = any_within(share, group, weights, MOST_PARTIAL, gives_up=True)
        if not is_proven and effort is Effort.ALL:
            fitting = self._first_that_fits(exchanges.to_any(relaxed))
            if fitting is not None:
                return fitting, False
            if len(self.starts) <= PROVEN_GROUPS:
                return self.branch_and_cut(np.zeros(len(self.share)), core)
        return None if found is None else core[found], is_proven

    def _first_that_fits(self, choices: Iterable[Array]) -> Array | None:
        return next(filter(self.fits, choices), None)

    def branch_and_cut(self, cost: Floats, allowed: Array) -> tuple[Array | None, bool]:
        """`hwmodel.highs.branch_and_cut` of the allowed options; the choice as indices of all."""
        choices = self.choices
        found, is_proven = branch_and_cut(
            cost[allowed], choices.use[allowed], choices.group[allowed], self.budgets, choices.groups
        )
        return None if found is None else allowed[found], is_proven


def nearby(prices: Floats) -> Floats:
    """Some prices of sum 1, and others near them in which one is higher or lower; of shape (prices, resources)."""
    near = [prices]
    for change in NEARBY:
        near += [(1 - change) * prices + change * np.eye(len(prices)), prices * (1 - 2 * change * np.eye(len(prices)))]
    found = np.vstack(near)
    found = found[found.sum(axis=1) > TINY]
    together: Floats = found / found.sum(axis=1, keepdims=True)
    return together
