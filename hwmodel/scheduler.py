"""Chooses data flow, folding and place of the weights of every layer."""

from __future__ import annotations

from hwmodel.board import Board, load_boards
from hwmodel.compute import Multiplier
from hwmodel.cost import RESOURCES, cost_of
from hwmodel.cycles import layer_cycles
from hwmodel.dataflow import DataFlow, LayerSchedule, Schedule, WeightPlace
from hwmodel.errors import BudgetError
from hwmodel.folding import SHARED_LANES, divisors, ingest_channels, pipelined_foldings
from hwmodel.network import LayerSpec, NetworkSpec
from hwmodel.precision import NetworkConfig
from hwmodel.report import CostReport

INTERVAL_STEP = 1.3
"""Ratio between neighbouring target intervals."""


def schedule(network: NetworkSpec, config: NetworkConfig, board: Board) -> Schedule:
    """The best execution of a network on a board: least off-chip traffic, then shortest frame interval.

    Args:
        network: The network.
        config: Precision of each layer.
        board: The board.

    Raises:
        SpecError: The configuration does not match the network.
        BudgetError: Nothing fits; the message names the budget that binds, by how much, and a board that would do.
    """
    config.check_matches(network)
    best = _search(network, config, board)
    if best is not None:
        return best
    raise BudgetError(_why_not(network, config, board))


def _search(network: NetworkSpec, config: NetworkConfig, board: Board) -> Schedule | None:
    best: tuple[tuple[int, int, int], Schedule] | None = None
    for place in (WeightPlace.BRAM, WeightPlace.STREAMED):
        for cut in range(len(network.layers), -1, -1):
            found = _fastest(network, config, board, cut, place)
            if found is not None and (best is None or found[0] < best[0]):
                best = found
        if best is not None:
            return best[1]
    return None


def _fastest(
    network: NetworkSpec, config: NetworkConfig, board: Board, cut: int, place: WeightPlace
) -> tuple[tuple[int, int, int], Schedule] | None:
    plan = _plan(network, cut, place, 1 << 62)
    report = cost_of(network, config, board, plan)
    if not report.fits:
        return None
    low, high = 0, 1  # exponents: too fast, and surely slow enough
    while INTERVAL_STEP**high < report.interval_cycles:
        high *= 2
    found = plan, report
    while high - low > 1:
        middle = (low + high) // 2
        plan = _plan(network, cut, place, int(INTERVAL_STEP**middle))
        report = cost_of(network, config, board, plan)
        if report.fits:
            high = middle
            if report.interval_cycles <= found[1].interval_cycles:
                found = plan, report
        else:
            low = middle
    return (found[1].offchip_bits, found[1].interval_cycles, found[1].bram18), found[0]


def _plan(network: NetworkSpec, cut: int, place: WeightPlace, interval_cycles: int) -> Schedule:
    pipelined = [_pipelined(layer, place, interval_cycles) for layer in network.layers[:cut]]
    rest = network.layers[cut:]
    plans: list[LayerSchedule] = []
    pairs = sorted(((pe, simd) for pe in SHARED_LANES for simd in SHARED_LANES), key=lambda p: (p[0] * p[1], p))
    for pe, simd in pairs:
        plans = [
            LayerSchedule(
                layer.name,
                DataFlow.FRAME,
                pe,
                simd,
                multiplier=Multiplier.DSP_PACKED,
                weight_place=place if layer.has_weights else WeightPlace.NONE,
            )
            for layer in rest
        ]
        if sum(layer_cycles(layer, plan) for layer, plan in zip(rest, plans, strict=True)) <= interval_cycles:
            break
    return Schedule(network.name, (*pipelined, *plans))


def _pipelined(layer: LayerSpec, place: WeightPlace, interval_cycles: int) -> LayerSchedule:
    if not layer.has_weights:
        plans = [LayerSchedule(layer.name, DataFlow.ROW_PIXEL, 1, lanes) for lanes in divisors(layer.out_channels)]
    else:
        plans = [
            LayerSchedule(
                layer.name,
                DataFlow.ROW_PIXEL,
                pe,
                simd,
                ingest_channels(layer, pe, simd),
                Multiplier.DSP_PACKED,
                place,
            )
            for pe, simd in pipelined_foldings(layer)
        ]
    for plan in plans:
        if layer_cycles(layer, plan) <= interval_cycles:
            return plan
    return min(plans, key=lambda plan: layer_cycles(layer, plan))


def _leanest(network: NetworkSpec, config: NetworkConfig, board: Board) -> CostReport:
    """The schedule that comes closest to fitting."""
    reports = [
        cost_of(network, config, board, _plan(network, cut, place, 1 << 62))
        for place in (WeightPlace.BRAM, WeightPlace.STREAMED)
        for cut in (0, len(network.layers))
    ]
    return min(reports, key=lambda r: max(getattr(r, name) / max(1, getattr(board, name)) for name in RESOURCES))


def _why_not(network: NetworkSpec, config: NetworkConfig, board: Board) -> str:
    report = _leanest(network, config, board)
    used, available = getattr(report, report.binding), getattr(board, report.binding)
    larger = (b for b in load_boards() if b.name != board.name and _search(network, config, b) is not None)
    remedy = next((f"the smallest listed board that would do is {b.name}" for b in larger), "no listed board would do")
    return (
        f"network {network.name!r} does not fit board {board.name!r}: {report.binding} binds, {used} needed at least, "
        f"{available} there, {used - available} too many; {remedy}. Or store fewer bits: lower precision, higher "
        "sparsity"
    )
