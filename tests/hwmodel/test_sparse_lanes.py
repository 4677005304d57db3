"""Memories of significant weights: wide enough that no lane waits, and the same in all ways to count them."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel import (
    INPUT,
    DataFlow,
    Granularity,
    LayerConfig,
    LayerSchedule,
    LayerSpec,
    NetworkConfig,
    NetworkSpec,
    Schedule,
    WeightFormat,
    WeightPlace,
    estimate,
    load_board,
    weight_storage,
)
from hwmodel.compute import folds
from hwmodel.cost import cost_of
from hwmodel.memory import RAMB18_BITS, URAM_SHAPE
from hwmodel.options import RESOURCES, Space
from hwmodel.precision import SIGNIFICANT_BIT_WIDTH
from hwmodel.resources import (
    Memory,
    SharedLayer,
    combine,
    shared_layer,
    shared_memories,
    sparse_lanes,
    weight_memories,
)
from hwmodel.segments import Segments
from tests.hwmodel.conftest import conv
from tests.hwmodel.problems import random_network

BOARD = load_board("zcu104")
SPACE = Space(shared_pe=(1, 4, 32), shared_simd=(2, 16, 128))
PLACES = (WeightPlace.BRAM, WeightPlace.URAM)


def planes(density: float, granularity: Granularity = Granularity.ELEMENT) -> LayerConfig:
    """A sign for each weight, and significant ones."""
    return LayerConfig(1, 4, 1 - density, "binary_plus_sparse", granularity)


def random_planes(network: NetworkSpec, pick: np.random.Generator) -> NetworkConfig:
    """Significant weights in most layers, of any density; layers that share weights alike."""
    drawn = {
        layer.name: planes(float(pick.choice([0.02, 0.2, 0.6, 1.0])), Granularity(pick.choice(list(Granularity))))
        if pick.random() < 0.8
        else LayerConfig(4, 4)
        for layer in network.weighted
    }
    return NetworkConfig(tuple((layer.name, drawn[layer.weights_of or layer.name]) for layer in network.weighted))


def some_network(pick: np.random.Generator) -> NetworkSpec:
    """A small one, or one of wide layers, whose memories of weights are wide and shallow."""
    if pick.random() < 0.5:
        return random_network(pick)
    layers = [conv("conv0", INPUT, 2, 64, 4)]
    for number in range(1, int(pick.integers(2, 6))):
        shares = number > 1 and pick.random() < 0.3
        layer = conv(f"conv{number}", layers[-1].name, 64, 64, 4, 1 if shares else int(pick.choice([1, 3])))
        owners = [one.name for one in layers if one.weight_shape == layer.weight_shape and one.weights_of is None]
        layers.append(replace(layer, weights_of=owners[0]) if shares and owners else layer)
    return NetworkSpec("wide", 2, 4, 4, tuple(layers))


def some_segments(pick: np.random.Generator, space: Space = SPACE) -> Segments:
    """Of `some_network` with `random_planes`."""
    network = some_network(pick)
    return Segments(network, random_planes(network, pick), BOARD, space)


def lane_bits(layer: LayerSpec, config: LayerConfig, pe: int, simd: int) -> int:
    """Bits of values and index that the fullest lane reads for an output pixel."""
    storage = weight_storage(layer, config)
    lanes = sparse_lanes(layer, config, storage, pe, simd)
    if not storage.keeps_any:
        return 0
    index_bits = -(-storage.index_bits // storage.kept_groups)
    return int(lanes.groups * (SIGNIFICANT_BIT_WIDTH * storage.weights_per_group + index_bits))


def values_memory(need: SharedLayer, pe: int, simd: int) -> Memory:
    """The shared engine's memory of significant weights."""
    (found,) = (memory for memory in shared_memories(need, pe, simd, WeightPlace.BRAM) if memory.purpose == "values")
    return found


@settings(max_examples=200, deadline=None)
@given(
    channels=st.integers(1, 48),
    out_channels=st.integers(1, 48),
    kernel=st.sampled_from([1, 3]),
    densities=st.lists(st.floats(0.001, 1), min_size=1, max_size=3),
    granularity=st.sampled_from(list(Granularity)),
    pe=st.sampled_from([1, 3, 16]),
    simd=st.sampled_from([1, 8, 64]),
    loads=st.booleans(),
)
def test_no_lane_of_the_shared_engine_waits_for_its_memory(
    channels: int,
    out_channels: int,
    kernel: int,
    densities: list[float],
    granularity: Granularity,
    pe: int,
    simd: int,
    loads: bool,
) -> None:
    """A row has a code for each multiplier, and the rows of a pixel's folds all that the fullest lane needs."""
    layer = conv("a", "input", channels, out_channels, 8, kernel)
    place = WeightPlace.LOADED_BRAM if loads else WeightPlace.BRAM
    plan = LayerSchedule("a", DataFlow.SPILLED, pe, simd, weight_place=place)
    needs, bits = [], []
    for config in (planes(density, granularity) for density in densities):
        storage = weight_storage(layer, config)
        if storage.keeps_any:
            needs.append(shared_layer(layer, config, storage, plan))
            bits.append(lane_bits(layer, config, pe, simd))
    if not needs:
        return
    need = combine(needs)
    memory = values_memory(need, pe, simd)
    row = memory.width // pe
    assert memory.width == row * pe
    assert row >= need.lane_multipliers * SIGNIFICANT_BIT_WIDTH
    assert row * folds(layer, pe, simd) >= max(bits)
    # All weights have room, and no more than that: a word of each layer and a row may have a rest.
    held = max(bits) if loads else sum(bits)
    assert held <= memory.depth * row < held + 18 * len(bits) + row


