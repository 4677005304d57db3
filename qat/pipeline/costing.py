"""What uniform configurations cost on a board."""

from __future__ import annotations

from rich.console import Console

import hwmodel
from qat.config import Config
from qat.pipeline.planning import uniform_of, untrained
from qat.report import cost_table


def cost(cfg: Config) -> None:
    """Prints what uniform configurations of a network cost on a board, layer by layer; trains and writes nothing.

    Raises:
        TraceError: The network cannot be mapped to hardware.
        BudgetError: The board is too small for the network.
    """
    network, board, console = untrained(cfg), cfg.board.to_board(), Console()
    for bits in cfg.baselines:
        console.print(cost_table(hwmodel.estimate(network, uniform_of(cfg, network, bits), board), board))
