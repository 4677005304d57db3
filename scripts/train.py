"""Trains the float network, or checks and takes over the weights that network.weights names.

Leaves float.ckpt and its top-1 on test images in the run folder; the search starts from it.
"""

from __future__ import annotations

import sys

from qat.cli import run_stage
from qat.config import Config
from qat.runs import RunFolder


def stage(config: Config, run: RunFolder) -> None:
    from qat.pipeline import train  # here, so that --help and wrong settings do not wait for torch

    train(config, run)
    found = run.read_json("float.json")
    print(f"float model: {found}; {run.path}")


if __name__ == "__main__":
    sys.exit(run_stage(stage, __doc__, trains=True))
