"""Runs the packed files of a run in integers and compares every code with the deployed network.

Needs run=<folder> of a run that was exported. Exit code 0 only if no code differs on all test images.
"""

from __future__ import annotations

import sys

from qat.cli import run_stage
from qat.config import Config
from qat.runs import RunFolder


def stage(config: Config, run: RunFolder) -> int:
    from qat.pipeline import verify  # here, so that --help and wrong settings do not wait for torch

    differing_codes = verify(config, run)
    print(f"differing codes: {differing_codes}")
    return 1 if differing_codes else 0


if __name__ == "__main__":
    sys.exit(run_stage(stage, __doc__, RunFolder.reopen))
