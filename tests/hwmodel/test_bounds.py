"""Bounds of a cut that cost little are bounds of its options."""

from __future__ import annotations

import numpy as np
import pytest

from hwmodel import LayerConfig, NetworkConfig, load_board, load_network
from hwmodel.memory import RAMB18_BITS, URAM_SHAPE
from hwmodel.options import RESOURCES
from hwmodel.scheduler import Scheduler
from hwmodel.shared import Split


@pytest.mark.parametrize("board", ["zcu102", "kv260"])
@pytest.mark.parametrize("seed", range(3))
def test_engine_takes_what_it_takes_without_weights_and_their_bits(board: str, seed: int) -> None:
    network = load_network("resnet20")
    pick = np.random.default_rng(seed)
    choices = [LayerConfig(4, 4), LayerConfig(8, 8), LayerConfig(1, 4, 0.8, "binary_plus_sparse")]
    pairs = tuple((layer.name, choices[pick.integers(3)]) for layer in network.weighted)
    segments = Scheduler(network, load_board(board)).segments(NetworkConfig(pairs))
    engine = segments.engine
    for _ in range(5):
        price = pick.dirichlet(np.full(len(RESOURCES), 0.5))
        # A bit of block RAM or, where weights may lie there, of UltraRAM.
        per_bit = price[0] / RAMB18_BITS
        if load_board(board).uram:
            per_bit = min(per_bit, price[1] / np.prod(URAM_SHAPE))
        for candidate in segments.candidates[:-1:7]:
            bits = engine.offchip_bits(candidate)
            splits = [Split(candidate, resident, int(bits[resident])) for resident in range(len(bits))]
            if candidate.pipelined == len(network.layers):
                continue
            bare = (engine.rows(splits[-1:], bare=True).use @ price).min()
            rows = engine.rows(splits)
            whole = [(rows.use[rows.of_split(number)] @ price).min() for number in range(len(splits))]
            assert (bare + engine.weight_memory_bits(candidate) * per_bit <= np.array(whole) * (1 + 1e-9)).all()
