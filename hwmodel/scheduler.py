"""Chooses data flow, folding and place of the weights of every layer: the optimum of the space below.

The space: the network is cut once, before a layer with weights.

- Either the layers before the cut are pipelined, each with any folding, data flow, multiplier and place of
  `hwmodel.options`, all weights on chip; or they are `spilled`.
- The layers behind the cut are `frame`.  They and spilled layers run on the shared engine, of any folding and
  multiplier.  There weights become resident in the order of the off-chip bits that this saves per word of memory: the
  first k layers, any k.  The others stream theirs; or those that are spilled and have no more bits of weights than some
  number, any number, load them whole.  Then, of equal savings, the largest become resident first: they need the largest
  buffer.

Order of goals: off-chip bits, then frame interval, then block RAM; within block RAM, UltraRAM, LUTs and DSP slices.
Where a frame rate is asked for, only schedules that reach it count.

The frame interval is the largest of the engines' cycles and of the cycles of the off-chip traffic, so off-chip bits
and interval are bottlenecks, block RAM is a sum: the knapsacks of `hwmodel.knapsack`, for every cut that the bounds
leave.  A last layer that is all that the shared engine runs counts as one more way to execute that of a whole pipeline,
so that the two cuts are one knapsack.

With up to `hwmodel.problem.PROVEN_GROUPS` engines all goals are proven optimal.  With more, the first two are proven
where bound and schedule meet, which `Best.is_proven` says, and block RAM is what exchanges of single options reach, and
walks of such where that is far above its bound.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import ceil, floor

import numpy as np

from hwmodel.board import Board, load_boards
from hwmodel.bounds import OpenSplits, cuts_that_may_reach
from hwmodel.chains import Cut, Split
from hwmodel.choices import NO_LIMIT, Choices
from hwmodel.cost import dram_cycles
from hwmodel.dataflow import Schedule
from hwmodel.errors import BudgetError, SpecError, require_type
from hwmodel.exchanges import TINY, Floats
from hwmodel.knapsack import NOTHING, Solution, any_choice, cheapest, exchanged, least_bottleneck
from hwmodel.network import NetworkSpec
from hwmodel.option_cache import OptionCache
from hwmodel.options import RESOURCES, Array, Options, Rates, Space
from hwmodel.precision import NetworkConfig
from hwmodel.problem import PROVEN_GROUPS, Answers
from hwmodel.segments import Segments
from hwmodel.split_options import SplitOptions

SPLITS_TOGETHER = 16
"""Splits whose options are made in one go."""

LEANING = 1 / 16
"""Share of the resources together in prices to begin with that are nearly those of one alone."""

AMPLE = 1
"""Doublings of an interval at which there likely is a choice if prices leave the interval."""

BRAM_GAP = 0.004
"""Share of its bound at which the block RAM of a known choice is good enough, with many engines."""

SPLIT_GAP = 0.02
"""Share of the block RAM found that another split has to promise to save, with many engines."""

EXCHANGED_GAP = 0.05
"""Share of the block RAM found: of a split that promises to save no more, a choice is sought by exchanges from it."""


@dataclass(frozen=True)
class Best:
    """The best schedule found: its goals in order, and how to write it down.

    Args:
        offchip_bits: Off-chip bits per frame.
        interval_cycles: Frame interval.
        bram18: Block RAM.
        is_proven: Whether no schedule of the space has fewer off-chip bits or, with as few, a shorter interval.
        cut: The cut.
        groups: Options of each engine.
        picks: The option of each engine.
    """

    offchip_bits: int
    interval_cycles: int
    bram18: int
    is_proven: bool
    cut: Cut
    groups: tuple[Options, ...]
    picks: tuple[int, ...]


class Scheduler:
    """Schedules configurations of one network on one board; keeps the options of layers that it has seen.

    They make later schedules quicker, not different: each depends on its configuration alone.

    Args:
        network: The network.
        board: The board.
        space: Which executions are tried.
    """

    def __init__(self, network: NetworkSpec, board: Board, space: Space | None = None) -> None:
        require_type("network", network, NetworkSpec, "load_network reads one")
        require_type("board", board, Board, "load_board reads one")
        self.network = network
        self.board = board
        self.space = space or Space()
        self._cache = OptionCache()
        self._rates = Rates((np.array(_first_prices()) / np.maximum(_budgets(board), 1)).T)

    def schedule(self, config: NetworkConfig, min_fps: float = 0.0) -> Schedule:
        """The best schedule of a configuration; arguments and errors as in `hwmodel.schedule`."""
        require_type("config", config, NetworkConfig, "uniform makes one")
        self.network.require_weights()
        config.check_matches(self.network)
        longest = longest_interval(self.board, min_fps)
        segments = self.segments(config)
        best = search(segments, self.board, longest)
        if best is None:
            slow = search(segments, self.board) if min_fps else None
            if slow is None:
                raise BudgetError(_why_not(segments, self.board))
            raise BudgetError(_too_slow(segments, self.board, min_fps, longest, slow.interval_cycles))
        return segments.write(best.cut, best.groups, best.picks)

    def segments(self, config: NetworkConfig) -> Segments:
        """Cuts and options of a configuration."""
        return Segments(self.network, config, self.board, self.space, self._cache, self._rates)


def schedule(network: NetworkSpec, config: NetworkConfig, board: Board, min_fps: float = 0.0) -> Schedule:
    """The best execution of a network on a board.

    Args:
        network: The network.
        config: Precision of each layer.
        board: The board.
        min_fps: Frames per second that it has to reach at least, >= 0: the fewest off-chip bits may be slow where
            memory is small.

    Raises:
        SpecError: An argument is of another kind, the configuration does not match the network, or `min_fps` is out of
            range.
        BudgetError: Nothing fits; the message names the budget that binds, by how much, and a board that would do.  Or
            what fits is slower than `min_fps`; the message says how fast a schedule can be.
    """
    return Scheduler(network, board).schedule(config, min_fps)


def longest_interval(board: Board, min_fps: float) -> int:
    """Cycles per frame at which a board is as fast as asked for.

    Raises:
        SpecError: `min_fps` is negative or not finite.
    """
    if not (isinstance(min_fps, int | float) and 0 <= min_fps < NO_LIMIT):
        raise SpecError(f"min_fps={min_fps!r}, expected a finite number >= 0; 0 for any")
    if not min_fps:
        return NO_LIMIT - 1
    # The frame rate of a whole number of cycles allows these, however their quotient was rounded.
    return min(NO_LIMIT - 1, int(board.clock_hz / min_fps * (1 + 1e-12)))


@dataclass(frozen=True)
class Reached:
    """A split that may reach the goals so far.

    Args:
        split: The split.
        rows: Rows of its options that reach them, as in `SplitOptions.choices`; none if that is open.
    """

    split: Split
    rows: tuple[int, ...] = ()


def _budgets(board: Board) -> Array:
    return np.array([getattr(board, name) for name in RESOURCES], dtype=np.int64)


def _first_prices() -> list[Floats]:
    """Prices of whole budgets to begin with, each of sum 1: mostly one resource is short."""
    one, mean = np.eye(len(RESOURCES)), np.full(len(RESOURCES), 1 / len(RESOURCES))
    return [*((1 - LEANING) * one + LEANING * mean), mean]


def search(segments: Segments, board: Board, longest: int = NO_LIMIT - 1) -> Best | None:
    """The best schedule within a board's budgets of a frame interval up to `longest`, or None if there is none."""
    return _Search(segments, board, longest).best()


