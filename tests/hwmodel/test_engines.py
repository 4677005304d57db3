"""What shared engines take beside weights: the scalar formulas, layer by layer, at every cut of random networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel import DataFlow, LayerConfig, LayerSchedule, Multiplier, NetworkSpec, WeightPlace, load_board, uniform
from hwmodel.memory import RAMB18_BITS
from hwmodel.network import FRAME_ENGINE
from hwmodel.option_cache import OptionCache
from hwmodel.options import RESOURCES, Space
from hwmodel.precision import NetworkConfig
from hwmodel.resources import (
    WEIGHTS,
    Memory,
    combine,
    frame_buffer_shape,
    shared_array,
    shared_layer,
    shared_memories,
    shared_norms,
)
from hwmodel.segments import Segments
from hwmodel.storage import weight_storage
from hwmodel.traffic import elements, place
from tests.hwmodel.problems import random_config, random_network

SPACE = Space(shared_pe=(1, 4), shared_simd=(2, 16))
BOARD = load_board("zcu104")


def segments_of(network: NetworkSpec, config: NetworkConfig) -> Segments:
    """All parts on a board that has UltraRAM."""
    return Segments(network, config, BOARD, SPACE)


def used(segments: Segments, cut: tuple[int, int], pe: int, simd: int, multiplier: Multiplier) -> list[int]:
    """Resources of one engine without its weights, by the scalar formulas."""
    network, config, (pipelined, spilled) = segments.network, segments.config, cut
    needs = []
    for index, layer in enumerate(network.layers):
        if layer.has_weights and index >= pipelined:
            flow = DataFlow.SPILLED if index < spilled else DataFlow.FRAME
            plan = LayerSchedule(layer.name, flow, pe, simd, 1, multiplier, WeightPlace.BRAM)
            storage = weight_storage(layer, config[layer.name])
            needs.append(shared_layer(layer, config[layer.name], storage, plan))
    need = combine([*needs, shared_norms(network.layers[pipelined:])])
    array = shared_array(need, pe, simd, multiplier, BOARD.family)
    without_weights = replace(need, **dict.fromkeys(WEIGHTS, 0))
    memories = list(shared_memories(without_weights, pe, simd, WeightPlace.BRAM))
    rest = len(network.layers) - pipelined - spilled
    flows = (DataFlow.ROW_PIXEL,) * pipelined + (DataFlow.SPILLED,) * spilled + (DataFlow.FRAME,) * rest
    for buffer in place(network, flows).buffers:
        bits = max(elements(network, tensor) * segments.widths[tensor] for tensor in buffer.tensors)
        widest = max(segments.widths[tensor] for tensor in buffer.tensors)
        memories.append(Memory(FRAME_ENGINE, "frame_buffer", *frame_buffer_shape(bits, widest, simd)))
    uses = [memory.use(BOARD.family) for memory in memories]
    lutram = sum(use.lutram_luts for use in uses)
    return [sum(use.bram18 for use in uses), sum(use.uram for use in uses), array.lut + lutram, array.dsp]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_uses_are_those_of_the_scalar_formulas(seed: int) -> None:
    pick = np.random.default_rng(seed)
    network = random_network(pick)
    segments = segments_of(network, random_config(network, pick))
    end = len(network.layers)
    cuts = [one.depths for one in segments.cuts if one.pipelined < end]
    found = segments.engine.uses.fixed(cuts)
    assert found.shape == (len(cuts), 4, len(SPACE.multipliers), len(RESOURCES))
    for number in pick.choice(len(cuts), min(len(cuts), 3), replace=False):
        for engine, (pe, simd) in enumerate(zip(*(values.tolist() for values in SPACE.shared_grid), strict=True)):
            for kind, multiplier in enumerate(SPACE.multipliers):
                assert found[number, engine, kind].tolist() == used(segments, cuts[number], pe, simd, multiplier)


def test_uses_do_not_depend_on_what_was_asked_about_before(residual_network: NetworkSpec) -> None:
    cache = OptionCache()
    for weight_bits, act_bits in ((4, 4), (4, 8), (8, 4), (8, 8), (1, 2)):
        layer_config = LayerConfig(weight_bits, act_bits)
        config = NetworkConfig(tuple((layer.name, layer_config) for layer in residual_network.weighted))
        after, anew = Segments(residual_network, config, BOARD, SPACE, cache), segments_of(residual_network, config)
        cuts = [one.depths for one in anew.cuts if one.pipelined < len(residual_network.layers)]
        assert (after.engine.uses.fixed(cuts) == anew.engine.uses.fixed(cuts)).all()


@pytest.mark.parametrize("bram18", [0, 3, 300])
def test_room_is_what_the_best_multiplier_leaves(residual_network: NetworkSpec, bram18: int) -> None:
    segments = segments_of(residual_network, uniform(residual_network, 4, 4))
    uses = segments.engine.uses.fixed([(0, 0), (5, 0)])
    budgets = np.array([bram18, 0, 10**6, 10**6])
    rooms = segments.engine.uses.rooms(uses, budgets)
    left = (budgets - uses)[..., 0].max(axis=2)  # block RAM does not depend on the multiplier
    assert (rooms == np.where((left >= 0) & (uses[..., 1].max(axis=2) == 0), left * RAMB18_BITS, -1)).all()
    assert (segments.engine.uses.rooms(uses, np.array([10**6, 10**6, 0, 10**6])) == -1).all()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_options_do_not_depend_on_which_cuts_are_asked_about_first(seed: int) -> None:
    pick = np.random.default_rng(seed)
    network = random_network(pick)
    config = random_config(network, pick)
    together, one_by_one = segments_of(network, config).engine, segments_of(network, config).engine
    segments = segments_of(network, config)
    cuts = [one for one in segments.cuts if one.pipelined < len(network.layers)]
    cuts += [loading for one in cuts if one.spilled for loading in segments.loading(one)]
    splits = [split for cut in cuts for split in segments.engine.splits(cut)]
    rows = together.rows(splits)
    least = segments.engine.least_cycles(cuts).tolist()
    for number in pick.permutation(len(splits)).tolist():
        split = splits[number]
        found, those = one_by_one.rows([split]), rows.of_split(number)
        for column in ("cycles", "use", "engine", "kind"):
            assert (getattr(found, column) == getattr(rows, column)[those]).all()
        assert least[cuts.index(split.cut)] <= found.cycles.min()
        assert one_by_one.residency(split.cut) == together.residency(split.cut)
        assert split in one_by_one.splits(split.cut)
