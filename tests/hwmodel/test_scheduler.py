"""The schedule equals exhaustive search on small networks, and what it promises is what the report says."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel import (
    Board,
    BudgetError,
    DataFlow,
    LayerConfig,
    NetworkConfig,
    NetworkSpec,
    Op,
    Schedule,
    SpecError,
    WeightFormat,
    estimate,
    load_board,
    load_network,
    schedule,
    uniform,
)
from hwmodel import scheduler as scheduler_module
from hwmodel import segments as segments_module
from hwmodel.choices import NO_LIMIT
from hwmodel.cost import cost_of, dram_cycles
from hwmodel.knapsack import Solution, any_choice
from hwmodel.options import RESOURCES, Space
from hwmodel.scheduler import Scheduler, search
from hwmodel.segments import Segments
from tests.hwmodel.problems import (
    SPACE,
    all_goals,
    exhaustive,
    random_config,
    random_network,
    random_problem,
    random_tall_problem,
)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_equals_exhaustive_search(seed: int) -> None:
    check_equals_exhaustive(*random_problem(np.random.default_rng(seed)))


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_equals_exhaustive_search_from_few_options(seed: int) -> None:
    """As networks of many layers are searched: first among the few options of some limits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler_module, "AMPLE", 0)
        check_equals_exhaustive(*random_problem(np.random.default_rng(seed)))


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_layers_that_cannot_be_pipelined_together_need_no_options(seed: int) -> None:
    whole, board = random_problem(np.random.default_rng(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments_module, "LAYERS_TOGETHER", 1)
        few = Scheduler(whole.network, board, whole.space).segments(whole.config)
        found, best = search(few, board), search(whole, board)
        assert len(few.own_options) <= len(whole.own_options) == len(whole.network.layers)
    assert (found is None) == (best is None)
    if found is not None and best is not None:
        assert (found.offchip_bits, found.interval_cycles, found.bram18, found.is_proven) == (
            best.offchip_bits,
            best.interval_cycles,
            best.bram18,
            best.is_proven,
        )


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_nothing_is_called_proven_that_was_not_decided(seed: int) -> None:
    """Where half of the searches for any choice give up, what is proven is still true."""
    segments, board = random_tall_problem(np.random.default_rng(seed))
    pick = np.random.default_rng(seed)

    def gives_up(*args: object) -> tuple[Solution, object]:
        solution, weights = any_choice(*args)  # type: ignore[arg-type]
        return (Solution(NO_LIMIT, 0) if pick.random() < 0.5 else solution), weights

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler_module, "any_choice", gives_up)
        best = search(segments, board)
    if best is not None and best.is_proven:
        want = exhaustive(segments, board)
        assert want is not None and (best.offchip_bits, best.interval_cycles) == want[:2]


def test_prices_are_remembered_once() -> None:
    segments, board = random_tall_problem(np.random.default_rng(1))
    for small in (replace(board, bram18=bram18) for bram18 in range(2, 12)):
        problem = scheduler_module._Search(Segments(segments.network, segments.config, small, segments.space), small)
        problem.best()
        prices = [one.tobytes() for one in problem._prices]
        assert len(set(prices)) == len(prices)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_equals_exhaustive_search_where_weights_may_be_loaded(seed: int) -> None:
    check_equals_exhaustive(*random_tall_problem(np.random.default_rng(seed)))


def test_random_problems_load_weights() -> None:
    """Of shared ones and beside shortcuts too: the test above would show nothing otherwise."""
    found = []
    for seed in range(200):
        segments, board = random_tall_problem(np.random.default_rng(seed))
        best = search(segments, board)
        if best is not None and best.cut.loaded_bits:
            plan = segments.write(best.cut, best.groups, best.picks)
            if any(layer.weight_place.is_loaded for layer in plan.layers):
                found.append(segments.network)
    assert len(found) >= 5
    assert any(layer.weights_of for network in found for layer in network.layers)
    assert any(layer.op is Op.ADD for network in found for layer in network.layers)


