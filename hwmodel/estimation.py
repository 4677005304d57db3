"""One call: what a configuration, or what many, cost on a board."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from hwmodel.board import Board
from hwmodel.choices import Fields, ReadChoices
from hwmodel.cost import cost_of
from hwmodel.dataflow import Schedule
from hwmodel.errors import SpecError
from hwmodel.network import NetworkSpec
from hwmodel.precision import LayerConfig, NetworkConfig
from hwmodel.report import CostReport
from hwmodel.scheduler import schedule as best_schedule
from hwmodel.table import CostTable

FEW = 64
"""Configurations up to which those of a layer are always compared by value."""


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
    if schedule is None:
        schedule = best_schedule(network, config, board)
    return cost_of(network, config, board, schedule)


def estimate_many(
    network: NetworkSpec, configs: Iterable[NetworkConfig], board: Board, schedule: Schedule
) -> dict[str, NDArray[np.generic]]:
    """What many configurations cost on a board under one schedule.

    Every distinct precision of a layer goes through the formulas once, densities as arrays, so that of n configurations
    only gathering and adding remains.  Who draws from choices that are known beforehand saves that too with a
    `CostTable`.

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
    columns: dict[str, NDArray[np.generic]] = {}
    given = list(configs)
    if not given:
        raise SpecError("no configurations are given, expected at least one")
    by_widths: dict[tuple[int, int, int], list[int]] = {}
    for number, config in enumerate(given):
        widths = (config.sum_bit_width, config.input_bit_width, config.output_bit_width)
        by_widths.setdefault(widths, []).append(number)
    for (sum_bits, input_bits, output_bits), numbers in by_widths.items():
        choices, indices = _distinct(network, [given[number] for number in numbers])
        table = CostTable(
            network,
            board,
            choices,
            schedule,
            sum_bit_width=sum_bits,
            input_bit_width=input_bits,
            output_bit_width=output_bits,
        )
        for name, values in table.evaluate(indices).items():
            columns.setdefault(name, np.empty(len(given), values.dtype))[numbers] = values
    return columns


def _distinct(
    network: NetworkSpec, configs: list[NetworkConfig]
) -> tuple[dict[str, Sequence[LayerConfig]], NDArray[np.int64]]:
    """The distinct choices of each layer, and which of them each configuration takes, shape (n, layers)."""
    names = [layer.name for layer in network.weighted]
    shares = any(layer.weights_of is not None for layer in network.weighted)
    rows: list[Sequence[LayerConfig]] = []
    for config in configs:
        in_order = [name for name, _ in config.layers] == names
        if shares or not in_order:
            config.check_matches(network)
        rows.append([layer for _, layer in config.layers] if in_order else [config[name] for name in names])
    indices = np.empty((len(rows), len(names)), dtype=np.int64)
    # Equal choices are mostly one object, whose identity is much quicker to look up than its value.
    objects = np.array([list(map(id, row)) for row in rows], dtype=np.int64)
    choices: dict[str, Sequence[LayerConfig]] = {}
    fields: Fields | None = None
    for column, (name, layers) in enumerate(zip(names, zip(*rows, strict=True), strict=True)):
        _, firsts, places = np.unique(objects[:, column], return_index=True, return_inverse=True)
        if 2 * len(firsts) > len(rows) > FEW and not shares:  # hardly any object comes twice
            fields = fields or Fields(rows)
            choices[name], indices[:, column] = ReadChoices.of(layers, fields, column), np.arange(len(rows))
        else:
            choices[name], indices[:, column] = _equal(layers, firsts, places)
    return choices, indices


def _equal(
    layers: Sequence[LayerConfig], firsts: NDArray[np.int64], places: NDArray[np.int64]
) -> tuple[list[LayerConfig], NDArray[np.int64]]:
    """The distinct values among distinct objects, in the order in which they come, and which of them each layer has.

    Args:
        layers: Shape (n,).
        firsts: Where each object comes first.
        places: Shape (n,): which object each is.
    """
    numbers: dict[LayerConfig, int] = {}
    of_object = np.empty(len(firsts), dtype=np.int64)
    for place in np.argsort(firsts).tolist():
        of_object[place] = numbers.setdefault(layers[firsts[place]], len(numbers))
    return list(numbers), of_object[places]
