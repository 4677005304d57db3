"""Each configuration counts under the best of several schedules, at exactly its cost there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hwmodel import BudgetError, CostTable, CostTables, LayerConfig, estimate, load_board, load_network
from hwmodel.table import COLUMNS

NETWORK = load_network("resnet20")
CHOICES = [
    LayerConfig(1, 4),
    LayerConfig(1, 4, 0.95, "binary_plus_sparse"),
    *(LayerConfig(w, 4) for w in (2, 4, 8)),
]
TIGHT = replace(load_board("pynq_z2"), bram18=90)
ALL = {layer.name: CHOICES for layer in NETWORK.weighted}


def draw(count: int) -> np.ndarray:
    """Configurations from light to heavy, shape (count, layers)."""
    rng = np.random.default_rng(0)
    heaviest = rng.integers(1, len(CHOICES) + 1, (count, 1))
    return (rng.random((count, len(NETWORK.weighted))) * heaviest).astype(np.int64)


def test_every_row_is_the_best_of_the_tables_and_exact() -> None:
    tables = CostTables(NETWORK, TIGHT, ALL, min_fps=200)
    assert len({table.schedule for table in tables.tables}) == len(tables.tables) > 1
    indices = draw(40)
    found = tables.evaluate(indices)
    each = [table.evaluate(indices) for table in tables.tables]
    assert tuple(found) == COLUMNS
    used = set()
    for row in range(len(indices)):

        def order(columns: dict[str, np.ndarray], row: int = row) -> tuple[float, ...]:
            return (
                not columns["fits"][row],
                columns["fps"][row] < 200,
                *(float(columns[name][row]) for name in ("offchip_bits", "interval_cycles", "bram18")),
            )

        best = min(range(len(each)), key=lambda i: order(each[i]))
        used.add(best)
        assert order(found) == order(each[best])
        report = estimate(NETWORK, tables.tables[best].config(indices[row]), TIGHT, tables.tables[best].schedule)
        assert (found["bram18"][row], found["lut"][row]) == (each[best]["bram18"][row], each[best]["lut"][row])
        assert found["offchip_bits"][row] == report.offchip_bits
    assert len(used) > 1


def test_light_configurations_keep_their_weights_on_the_chip_where_heavy_ones_cannot() -> None:
    indices = draw(200)
    one, several = CostTable(NETWORK, TIGHT, ALL).evaluate(indices), CostTables(NETWORK, TIGHT, ALL).evaluate(indices)
    assert (several["fits"] >= one["fits"]).all()
    both = one["fits"] & several["fits"]
    assert (several["offchip_bits"] <= one["offchip_bits"])[both].all()
    assert several["offchip_bits"].min() < one["offchip_bits"].min() / 4


def test_a_board_that_is_too_small_for_the_cheapest_choices_is_refused() -> None:
    with pytest.raises(BudgetError):
        CostTables(NETWORK, replace(TIGHT, lut=100), ALL)