def check_equals_exhaustive(segments: Segments, board: Board) -> None:
    """Search and report say what trying everything says."""
    network, config = segments.network, segments.config
    best, want = search(segments, board), exhaustive(segments, board)
    assert (best is None) == (want is None)
    if best is not None:
        assert (best.offchip_bits, best.interval_cycles, best.bram18) == want
        assert best.is_proven
        report = cost_of(network, config, board, segments.write(best.cut, best.groups, best.picks))
        assert (report.offchip_bits, report.interval_cycles, report.bram18) == want
        assert report.fits


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_equals_exhaustive_search_among_the_fast_enough(seed: int) -> None:
    """At any interval, mostly one that some schedule has; traffic alone takes long where DRAM is slow."""
    pick = np.random.default_rng(seed)
    segments, board = random_problem(pick) if pick.random() < 0.5 else random_tall_problem(pick)
    board = replace(board, dram_bytes_per_s=int(pick.choice([10**8, 10**9, 10**10])))
    segments = Segments(segments.network, segments.config, board, segments.space)
    goals = set(all_goals(segments, board))
    intervals = sorted({interval for _, interval, _ in goals}) or [1]
    longest = int(pick.choice(intervals)) - int(pick.integers(0, 2))
    best = search(segments, board, longest)
    want = min((one for one in goals if one[1] <= longest), default=None)
    assert (best is None) == (want is None)
    if best is not None:
        assert (best.offchip_bits, best.interval_cycles, best.bram18) == want
        assert best.is_proven


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_refusal_names_the_fastest_schedule(seed: int) -> None:
    segments, board = random_problem(np.random.default_rng(seed))
    goals = list(all_goals(segments, board))
    if not goals:
        return
    fastest = min(interval for _, interval, _ in goals)
    scheduler = Scheduler(segments.network, board, segments.space)
    reached = scheduler.schedule(segments.config, board.clock_hz / fastest)
    assert cost_of(segments.network, segments.config, board, reached).interval_cycles == fastest
    with pytest.raises(BudgetError, match=f"the fastest schedule found that fits takes {fastest} cycles"):
        scheduler.schedule(segments.config, board.clock_hz / (fastest - 0.5))


def test_frame_rate_for_traffic_on_a_small_board() -> None:
    """The fewest off-chip bits are slow where memory is small."""
    network, board = load_network("yolov2_tiny_voc"), load_board("pynq_z2")
    config = uniform(network, 4, 4)
    slow, fast = (cost_of(network, config, board, schedule(network, config, board, fps)) for fps in (0, 5))
    assert slow.fps < 5 <= fast.fps
    assert slow.offchip_bits < fast.offchip_bits
    assert fast.fits
    with pytest.raises(
        BudgetError, match=r"'pynq_z2': min_fps=1000 needs an interval of at most \d+ cycles, the fastest"
    ):
        schedule(network, config, board, 1000)


@pytest.mark.parametrize("rate", [-1, float("nan"), float("inf")])
def test_frame_rate_out_of_range(plain_network: NetworkSpec, rate: float) -> None:
    with pytest.raises(SpecError, match="min_fps=.*, expected a finite number >= 0; 0 for any"):
        schedule(plain_network, uniform(plain_network, 4, 4), load_board("zcu102"), rate)


def test_options_cost_what_the_report_says() -> None:
    network = load_network("resnet20")
    config = uniform(network, 4, 4)
    board = load_board("zcu104")
    segments = Segments(network, config, board, Space())
    pick = np.random.default_rng(0)
    for cut in segments.cuts[::5]:
        groups = segments.groups(cut, streams=True)
        for _ in range(3):
            picks = [int(pick.integers(len(group.cycles))) for group in groups]
            report = cost_of(network, config, board, segments.write(cut, groups, picks))
            used = sum(group.use[p] for group, p in zip(groups, picks, strict=True))
            assert [getattr(report, name) for name in RESOURCES] == list(used)
            streamed = sum(int(group.offchip_bits[p]) for group, p in zip(groups, picks, strict=True))
            assert report.offchip_bits == cut.map_bits + streamed
            cycles = max(int(group.cycles[p]) for group, p in zip(groups, picks, strict=True))
            assert report.interval_cycles == max(cycles, dram_cycles(report.offchip_bits, board))


