"""One call: what a configuration costs on a board."""

from __future__ import annotations

from hwmodel.board import Board
from hwmodel.cost import cost_of
from hwmodel.dataflow import Schedule
from hwmodel.network import NetworkSpec
from hwmodel.precision import NetworkConfig
from hwmodel.report import CostReport
from hwmodel.scheduler import schedule as best_schedule


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
