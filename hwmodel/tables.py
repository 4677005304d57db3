"""Costs of many configurations, each under the best of a few schedules.

One schedule serves cheap and expensive choices badly: made for expensive ones it spills what cheap ones could keep on
the chip, made for cheap ones it does not fit expensive ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwmodel.board import Board
from hwmodel.errors import BudgetError
from hwmodel.network import NetworkSpec
from hwmodel.precision import LayerConfig
from hwmodel.scheduler import schedule
from hwmodel.table import CostTable

SHARES = (1.0, 0.5, 0.0)
"""Of the way from the cheapest to the most expensive choices: for what lies there schedules are made."""

LEAN = 0.5
"""Share of a board's LUTs and DSPs for which schedules are made too: a fast one may be too large for other choices."""


class CostTables:
    """Costs of configurations of one network on one board, each under the best of some schedules.

    Schedules are made for choices between the cheapest and the most expensive ones of all layers.  For a configuration
    that one counts which fits, reaches `min_fps`, and then has the fewest off-chip bits, the shortest interval, the
    fewest block RAMs: the order of `hwmodel.schedule`, which may still find a better one for the configuration alone.

    Args:
        network: The network.
        board: The board.
        choices: For every layer with weights, the configurations that it can have.
        sum_bit_width: As in `NetworkConfig`.
        min_fps: Frames per second to reach.

    Attributes:
        tables: One for each schedule, all different.

    Raises:
        SpecError: As of `CostTable`.
        BudgetError: Not even the cheapest choices fit, or are fast enough.
    """

    def __init__(
        self,
        network: NetworkSpec,
        board: Board,
        choices: Mapping[str, Sequence[LayerConfig]],
        *,
        sum_bit_width: int = 8,
        min_fps: float = 0.0,
    ) -> None:
        first = CostTable(network, board, choices, sum_bit_width=sum_bit_width, min_fps=min_fps)
        found = {first.schedule: first}
        lean = replace(board, lut=int(LEAN * board.lut), dsp=int(LEAN * board.dsp))
        for budget, share in product((board, lean), SHARES):
            try:
                other = schedule(network, first.config(first.at_share(share)), budget, min_fps)
            except BudgetError:
                continue
            if other not in found:
                found[other] = CostTable(network, board, choices, other, sum_bit_width=sum_bit_width)
        self.tables = tuple(found.values())
        self.min_fps = min_fps

    def evaluate(self, indices: ArrayLike) -> dict[str, NDArray[np.generic]]:
        """Costs of configurations; arguments, columns and errors as of `CostTable.evaluate`."""
        best, *others = (table.evaluate(indices) for table in self.tables)
        for other in others:
            better = _is_before(self._order(other), self._order(best))
            best = {name: np.where(better, other[name], values) for name, values in best.items()}
        return best

    def _order(self, columns: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """What counts, the most important first; less is better."""
        ordered = [columns[name] for name in ("offchip_bits", "interval_cycles", "bram18")]
        return [~columns["fits"].astype(bool), columns["fps"].astype(np.float64) < self.min_fps, *ordered]


def _is_before(left: Sequence[NDArray[np.generic]], right: Sequence[NDArray[np.generic]]) -> NDArray[np.bool_]:
    """Where `left` comes before `right` in lexicographic order; equal values do not."""
    before = np.zeros(left[0].shape, bool)
    undecided = ~before
    for one, other in zip(left, right, strict=True):
        before |= undecided & np.less(one, other)
        undecided &= np.equal(one, other)
    return before
