"""Chooses data flow, folding and place of the weights of every layer: the optimum of the space below.

The space: the network is cut twice, before layers with weights.  Layers before the first cut are pipelined, each with
any folding, data flow, multiplier and place of `hwmodel.options`; layers between the cuts are `spilled`, layers
behind are `frame`.  Both run on the shared engine, of any folding and multiplier.  On the shared engine weights
become resident in the order of the off-chip bits that this saves per word of memory: the first k layers, any k.

Order of goals: off-chip bits, then frame interval, then block RAM; within block RAM, UltraRAM, LUTs and DSP slices.

The frame interval is the largest of the engines' cycles and of the cycles of the off-chip traffic.  For a target
interval every layer has the options that are fast enough, and the question is a multiple-choice knapsack
(`hwmodel.knapsack`); feasibility grows with the target, so bisection over the intervals that occur finds the least.

With up to `PROVEN_GROUPS` engines the result is the exact optimum.  With more, block RAM (and streamed weights) are
solved to within `BRAM_GAP`, and the solver's node limit may cost a target interval that only a longer search reaches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from hwmodel.board import Board, load_boards
from hwmodel.cost import dram_cycles
from hwmodel.dataflow import Schedule
from hwmodel.errors import BudgetError
from hwmodel.knapsack import Array, Group, Solution, feasible, resource_prices, solve
from hwmodel.network import NetworkSpec
from hwmodel.options import RESOURCES, Options, Space
from hwmodel.precision import NetworkConfig
from hwmodel.segments import Candidate, Segments

NO_LIMIT = 1 << 60

PROVEN_GROUPS = 16
"""Engines up to which every goal is solved to proven optimality."""

BRAM_GAP = 0.005
"""Share of the optimum to which the last goal is solved beyond."""


@dataclass(frozen=True)
class Best:
    """The best schedule found: its goals in order, and how to write it down."""

    offchip_bits: int
    interval_cycles: int
    bram18: int
    candidate: Candidate
    groups: tuple[Options, ...]
    picks: tuple[int, ...]


def schedule(network: NetworkSpec, config: NetworkConfig, board: Board) -> Schedule:
    """The best execution of a network on a board.

    Args:
        network: The network.
        config: Precision of each layer.
        board: The board.

    Raises:
        SpecError: The configuration does not match the network.
        BudgetError: Nothing fits; the message names the budget that binds, by how much, and a board that would do.
    """
    config.check_matches(network)
    segments = Segments(network, config, board.family, board.uram > 0, Space())
    best = search(segments, board)
    if best is None:
        raise BudgetError(_why_not(network, config, board, segments))
    return segments.write(best.candidate, best.groups, best.picks)


def search(segments: Segments, board: Board) -> Best | None:
    """The best schedule within a board's budgets, or None if nothing fits."""
    budgets = np.array([getattr(board, name) for name in RESOURCES], dtype=np.int64)
    finder = _Finder(segments, board, budgets)
    least = finder.least_traffic()
    if least is None:
        return None
    offchip_bits, candidates = least
    return finder.fastest(offchip_bits, candidates)


