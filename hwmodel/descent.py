"""Where exchanges set out from in a multiple-choice knapsack, and with which options, at some prices of the budgets."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from hwmodel.exchanges import TINY, Array, Floats, descended, descended_by_pairs, starts_of
from hwmodel.pricing import Relaxed

PENALTY = 3.0
"""What exceeding a budget costs exchanges, in units of the sum of prices."""

FIRM = 10.0
"""How much more it costs exchanges that set out from choices that exceed a budget still."""

OVER = 16
"""Most choices from which these set out."""

PAIR_OPTIONS = 160
"""Options of which pairs are exchanged."""

SINGLE_OPTIONS = 400
"""Options beside one of each group that are exchanged one by one."""

COLUMNS = 8
"""Choices at the last prices of a relaxation from which exchanges set out first."""

NOISY = 16
"""Choices at noisy prices from which they set out where it is hard to find a good one."""

NOISE = 0.5
"""Noise of the prices of the last of them, in shares of what a choice may be dearer than the bound."""

NOISE_BLOCK = 1024
"""Options that noise is made for in one go."""


class Exchanges:
    """Exchanges of the options that are not much dearer than the cheapest ones of their groups.

    Args:
        key: Shape (options,): what is summed.
        share: Shape (options, resources): what an option takes of each budget.
        group: Shape (options,), ascending: the group of each option.
        prices: Of whole budgets, in units of the key, shape (resources,).
    """

    def __init__(self, key: Floats, share: Floats, group: Array, prices: Floats) -> None:
        self._key, self._share, self._group = key, share, group
        self._starts = starts_of(group)
        priced = key + share @ prices
        self._extra: Floats = priced - np.minimum.reduceat(priced, self._starts)[group]
        self._order = np.argsort(self._extra, kind="stable")
        self._penalty = PENALTY * max(float(prices.sum()), float(key.sum()) / len(key), 1.0)

    def by_pairs(self, chosen: Array, penalty: float = 1.0) -> Array:
        """What exchanges of one or two options reach from a choice, exceeding budgets that much dearer than usual."""
        group = self._group
        core = np.sort(self._order[:PAIR_OPTIONS])
        core = core[np.bincount(group[core], minlength=len(self._starts))[group[core]] > 1]
        return descended_by_pairs(self._key, self._share, group, core, chosen, penalty * self._penalty)

    def by_singles(self, begins: Array, penalty: float = 1.0) -> Array:
        """Choices of different value, best first, that single exchanges reach from others, shape (choices, groups)."""
        penalty *= self._penalty
        may_be_taken = self._is_near.copy()
        may_be_taken[begins] = True
        options, place = np.flatnonzero(may_be_taken), np.cumsum(may_be_taken) - 1
        key, share, group = self._key[options], self._share[options], self._group[options]
        found = descended(key, share, group, place[_distinct(begins)], penalty)
        over = np.maximum(0.0, share[found].sum(axis=1) - 1).sum(axis=1)
        _, first = np.unique(key[found].sum(axis=1) + penalty * over, return_index=True)
        best: Array = options[found[first]]
        return best

    def from_relaxed(self, relaxed: Relaxed) -> Iterator[Array]:
        """Choices that exchanges of single options reach from those of a relaxation."""
        yield from self.by_singles(np.array([relaxed.mixed, *relaxed.columns[-COLUMNS:]]))

    def from_many(self, relaxed: Relaxed, slack: float) -> Iterator[Array]:
        """As `from_relaxed`, from more choices and also by pairs: where it is hard to find a good one.

        Args:
            relaxed: The relaxation.
            slack: What a choice may be dearer than the relaxation's bound.
        """
        mixed = self.by_pairs(relaxed.mixed)
        yield mixed
        spread = NOISE * slack * np.arange(1, NOISY + 1) / NOISY
        noisy = self._cheapest(self._extra - spread[:, None] * _noise(NOISY, len(self._key)))
        noisy = noisy[self._is_near[noisy].all(axis=1)]
        found = self.by_singles(np.array([mixed, relaxed.mixed, *relaxed.columns, *noisy]))
        yield from found
        # What exceeds a budget by little may be far from what keeps it.
        over = found[~self._fits(found)][:OVER]
        if not len(over):
            return
        firm = self.by_singles(over, FIRM)
        yield from firm
        if not self._fits(firm).any():
            yield from self.by_singles(np.array([self.by_pairs(chosen, FIRM) for chosen in firm]), FIRM)

    @cached_property
    def _is_near(self) -> NDArray[np.bool_]:
        """Shape (options,): options that single exchanges may take."""
        near = np.zeros(len(self._key), dtype=bool)
        near[self._order[: len(self._starts) + SINGLE_OPTIONS]] = True
        return near

    def _fits(self, choices: Array) -> NDArray[np.bool_]:
        """Which of some choices are within the budgets."""
        fits: NDArray[np.bool_] = (self._share[choices].sum(axis=1) <= 1 + TINY).all(axis=1)
        return fits

    def _cheapest(self, priced: Floats) -> Array:
        """Index of each group's cheapest option at several prices of the options: shape (prices, groups)."""
        least = np.minimum.reduceat(priced, self._starts, axis=1)
        prices, options = np.nonzero(priced <= least[:, self._group])
        return options[starts_of(prices * len(self._starts) + self._group[options])].reshape(len(priced), -1)


def _distinct(rows: Array) -> Array:
    """The different ones of some rows."""
    return np.array(list({row.tobytes(): row for row in rows}.values()))


def _noise(starts: int, options: int) -> Floats:
    """Gumbel noise, always the same, shape (starts, options)."""
    return _block_of_noise(starts, -(-options // NOISE_BLOCK) * NOISE_BLOCK)[:, :options]


@lru_cache(maxsize=64)
def _block_of_noise(starts: int, options: int) -> Floats:
    return np.random.default_rng(0).gumbel(size=(starts, options))
