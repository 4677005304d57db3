"""The table equals the scalar reference, column by column."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel import (
    INPUT,
    CostTable,
    DataFlow,
    HostInterface,
    LayerConfig,
    LayerSchedule,
    LayerSpec,
    Multiplier,
    NetworkConfig,
    NetworkSpec,
    Op,
    Schedule,
    SpecError,
    WeightPlace,
    estimate,
    estimate_many,
    load_board,
    schedule,
    uniform,
)
from hwmodel.table import COLUMNS
from tests.hwmodel.conftest import conv

BOARD = load_board("zcu104")

PLANES = [
    LayerConfig(1, a, s, "binary_plus_sparse", g) for a in (4, 8) for s in (0.98, 0.8) for g in ("element", "kernel")
]
CHOICES = [
    *(LayerConfig(w, a) for w in (1, 2, 4, 8) for a in (2, 4, 8, 16)),
    *PLANES,
    *(LayerConfig(w, 4, s, "sparse") for w in (1, 4) for s in (0.5, 0.9)),
]


def some_schedule(network: NetworkSpec, cut: int, spilled: int, pick: np.random.Generator) -> Schedule:
    """Any valid schedule: `cut` pipelined layers, then `spilled` ones, then frame-based ones."""
    engine = (
        int(pick.choice([1, 2, 8])),
        int(pick.choice([1, 4])),
        Multiplier(pick.choice(["dsp", "dsp_packed", "lut"])),
    )
    weights = [WeightPlace.BRAM, WeightPlace.STREAMED, WeightPlace.URAM]
    plans = []
    for i, layer in enumerate(network.layers):
        places = weights if i < cut else weights[:2]
        if cut <= i < cut + spilled:
            places = [*places, WeightPlace.LOADED_BRAM]
        place = pick.choice(places) if layer.has_weights else WeightPlace.NONE
        if i < cut:
            flow = pick.choice([DataFlow.ROW_PIXEL, DataFlow.ROW_PASS])
            pe, simd, multiplier = int(pick.choice([1, 2, 4])), int(pick.choice([1, 2, 3])), Multiplier.DSP
            plans.append(LayerSchedule(layer.name, flow, pe, simd, 1, multiplier, place))
        else:
            flow = DataFlow.SPILLED if i < cut + spilled else DataFlow.FRAME
            plans.append(LayerSchedule(layer.name, flow, engine[0], engine[1], 1, engine[2], place))
    host = HostInterface(32, 32) if pick.random() < 0.3 else HostInterface()
    return Schedule(network.name, tuple(plans), host)


@settings(max_examples=45, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), which=st.integers(0, 2))
def test_equals_estimate(small_networks: tuple[NetworkSpec, ...], seed: int, which: int) -> None:
    rng = np.random.default_rng(seed)
    network = small_networks[which]
    cut = int(rng.integers(0, len(network.layers) + 1))
    spilled = int(rng.integers(0, len(network.layers) + 1 - cut))
    plan = some_schedule(network, cut, spilled, rng)
    choices = {
        layer.name: [CHOICES[i] for i in rng.permutation(len(CHOICES))[: rng.integers(1, 6)]]
        for layer in network.weighted
    }
    owners = [layer.weights_of or layer.name for layer in network.weighted]
    choices = {layer.name: choices[owner] for layer, owner in zip(network.weighted, owners, strict=True)}
    table = CostTable(network, BOARD, choices, plan, sum_bit_width=int(rng.choice([4, 8, 16])))
    indices = np.stack([rng.integers(0, len(choices[name]), 5) for name in table.layers], axis=1)
    indices = indices[:, [table.layers.index(owner) for owner in owners]]
    columns = table.evaluate(indices)
    for row in range(len(indices)):
        report = estimate(network, table.config(indices[row]), BOARD, plan)
        for name, values in columns.items():
            assert values[row] == pytest.approx(getattr(report, name), rel=1e-12), name


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), which=st.integers(0, 2))
def test_many_equal_one_by_one(small_networks: tuple[NetworkSpec, ...], seed: int, which: int) -> None:
    rng = np.random.default_rng(seed)
    network = small_networks[which]
    plan = some_schedule(network, int(rng.integers(0, len(network.layers))), 1, rng)
    configs = []
    for _ in range(6):
        drawn = {layer.name: replace(CHOICES[rng.integers(len(CHOICES))]) for layer in network.weighted}
        pairs = [(layer.name, drawn[layer.weights_of or layer.name]) for layer in network.weighted]
        rng.shuffle(pairs)
        configs.append(NetworkConfig(tuple(pairs), sum_bit_width=int(rng.choice([4, 8]))))
    columns = estimate_many(network, configs, BOARD, plan)
    for row, config in enumerate(configs):
        report = estimate(network, config, BOARD, plan)
        for name, values in columns.items():
            assert values[row] == pytest.approx(getattr(report, name), rel=1e-12), name


POOL = LayerSpec("p", Op.MAX_POOL, ("a",), 4, 8, 8, 4, 4, 4, (2, 2), (2, 2))
NORM = LayerSpec("p", Op.GROUP_NORM, ("a",), 4, 8, 8, 4, 8, 8)


@pytest.mark.parametrize("widths", [(4,), (4, 8, 16)])
@pytest.mark.parametrize("last", [POOL, NORM], ids=["pool", "norm"])
def test_a_shared_engine_without_layers_with_weights_has_its_buffers(last: LayerSpec, widths: tuple[int, ...]) -> None:
    network = NetworkSpec("n", 3, 8, 8, (conv("a", INPUT, 3, 4, 8), last))
    plans = [
        LayerSchedule("a", DataFlow.ROW_PIXEL, 1, 1, weight_place=WeightPlace.BRAM),
        LayerSchedule("p", DataFlow.FRAME, 1, 4),
    ]
    plan, choices = Schedule("n", tuple(plans)), {"a": [LayerConfig(4, width) for width in widths]}
    table = CostTable(network, BOARD, choices, plan)
    indices = np.arange(len(widths))[:, None]
    configs = [table.config(row) for row in indices]
    for columns in (
        table.evaluate(indices),
        table.evaluate(indices.astype("u8")),
        estimate_many(network, configs, BOARD, plan),
    ):
        for row, config in enumerate(configs):
            report = estimate(network, config, BOARD, plan)
            assert report.lut > 0 and any(memory.purpose == "frame_buffer" for memory in report.memories)
            for name, values in columns.items():
                assert values[row] == pytest.approx(getattr(report, name), rel=1e-12), name


def test_wide_codes_are_read_as_fast_as_narrow_ones(plain_network: NetworkSpec) -> None:
    plans = [
        LayerSchedule(layer.name, DataFlow.SPILLED if i == 0 else DataFlow.FRAME, 2, 4, weight_place=WeightPlace.BRAM)
        for i, layer in enumerate(plain_network.layers)
    ]
    for bits, width in ((4, 8), (8, 8), (16, 16)):
        report = estimate(
            plain_network,
            uniform(plain_network, 4, bits, end_bit_width=None),
            BOARD,
            Schedule(plain_network.name, tuple(plans)),
        )
        read = [memory for memory in report.memories if memory.purpose in ("frame_buffer", "line_buffer")]
        assert len(read) > 1 and all(memory.width == 4 * width for memory in read)


def test_many_are_refused_like_one(plain_network: NetworkSpec) -> None:
    config = uniform(plain_network, 2, 4)
    best = schedule(plain_network, config, BOARD)
    with pytest.raises(SpecError, match="no configurations are given"):
        estimate_many(plain_network, [], BOARD, best)
    with pytest.raises(SpecError, match=r"missing \['three'\], unknown \[\]"):
        estimate_many(plain_network, [config, NetworkConfig(config.layers[:2])], BOARD, best)


def test_shared_weights_need_the_same_choice(sharing_network: NetworkSpec) -> None:
    choices = {layer.name: CHOICES[:3] for layer in sharing_network.weighted}
    table = CostTable(sharing_network, BOARD, choices)
    with pytest.raises(SpecError, match=r"indices\[:, 4\] differ from indices\[:, 2\]: layer 'head1.1' uses"):
        table.evaluate([[0, 0, 1, 0, 2, 0]])
    with pytest.raises(SpecError, match=r"layer 'head2.1': it uses the weights of 'head2' and needs its choices"):
        CostTable(sharing_network, BOARD, choices | {"head2.1": CHOICES[:2]})


def test_columns_cover_the_totals(plain_network: NetworkSpec) -> None:
    table = CostTable(plain_network, BOARD, {layer.name: CHOICES[:3] for layer in plain_network.weighted})
    wanted = {
        "stored_bits", "entropy_bound_bits", "bits_per_weight", "compression", "bram18", "uram", "lut", "dsp",
        "offchip_bits", "offchip_weight_bits", "offchip_ifm_bits", "offchip_ofm_bits", "offchip_shortcut_bits",
        "baseline_offchip_bits", "loading_cycles", "interval_cycles", "latency_cycles", "fps", "gops", "energy_rel",
        "fits",
    }  # fmt: skip
    assert set(table.evaluate(np.zeros((1, 3), int))) == wanted == set(COLUMNS)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (np.zeros((2, 2), int), r"shape \(2, 2\).*expected integers of shape \(n, 3\)"),
        (np.zeros((2, 3)), "dtype float64"),
        (np.array([[0, 3, 0]]), r"indices\[0, 1\]=3: layer 'two' has choices 0..2"),
        (np.array([[0, 0, -1]]), r"indices\[0, 2\]=-1: layer 'three'"),
    ],
)
def test_bad_indices(plain_network: NetworkSpec, indices: np.ndarray, message: str) -> None:
    table = CostTable(plain_network, BOARD, {layer.name: CHOICES[:3] for layer in plain_network.weighted})
    with pytest.raises(SpecError, match=message):
        table.evaluate(indices)


def test_bad_choices(plain_network: NetworkSpec) -> None:
    with pytest.raises(SpecError, match=r"missing or empty \['two', 'three'\], unknown \['four'\]"):
        CostTable(plain_network, BOARD, {"one": CHOICES[:1], "two": [], "four": CHOICES[:1]})
