"""Answers for another board, budgets or front, from the trials of a search; nothing is trained unless asked for.

Needs run=<folder> of a search and board=<board>; search.min_compression and search.bram18 set other budgets,
search.front and search.bounds another front (search.front=[] asks a search of a front for budgets). Writes the best
expected configuration of each budget, or all of the front, into retarget/<board> of the run folder. more_trials=<n>
first adds n trials for that board to those already paid for; the same command goes on where it stopped.
"""

from __future__ import annotations

import sys

from qat.cli import run_estimate
from qat.config import Config

KEY = "more_trials="


def stage(config: Config, more_trials: str) -> None:
    from qat.errors import ConfigError

    if not (more_trials.isascii() and more_trials.isdigit()):
        raise ConfigError(f"{KEY}{more_trials}, expected an integer >= 0")
    from qat.pipeline.retargeting import retarget_run, show_retargeted  # here: --help does not wait for torch

    show_retargeted(config, retarget_run(config, int(more_trials)))


def main() -> int:
    """Takes its own key from the command line; Hydra composes the rest."""
    given = [argument.removeprefix(KEY) for argument in sys.argv[1:] if argument.startswith(KEY)]
    sys.argv[1:] = [argument for argument in sys.argv[1:] if not argument.startswith(KEY)]
    return run_estimate(lambda config: stage(config, given[-1] if given else "0"), __doc__)


if __name__ == "__main__":
    sys.exit(main())
