"""What can be chosen, what it costs and what has to be reached; nothing here trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import hwmodel
from hwmodel import Board, CostTables, NetworkConfig, NetworkSpec, Schedule
from hwmodel.errors import BudgetError
from hwmodel.options import RESOURCES
from hwmodel.precision import Granularity
from qat.config import Config
from qat.graph import trace
from qat.models import build_network
from qat.search.front import Front
from qat.search.proposer import Proposer
from qat.search.sensitivity import gaussian_profile
from qat.search.space import LayerRule, SearchSpace, SpaceSettings
from qat.search.trial import Target
from qat.uniform import uniform_of


def plan(cfg: Config) -> tuple[SearchSpace, CostTables, list[Target]]:
    """What can be chosen, what it costs, what has to be reached: checked before anything is trained.

    Raises:
        ConfigError: A pattern of the configuration matches no layer, or a setting is out of range.
        TraceError: The network cannot be mapped to hardware.
        BudgetError: The board, or what the bounds leave of it, is too small for the network, or too slow.
        SearchError: No configuration of the space meets a target.
    """
    network = untrained(cfg)
    space = SearchSpace.from_network(network, space_settings(cfg, network))
    board = cfg.board.to_board()
    try:
        costs = CostTables(
            network,
            bounded_board(cfg),
            space.choices_by_layer,
            sum_bit_width=cfg.quant.sum_bit_width,
            min_fps=required_fps(cfg),
        )
    except BudgetError as error:
        raise BudgetError(f"on {board.name} inside search.bounds and search.bram18: {error}") from error
    targets = targets_of(cfg)
    proposer = Proposer(space, costs.evaluate, gaussian_profile(space))
    for target in targets:
        proposer.check_reachable(target)
    for bits in cfg.baselines:
        hwmodel.schedule(network, uniform_of(cfg.quant, network, bits), board)
    return space, costs, targets


def untrained(cfg: Config) -> NetworkSpec:
    """The configured network's graph; needs no weights.

    Raises:
        TraceError: The network cannot be mapped to hardware.
    """
    channels, rows, columns = cfg.network.input_shape
    return trace(build_network(cfg.network, cfg.seed), (channels, rows, columns))


def space_settings(cfg: Config, network: NetworkSpec) -> SpaceSettings:
    """What each layer may become."""
    quant, chosen = cfg.quant, cfg.search
    end_bit_width = quant.end_bit_width or quant.act_bit_width
    rule = LayerRule(
        weight_bit_widths=tuple(chosen.weight_bit_widths),
        significant_densities=_densities(chosen.significant_densities, chosen.density_levels),
        binary_densities=_densities(chosen.sparse_densities, chosen.density_levels),
        sparse_densities=_densities(chosen.sparse_densities, chosen.density_levels),
        granularities=tuple(map(Granularity, chosen.granularities)),
        act_bit_widths=tuple(chosen.act_bit_widths) or (quant.act_bit_width,),
    )
    layers: list[tuple[str, dict[str, Any]]] = []
    if quant.end_bit_width is not None:
        last = network.weighted[-1]
        layers.append((last.weights_of or last.name, {"act_bit_widths": (quant.end_bit_width,)}))
    for activations in quant.layers:
        layers.append((activations.pattern, {"act_bit_widths": (activations.act_bit_width,)}))
    for choices in chosen.layers:
        changes: dict[str, Any] = {}
        for name in ("weight_bit_widths", "act_bit_widths"):
            if getattr(choices, name) is not None:
                changes[name] = tuple(getattr(choices, name))
        for name in ("significant_densities", "sparse_densities"):
            if getattr(choices, name) is not None:
                changes[name] = _densities(getattr(choices, name), chosen.density_levels)
        if choices.granularities is not None:
            changes["granularities"] = tuple(map(Granularity, choices.granularities))
        if choices.sparse_densities is not None:
            changes["binary_densities"] = changes["sparse_densities"]
        layers.append((choices.pattern, changes))
    return SpaceSettings(
        rule=rule,
        first_act_bit_width=end_bit_width,
        layers=layers,
        groups=chosen.groups,
        sum_bit_width=quant.sum_bit_width,
    )


def _densities(listed: Sequence[float], levels: int | None) -> tuple[float, ...]:
    """The listed densities, or as many as asked for between the lowest and the highest of them."""
    if levels is None or len(set(listed)) < 2:
        return tuple(listed)
    between = np.geomspace(min(listed), max(listed), levels)
    return tuple(sorted({*listed, *(float(f"{density:.4g}") for density in between)}))


def targets_of(cfg: Config) -> list[Target]:
    """The front, or one budget per compression to reach, under the board's block RAM and all other bounds."""
    chosen = cfg.search
    bounds: dict[str, tuple[float | None, float | None]] = {
        "fits": (1.0, None),  # LUTs and DSPs too: there has to be a schedule in the end
        "bram18": (None, float(chosen.bram18 or cfg.board.bram18)),
        **{bound.column: (bound.low, bound.high) for bound in chosen.bounds},
    }
    if chosen.front:
        return [Front("front", bounds, tuple(chosen.front))]
    if not chosen.min_compression:
        return [Target("bounds", bounds)]
    return [Target(f"{value:g}x", {"compression": (value, None), **bounds}) for value in chosen.min_compression]


def bounded_board(cfg: Config) -> Board:
    """The board with no more of each resource than the search's bounds allow."""
    board = cfg.board.to_board()
    highest = {"bram18": cfg.search.bram18, **{bound.column: bound.high for bound in cfg.search.bounds}}
    resources = {name: highest.get(name) for name in RESOURCES}
    return replace(
        board, **{name: min(getattr(board, name), int(high)) for name, high in resources.items() if high is not None}
    )


def required_fps(cfg: Config) -> float:
    """Frames per second that the search's bounds ask for; 0 for any."""
    bounds = {bound.column: bound for bound in cfg.search.bounds}
    fps, interval = bounds.get("fps"), bounds.get("interval_cycles")
    from_fps = 0.0 if fps is None else max(0.0, fps.low or 0.0)
    from_interval = 0.0 if interval is None or not interval.high else cfg.board.clock_hz / interval.high
    return max(from_fps, from_interval)


def bounded_schedule(cfg: Config, network: NetworkSpec, config: NetworkConfig) -> Schedule:
    """The best schedule inside the search's bounds on resources and frame rate.

    Raises:
        BudgetError: There is none.
    """
    return hwmodel.schedule(network, config, bounded_board(cfg), required_fps(cfg))
