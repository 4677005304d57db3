"""Writes report.html of a run: front, bits and density per layer, memory, traffic, training curves.

Needs run=<folder> of a search that is done.
"""

from __future__ import annotations

import sys

from qat.cli import run_stage
from qat.config import Config
from qat.runs import RunFolder


def stage(config: Config, run: RunFolder) -> None:
    from qat.pipeline import report  # here, so that --help and wrong settings do not wait for torch

    print(report(config, run))


if __name__ == "__main__":
    sys.exit(run_stage(stage, __doc__, RunFolder.reopen))
