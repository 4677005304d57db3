"""Answers for another board, or other budgets, from the trials of a search; nothing is trained.

Needs run=<folder> of a search and board=<board>; search.min_compression and search.bram18 set other budgets. Writes
the best expected configuration of each budget into retarget/<board> of the run folder.
"""

from __future__ import annotations

import sys

from qat.cli import run_estimate
from qat.config import Config


def stage(config: Config) -> None:
    from qat.pipeline.retargeting import retarget_run, show_retargeted  # here: --help does not wait for torch

    show_retargeted(config, retarget_run(config))


if __name__ == "__main__":
    sys.exit(run_estimate(stage, __doc__))