def test_the_last_layer_alone_on_the_shared_engine_is_an_option_of_the_longest_pipeline() -> None:
    network = load_network("resnet20")
    config, board = uniform(network, 4, 4), load_board("zcu104")
    segments = Segments(network, config, board, Space())
    end = len(network.layers)
    assert end - 1 not in [split.cut.pipelined for split in segments.all_resident(segments.cuts[0].map_bits)]
    *groups, last = segments.own_options
    alone = [option for option, flow in enumerate(last.plans[0]) if flow is DataFlow.FRAME]
    assert 0 < len(alone) < len(last.cycles)
    for option in alone:
        picks = [*(0 for _ in groups), option]
        plan = segments.write(segments.cuts[0], (*groups, last), picks)
        assert [layer.data_flow.is_pipelined for layer in plan.layers] == [True] * (end - 1) + [False]
        report = cost_of(network, config, board, plan)
        used = sum(group.use[pick] for group, pick in zip((*groups, last), picks, strict=True))
        assert [getattr(report, name) for name in RESOURCES] == used.tolist()
        assert report.offchip_bits == segments.cuts[0].map_bits
        cycles = max(int(group.cycles[pick]) for group, pick in zip((*groups, last), picks, strict=True))
        assert report.interval_cycles == max(cycles, dram_cycles(report.offchip_bits, board))


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_last_layer_moves_no_more_maps_on_the_shared_engine_than_on_its_own(seed: int) -> None:
    pick = np.random.default_rng(seed)
    network = random_network(pick)
    segments = Segments(network, random_config(network, pick), load_board("vc707"), SPACE)
    bits = {cut.depths: cut.map_bits for cut in segments.cuts}
    end = len(network.layers)
    assert bits.get((end - 1, 0), bits[end, 0]) == bits[end, 0]


def test_options_are_freed_with_the_search() -> None:
    """They are megabytes, and memory that is used again at once is quick."""
    network, board = load_network("resnet20"), load_board("zcu104")
    scheduler = Scheduler(network, board)
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        segments = scheduler.segments(uniform(network, 4, 4))
        assert search(segments, board) is not None
        known = weakref.ref(segments)
        del segments
        assert known() is None
    finally:
        if was_enabled:
            gc.enable()


def test_more_of_everything_is_never_slower() -> None:
    network = load_network("resnet20")
    config = uniform(network, 1, 4)
    small, large = load_board("pynq_z2"), load_board("vc707")
    large = replace(large, clock_hz=small.clock_hz)
    reports = [estimate(network, config, board) for board in (small, large)]
    assert all(report.fits for report in reports)
    assert reports[1].offchip_bits <= reports[0].offchip_bits
    assert reports[1].interval_cycles < reports[0].interval_cycles


def test_streams_when_weights_do_not_fit() -> None:
    network = load_network("resnet20")
    board = replace(load_board("pynq_z2"), bram18=100)
    config = uniform(network, 8, 8)
    plan = schedule(network, config, board)
    report = estimate(network, config, board, plan)
    assert report.fits
    assert report.offchip_weight_bits > 0
    resident = estimate(network, config, load_board("pynq_z2"))
    assert resident.offchip_weight_bits == 0
    assert report.offchip_bits > resident.offchip_bits


@pytest.mark.parametrize(("board", "bits"), [("u250", 1), ("zcu102", 1), ("vc707", 4), ("kv260", 4)])
def test_large_network_is_proven(board: str, bits: int) -> None:
    network = load_network("resnet50")
    scheduler = Scheduler(network, load_board(board))
    best = search(scheduler.segments(uniform(network, bits, 4)), load_board(board))
    assert best is not None
    assert best.is_proven


def test_every_mix_of_a_large_network_that_streams_gets_a_schedule_that_fits() -> None:
    """Hard cases: the weights do not fit, and most budgets are nearly used up."""
    network, board = load_network("resnet50"), load_board("zcu102")
    choices = [
        *(LayerConfig(bits, 4) for bits in (1, 2, 3, 4, 6, 8)),
        *(LayerConfig(1, 4, sparsity, "binary_plus_sparse") for sparsity in (0.98, 0.95, 0.9, 0.8)),
    ]
    pick = np.random.default_rng(0)
    scheduler = Scheduler(network, board)
    mixes = pick.integers(10, size=(16, len(network.weighted)))
    for mix in mixes[12:]:
        pairs = zip(network.weighted, mix, strict=True)
        config = NetworkConfig(tuple((layer.name, choices[choice]) for layer, choice in pairs))
        report = cost_of(network, config, board, scheduler.schedule(config))
        assert report.fits
        assert report.offchip_weight_bits > 0


