"""Shows how far a search is: trials done, failures, the best so far, time left.

Needs run=<folder>; reads only, so it may run while the search does, or after it.
"""

from __future__ import annotations

import sys

from qat.cli import run_estimate
from qat.config import Config


def stage(config: Config) -> None:
    from qat.pipeline.watching import status  # here, so that --help and wrong settings do not wait for torch

    status(config)


if __name__ == "__main__":
    sys.exit(run_estimate(stage, __doc__))
