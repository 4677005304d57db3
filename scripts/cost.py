"""Says what uniform configurations (baselines=[...]) of a network cost on a board. Trains and writes nothing."""

from __future__ import annotations

import sys

from qat.cli import run_estimate
from qat.config import Config


def stage(config: Config) -> None:
    from qat.pipeline import cost  # here, so that --help and wrong settings do not wait for torch

    cost(config)


if __name__ == "__main__":
    sys.exit(run_estimate(stage, __doc__))
