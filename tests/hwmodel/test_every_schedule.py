"""The schedule is the best of all that the scheduler's docstring words, each written down and reported by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel import (
    DataFlow,
    LayerSchedule,
    LayerSpec,
    Multiplier,
    NetworkConfig,
    NetworkSpec,
    Schedule,
    WeightPlace,
    load_board,
    weight_storage,
)
from hwmodel.cost import cost_of
from hwmodel.folding import ingest_channels, pipelined_foldings
from hwmodel.options import Space
from hwmodel.scheduler import search
from hwmodel.segments import Segments
from tests.hwmodel.problems import (
    SPACE,
    random_config,
    random_network,
)

Way = tuple[list[str], set[str]]
"""Layers in the order in which their weights become resident, and those that load them whole if they are not."""


def by_rows(shared: Sequence[LayerSpec], spilled: set[str]) -> Way:
    """Nothing is loaded: most rows first."""
    weighted = [layer for layer in shared if layer.has_weights]
    heights = {layer.name: layer.out_height if layer.name in spilled else 1 for layer in weighted}
    return sorted(heights, key=lambda name: -heights[name]), set()


def loaded_whole(shared: Sequence[LayerSpec], spilled: set[str], config: NetworkConfig) -> Iterator[Way]:
    """Spilled layers up to a size are loaded, any size: most bits saved per resident bit first, then the largest."""
    sizes = {layer.name: weight_storage(layer, config[layer.name]).weight_bits for layer in shared if layer.has_weights}
    tall = {layer.name for layer in shared if layer.out_height > 1 and layer.name in spilled and layer.has_weights}
    for most in sorted({sizes[name] for name in tall}):
        loads = {name for name in tall if sizes[name] <= most}
        reads = {
            layer.name: layer.out_height if layer.name in spilled - loads else 1
            for layer in shared
            if layer.has_weights
        }
        together = {layer.name: layer.weights_of if layer.weights_of in sizes else layer.name for layer in shared}
        saved = {name: sum(reads[other] for other in reads if together[other] == together[name]) for name in reads}
        place = [layer.name for layer in shared].index
        yield (
            sorted(reads, key=lambda name: (-saved[name], -sizes[name], place(str(together[name])), place(name))),
            loads,
        )


def every_schedule(network: NetworkSpec, config: NetworkConfig, space: Space) -> Iterator[Schedule]:
    """The space as the scheduler's docstring words it, one schedule after the other."""
    layers = network.layers
    cuts = [i for i, layer in enumerate(layers) if layer.has_weights or i == 0] + [len(layers)]

    def pipelined(layer: LayerSpec) -> list[LayerSchedule]:
        if not layer.has_weights:
            lanes = [n for n in range(1, layer.out_channels + 1) if layer.out_channels % n == 0]
            return [LayerSchedule(layer.name, space.data_flows[0], 1, n) for n in lanes]
        multipliers = space.multipliers if config[layer.name].weight_bit_width > 1 else space.multipliers[:1]
        return [
            LayerSchedule(layer.name, flow, pe, simd, ingest_channels(layer, pe, simd), multiplier, WeightPlace.BRAM)
            for pe, simd in pipelined_foldings(layer)
            if pe <= space.pipelined_pe and pe * simd <= space.pipelined_products
            for flow in space.data_flows
            for multiplier in multipliers
        ]

    for cut, spills in product(cuts, (False, True)):
        before = [] if spills else [pipelined(layer) for layer in layers[:cut]]
        shared = layers[0 if spills else cut :]
        spilled = {layer.name for layer in layers[:cut] if spills}
        ways = [by_rows(shared, spilled), *loaded_whole(shared, spilled, config)]
        engines = product(space.shared_pe, space.shared_simd, space.multipliers, ways, range(len(layers) + 1))
        for pe, simd, multiplier, (weighted, loads), resident in (
            engines if shared else [(1, 1, Multiplier.LUT, ([], set()), 0)]
        ):
            if resident > len(weighted):
                continue
            rest = [
                LayerSchedule(
                    layer.name,
                    DataFlow.SPILLED if layer.name in spilled else DataFlow.FRAME,
                    pe,
                    simd,
                    1,
                    multiplier,
                    WeightPlace.NONE
                    if not layer.has_weights
                    else WeightPlace.BRAM
                    if layer.name in weighted[:resident]
                    else WeightPlace.LOADED_BRAM
                    if layer.name in loads
                    else WeightPlace.STREAMED,
                )
                for layer in shared
            ]
            for plans in product(*before):
                yield Schedule(network.name, (*plans, *rest))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_equals_the_best_of_all_reports(seed: int) -> None:
    """Nothing in common with the scheduler but the wording of the space and the report of one schedule."""
    pick = np.random.default_rng(seed)
    network = random_network(pick)
    network = NetworkSpec("random", 2, 8, 8, network.layers[:3])
    config = random_config(network, pick)
    board = replace(
        load_board("vc707"),
        bram18=int(pick.integers(1, 14)),
        lut=int(pick.choice([1500, 2500, 5000])),
        dsp=int(pick.choice([3, 8, 30])),
    )
    space = replace(SPACE, pipelined_pe=2, pipelined_products=2, shared_pe=(1, 4), shared_simd=(2,))
    reports = [cost_of(network, config, board, plan) for plan in every_schedule(network, config, space)]
    goals = [(r.offchip_bits, r.interval_cycles, r.bram18) for r in reports if r.fits]
    best = search(Segments(network, config, board, space), board)
    assert (best is None) == (not goals)
    if best is not None:
        assert (best.offchip_bits, best.interval_cycles, best.bram18) == min(goals)
        assert best.is_proven
