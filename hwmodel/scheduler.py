"""Chooses data flow, folding and place of the weights of every layer: the optimum of the space below.

The space: the network is cut once, before a layer with weights.

- Either the layers before the cut are pipelined, each with any folding, data flow, multiplier and place of
  `hwmodel.options`, all weights on chip; or they are `spilled`.
- The layers behind the cut are `frame`.  They and spilled layers run on the shared engine, of any folding and
  multiplier.  There weights become resident in the order of the off-chip bits that this saves per word of memory: the
  first k layers, any k.

Order of goals: off-chip bits, then frame interval, then block RAM; within block RAM, UltraRAM, LUTs and DSP slices.

The frame interval is the largest of the engines' cycles and of the cycles of the off-chip traffic, so off-chip bits
and interval are bottlenecks, block RAM is a sum: the knapsacks of `hwmodel.knapsack`, for every cut that the bounds
leave.  With up to `hwmodel.knapsack.PROVEN_GROUPS` engines all goals are proven optimal.  With more, the first two are
proven where bound and schedule meet, which `Best.is_proven` says, and block RAM is solved to within `BRAM_GAP` of its
bound where exchanges reach that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hwmodel.board import Board, load_boards
from hwmodel.cost import dram_cycles
from hwmodel.dataflow import Schedule
from hwmodel.errors import BudgetError
from hwmodel.knapsack import NO_LIMIT, NOTHING, Choices, Solution, cheapest, least_bottleneck
from hwmodel.network import NetworkSpec
from hwmodel.options import RESOURCES, Options, Space
from hwmodel.precision import NetworkConfig
from hwmodel.segments import Candidate, OptionCache, Segments

BRAM_GAP = 0.02
"""Share of the optimum to which block RAM is solved with many engines."""


@dataclass(frozen=True)
class Best:
    """The best schedule found: its goals in order, and how to write it down.

    Args:
        offchip_bits: Off-chip bits per frame.
        interval_cycles: Frame interval.
        bram18: Block RAM.
        is_proven: Whether no schedule of the space has fewer off-chip bits or, with as few, a shorter interval.
        candidate: The cut.
        groups: Options of each engine.
        picks: The option of each engine.
    """

    offchip_bits: int
    interval_cycles: int
    bram18: int
    is_proven: bool
    candidate: Candidate
    groups: tuple[Options, ...]
    picks: tuple[int, ...]


class Scheduler:
    """Schedules configurations of one network on one board; keeps the options of layers that it has seen.

    Args:
        network: The network.
        board: The board.
        space: Which executions are tried.
    """

    def __init__(self, network: NetworkSpec, board: Board, space: Space | None = None) -> None:
        self.network = network
        self.board = board
        self.space = space or Space()
        self._cache: OptionCache = {}

    def schedule(self, config: NetworkConfig) -> Schedule:
        """The best schedule of a configuration; arguments and errors as in `hwmodel.schedule`."""
        config.check_matches(self.network)
        segments = self.segments(config)
        best = search(segments, self.board)
        if best is None:
            raise BudgetError(_why_not(segments, self.board))
        return segments.write(best.candidate, best.groups, best.picks)

    def segments(self, config: NetworkConfig) -> Segments:
        """Cuts and options of a configuration."""
        board = self.board
        return Segments(self.network, config, board.family, board.uram > 0, self.space, self._cache)


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
    return Scheduler(network, board).schedule(config)


@dataclass(frozen=True)
class Reached:
    """A cut that reaches the goals so far.

    Args:
        candidate: The cut.
        choices: Its options.
        rows: Rows of the options that reach them.
    """

    candidate: Candidate
    choices: Choices
    rows: tuple[int, ...]


def search(segments: Segments, board: Board) -> Best | None:
    """The best schedule within a board's budgets, or None if nothing fits."""
    return _Search(segments, board).best()


