"""One call: what a configuration, or what many, cost on a board."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from hwmodel.arrays import ConfigArrays, widths
from hwmodel.board import Board
from hwmodel.cost import cost_of
from hwmodel.dataflow import Schedule
from hwmodel.errors import SpecError, require_type
from hwmodel.network import NetworkSpec
from hwmodel.precision import NetworkConfig
from hwmodel.report import CostReport
from hwmodel.scheduler import schedule as best_schedule
from hwmodel.terms import NEEDS, Terms, join_needs


def estimate(network: NetworkSpec, config: NetworkConfig, board: Board, schedule: Schedule | None = None) -> CostReport:
    """What a network costs on a board.

    Args:
        network: The network.
        config: Precision of each layer.
        board: The board.
        schedule: How to execute it; `None` searches the best schedule.  A given schedule may exceed the board:
            then `fits` is False.

    Raises:
        SpecError: Configuration or schedule do not match the network.
        BudgetError: No schedule was given and none fits the board.
    """
    require_type("network", network, NetworkSpec, "load_network reads one")
    require_type("config", config, NetworkConfig, "uniform makes one")
    require_type("board", board, Board, "load_board reads one")
    if schedule is None:
        schedule = best_schedule(network, config, board)
    require_type("schedule", schedule, Schedule, "schedule() makes one")
    return cost_of(network, config, board, schedule)


def estimate_many(
    network: NetworkSpec, configs: Iterable[NetworkConfig], board: Board, schedule: Schedule
) -> dict[str, NDArray[np.generic]]:
    """What many configurations cost on a board under one schedule: `estimate_arrays` of objects.

    Args:
        network: The network.
        configs: Precision of each layer, n >= 1 times.
        board: The board; costs may exceed it, then `fits` is False.
        schedule: How to execute all of them.

    Returns:
        Arrays of shape (n,) by column, in the order of `configs`; columns as of `CostTable.evaluate`.

    Raises:
        SpecError: A configuration or the schedule does not match the network, or there is no configuration.
    """
    require_type("configs", configs, Iterable, "NetworkConfigs")
    given = list(configs)
    if not given:
        raise SpecError("no configurations are given, expected at least one")
    for number, config in enumerate(given):
        require_type(f"configs[{number}]", config, NetworkConfig, "uniform makes one")
    by_widths: dict[tuple[int, ...], list[int]] = {}
    for number, config in enumerate(given):
        by_widths.setdefault(tuple(widths(config).values()), []).append(number)
    columns: dict[str, NDArray[np.generic]] = {}
    for numbers in by_widths.values():
        arrays = ConfigArrays.read([given[number] for number in numbers], network)
        for name, values in estimate_arrays(network, arrays, board, schedule).items():
            columns.setdefault(name, np.empty(len(given), values.dtype))[numbers] = values
    return columns


def estimate_arrays(
    network: NetworkSpec, arrays: ConfigArrays, board: Board, schedule: Schedule
) -> dict[str, NDArray[np.generic]]:
    """What many configurations cost on a board under one schedule, from the formulas.

    Densities go through the formulas as arrays, equal ones of a layer once.  Who draws from few choices that are known
    beforehand is quicker with a `CostTable`.

    Args:
        network: The network.
        arrays: Precision of each layer in n configurations.
        board: The board; costs may exceed it, then `fits` is False.
        schedule: How to execute all of them.

    Returns:
        Arrays of shape (n,) by column; columns as of `CostTable.evaluate`.

    Raises:
        SpecError: Arrays or schedule do not match the network.
    """
    require_type("network", network, NetworkSpec, "load_network reads one")
    require_type("arrays", arrays, ConfigArrays, "precision of many configurations")
    require_type("board", board, Board, "load_board reads one")
    require_type("schedule", schedule, Schedule, "schedule() makes one")
    arrays.check_matches(network)
    schedule.check_matches(network)
    kinds = dict(zip(arrays.layers, arrays.kinds(), strict=True))
    read = {name: {kind.example.act_bit_width for kind in own} for name, own in kinds.items()}
    terms = Terms(network, board, schedule, read, widths(arrays))
    sums = np.tile(terms.constant, (len(arrays), 1))
    energy_pj = np.zeros(len(arrays))
    needs = np.zeros((len(arrays), len(NEEDS)), dtype=np.int64)
    for column, layer in enumerate(network.weighted):
        own = terms.of_layer(layer, kinds[layer.name])
        sums += own.rows[own.row_of]
        energy_pj += own.energy_pj[own.row_of]
        if column in terms.shared_columns:
            join_needs(needs, own.needs[own.row_of])
    act_bits = arrays.fields["act_bit_width"]
    terms.add_tensors(sums, act_bits)
    if terms.has_shared_engine:
        terms.add_shared_engine(sums, needs, act_bits)
    return terms.columns(sums, energy_pj)