@settings(max_examples=200, deadline=None)
@given(
    channels=st.integers(1, 48),
    out_channels=st.integers(1, 48),
    kernel=st.sampled_from([1, 3]),
    weight_format=st.sampled_from(["sparse", "binary_plus_sparse"]),
    density=st.floats(0.001, 1),
    granularity=st.sampled_from(list(Granularity)),
    pe=st.sampled_from([1, 3, 16]),
    simd=st.sampled_from([1, 8, 64]),
)
def test_no_pipelined_layer_waits_for_its_weights(
    channels: int,
    out_channels: int,
    kernel: int,
    weight_format: str,
    density: float,
    granularity: Granularity,
    pe: int,
    simd: int,
) -> None:
    """No memory has more words than there are cycles for an output pixel, in which it gives one each."""
    layer = conv("a", "input", channels, out_channels, 8, kernel)
    config = LayerConfig(1, 4, 1 - density, WeightFormat(weight_format), granularity)
    storage = weight_storage(layer, config)
    plan = LayerSchedule("a", DataFlow.ROW_PIXEL, pe, simd, weight_place=WeightPlace.BRAM)
    lanes = sparse_lanes(layer, config, storage, pe, simd)
    for memory in weight_memories(layer, config, storage, lanes, plan):
        assert memory.depth <= folds(layer, pe, simd), memory
        if memory.purpose == "index" and weight_format == "binary_plus_sparse":
            assert memory.depth * memory.width * storage.kept_groups >= pe * lanes.groups * storage.index_bits


def test_a_layer_with_several_multipliers_per_lane() -> None:
    """A fifth of the weights in 8 bits, 32 products of an output channel: 7 multipliers, of 13 bits each."""
    layer, config = conv("a", "input", 128, 128, 28), planes(0.2)
    need = shared_layer(
        layer, config, weight_storage(layer, config), LayerSchedule("a", DataFlow.FRAME, 16, 32, weight_place=PLACES[0])
    )
    assert need.lane_multipliers == 7
    memory = values_memory(need, 16, 32)
    assert (memory.depth, memory.width) == (255, 16 * 90)
    assert memory.use("ultrascale_plus").bram18 == 40  # of words for one multiplier 24


def test_narrow_lanes_share_columns_of_block_ram() -> None:
    layer, config = conv("a", "input", 16, 16, 8), planes(0.02)
    need = shared_layer(
        layer, config, weight_storage(layer, config), LayerSchedule("a", DataFlow.FRAME, 4, 4, weight_place=PLACES[0])
    )
    assert need.lane_multipliers == need.lane_words == 1
    assert values_memory(need, 4, 4).depth == need.sparse_words


