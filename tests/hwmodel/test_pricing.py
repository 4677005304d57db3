"""Prices by column generation equal the linear relaxation of a solver."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from hwmodel.pricing import Game


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_game_has_the_value_that_linear_programming_finds(seed: int) -> None:
    pick = np.random.default_rng(seed)
    rows, columns = int(pick.integers(1, 6)), int(pick.integers(1, 30))
    payoffs = pick.choice([pick.random((rows, columns)), pick.integers(1, 4, (rows, columns))]) + 0.01
    game = Game(rows)
    for column in payoffs.T:
        prices, value = game.add(column)
    want = linprog(
        np.append(np.zeros(columns), 1.0),
        A_ub=np.column_stack([payoffs, -np.ones(rows)]),
        b_ub=np.zeros(rows),
        A_eq=np.append(np.ones(columns), 0.0)[None],
        b_eq=[1.0],
    ).fun
    assert value == pytest.approx(want)
    # Both players reach the value, whatever the other one does.
    assert prices.min() >= 0
    assert prices.sum() == pytest.approx(1)
    assert (prices @ payoffs).min() == pytest.approx(want)
    numbers, shares = game.mix()
    assert shares.sum() == pytest.approx(1)
    assert (payoffs[:, numbers] @ shares).max() == pytest.approx(want)
