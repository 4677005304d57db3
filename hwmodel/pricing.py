"""The best prices of the resources for a multiple-choice knapsack, by column generation.

A choice's payoffs are what it takes of each budget.  The prices, of sum 1, that make the cheapest choice as dear as
possible are the first player's strategy of a matrix game whose columns are the choices; the second player's is the mix
of choices with the least largest payoff, the linear relaxation of the knapsack.  Choices enter one by one: the cheapest
one at the prices that are best against those so far.  Each bounds the game from below.

Source:
    Dantzig, Wolfe, Operations Research 8(1), 1960; Kellerer, Pferschy, Pisinger: Knapsack Problems, Springer 2004,
    section 11.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwmodel.exchanges import Array, Floats

PIVOTS = 50
"""Most changes of the basis for one more column: what is left open shows in a bound that is not reached."""

CAPACITY = 32
"""Columns that room is made for to begin with."""

ROUNDING = 1e-9
"""Reduced gain that counts as none."""


@dataclass(frozen=True)
class Relaxed:
    """The linear relaxation of a problem, with costs or without.

    Args:
        bound: Lower bound of the sum of costs.
        prices: Of whole budgets, that gave it.
        tried: Shape (prices, resources): prices that were tried, without costs all of them.
        columns: Shape (columns, groups): choices that were cheapest at some prices.
        mixed: Shape (groups,): the options with the largest share of the best mix of them.
    """

    bound: float
    prices: Floats
    tried: Floats
    columns: Array
    mixed: Array


class Game:
    """A matrix game with few rows whose columns come one by one, solved by the simplex method.

    Args:
        rows: Number of rows.
    """

    def __init__(self, rows: int) -> None:
        # The largest sum of weights that keeps each row within 1; slacks are the first columns.
        self._rows = rows
        self._size = rows
        self._columns = np.zeros((CAPACITY, rows))
        self._columns[:rows] = np.eye(rows)
        self._gain = np.zeros(CAPACITY)
        self._basis = list(range(rows))
        # The inverse of the basis and the weight of each of its columns; below them the prices of the rows.
        self._tableau = np.eye(rows + 1)
        self._tableau[:rows, rows] = 1.0
        self._tableau[rows, rows] = 0.0

    def add(self, column: Floats) -> tuple[Floats, float]:
        """Prices of the rows that are best against all columns so far, of sum 1, and the value of the game.

        Args:
            column: Shape (rows,): the payoffs of one more column, each > 0.
        """
        rows, tableau = self._rows, self._tableau
        if self._size == len(self._columns):
            self._columns = np.concatenate([self._columns, np.zeros_like(self._columns)])
            self._gain = np.concatenate([self._gain, np.zeros_like(self._gain)])
        self._columns[self._size] = column
        self._gain[self._size] = 1.0
        self._size += 1
        columns, gain = self._columns[: self._size], self._gain[: self._size]
        # Views.  Of few numbers `dot` is quicker than `@`, and plain numbers are quicker than arrays.
        duals, inverse, levels = tableau[rows, :rows], tableau[:, :rows], tableau[:rows, rows]
        # The prices so far are mostly the best against all others.
        enters, most = self._size - 1, 1 - float(column.dot(duals))
        for _ in range(PIVOTS):
            if most <= ROUNDING:
                break
            change = inverse.dot(columns[enters])
            change[rows] = -most
            steps = [
                (level / one, row)
                for row, (level, one) in enumerate(zip(levels.tolist(), change.tolist(), strict=False))
                if one > ROUNDING
            ]
            if not steps:
                break
            leaves = min(steps)[1]
            pivot = tableau[leaves] / change[leaves]
            tableau -= change[:, None] * pivot
            tableau[leaves] = pivot
            self._basis[leaves] = enters
            reduced = gain - columns.dot(duals)
            enters = int(reduced.argmax())
            most = float(reduced[enters])
        prices = [max(price, 0.0) for price in duals.tolist()]
        total = sum(prices)
        return np.array(prices) / total, 1 / total

    def mix(self) -> tuple[Array, Floats]:
        """The columns of the best mix, by number in the order in which they came, and their shares, of sum 1."""
        basis, level = np.array(self._basis), self._tableau[: self._rows, self._rows]
        used = (basis >= self._rows) & (level > ROUNDING)
        shares = level[used]
        return basis[used] - self._rows, shares / shares.sum()
