"""Which splits of a network may fit a board: bounds that cost little, so that few splits need their options."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from hwmodel.chains import Candidate, Split
from hwmodel.choices import NO_LIMIT
from hwmodel.cuts import Cuts
from hwmodel.engines import Cut
from hwmodel.exchanges import TINY, Array, Floats
from hwmodel.memory import RAMB18_BITS, URAM_SHAPE
from hwmodel.segments import Segments
from hwmodel.shared import SharedEngine


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
        self._longest = longest
        self._cuts = Cuts(segments, (), longest, longest)
        self._budgets = budgets
        self._has_uram = has_uram
        if longest < NO_LIMIT - 1:
            candidates = [one for one in candidates if segments.least_cycles(one) <= longest]
        self._candidates = tuple(candidates)
        self._depth = np.array([one.pipelined for one in candidates], dtype=np.int64)
        engine = segments.engine
        found = engine.weight_memories(candidates, budgets, limit, longest)
        order = np.argsort(found[2], kind="stable")
        self._number, self._resident, self._bits, self._memory = (column[order] for column in found)
        self._is_open = np.ones(len(order), dtype=bool)
        self._next = 0

    @cached_property
    def _buffers(self) -> Array:
        """Shape (candidates, engines, resources)."""
        return self._cuts.segments.engine.uses.buffers([(one.pipelined, one.spilled) for one in self._candidates])

    @cached_property
    def _is_slow(self) -> NDArray[np.bool_]:
        """Shape (candidates, engines)."""
        engine = self._cuts.segments.engine
        return np.array([engine.cycles(one) > self._longest for one in self._candidates])

    def exclude(self, prices: Sequence[Floats]) -> None:
        """Leaves out what is over budget at some prices of the budgets, each of sum 1."""
        if not len(prices) or not len(self._bits):
            return
        scaled = (np.array(prices) / np.maximum(self._budgets, 1)).T
        per_bit = scaled[0] / RAMB18_BITS
        if self._has_uram:
            per_bit = np.minimum(per_bit, scaled[1] / prod(URAM_SHAPE))
        fixed = self._cuts.before(scaled)[self._depth]
        buffers = self._buffers @ scaled
        if self._longest < NO_LIMIT - 1:
            buffers[self._is_slow] = np.inf
        fixed += buffers.min(axis=1)
        self._is_open &= (fixed[self._number] + self._memory[:, None] * per_bit).max(axis=1) <= 1 + TINY

    def take(self, count: int, limit: int) -> list[Split]:
        """The next open splits of fewer off-chip bits than `limit`, `count` at most."""
        ahead = self._next + np.flatnonzero((self._is_open & (self._bits < limit))[self._next :])[:count]
        if len(ahead):
            self._next = int(ahead[-1]) + 1
        return self._splits(ahead)

    def of(self, bits: int) -> list[Split]:
        """The open splits of exactly these off-chip bits."""
        return self._splits(np.flatnonzero(self._is_open & (self._bits == bits)))

    def _splits(self, places: Array) -> list[Split]:
        columns = (self._number[places], self._resident[places], self._bits[places])
        return [
            Split(self._candidates[number], resident, bits)
            for number, resident, bits in zip(*(column.tolist() for column in columns), strict=True)
        ]


def cuts_that_may_reach(
    engine: SharedEngine, candidates: Sequence[Candidate], budgets: Array, limit: int
) -> list[Candidate]:
    """The cuts, nothing pipelined before them, that may have no more off-chip bits than this within the budgets."""
    left = np.arange(len(candidates))
    map_bits = np.array([one.map_bits for one in candidates], dtype=np.int64)
    cuts = [(one.pipelined, one.spilled) for one in candidates]
    # What costs little leaves out most.
    for uses in (_no_uses, engine.uses.buffers, engine.uses.fixed_of_all):
        if len(left):
            found = uses([cuts[number] for number in left.tolist()])
            rooms = engine.uses.rooms(found.reshape(*found.shape[:2], -1, len(budgets)), budgets)
            most = np.where(rooms >= 0, rooms + engine.most_in_luts, -1).max(axis=1)
            left = left[(most >= 0) & (map_bits[left] + _least_weight_bits(engine, most) <= limit)]
    return [candidates[number] for number in left.tolist()]


def _least_weight_bits(engine: SharedEngine, memory_bits: Array) -> Array:
    """Bits of weights that cross the chip's border at least, all layers on the engine, with so much memory."""
    bits, saved = engine.weights_by_users
    least: Array = saved[-1] - (np.interp(memory_bits, bits, saved) + 1).astype(np.int64)
    return least


def _no_uses(cuts: Sequence[Cut]) -> Array:
    return np.zeros((len(cuts), 1, 4), dtype=np.int64)
