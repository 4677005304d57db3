"""What can be chosen, what it costs and what has to be reached; nothing here trains."""

from __future__ import annotations

from typing import Any

import hwmodel
from hwmodel import CostTable, NetworkConfig, NetworkSpec
from hwmodel.precision import Granularity
from qat.config import Config
from qat.graph import trace
from qat.models import build_network
from qat.search.front import Front
from qat.search.proposer import Proposer
from qat.search.sensitivity import gaussian_profile
from qat.search.space import LayerRule, SearchSpace, SpaceSettings
from qat.search.trial import Target


def plan(cfg: Config) -> tuple[SearchSpace, CostTable, list[Target]]:
    """What can be chosen, what it costs, what has to be reached: checked before anything is trained.

    Raises:
        ConfigError: A pattern of the configuration matches no layer, or a setting is out of range.
        TraceError: The network cannot be mapped to hardware.
        BudgetError: The board is too small for the network.
        SearchError: No configuration of the space meets a target.
    """
    network = untrained(cfg)
    space = SearchSpace.from_network(network, space_settings(cfg, network))
    board = cfg.board.to_board()
    costs = CostTable(network, board, space.choices_by_layer, sum_bit_width=cfg.quant.sum_bit_width)
    targets = targets_of(cfg)
    proposer = Proposer(space, costs.evaluate, gaussian_profile(space))
    for target in targets:
        proposer.check_reachable(target)
    for bits in cfg.baselines:
        hwmodel.schedule(network, uniform_of(cfg, network, bits), board)
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
        significant_densities=tuple(chosen.significant_densities),
        binary_densities=tuple(chosen.sparse_densities),
        sparse_densities=tuple(chosen.sparse_densities),
        granularity=Granularity(chosen.granularity),
        act_bit_widths=tuple(chosen.act_bit_widths) or (quant.act_bit_width,),
    )
    layers: dict[str, dict[str, Any]] = {}
    if quant.end_bit_width is not None:
        layers[network.weighted[-1].name] = {"act_bit_widths": (quant.end_bit_width,)}
    for activations in quant.layers:
        layers.setdefault(activations.pattern, {})["act_bit_widths"] = (activations.act_bit_width,)
    for choices in chosen.layers:
        changes = layers.setdefault(choices.pattern, {})
        for name in ("weight_bit_widths", "significant_densities", "sparse_densities", "act_bit_widths"):
            if getattr(choices, name) is not None:
                changes[name] = tuple(getattr(choices, name))
        if choices.granularity is not None:
            changes["granularity"] = Granularity(choices.granularity)
        if choices.sparse_densities is not None:
            changes["binary_densities"] = tuple(choices.sparse_densities)
    return SpaceSettings(
        rule=rule,
        first_act_bit_width=end_bit_width,
        layers=layers,
        groups=chosen.groups,
        sum_bit_width=quant.sum_bit_width,
    )


def targets_of(cfg: Config) -> list[Target]:
    """The front, or one budget per compression to reach, under the board's block RAM and all other bounds."""
    chosen = cfg.search
    bounds: dict[str, tuple[float | None, float | None]] = {
        "bram18": (None, float(chosen.bram18 or cfg.board.bram18)),
        **{bound.column: (bound.low, bound.high) for bound in chosen.bounds},
    }
    if chosen.front:
        return [Front("front", bounds, tuple(chosen.front))]
    if not chosen.min_compression:
        return [Target("bounds", bounds)]
    return [Target(f"{value:g}x", {"compression": (value, None), **bounds}) for value in chosen.min_compression]


def uniform_of(cfg: Config, network: NetworkSpec, bits: int) -> NetworkConfig:
    """The same weight bits in all layers but the ends, which get `quant.end_bit_width`."""
    quant = cfg.quant
    return hwmodel.uniform(
        network, bits, quant.act_bit_width, end_bit_width=quant.end_bit_width, sum_bit_width=quant.sum_bit_width
    )
