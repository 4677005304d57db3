"""Which splits of a network may fit a board: bounds that cost little, so that few splits need their options."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from hwmodel.cuts import Cuts
from hwmodel.exchanges import TINY, Array, Floats
from hwmodel.memory import RAMB18_BITS, URAM_SHAPE
from hwmodel.problem import NO_LIMIT
from hwmodel.segments import Segments
from hwmodel.shared import Candidate, Split


class OpenSplits:
    """Splits that no prices have excluded so far, fewest off-chip bits first.

    A split takes at least what is cheapest for its pipelined layers, the frame buffers of the shared engine, and the
    block RAM or UltraRAM of the resident weights.

    Args:
        segments: Options of all parts.
        budgets: Shape (resources,).
        has_uram: Whether weights may lie in UltraRAM.
        candidates: The cuts.
        limit: Most off-chip bits.
        longest: Most cycles of an engine.
    """

    def __init__(
        self,
        segments: Segments,
        budgets: Array,
        has_uram: bool,
        candidates: Sequence[Candidate],
        limit: int,
        longest: int = NO_LIMIT - 1,
    ) -> None:
        self._cuts = Cuts(segments, (), longest, longest)
        self._budgets = budgets
        self._has_uram = has_uram
        candidates = [one for one in candidates if segments.least_cycles(one) <= longest]
        self._depth = np.array([one.pipelined for one in candidates], dtype=np.int64)
        engine = segments.engine
        self._buffers = [engine.buffer_use(one)[engine.cycles(one) <= longest] for one in candidates]
        bits = [engine.offchip_bits(one) for one in candidates]
        memories = engine.weight_memory_bits(candidates, budgets, longest)
        rows = [
            (int(bits[number][resident]), number, resident, int(memories[number][resident]))
            for number in range(len(candidates))
            for resident in np.flatnonzero((bits[number] <= limit) & (memories[number] < NO_LIMIT)).tolist()
        ]
        rows.sort(key=lambda row: row[0])
        self._splits = [Split(candidates[number], resident, total) for total, number, resident, _ in rows]
        columns = np.array(rows, dtype=np.int64).reshape(-1, 4)
        self._bits, self._number, self._memory = columns[:, 0], columns[:, 1], columns[:, 3]
        self._is_open = np.ones(len(rows), dtype=bool)
        self._next = 0

    def exclude(self, prices: Sequence[Floats]) -> None:
        """Leaves out what is over budget at some prices of the budgets, each of sum 1."""
        if not len(prices) or not len(self._splits):
            return
        scaled = (np.array(prices) / np.maximum(self._budgets, 1)).T
        per_bit = scaled[0] / RAMB18_BITS
        if self._has_uram:
            per_bit = np.minimum(per_bit, scaled[1] / prod(URAM_SHAPE))
        fixed = self._cuts.before(self._cuts.own.use @ scaled)[self._depth]
        fixed += np.array([(use @ scaled).min(axis=0) for use in self._buffers])
        self._is_open &= (fixed[self._number] + self._memory[:, None] * per_bit).max(axis=1) <= 1 + TINY

    def take(self, count: int, limit: int) -> list[Split]:
        """The next open splits of fewer off-chip bits than `limit`, `count` at most."""
        ahead = self._next + np.flatnonzero((self._is_open & (self._bits < limit))[self._next :])[:count]
        if len(ahead):
            self._next = int(ahead[-1]) + 1
        return [self._splits[place] for place in ahead.tolist()]

    def of(self, bits: int) -> list[Split]:
        """The open splits of exactly these off-chip bits."""
        return [self._splits[place] for place in np.flatnonzero(self._is_open & (self._bits == bits)).tolist()]
