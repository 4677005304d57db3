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

import numpy as np

from hwmodel.exchanges import Array, Floats

PIVOTS = 50
"""Most changes of the basis for one more column: what is left open shows in a bound that is not reached."""

ROUNDING = 1e-9
"""Reduced gain that counts as none."""


class Game:
    """A matrix game with few rows whose columns come one by one, solved by the simplex method.

    Args:
        rows: Number of rows.
    """

    def __init__(self, rows: int) -> None:
        # The largest sum of weights that keeps each row within 1; slacks are the first columns.
        self._columns = np.eye(rows)
        self._gain = np.zeros(rows)
        self._basis = np.arange(rows)
        self._inverse = np.eye(rows)
        self._level = np.ones(rows)

    def add(self, column: Floats) -> tuple[Floats, float]:
        """Prices of the rows that are best against all columns so far, of sum 1, and the value of the game.

        Args:
            column: Shape (rows,): the payoffs of one more column, each > 0.
        """
        rows = len(self._basis)
        self._columns = np.vstack([self._columns, column])
        self._gain = np.append(self._gain, 1.0)
        duals = self._gain[self._basis] @ self._inverse
        for _ in range(PIVOTS):
            reduced = self._gain - self._columns @ duals
            enters = int(reduced.argmax())
            if reduced[enters] <= ROUNDING:
                break
            change = self._inverse @ self._columns[enters]
            grows = change > ROUNDING
            if not grows.any():
                break
            ratio = np.full(rows, np.inf)
            ratio[grows] = self._level[grows] / change[grows]
            leaves = int(ratio.argmin())
            row, step = self._inverse[leaves] / change[leaves], ratio[leaves]
            self._inverse -= np.outer(change, row)
            self._inverse[leaves] = row
            self._level -= change * step
            self._level[leaves] = step
            self._basis[leaves] = enters
            duals = self._gain[self._basis] @ self._inverse
        prices = np.maximum(duals, 0.0)
        total = float(prices.sum())
        return prices / total, 1 / total

    def mix(self) -> tuple[Array, Floats]:
        """The columns of the best mix, by number in the order in which they came, and their shares, of sum 1."""
        rows = len(self._basis)
        used = (self._basis >= rows) & (self._level > ROUNDING)
        shares = self._level[used]
        return self._basis[used] - rows, shares / shares.sum()
