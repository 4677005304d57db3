"""Lowers the trained networks of a run to integers and writes their packed files.

Needs run=<folder> of a search that is done; run it from any working directory.
"""

from __future__ import annotations

import sys

from qat.cli import run_stage
from qat.config import Config
from qat.runs import RunFolder


def stage(config: Config, run: RunFolder) -> None:
    from qat.pipeline import export  # here, so that --help and wrong settings do not wait for torch

    for folder in export(config, run):
        print(folder)


if __name__ == "__main__":
    sys.exit(run_stage(stage, __doc__, RunFolder.reopen))
