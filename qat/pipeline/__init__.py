"""The straight line: float model -> trace -> sensitivity -> search -> fine-tune -> integers -> packed files -> report.

Each stage leaves its result in the run folder and is skipped when it is there: running the same command again goes
on where the last one stopped.

    float.ckpt  network.json  sensitivity.json  trials.sqlite  trials.csv
    networks/<name>/  config.json  cost.json  schedule.json  model.ckpt  metrics.csv  packed/  result.json
    summary.csv  summary.json  report.html  plots/
"""

from __future__ import annotations

from qat.config import Config
from qat.costing import cost
from qat.pipeline.integers import export, verify
from qat.pipeline.planning import plan
from qat.pipeline.records import results, show
from qat.pipeline.reporting import report
from qat.pipeline.searching import search
from qat.pipeline.setup import train
from qat.runs import RunFolder

__all__ = ["cost", "demo", "export", "plan", "report", "results", "search", "show", "train", "verify"]


def demo(cfg: Config, run: RunFolder) -> int:
    """The whole job: search, export, verify, report.

    Returns:
        Codes that differ between packed files and deployed model; 0 is the only acceptable answer.
    """
    search(cfg, run)
    export(cfg, run)
    differing = verify(cfg, run)
    report(cfg, run)
    show(run)
    return differing