class _Search:
    def __init__(self, segments: Segments, board: Board, longest: int = NO_LIMIT - 1) -> None:
        self.segments = segments
        self.board = board
        self.longest = longest
        self.budgets = _budgets(board)
        self.is_proven = True
        self._answers: Answers = {}
        # Prices that have excluded cuts exclude similar ones too.
        self._prices = _first_prices()

    def best(self) -> Best | None:
        """All three goals."""
        least = self.least_traffic()
        if least is None or dram_cycles(least[0][0].offchip_bits, self.board) > self.longest:
            return None
        return self.leanest(*self.fastest(*least))

    def any_interval(self) -> int | None:
        """The frame interval of a schedule that is no longer than `longest`; None if there is none."""
        least = self.least_traffic()
        if least is None:
            return None
        interval = max(1, least[2], dram_cycles(least[0][0].offchip_bits, self.board))
        return interval if interval <= self.longest else None

    # -- off-chip bits ----------------------------------------------------------------------------------------------

    def least_traffic(self) -> tuple[list[Split], Reached, int] | None:
        """The splits of fewest off-chip bits whose engines may fit, a choice of one of them, and its cycles."""
        segments, cuts = self.segments, self.segments.cuts
        reached, is_proven = None, True
        if cuts[0].pipelined <= len(segments.own_options):
            first = SplitOptions(segments, [segments.engine.all_resident(cuts[0])], self.longest, self.longest)
            reached, is_proven = self._any_choice(first, self._fill(first), [0])
        if reached is not None:
            return segments.all_resident(cuts[0].map_bits), *reached
        best, open_bound = NO_LIMIT, NO_LIMIT if is_proven else cuts[0].map_bits
        found: tuple[Reached, int] | None = None
        stages: list[OpenSplits] = []
        spilled = [one for one in cuts if one.spilled]
        for stage in range(3):
            if stage:
                spilled = cuts_that_may_reach(segments.engine, spilled, self.budgets, best)
            group = self._cuts_of_stage(stage, spilled)
            if not group:
                continue
            splits = OpenSplits(segments, self.budgets, self.board.uram > 0, group, self._prices, best, self.longest)
            while (part := splits.take(SPLITS_TOGETHER, best))[0]:
                if dram_cycles(part[0][0].offchip_bits, self.board) > self.longest:
                    break  # and so do all that follow, which have no fewer bits
                known = len(self._prices)
                options = SplitOptions(segments, part[0], self.longest, self.longest, part[1])
                fill = self._fill(options)
                left = np.flatnonzero(fill <= 1 + TINY).tolist()
                for bits, same in groupby(left, key=lambda number: options.splits[number].offchip_bits):
                    reached, is_proven = self._any_choice(options, fill, list(same))
                    if reached is not None:
                        best, found = bits, reached
                        break
                    open_bound = min(open_bound, NO_LIMIT if is_proven else bits)
                splits.exclude(self._prices[known:])
            stages.append(splits)
        self.is_proven &= open_bound >= best
        # Of earlier stages too: what could not be decided there may have no more bits, and be faster.
        return None if found is None else ([split for splits in stages for split in splits.of(best)], *found)

    def _cuts_of_stage(self, stage: int, spilled: Sequence[Cut]) -> list[Cut]:
        """Cuts to be looked at together: what earlier ones reach excludes most of the later.

        First the pipelined ones, which have the least traffic of feature maps; then the spilled ones; then those that
        load weights.

        Args:
            stage: 0, 1 or 2.
            spilled: Spilled cuts that may have no more off-chip bits than what is reached.
        """
        if stage == 0:
            return [one for one in self.segments.cuts if not one.spilled]
        if stage == 1:
            return list(spilled)
        return [one for cut in spilled for one in self.segments.loading(cut)]

    def _fill(self, options: SplitOptions, limit: int = NO_LIMIT) -> Floats:
        """`SplitOptions.fill` at all prices so far."""
        return options.fill(self.budgets, np.array(self._prices), limit)

    def _remember(self, prices: Floats) -> None:
        """Keeps prices that excluded something; many searches end with the same."""
        if not any(np.array_equal(prices, known) for known in self._prices):
            self._prices.append(prices)

    def _any_choice(
        self, options: SplitOptions, fill: Floats, left: list[int]
    ) -> tuple[tuple[Reached, int] | None, bool]:
        """Any choice of some splits within the budgets, and its cycles; or None, and if that is certain.

        Args:
            options: The splits.
            fill: Their `SplitOptions.fill` at all prices so far; new prices raise it.
            left: Numbers of those that are asked about.
        """
        is_proven = True
        while left := sorted((number for number in left if fill[number] <= 1 + TINY), key=fill.__getitem__):
            number = left.pop(0)
            choices = options.choices(number)
            assert choices is not None  # the bound of a group without options is infinite
            solution, weights = any_choice(choices.at_cost(np.zeros_like(choices.key)), self.budgets, self._prices[-1])
            if solution.is_found:
                cycles = int(choices.key[np.searchsorted(choices.rows, solution.rows)].max())
                return (Reached(options.splits[number], solution.rows), cycles), True
            if solution == NOTHING:
                self._remember(weights)
                np.maximum(fill, options.fill(self.budgets, weights[None]), out=fill)
            is_proven &= solution == NOTHING
        return None, is_proven

    # -- frame interval ---------------------------------------------------------------------------------------------

    def fastest(self, splits: list[Split], start: Reached, longest: int) -> tuple[int, SplitOptions, list[Reached]]:
        """The shortest interval of splits of equal off-chip bits, and those that may reach it.

        Args:
            splits: The splits.
            start: A choice of one of them.
            longest: The cycles of this choice.

        Returns:
            The interval; splits with options for it; those among them that may reach it, first one that does.
        """
        floor = max(1, dram_cycles(splits[0].offchip_bits, self.board))
        bounds = np.maximum(floor, self.segments.least_cycles([split.cut for split in splits])).tolist()
        shortest, best, open_bound = min(bounds), max(floor, longest), NO_LIMIT
        found = start
        options = SplitOptions(self.segments, [start.split], shortest, best)
        solution = self._easy_first(options, shortest, floor, best)
        open_bound = min(open_bound, solution.bound)
        if solution.is_found:
            best, found = solution.value, Reached(start.split, solution.rows)
        left = [number for number, split in enumerate(splits) if bounds[number] <= best and split != start.split]
        if left:
            options = SplitOptions(self.segments, [start.split, *(splits[number] for number in left)], shortest, best)
        waiting = [place for place, number in enumerate(left, 1) if bounds[number] < best]
        while waiting:
            fill = self._fill(options, best - 1)
            waiting = [place for place in waiting if fill[place] <= 1 + TINY and bounds[left[place - 1]] < best]
            if not waiting:
                break
            place = min(waiting, key=fill.__getitem__)
            waiting.remove(place)
            solution = self._least_bottleneck(options.choices(place), floor, best - 1)
            open_bound = min(open_bound, solution.bound)
            if solution.value < best:
                best, found = solution.value, Reached(options.splits[place], solution.rows)
        self.is_proven &= open_bound >= best
        # The next goal finds out which of the others are as good.
        options = options.at(best, best)
        fill = self._fill(options, best)
        others = [Reached(one) for one, least in zip(options.splits, fill, strict=True) if least <= 1 + TINY]
        return best, options, [found, *(one for one in others if one.split != found.split)]

    def _easy_first(self, options: SplitOptions, shortest: int, floor: int, longest: int) -> Solution:
        """The shortest interval of a split, by a search that starts from limits that are easy to meet.

        Args:
            options: The split.
            shortest: The least interval that is asked about.
            floor: Intervals below count as this.
            longest: The largest interval.
        """
        limits = [shortest]
        while 2 * limits[-1] < longest:
            limits.append(2 * limits[-1])
        near = bisect_left(limits, True, key=lambda limit: bool(self._fill(options, limit)[0] <= 1 + TINY))
        # Up to a limit that the prices so far leave ample there likely is a choice, of few options.
        if near + 2 * AMPLE < len(limits):
            low, ample = limits[max(0, near - 1)], limits[near + AMPLE]
            solution = self._least_bottleneck(options.at(low, ample).choices(0), floor, ample)
            if solution.is_found:
                return solution
        return self._least_bottleneck(options.choices(0), floor, longest)

    def _least_bottleneck(self, choices: Choices | None, floor: int, limit: int = NO_LIMIT) -> Solution:
        if choices is None:
            return NOTHING
        solution = least_bottleneck(choices, self.budgets, floor, limit, self._answers, np.array(self._prices))
        if solution.prices:
            self._remember(np.array(solution.prices))
        return solution

    # -- block RAM --------------------------------------------------------------------------------------------------

    def leanest(self, interval: int, options: SplitOptions, reaching: list[Reached]) -> Best:
        """The least block RAM of these splits at this interval."""
        numbers = [options.splits.index(one.split) for one in reaching]
        bram18, best = NO_LIMIT, reaching[0]
        prices: tuple[float, ...] = ()
        left = list(range(len(reaching)))
        bounds = np.zeros(len(reaching))
        while left:
            number = left.pop(0)
            gap = SPLIT_GAP if options.groups(numbers[number]) > PROVEN_GROUPS else 0.0
            if ceil(bounds[number] - 1e-6) >= bram18 * (1 - gap):
                continue
            choices = options.choices(numbers[number])
            if choices is None:
                continue
            choices = choices.at_cost(choices.use[:, RESOURCES.index("bram18")])
            if choices.groups > PROVEN_GROUPS and bounds[number] >= bram18 * (1 - EXCHANGED_GAP):
                solution = exchanged(choices, self.budgets, bram18 - 1, best.rows, prices)
            else:
                solution = cheapest(choices, self.budgets, bram18 - 1, BRAM_GAP, reaching[number].rows)
            if solution.is_found:
                bram18, best = solution.value, replace(reaching[number], rows=solution.rows)
            if solution.prices:
                prices = solution.prices
                least = options.cost(RESOURCES.index("bram18"), self.budgets, np.array(prices))
                bounds = np.maximum(bounds, least[numbers])
                left.sort(key=bounds.__getitem__)
        groups, picks = options.picked(best.split, best.rows)
        return Best(best.split.offchip_bits, interval, bram18, self.is_proven, best.split.cut, groups, picks)


