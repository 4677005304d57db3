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

SAMPLE = 128
"""Configurations of which the first are looked at to see whether a layer's choices come again."""


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
    some = rows[:SAMPLE]
    is_new = [not shares and len({id(row[column]) for row in some}) > SAMPLE // 2 for column in range(len(names))]
    columns = [column for column, new in enumerate(is_new) if not new]
    own = slice(None) if len(columns) == len(names) else columns
    found: list[dict[LayerConfig, int]] = [{} for _ in columns]
    # Equal choices are mostly one object, whose identity is much quicker to look up than its value.
    known: list[dict[int, int]] = [{} for _ in columns]
    for number, row in enumerate(rows if columns else ()):
        layers = row if len(columns) == len(names) else [row[column] for column in columns]
        try:
            indices[number, own] = [places[id(layer)] for places, layer in zip(known, layers, strict=True)]
        except KeyError:
            for place, layer in enumerate(layers):
                known[place][id(layer)] = found[place].setdefault(layer, len(found[place]))
            indices[number, own] = [places[id(layer)] for places, layer in zip(known, layers, strict=True)]
    choices: dict[int, Sequence[LayerConfig]] = dict(zip(columns, map(list, found), strict=True))
    if any(is_new):  # nearly every configuration brings a choice of its own: there is nothing to look up
        fields, objects = Fields(rows), list(zip(*rows, strict=True))
        for column in np.flatnonzero(is_new).tolist():
            choices[column] = ReadChoices.of(objects[column], fields, column)
            indices[:, column] = np.arange(len(rows))
    return {name: choices[column] for column, name in enumerate(names)}, indices
