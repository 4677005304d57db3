"""What a run folder holds of trained networks."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from rich.console import Console

from qat.errors import RunFolderError
from qat.report import Result, result_table
from qat.runs import RunFolder

TRIALS: Final = "trials.sqlite"
NETWORKS: Final = "networks"

LOG_WIDTH = 120
"""Columns of tables that go to a file; a terminal says itself how wide it is."""


def results(run: RunFolder) -> list[Result]:
    """The networks of a run that were trained in full: mixes first, then uniform ones, smallest first.

    Raises:
        RunFolderError: There is none, or what is noted of one is damaged.
    """
    paths = sorted((run.path / NETWORKS).glob("*/result.json"))
    if not paths:
        raise RunFolderError(f"run folder {run.path} has no trained network; run scripts/search.py first")
    # A network that was set aside has the name of its folder.
    found = [
        replace(Result.from_dict(run.read_json(path.relative_to(run.path))), name=path.parent.name) for path in paths
    ]
    return sorted(found, key=lambda result: (result.kind, -result.compression))


def show(run: RunFolder) -> None:
    """Prints the result table and where things lie."""
    console = Console()
    if not console.is_terminal:
        console.width = LOG_WIDTH
    console.print(result_table(results(run), f"{run.path.name}: trained in full, measured on test images"))
    console.print(f"report:       {run.path / 'report.html'}", soft_wrap=True)
    console.print(f"packed files: {run.path / NETWORKS}/<network>/packed", soft_wrap=True)