def _why_not(segments: Segments, board: Board) -> str:
    name, needed = _binding(segments, board)
    available = getattr(board, name)
    remedy = "no listed board would do"
    for other in load_boards():
        if other.name != board.name:
            alike = (other.family, other.uram > 0) == (board.family, board.uram > 0)
            cache = segments.cache if alike else None
            others = Segments(segments.network, segments.config, other, segments.space, cache)
            if _Search(others, other).least_traffic() is not None:
                remedy = f"the smallest listed board that would do is {other.name}"
                break
    return (
        f"network {segments.network.name!r} does not fit board {board.name!r}: {name} binds, {needed} needed at least, "
        f"{available} there, {needed - available} too many; {remedy}. Or store fewer bits: lower precision, higher "
        "sparsity"
    )


def _too_slow(segments: Segments, board: Board, min_fps: float, longest: int, possible: int) -> str:
    """Why no schedule is fast enough.

    Args:
        segments: What was searched.
        board: The board.
        min_fps: What was asked for.
        longest: The interval that this allows, which none has.
        possible: An interval that a schedule has.
    """
    impossible = longest
    while possible - impossible > 1:
        middle = (possible + impossible) // 2
        interval = _Search(segments, board, middle).any_interval()
        if interval is None:
            impossible = middle
        else:
            possible = interval
    fps = floor(1000 * board.clock_hz / possible) / 1000  # not rounded up, so that it can be asked for
    return (
        f"network {segments.network.name!r} on board {board.name!r}: min_fps={min_fps:g} needs an interval of at most "
        f"{longest} cycles, the fastest schedule found that fits takes {possible} cycles, {fps} frames/s; ask for no "
        "more than that, store fewer bits or take a larger board"
    )


