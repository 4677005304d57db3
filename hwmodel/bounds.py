"""Which splits of a network may fit a board: bounds that cost little, so that few splits need their options."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from hwmodel.chains import Cut, Split
from hwmodel.choices import NO_LIMIT, Mask
from hwmodel.exchanges import TINY, Array, Floats
from hwmodel.memory import RAMB18_BITS, URAM_SHAPE
from hwmodel.segments import Segments
from hwmodel.shared import SharedEngine
from hwmodel.split_options import SplitOptions

CHECKED = 64
"""Splits that are looked at more closely in one go."""


class OpenSplits:
    """Splits that no prices have excluded so far, fewest off-chip bits first.

    A split takes at least what is cheapest for its pipelined layers, what an engine takes beside its weights, and the
    block RAM or UltraRAM of the resident ones.

    Args:
        segments: Options of all parts.
        budgets: Shape (resources,).
        has_uram: Whether weights may lie in UltraRAM.
        cuts: The cuts.
        prices: Prices of the budgets, each of sum 1.
        limit: Most off-chip bits.
        longest: Most cycles of an engine.
    """

    def __init__(
        self,
        segments: Segments,
        budgets: Array,
        has_uram: bool,
        cuts: Sequence[Cut],
        prices: Sequence[Floats],
        limit: int,
        longest: int = NO_LIMIT - 1,
    ) -> None:
        self._options = SplitOptions(segments, (), longest, longest)
        self._engine = segments.engine
        self._budgets = budgets
        self._has_uram = has_uram
        if longest < NO_LIMIT - 1:
            is_slow = segments.least_cycles(cuts) > longest
            cuts = [one for one, slow in zip(cuts, is_slow.tolist(), strict=True) if not slow]
        scaled = self._scaled(prices)
        before = self._options.before(scaled)
        fill = before.max(axis=1)
        self._cuts = [one for one in cuts if fill[one.pipelined] <= 1 + TINY]
        uses = self._engine.uses.fixed([one.depths for one in self._cuts])
        self._uses = np.moveaxis(uses, 2, 0)  # by multiplier first
        self._rooms = self._rooms_at(scaled, before)
        if longest < NO_LIMIT - 1:
            for number, one in enumerate(self._cuts):
                self._rooms[number, self._engine.cycles(one) > longest] = -1
        found = self._engine.with_room(self._cuts, self._rooms, limit)
        order = np.argsort(found[2], kind="stable")
        self._number, self._resident, self._bits = (column[order] for column in found)
        self._next = 0

    def _scaled(self, prices: Sequence[Floats]) -> Floats:
        """What a unit of each resource costs, shape (resources, prices)."""
        return (np.array(prices) / np.maximum(self._budgets, 1)).T

    def _rooms_at(self, scaled: Floats, before: Floats) -> Floats:
        """Bits that weights may take at some prices, shape (cuts, engines); negative without room for the rest.

        Args:
            scaled: `_scaled` prices.
            before: `SplitOptions.before` at these.
        """
        uses = (scaled.T @ self._uses.reshape(-1, len(scaled)).T).reshape(scaled.shape[1], *self._uses.shape[:3])
        depth = np.array([one.pipelined for one in self._cuts], dtype=np.int64)
        left = 1 + TINY - before[depth].T[:, None, :, None] - uses
        places = [scaled[0] / RAMB18_BITS, *([scaled[1] / prod(URAM_SHAPE)] if self._has_uram else [])]
        # All weights lie in memories of one kind.
        rooms = [left / np.maximum(per_bit, 1 / NO_LIMIT)[:, None, None, None] for per_bit in places]
        most: Floats = np.max([room.min(axis=0).max(axis=0) for room in rooms], axis=0)
        return most

    def exclude(self, prices: Sequence[Floats]) -> None:
        """Leaves out what is over budget at some prices of the budgets, each of sum 1."""
        if len(prices):
            scaled = self._scaled(prices)
            np.minimum(self._rooms, self._rooms_at(scaled, self._options.before(scaled)), out=self._rooms)

    def take(self, count: int, limit: int) -> tuple[list[Split], Mask]:
        """The next open splits of fewer off-chip bits than `limit`, `count` at most, and which engines are open."""
        end = int(np.searchsorted(self._bits, limit))
        while True:
            ahead = np.arange(self._next, min(self._next + CHECKED, end))
            has_room = self._has_room(ahead)
            kept = np.flatnonzero(has_room.any(axis=1))[:count]
            self._next = int(ahead[kept[-1]]) + 1 if len(kept) == count else self._next + len(ahead)
            if len(kept) or not len(ahead):
                return self._splits(ahead[kept]), has_room[kept]

    def of(self, bits: int) -> list[Split]:
        """The open splits of exactly these off-chip bits."""
        places = np.arange(*np.searchsorted(self._bits, [bits, bits + 1]))
        return self._splits(places[self._has_room(places).any(axis=1)])

    def _has_room(self, places: Array) -> Mask:
        """Which engines of some splits have room for their weights, shape (places, engines)."""
        found: Mask = self._engine.room_taken(self._splits(places)) <= self._rooms[self._number[places]]
        return found

    def _splits(self, places: Array) -> list[Split]:
        columns = (self._number[places], self._resident[places], self._bits[places])
        return [
            Split(self._cuts[number], resident, bits)
            for number, resident, bits in zip(*(column.tolist() for column in columns), strict=True)
        ]


def cuts_that_may_reach(engine: SharedEngine, cuts: Sequence[Cut], budgets: Array, limit: int) -> list[Cut]:
    """The cuts, nothing pipelined before them, that may have no more off-chip bits than this within the budgets."""
    map_bits = np.array([one.map_bits for one in cuts], dtype=np.int64)
    left = np.flatnonzero(map_bits <= limit)
    depths = [one.depths for one in cuts]
    # What costs little leaves out most.
    for uses in (engine.uses.lanes, engine.uses.buffers, engine.uses.fixed):
        if len(left):
            found = uses([depths[number] for number in left.tolist()])
            rooms = engine.uses.rooms(found.reshape(*found.shape[:2], -1, len(budgets)), budgets)
            most = np.where(rooms >= 0, rooms + engine.most_in_luts, -1).max(axis=1)
            left = left[(most >= 0) & (map_bits[left] + _least_weight_bits(engine, most) <= limit)]
    return [cuts[number] for number in left.tolist()]


def _least_weight_bits(engine: SharedEngine, memory_bits: Array) -> Array:
    """Bits of weights that cross the chip's border at least, all layers on the engine, with so much memory."""
    bits, saved = engine.weights_by_users
    least: Array = saved[-1] - (np.interp(memory_bits, bits, saved) + 1).astype(np.int64)
    return least
