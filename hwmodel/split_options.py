"""The options of several splits: they share those of their pipelined layers, so that one price bounds them all.

At any prices of the resources, the cheapest priced options of the layers before a cut are a sum over the first layers,
accumulated once for all cuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np

from hwmodel.chains import SharedRows, Split
from hwmodel.choices import NO_LIMIT, Choices, Mask
from hwmodel.exchanges import Array, Floats, starts_of
from hwmodel.options import Options
from hwmodel.segments import Segments


class SplitOptions:
    """Options of some splits of a network.

    Args:
        segments: Options of all parts.
        splits: The splits.
        shortest: The least frame interval that is asked about.
        longest: The largest one: options that count for none in between are left out.
        has_room: Shape (splits, engines): the shared engines that are looked at, as in `SharedEngine.rows`.
    """

    def __init__(
        self,
        segments: Segments,
        splits: Sequence[Split],
        shortest: int = NO_LIMIT - 1,
        longest: int = NO_LIMIT - 1,
        has_room: Mask | None = None,
    ) -> None:
        self.segments = segments
        self.splits = tuple(splits)
        self._longest = longest
        self._layers = len(segments.network.layers)
        self._kinds = len(segments.engine.kinds)
        self.own = _asked_about(segments.own, shortest, longest)
        self.depth = np.array([split.cut.pipelined for split in splits], dtype=np.int64)
        with_engine = np.flatnonzero(self.depth < self._layers)
        self.rows: SharedRows | None = None
        if len(with_engine):
            engines = None if has_room is None else has_room[with_engine]
            rows = segments.engine.rows([self.splits[number] for number in with_engine], longest, engines)
            self.rows = SharedRows(with_engine[rows.split], rows.cycles, rows.use, rows.engine, rows.kind)

    def at(self, shortest: int, longest: int) -> SplitOptions:
        """The same splits where only these intervals are asked about, of those that were."""
        found = copy(self)
        found.own = _asked_about(self.own, shortest, longest)
        found.rows = None if self.rows is None else self.rows.where(self.rows.cycles <= longest)
        found._longest = longest
        return found

    def groups(self, number: int) -> int:
        """Groups of options of one split: pipelined layers, and the shared engine if there is one."""
        depth = int(self.depth[number])
        return depth + (depth < self._layers)

    def choices(self, number: int) -> Choices | None:
        """The options of one split: of each pipelined layer, then of the shared engine; None if a group has none."""
        depth = int(self.depth[number])
        own = slice(0, int(np.searchsorted(self.own.group, depth)))
        if len(starts_of(self.own.group[own])) < depth:
            return None
        parts = [(self.own.key[own], self.own.use[own], self.own.group[own], self.own.until[own], self.own.rows[own])]
        if self.rows is not None and depth < self._layers:
            part = self.rows.of_split(number)
            size = part.stop - part.start
            if not size:
                return None
            group, until = np.full(size, depth), np.full(size, NO_LIMIT)
            rows = len(self.segments.own.key) + self.rows.engine[part] * self._kinds + self.rows.kind[part]
            parts.append((self.rows.cycles[part], self.rows.use[part], group, until, rows))
        if len(parts) == 1:
            return Choices(*parts[0], depth)
        key, use, group, until, rows = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        return Choices(key, use, group, until, rows, depth + 1)

    def picked(self, split: Split, rows: Sequence[int]) -> tuple[tuple[Options, ...], tuple[int, ...]]:
        """Options of each pipelined layer and of the shared engine if there is one, and which of them rows mean."""
        depth = split.cut.pipelined
        groups = self.segments.own_options[:depth]
        picks = tuple((np.array(rows[:depth], dtype=np.int64) - self.segments.own_starts[:depth]).tolist())
        if depth == self._layers:
            return groups, picks
        engine, kind = divmod(rows[-1] - len(self.segments.own.key), self._kinds)
        assert self.rows is not None  # it has the row that was picked
        of_split = self.rows.split == self.splits.index(split)
        kept = np.flatnonzero(of_split & (self.rows.engine == engine) & (self.rows.kind == kind))
        return (*groups, self.segments.shared_options(self.rows, self.splits, kept)), (*picks, 0)

    def before(self, weights: Floats) -> Floats:
        """The least sum of prices of the first layers, pipelined.

        Args:
            weights: What a unit of each resource costs, shape (resources, prices).

        Returns:
            Shape (layers + 1, prices); infinite where a layer has no option.
        """
        return self._before(self.own.use @ weights, self.own.group)

    def _before(self, own_prices: Floats, group: Array) -> Floats:
        """`before`, with the price of each option, shape (options, prices), and its group."""
        sums = np.zeros((self._layers + 1, own_prices.shape[1]))
        sums[1:] = np.inf
        starts = starts_of(group)
        if len(starts):
            sums[1 + group[starts]] = np.minimum.reduceat(own_prices, starts, axis=0)
        return np.add.accumulate(sums)

    def _least(self, own_prices: Floats, group: Array, shared_prices: Floats) -> Floats:
        """The least sum of prices of a choice of each split, shape (splits, prices)."""
        least: Floats = self._before(own_prices, group)[self.depth]
        if self.rows is not None:
            shared = np.full_like(least, np.inf)
            shared[self.depth == self._layers] = 0
            starts = starts_of(self.rows.split)
            if len(starts):
                shared[self.rows.split[starts]] = np.minimum.reduceat(shared_prices, starts, axis=0)
            least += shared
        return least

    def fill(self, budgets: Array, weights: Floats, limit: int = NO_LIMIT) -> Floats:
        """Lower bounds of how full a choice of each split makes the fullest budget; over 1, there is none.

        Args:
            budgets: Shape (resources,); one of 0 is counted as one of 1.
            weights: Prices of the budgets, shape (prices, resources), each of sum 1.
            limit: Options with more cycles than this are not taken.

        Returns:
            Shape (splits,): the largest bound of all prices.
        """
        if not len(self.splits):
            return np.zeros(0)
        scaled = (weights / np.maximum(budgets, 1)).T
        # An option that is outdone at a longer interval than any that is asked about still counts.
        limit = min(limit, self._longest)
        kept = self.own.counting(limit)
        own = self.own.use.take(kept, axis=0) @ scaled
        shared = np.zeros((0, len(weights)))
        if self.rows is not None:
            shared = np.where((self.rows.cycles <= limit)[:, None], self.rows.use @ scaled, np.inf)
        least: Floats = self._least(own, self.own.group[kept], shared).max(axis=1)
        return least

    def cost(self, resource: int, budgets: Array, prices: Floats) -> Floats:
        """Lower bounds of how much of a resource a choice of each split within the budgets takes.

        Args:
            resource: The resource.
            budgets: Shape (resources,).
            prices: Of the budgets, in units of the resource, shape (resources,).

        Returns:
            Shape (splits,).
        """
        rates = prices / np.maximum(budgets, 1)
        rates[resource] += 1
        shared = np.zeros((0, 1)) if self.rows is None else (self.rows.use @ rates)[:, None]
        own = (self.own.use @ rates)[:, None]
        least: Floats = self._least(own, self.own.group, shared)[:, 0] - prices.sum()
        return least


def _asked_about(own: Choices, shortest: int, longest: int) -> Choices:
    """The options that count at one of some intervals."""
    return own.take(((own.key <= longest) & (shortest < own.until)).nonzero()[0])