def test_a_report_has_one_memory_as_wide_as_its_widest_layer_reads() -> None:
    layers = (conv("a", "input", 16, 32, 8), conv("b", "a", 32, 32, 8), conv("c", "b", 32, 32, 8, kernel=1))
    network = NetworkSpec("n", 16, 8, 8, layers)
    configs = {"a": planes(0.02), "b": planes(0.5), "c": planes(0.1)}
    plans = [LayerSchedule(layer.name, DataFlow.FRAME, 4, 16, weight_place=WeightPlace.BRAM) for layer in layers]
    report = estimate(network, NetworkConfig(tuple(configs.items())), BOARD, Schedule("n", tuple(plans)))
    (row,) = (row for row in report.memories if row.purpose == "values")
    bits = [lane_bits(layer, configs[layer.name], 4, 16) for layer in layers]
    width = max(-(-own // folds(layer, 4, 16)) for own, layer in zip(bits, layers, strict=True))
    assert 4 * width <= row.width < 4 * (width + 36) and row.width % (4 * 18) == 0
    assert row.depth == -(-sum(-(-own // 18) for own in bits) // (row.width // (4 * 18)))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_options_of_the_shared_engine_are_what_the_report_says(seed: int) -> None:
    pick = np.random.default_rng(seed)
    segments = some_segments(pick)
    network = segments.network
    cuts = [one for one in segments.cuts if one.pipelined < len(network.layers)]
    cut = cuts[pick.integers(len(cuts))]
    cut = ([cut, *segments.loading(cut)])[-1]
    groups = segments.groups(cut, streams=True)
    for _ in range(4):
        picks = [int(pick.integers(len(group.cycles))) for group in groups]
        report = cost_of(network, segments.config, BOARD, segments.write(cut, groups, picks))
        used = sum(group.use[option] for group, option in zip(groups, picks, strict=True))
        assert [getattr(report, name) for name in RESOURCES] == np.asarray(used).tolist()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_bounds_of_weights_are_bounds(seed: int) -> None:
    """Memories of any width, in LUTs, block RAM or UltraRAM, take what is said at least; no split with room is lost."""
    pick = np.random.default_rng(seed)
    segments = some_segments(pick)
    engine, end = segments.engine, len(segments.network.layers)
    cuts = [same for one in segments.cuts if one.pipelined < end for same in (one, *segments.loading(one))]
    splits = [split for cut in cuts for split in engine.splits(cut)]
    rows = engine.rows(splits)
    depths = [split.cut.depths for split in splits]
    fixed = engine.uses.fixed(depths)[rows.split, rows.engine]
    use = rows.use - fixed.min(axis=1)  # of the memories of weights; multipliers do not change them
    in_uram = np.array([where is WeightPlace.URAM for _, where in engine.kinds])[rows.kind]
    bits = np.where(in_uram, use[:, 1] * prod(URAM_SHAPE), use[:, 0] * RAMB18_BITS)
    taken = engine.room_taken(splits)
    assert (taken[rows.split, rows.engine] <= bits).all()
    for number in pick.choice(len(rows.split), 5).tolist():
        split = splits[rows.split[number]]
        for known in ([split.cut], cuts):  # alone, and among others
            rooms = np.full((len(known), len(engine.grid[0])), -1.0)
            rooms[known.index(split.cut), rows.engine[number]] = bits[number]
            place, resident, _ = engine.with_room(known, rooms, 2**62)
            found = {(known[one], kept) for one, kept in zip(place.tolist(), resident.tolist(), strict=True)}
            assert (split.cut, split.resident) in found


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_stored_bits_have_room_in_block_ram_and_luts(seed: int) -> None:
    """What `most_in_luts` says beside the block RAM taken is room for all weights that are resident."""
    pick = np.random.default_rng(seed)
    segments = some_segments(pick, replace(SPACE, shared_pe=(32, 128)))
    engine = segments.engine
    cut = segments.cuts[[one.depths for one in segments.cuts].index((0, 0))]
    splits = [split for split in engine.splits(cut) if split.resident]
    rows = engine.rows(splits)
    bits = (rows.use - engine.uses.fixed([(0, 0)])[0, rows.engine].min(axis=1))[:, 0] * RAMB18_BITS
    resident = np.array([split.resident for split in splits])[rows.split]
    in_bram = np.array([where is WeightPlace.BRAM for _, where in engine.kinds])[rows.kind]
    order = engine.residency(cut)
    owned = [0 if segments.network.layers[index].weights_of else segments.facts[index].weight_bits for index in order]
    stored = np.append(0, np.cumsum(owned))[resident]
    assert (stored <= bits + engine.most_in_luts[rows.engine])[in_bram].all()


def test_wide_memories_in_luts_exclude_no_split() -> None:
    """Rows of many bits lie in LUTs where they are few: all weights, without any block RAM."""
    layers = (conv("a", INPUT, 64, 64, 8), conv("b", "a", 64, 64, 8), conv("c", "b", 64, 64, 8))
    network = NetworkSpec("wide", 64, 8, 8, layers)
    config = NetworkConfig((("a", LayerConfig(8, 4)), ("b", planes(0.9, Granularity.KERNEL)), ("c", LayerConfig(8, 4))))
    segments = Segments(network, config, BOARD, replace(SPACE, shared_pe=(32,), shared_simd=(128,)))
    engine, cuts = segments.engine, [one for one in segments.cuts if one.pipelined < 3]
    whole = next(one for one in cuts if one.depths == (0, 0))
    split = engine.all_resident(whole)
    assert (engine.rows([split]).use[:, 0] == engine.uses.fixed([(0, 0)])[..., 0].max()).all()
    assert engine.room_taken([split]) == 0
    rooms = np.where(np.array([[one is whole] for one in cuts]), 0.0, -1.0)
    number, resident, _ = engine.with_room(cuts, rooms, 2**62)
    assert (cuts.index(whole), 3) in zip(number.tolist(), resident.tolist(), strict=True)
    assert engine.most_in_luts >= sum(facts.weight_bits for facts in segments.facts.values())


@pytest.mark.parametrize("density", [0.02, 0.5])
def test_lanes_are_part_of_what_engines_take(density: float, residual_network: NetworkSpec) -> None:
    config = NetworkConfig(tuple((layer.name, planes(density)) for layer in residual_network.weighted))
    segments = Segments(residual_network, config, BOARD, SPACE)
    depths = [one.depths for one in segments.cuts if not one.pipelined]
    assert (segments.engine.uses.lanes(depths) <= segments.engine.uses.fixed(depths).min(axis=2)).all()
    assert segments.engine.uses.lanes(depths)[..., RESOURCES.index("dsp")].all()
