"""Searches bit width and density of each layer under the board's budget, then trains what it found.

The same command goes on where an earlier one stopped. Trials are in trials.csv, trained networks below networks/.
"""

from __future__ import annotations

import sys

from qat.cli import run_stage
from qat.config import Config
from qat.runs import RunFolder


def stage(config: Config, run: RunFolder) -> None:
    from qat.pipeline import search  # here, so that --help and wrong settings do not wait for torch

    search(config, run)
    print(f"searched and trained: {run.path}")


if __name__ == "__main__":
    sys.exit(run_stage(stage, __doc__, trains=True))
