"""Bounds of a split that cost little are bounds of its options."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hwmodel import LayerConfig, NetworkConfig, NetworkSpec, WeightFormat, load_board, load_network
from hwmodel.bounds import OpenSplits, cuts_that_may_reach
from hwmodel.chains import Split
from hwmodel.choices import NO_LIMIT, Mask
from hwmodel.memory import RAMB18_BITS, URAM_SHAPE
from hwmodel.options import RESOURCES, Space
from hwmodel.scheduler import Scheduler
from hwmodel.segments import Segments
from hwmodel.split_options import SplitOptions


@pytest.mark.parametrize("board", ["zcu102", "kv260"])
@pytest.mark.parametrize("seed", range(3))
def test_no_split_is_excluded_that_its_options_do_not_exclude(board: str, seed: int) -> None:
    network, device = load_network("resnet20"), load_board(board)
    pick = np.random.default_rng(seed)
    choices = [LayerConfig(4, 4), LayerConfig(8, 8), LayerConfig(1, 4, 0.8, WeightFormat.BINARY_PLUS_SPARSE)]
    pairs = tuple((layer.name, choices[pick.integers(3)]) for layer in network.weighted)
    segments = Scheduler(network, device).segments(NetworkConfig(pairs))
    cuts = segments.cuts[::7]
    splits = [split for cut in cuts for split in segments.engine.splits(cut)]
    excluded = 0
    for tight in (8, 32, 128):
        budgets = np.array([getattr(device, name) for name in RESOURCES]) // tight
        prices = pick.dirichlet(np.full(len(RESOURCES), 0.5), 4)
        opened = OpenSplits(segments, budgets, device.uram > 0, cuts, list(prices[:2]), NO_LIMIT)
        opened.exclude(list(prices[2:]))
        kept = _all_of(opened)
        options = SplitOptions(segments, splits)
        no_engine = options.depth == len(network.layers)
        may_fit = np.flatnonzero(no_engine & (options.fill(budgets, prices) <= 1))
        assert {splits[number] for number in may_fit} <= kept.keys()
        # What rows of the shared engine leave to the cheapest options of the pipelined layers, at all prices.
        assert options.rows is not None
        scaled = (prices / np.maximum(budgets, 1)).T
        fits = (options.before(scaled)[options.depth[options.rows.split]] + options.rows.use @ scaled <= 1).all(axis=1)
        may_fit_on = zip(options.rows.split[fits].tolist(), options.rows.engine[fits].tolist(), strict=True)
        open_on = {(split, engine) for split, has_room in kept.items() for engine in np.flatnonzero(has_room)}
        assert {(splits[number], engine) for number, engine in may_fit_on} <= open_on
        excluded += len(splits) - len(kept)
    assert excluded


def _all_of(opened: OpenSplits) -> dict[Split, Mask]:
    """All open splits, and which engines of each are open."""
    found: dict[Split, Mask] = {}
    while (part := opened.take(100, NO_LIMIT))[0]:
        found.update(zip(*part, strict=True))
    return found


@pytest.mark.parametrize("board", ["zcu102", "kv260"])
@pytest.mark.parametrize("planes", [False, True])
def test_no_split_that_loads_weights_is_excluded_that_fits(board: str, planes: bool) -> None:
    network, device = load_network("resnet20"), load_board(board)
    layer_config = LayerConfig(1, 4, 0.6, "binary_plus_sparse") if planes else LayerConfig(4, 4)
    config = NetworkConfig(tuple((layer.name, layer_config) for layer in network.weighted))
    space = replace(Space(), shared_simd=(1,)) if planes else Space()  # memories of significant values count most
    segments = Segments(network, config, device, space)
    spilled = [one for one in segments.cuts if one.spilled][::4]
    cuts = [one for cut in spilled for one in segments.loading(cut)]
    splits = [split for cut in cuts for split in segments.engine.splits(cut)]
    rows = segments.engine.rows(splits)
    counts = []
    for tight in (8, 32, 64):
        budgets = np.array([getattr(device, name) for name in RESOURCES]) // tight
        fits = (rows.use <= budgets).all(axis=1)
        fitting = {splits[number] for number in np.unique(rows.split[fits])}
        opened = OpenSplits(segments, budgets, device.uram > 0, cuts, list(np.eye(len(RESOURCES))), NO_LIMIT)
        kept = _all_of(opened)
        assert fitting <= kept.keys()
        counts.append((len(fitting), len(kept)))
    assert 0 < counts[1][0] <= counts[1][1] < len(splits)


@pytest.mark.parametrize("board", ["zcu102", "kv260", "pynq_z2"])
@pytest.mark.parametrize(
    "layer_config",
    [LayerConfig(1, 8), LayerConfig(8, 8), LayerConfig(1, 4, 0.6, WeightFormat.BINARY_PLUS_SPARSE)],
    ids=["1 bit", "8 bit", "planes"],
)
def test_no_cut_is_left_out_that_reaches_a_limit(
    board: str, layer_config: LayerConfig, sharing_network: NetworkSpec
) -> None:
    device, left_out = load_board(board), 0
    for network in (load_network("resnet20"), sharing_network):
        config = NetworkConfig(tuple((layer.name, layer_config) for layer in network.weighted))
        segments = Scheduler(network, device).segments(config)
        engine, cuts = segments.engine, [one for one in segments.cuts if one.spilled]
        splits = [split for cut in cuts[::4] for one in (cut, *segments.loading(cut)) for split in engine.splits(one)]
        rows = engine.rows(splits)
        for tight in (1, 8, 64):
            budgets = np.array([getattr(device, name) for name in RESOURCES]) // tight
            fitting = [splits[number] for number in np.unique(rows.split[(rows.use <= budgets).all(axis=1)])]
            for limit in sorted({split.offchip_bits for split in fitting})[::5]:
                kept = {one.spilled for one in cuts_that_may_reach(engine, cuts, budgets, limit)}
                assert {one.cut.spilled for one in fitting if one.offchip_bits <= limit} <= kept
                left_out += len(cuts) - len(kept)
    assert left_out


def test_open_splits_come_once_and_in_the_order_of_their_off_chip_bits() -> None:
    network, device = load_network("resnet20"), load_board("zcu102")
    config = NetworkConfig(tuple((layer.name, LayerConfig(4, 4)) for layer in network.weighted))
    segments = Scheduler(network, device).segments(config)
    cuts = segments.cuts[::9]
    want = sorted(split.offchip_bits for one in cuts for split in segments.engine.splits(one))
    limit = want[len(want) // 2]
    budgets, prices = np.full(len(RESOURCES), NO_LIMIT), list(np.eye(len(RESOURCES)))
    opened = OpenSplits(segments, budgets, True, cuts, prices, limit)
    found: list[Split] = []
    while part := opened.take(5, limit)[0]:
        found += part
    assert len(set(found)) == len(found)
    assert [split.offchip_bits for split in found] == [bits for bits in want if bits < limit]
    assert {split.offchip_bits for split in opened.of(limit)} == {limit}


@pytest.mark.parametrize("tight", [8, 32])
def test_open_engines_have_room_beside_all_that_they_take(tight: int) -> None:
    network, device = load_network("resnet20"), load_board("zcu102")
    config = NetworkConfig(tuple((layer.name, LayerConfig(4, 4)) for layer in network.weighted))
    segments = Scheduler(network, device).segments(config)
    budgets = np.array([getattr(device, name) for name in RESOURCES]) // tight
    prices = np.random.default_rng(tight).dirichlet(np.full(len(RESOURCES), 0.5), 6)
    opened = OpenSplits(segments, budgets, True, segments.cuts, list(prices[:2]), NO_LIMIT)
    found = list(zip(*opened.take(5, NO_LIMIT), strict=True))
    early = len(found)
    for more in (prices[2:4], prices[4:]):
        opened.exclude(list(more))
    while (part := opened.take(50, NO_LIMIT))[0]:
        found += zip(*part, strict=True)
    assert 0 < early < len(found)
    scaled = (prices / np.maximum(budgets, 1)).T
    before = SplitOptions(segments, ()).before(scaled)
    per_bit = [scaled[0] / RAMB18_BITS, scaled[1] / np.prod(URAM_SHAPE)]
    for number, (split, has_room) in enumerate(found):
        uses = segments.engine.uses.fixed([split.cut.depths])[0]
        left = 1 + 1e-6 - before[split.cut.pipelined] - uses @ scaled
        taken = segments.engine.room_taken([split])[0][:, None, None]
        fits = np.ones(len(has_room), dtype=bool)
        # Prices that come together count together.
        for together in (slice(2), slice(2, 4), slice(4, 6))[: 1 if number < early else 3]:
            in_one = [(taken * bit <= left)[..., together].all(axis=2) for bit in per_bit]
            fits &= np.any(in_one, axis=0).any(axis=1)
        assert (has_room <= fits).all()
