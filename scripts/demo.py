"""Shows the whole job in minutes: float network, search, training, export, integer check, report."""

from __future__ import annotations

import sys

from qat.cli import run_stage
from qat.config import Config
from qat.runs import RunFolder


def stage(config: Config, run: RunFolder) -> int:
    from qat.pipeline import demo  # here, so that --help and wrong settings do not wait for torch

    return 1 if demo(config, run) else 0


if __name__ == "__main__":
    sys.exit(run_stage(stage, __doc__, root="demo", trains=True))