def test_schedule_does_not_depend_on_what_was_scheduled_before() -> None:
    """Formats and widths of all kinds, on a board on which weights are read from off chip."""
    network = load_network("resnet20")
    board = replace(load_board("zcu102"), bram18=24, dsp=200)
    choices = [
        *(LayerConfig(bits, act_bits) for bits in (1, 4, 8) for act_bits in (2, 4, 8)),
        *(LayerConfig(bits, 4, 0.7, "sparse") for bits in (1, 4)),
        *(LayerConfig(1, act_bits, 0.9, "binary_plus_sparse") for act_bits in (2, 8)),
    ]
    mixes = np.random.default_rng(0).integers(0, len(choices), (8, len(network.weighted)))
    configs = [
        NetworkConfig(
            tuple((one.name, choices[pick]) for one, pick in zip(network.weighted, mix, strict=True)),
            sum_bit_width=4 if number % 2 else 8,
        )
        for number, mix in enumerate(mixes)
    ]

    def goals(scheduler: Scheduler, config: NetworkConfig) -> tuple[int, int, int, Schedule]:
        segments = scheduler.segments(config)
        best = search(segments, board)
        assert best is not None
        plan = segments.write(best.cut, best.groups, best.picks)
        report = cost_of(network, config, board, plan)
        found = (best.offchip_bits, best.interval_cycles, best.bram18)
        assert found == (report.offchip_bits, report.interval_cycles, report.bram18)
        return *found, plan

    used = Scheduler(network, board)
    assert [goals(used, one) for one in configs] == [goals(Scheduler(network, board), one) for one in configs]


def test_layers_may_be_configured_in_any_order() -> None:
    network, board = load_network("resnet20"), load_board("zcu104")
    bits = np.random.default_rng(0).choice([2, 4, 8], len(network.weighted)).tolist()
    pairs = tuple((layer.name, LayerConfig(4, width)) for layer, width in zip(network.weighted, bits, strict=True))
    used = Scheduler(network, board)
    used.schedule(NetworkConfig(tuple(zip((name for name, _ in pairs), (one for _, one in pairs[::-1]), strict=True))))
    assert used.segments(NetworkConfig(pairs[::-1])).widths == used.segments(NetworkConfig(pairs)).widths
    assert used.schedule(NetworkConfig(pairs[::-1])) == Scheduler(network, board).schedule(NetworkConfig(pairs))


def test_block_ram_where_logic_is_nearly_full() -> None:
    """Exchanges that end a little above the budget of LUTs go on: else only the fastest choice is left, over 4,000.

    891 is the least of a whole pipeline, as HiGHS proves.
    """
    network, board = load_network("resnet18"), load_board("u250")
    choices = [
        *(LayerConfig(bits, 4) for bits in (1, 2, 3, 4, 6, 8)),
        *(LayerConfig(1, 4, sparsity, WeightFormat.BINARY_PLUS_SPARSE) for sparsity in (0.98, 0.95, 0.9, 0.8)),
    ]
    mix = np.random.default_rng(7).integers(0, len(choices), (10, len(network.weighted)))[3]
    pairs = tuple((one.name, choices[pick]) for one, pick in zip(network.weighted, mix, strict=True))
    best = search(Scheduler(network, board).segments(NetworkConfig(pairs)), board)
    assert best is not None
    assert (best.offchip_bits, best.interval_cycles) == (1_220_224, 50_176)
    assert best.bram18 <= 891


@pytest.mark.parametrize(
    ("network_name", "board_name", "bits", "goals"),
    [("resnet18", "u250", (2, 8), (1_220_224, 50_176, 278)), ("resnet20", "kv260", (2, 2), (24_736, 6_400, 76))],
)
def test_block_ram_of_a_split_that_is_sought_as_far_as_the_first(
    network_name: str, board_name: str, bits: tuple[int, int], goals: tuple[int, int, int]
) -> None:
    """Where the choice of the first split is far above its bound, of 4,021 and 77, that of another one may not be."""
    network, board = load_network(network_name), load_board(board_name)
    best = search(Scheduler(network, board).segments(uniform(network, *bits)), board)
    assert best is not None
    assert (best.offchip_bits, best.interval_cycles) == goals[:2]
    assert best.bram18 <= goals[2]