class _Search:
    def __init__(self, segments: Segments, board: Board) -> None:
        self.segments = segments
        self.board = board
        self.budgets = np.array([getattr(board, name) for name in RESOURCES], dtype=np.int64)
        self.is_proven = True

    def best(self) -> Best | None:
        """All three goals."""
        least = self.least_traffic()
        return None if least is None else self.leanest(*self.fastest(*least))

    def least_traffic(self) -> tuple[int, list[Candidate]] | None:
        """The fewest off-chip bits of any schedule, and the cuts that may reach them."""
        best, open_bound = NO_LIMIT, NO_LIMIT
        reaching: list[Candidate] = []
        for candidate in self.segments.candidates:
            if candidate.map_bits >= best:
                # As many bits if nothing is streamed; whether that fits, the next goal finds out.
                reaching += [candidate] if candidate.map_bits == best else []
                continue
            streamed = self._least_streamed(candidate, best - candidate.map_bits)
            open_bound = min(open_bound, candidate.map_bits + streamed.bound)
            if streamed.is_found:
                if candidate.map_bits + streamed.value < best:
                    best, reaching = candidate.map_bits + streamed.value, []
                reaching.append(candidate)
        self.is_proven &= open_bound >= best
        return (best, reaching) if reaching else None

    def _least_streamed(self, candidate: Candidate, limit: int) -> Solution:
        for streams in (False, True):
            choices = self.leanest_choices(candidate, streams=streams)
            bits = self.segments.offchip_bits(candidate, choices) if streams else np.zeros_like(choices.key)
            solution = least_bottleneck(choices.at_cost(bits), self.budgets, 0, limit)
            if solution.is_found or candidate.pipelined == len(self.segments.network.layers):
                break
        return solution

    def leanest_choices(self, candidate: Candidate, *, streams: bool) -> Choices:
        """The options that count if cycles do not."""
        choices = self.segments.choices(candidate, streams=streams)
        assert choices is not None  # each group has an option that none outdoes
        return choices

    def fastest(self, offchip_bits: int, candidates: list[Candidate]) -> tuple[int, int, list[Reached]]:
        """The shortest interval at these off-chip bits, and the cuts that reach it."""
        floor = max(1, dram_cycles(offchip_bits, self.board))
        bounds = {one: max(floor, self.segments.least_cycles(one)) for one in candidates}
        best, open_bound = NO_LIMIT, NO_LIMIT
        longest = NO_LIMIT - 1
        reaching: list[Reached] = []
        # The longest pipeline first: its interval, if there is one, leaves few options of the other cuts.
        first, *others = sorted(candidates, key=lambda one: -one.pipelined)
        for candidate in (first, *sorted(others, key=lambda one: bounds[one])):
            if bounds[candidate] > best:
                continue
            streamed = offchip_bits - candidate.map_bits
            choices = self.segments.choices(
                candidate,
                streams=streamed > 0,
                streamed_bits=streamed,
                shortest=min(bounds.values()),
                longest=longest,
            )
            solution = NOTHING if choices is None else least_bottleneck(choices, self.budgets, floor, best)
            open_bound = min(open_bound, solution.bound)
            if choices is not None and solution.is_found:
                if solution.value < best:
                    best, reaching = solution.value, []
                reaching.append(Reached(candidate, choices, solution.rows))
            longest = min(longest, best)
        self.is_proven &= open_bound >= best
        return offchip_bits, best, reaching

    def leanest(self, offchip_bits: int, interval: int, reaching: list[Reached]) -> Best:
        """The least block RAM at these off-chip bits and this interval."""
        bram18, best = NO_LIMIT, reaching[0]
        prices: tuple[float, ...] = ()
        for reached in reaching:
            choices = reached.choices.up_to(interval)
            assert choices is not None  # it has the rows that reached the interval
            choices = choices.at_cost(choices.use[:, RESOURCES.index("bram18")])
            solution = cheapest(choices, self.budgets, bram18 - 1, BRAM_GAP, reached.rows, prices)
            prices = solution.prices or prices
            if solution.is_found:
                bram18, best = solution.value, replace(reached, rows=solution.rows)
        groups = self.segments.groups(best.candidate, streams=offchip_bits > best.candidate.map_bits)
        picks = self.segments.picks(best.candidate, best.rows)
        return Best(offchip_bits, interval, bram18, self.is_proven, best.candidate, groups, picks)


def _why_not(segments: Segments, board: Board) -> str:
    name, needed = _binding(segments, board)
    available = getattr(board, name)
    remedy = "no listed board would do"
    for other in load_boards():
        if other.name != board.name:
            others = segments
            if (other.family, other.uram > 0) != (board.family, board.uram > 0):
                others = Segments(segments.network, segments.config, other.family, other.uram > 0, segments.space)
            if _Search(others, other).least_traffic() is not None:
                remedy = f"the smallest listed board that would do is {other.name}"
                break
    return (
        f"network {segments.network.name!r} does not fit board {board.name!r}: {name} binds, {needed} needed at least, "
        f"{available} there, {needed - available} too many; {remedy}. Or store fewer bits: lower precision, higher "
        "sparsity"
    )


def _binding(segments: Segments, board: Board) -> tuple[str, int]:
    """The budget that is missed, and the least of it that a schedule needs whose other resources fit."""
    problem = _Search(segments, board)
    budgets = problem.budgets
    shortest: tuple[float, str, int] | None = None
    for column, name in enumerate(RESOURCES):
        relaxed = budgets.copy()
        relaxed[column] = NO_LIMIT
        for candidate in segments.candidates:
            choices = problem.leanest_choices(candidate, streams=True)
            limit = NO_LIMIT if shortest is None else int(shortest[0] * max(1, budgets[column])) - 1
            solution = cheapest(choices.at_cost(choices.use[:, column]), relaxed, limit)
            if solution.is_found:
                shortest = (solution.value / max(1, int(budgets[column])), name, solution.value)
    if shortest is not None:
        return shortest[1], shortest[2]
    # Several budgets are missed at once: name the one that is missed most by the leanest choice of each layer.
    least = {
        name: min(
            sum(int(group.use[:, column].min()) for group in segments.groups(candidate, streams=True))
            for candidate in segments.candidates
        )
        for column, name in enumerate(RESOURCES)
    }
    name = max(RESOURCES, key=lambda r: least[r] / max(1, getattr(board, r)))
    return name, least[name]
