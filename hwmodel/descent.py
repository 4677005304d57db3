"""Where exchanges set out from in a multiple-choice knapsack, and with which options, at some prices of the budgets."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hwmodel.exchanges import TINY, Array, Floats, descended, descended_by_pairs, starts_of
from hwmodel.pricing import Relaxed
from hwmodel.walks import walked

PENALTY = 3.0
"""What exceeding a budget costs exchanges, in units of the sum of prices."""

PAIR_OPTIONS = 160
"""Options of which pairs are exchanged."""

SINGLE_OPTIONS = 350
"""Options beside one of each group that are exchanged one by one."""

COLUMNS = 6
"""Choices at the last prices of a relaxation from which exchanges set out first."""

WALKS = 17
"""Choices from which walks set out beside the mix of a relaxation."""

FIRST = 2
"""The first choice from which they do, in the order of the prices that were tried: those before are far from all."""

LEANINGS = (0.9, 0.6, 0.3, 0.0)
"""What walks in turn pay for what they take within the budgets, in shares of the prices."""

DEAR = 1.5
"""What exceeding a budget costs walks at first, in units of the prices."""

AT_LEAST = 0.05
"""What each price counts more than it is there, in shares of their sum, or of the mean key if that is larger."""


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
        self._scale = max(float(prices.sum()), float(key.sum()) / len(key), 1.0)
        self._penalty = PENALTY * self._scale

    def by_pairs(self, chosen: Array) -> Array:
        """What exchanges of one or two options reach from a choice."""
        group = self._group
        core = np.sort(self._order[:PAIR_OPTIONS])
        core = core[np.bincount(group[core], minlength=len(self._starts))[group[core]] > 1]
        return descended_by_pairs(self._key, self._share, group, core, chosen, self._penalty)

    def by_singles(self, begins: Array) -> Array:
        """Choices of different value, best first, that single exchanges reach from others, shape (choices, groups)."""
        penalty = self._penalty
        options, starts = _among(self._is_near, begins)
        key, share, group = self._key[options], self._share[options], self._group[options]
        found = descended(key, share, group, starts, penalty)
        over = np.maximum(0.0, share[found].sum(axis=1) - 1).sum(axis=1)
        _, first = np.unique(key[found].sum(axis=1) + penalty * over, return_index=True)
        best: Array = options[found[first]]
        return best

    def from_relaxed(self, relaxed: Relaxed) -> Iterator[Array]:
        """Choices that exchanges of single options reach from those of a relaxation."""
        yield from self.by_singles(np.array([relaxed.mixed, *relaxed.columns[-COLUMNS:]]))

    def from_walks(self, relaxed: Relaxed, begins: Array) -> list[Array]:
        """Choices within the budgets that walks meet from others, shape (choices, groups); nearly the best first."""
        found = self._walked(relaxed, begins, self._is_near, to_first=False)
        return [*found, *self.by_singles(np.array(found[:1]))] if found else []

    def to_any(self, relaxed: Relaxed) -> list[Array]:
        """Choices that walks meet of which one may be within the budgets; the relaxation is one without costs."""
        # What is dearer than its bound leaves is in no choice within the budgets.
        may_be_taken = self._extra <= 1 - relaxed.bound + TINY
        return self._walked(relaxed, spread(relaxed), may_be_taken, to_first=True)

    def _walked(
        self, relaxed: Relaxed, begins: Array, may_be_taken: NDArray[np.bool_], *, to_first: bool
    ) -> list[Array]:
        """What walks meet, the best first.

        Args:
            relaxed: The relaxation.
            begins: Shape (choices, groups): where they set out from.
            may_be_taken: Shape (options,): what they take beside these choices.
            to_first: Whether any choice within the budgets will do.
        """
        options, starts = _among(may_be_taken, begins)
        key, share = self._key[options], self._share[options]
        guides = key + np.resize(LEANINGS, len(starts))[:, None] * (share @ relaxed.prices)
        costs = DEAR * (relaxed.prices + AT_LEAST * self._scale)
        found = walked(key, guides, share, self._group[options], starts, costs, to_first=to_first)
        return [options[chosen] for chosen in found]

    @cached_property
    def _is_near(self) -> NDArray[np.bool_]:
        """Shape (options,): options that single exchanges may take."""
        near = np.zeros(len(self._key), dtype=bool)
        near[self._order[: len(self._starts) + SINGLE_OPTIONS]] = True
        return near


def spread(relaxed: Relaxed) -> Array:
    """Choices of a relaxation from which walks set out, shape (choices, groups)."""
    last = len(relaxed.columns) - 1
    columns = relaxed.columns[np.linspace(last, min(FIRST, last), WALKS).astype(np.int64)]
    return np.array([relaxed.mixed, *columns])


def _among(may_be_taken: NDArray[np.bool_], begins: Array) -> tuple[Array, Array]:
    """Options that may be taken or are in some choices, and the different ones of these as places among them."""
    taken = may_be_taken.copy()
    taken[begins] = True
    return np.flatnonzero(taken), (np.cumsum(taken) - 1)[_distinct(begins)]


def _distinct(rows: Array) -> Array:
    """The different ones of some rows."""
    return np.array(list({row.tobytes(): row for row in rows}.values()))