def _binding(segments: Segments, board: Board) -> tuple[str, int]:
    """The budget that is missed, and the least of it that a schedule needs whose other resources fit."""
    segments = Segments(segments.network, segments.config, segments.board, segments.space, segments.cache)
    budgets = _budgets(board)
    shortest: tuple[float, str, int] | None = None
    for column, name in enumerate(RESOURCES):
        relaxed = budgets.copy()
        relaxed[column] = NO_LIMIT
        for cut in segments.cuts:
            options = SplitOptions(segments, segments.engine.splits(cut))
            for number in range(len(options.splits)):
                choices = options.choices(number)
                assert choices is not None  # each group has an option that none outdoes
                limit = NO_LIMIT if shortest is None else int(shortest[0] * max(1, budgets[column])) - 1
                solution = cheapest(choices.at_cost(choices.use[:, column]), relaxed, limit)
                if solution.is_found:
                    shortest = (solution.value / max(1, int(budgets[column])), name, solution.value)
    if shortest is not None:
        return shortest[1], shortest[2]
    # Several budgets are missed at once: name the one that is missed most by the leanest choice of each layer.
    least = {
        name: min(
            sum(int(group.use[:, column].min()) for group in segments.groups(cut, streams=True))
            for cut in segments.cuts
        )
        for column, name in enumerate(RESOURCES)
    }
    name = max(RESOURCES, key=lambda r: least[r] / max(1, getattr(board, r)))
    return name, least[name]