class _Finder:
    def __init__(self, segments: Segments, board: Board, budgets: Array) -> None:
        self.segments = segments
        self.board = board
        self.budgets = budgets

    def least_traffic(self) -> tuple[int, list[Candidate]] | None:
        """The fewest off-chip bits that any schedule needs, and the cuts that reach them."""
        best: int | None = None
        winners: list[Candidate] = []
        for group in (self.segments.unspilled, None):
            for candidate in self._spilled(best) if group is None else group:
                if best is not None and candidate.map_bits > best:
                    break
                streamed = self._least_streamed(candidate, (NO_LIMIT if best is None else best) - candidate.map_bits)
                if streamed is None:
                    continue
                total = candidate.map_bits + streamed
                if best is None or total < best:
                    best, winners = total, []
                winners.append(candidate)
        return None if best is None else (best, winners)

    def _spilled(self, known: int | None) -> tuple[Candidate, ...]:
        """Cuts with spilled layers by the traffic of their feature maps, but those known to need more than the best."""
        if known is None:
            return self.segments.spilled(lambda first, second: 0.0, NO_LIMIT)
        if known == self.segments.unspilled[0].map_bits:
            return self.segments.first_spilled
        bounds = []
        for candidate in self.segments.unspilled[:: max(1, len(self.segments.unspilled) // 8)]:
            groups = self.segments.groups(candidate, streams=True)
            problem = [Group(group.offchip_bits, group.use) for group in groups]
            prices = resource_prices(problem, self.budgets, known)
            bounds.append(self.segments.streamed_bound(prices, self.budgets))
        return self.segments.spilled(lambda first, second: max(b(first, second) for b in bounds), known)

    def _least_streamed(self, candidate: Candidate, limit: int) -> int | None:
        """Fewest bits of weights that come from off chip, whatever the interval."""
        if self._any(candidate, candidate.map_bits, NO_LIMIT) is not None:
            return 0
        if limit == 0:
            return None
        solution = self._solve(self.segments.groups(candidate, streams=True), NO_LIMIT, lambda o: o.offchip_bits, limit)
        return None if solution is None else solution.cost

    def fastest(self, offchip_bits: int, candidates: list[Candidate]) -> Best:
        """The shortest interval at these off-chip bits, then the least block RAM."""
        floor = max(1, dram_cycles(offchip_bits, self.board))
        winners: list[Best] = []
        for candidate in candidates:
            targets = self._targets(candidate, offchip_bits > candidate.map_bits, floor)
            if winners:
                targets = targets[targets <= winners[0].interval_cycles]
            low, high = 0, len(targets) - 1
            found = None if high < 0 else self._any(candidate, offchip_bits, int(targets[high]))
            if found is None:
                continue
            while low < high:
                middle = (low + high) // 2
                faster = self._any(candidate, offchip_bits, int(targets[middle]))
                if faster is not None:
                    high, found = middle, faster
                else:
                    low = middle + 1
            if winners and found.interval_cycles < winners[0].interval_cycles:
                winners = []
            winners.append(found)
        best = min(winners, key=lambda winner: winner.bram18)
        for winner in winners:
            best = self._least_bram18(winner, best.bram18 - 1) or best
        return best

    def _targets(self, candidate: Candidate, streams: bool, floor: int) -> Array:
        """Frame intervals that can occur, ascending."""
        groups = self.segments.groups(candidate, streams=streams)
        slowest_first = max(int(group.cycles.min()) for group in groups)
        cycles = np.unique(np.concatenate([group.cycles for group in groups]))
        cycles = cycles[cycles >= slowest_first]
        return np.unique(np.maximum(cycles, floor))

    def _any(self, candidate: Candidate, offchip_bits: int, interval: int) -> Best | None:
        """Any schedule within the budgets at these off-chip bits and this interval."""
        streamed = offchip_bits - candidate.map_bits
        groups = self.segments.groups(candidate, streams=streamed > 0)
        fast, problem, budgets = self._problem(groups, interval, lambda o: o.use[:, 0], streamed)
        picks = feasible(problem, budgets)
        if picks is None:
            return None
        bram18 = sum(int(group.use[pick, 0]) for group, pick in zip(fast, picks, strict=True))
        return Best(offchip_bits, interval, bram18, candidate, fast, picks)

    def _least_bram18(self, known: Best, limit: int) -> Best | None:
        """The schedule with the cuts and goals of a known one that takes least block RAM, if at most `limit`."""
        streamed = known.offchip_bits - known.candidate.map_bits
        solution = self._solve(known.groups, known.interval_cycles, lambda o: o.use[:, 0], limit, streamed)
        return None if solution is None else replace(known, bram18=solution.cost, picks=solution.options)

    def _solve(
        self,
        groups: tuple[Options, ...],
        interval: int,
        cost: Callable[[Options], Array],
        limit: int,
        streamed_limit: int | None = None,
    ) -> Solution | None:
        _, problem, budgets = self._problem(groups, interval, cost, streamed_limit)
        gap = BRAM_GAP if len(problem) > PROVEN_GROUPS else 0.0
        return solve(problem, budgets, limit, gap)

    def _problem(
        self,
        groups: tuple[Options, ...],
        interval: int,
        cost: Callable[[Options], Array],
        streamed_limit: int | None,
    ) -> tuple[tuple[Options, ...], list[Group], Array]:
        """The options that are fast enough, as a knapsack; streamed bits are one more resource where they count."""
        fast = tuple(group.only(np.flatnonzero(group.cycles <= interval)) for group in groups)
        if not streamed_limit:
            return fast, [Group(cost(group), group.use) for group in fast], self.budgets
        problem = [Group(cost(group), np.column_stack([group.use, group.offchip_bits])) for group in fast]
        return fast, problem, np.array([*self.budgets, streamed_limit], dtype=np.int64)


def _why_not(network: NetworkSpec, config: NetworkConfig, board: Board, segments: Segments) -> str:
    name, needed = _binding(segments, board)
    available = getattr(board, name)
    remedy = "no listed board would do"
    for other in load_boards():
        if other.name != board.name:
            others = segments
            if (other.family, other.uram > 0) != (board.family, board.uram > 0):
                others = Segments(network, config, other.family, other.uram > 0, Space())
            if _Finder(others, other, np.array([getattr(other, r) for r in RESOURCES])).least_traffic() is not None:
                remedy = f"the smallest listed board that would do is {other.name}"
                break
    return (
        f"network {network.name!r} does not fit board {board.name!r}: {name} binds, {needed} needed at least, "
        f"{available} there, {needed - available} too many; {remedy}. Or store fewer bits: lower precision, higher "
        "sparsity"
    )


def _binding(segments: Segments, board: Board) -> tuple[str, int]:
    """The budget that is missed, and the least of it that a schedule needs whose other resources fit."""
    budgets = np.array([getattr(board, name) for name in RESOURCES], dtype=np.int64)
    shortest: tuple[float, str, int] | None = None
    for column, name in enumerate(RESOURCES):
        relaxed = budgets.copy()
        relaxed[column] = NO_LIMIT
        for candidate in segments.all_cuts:
            groups = segments.groups(candidate, streams=True)
            limit = NO_LIMIT if shortest is None else int(shortest[0] * max(1, budgets[column])) - 1
            solution = solve([Group(g.use[:, column], g.use) for g in groups], relaxed, limit)
            if solution is not None:
                shortest = (solution.cost / max(1, int(budgets[column])), name, solution.cost)
    if shortest is not None:
        return shortest[1], shortest[2]
    # Several budgets are missed at once: name the one that is missed most by the leanest choice of each layer.
    least = {
        name: min(
            sum(int(group.use[:, column].min()) for group in segments.groups(candidate, streams=True))
            for candidate in segments.all_cuts
        )
        for column, name in enumerate(RESOURCES)
    }
    name = max(RESOURCES, key=lambda r: least[r] / max(1, getattr(board, r)))
    return name, least[name]
