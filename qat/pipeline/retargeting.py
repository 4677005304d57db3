"""Another board from the trials of an earlier search."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qat.config import Config
from qat.errors import SearchError
from qat.files import write_text
from qat.pipeline.planning import plan
from qat.pipeline.records import LOG_WIDTH, TRIALS
from qat.runs import RunFolder
from qat.search.retarget import Retargeted, retarget
from qat.search.sensitivity import SensitivityProfile
from qat.search.store import TrialStore
from qat.search.trial import Target


def retarget_run(cfg: Config) -> list[Retargeted]:
    """Answers for the board and the budgets of `cfg` from the trials in `cfg.run_dir`; nothing is trained.

    Writes `retarget/<board>/<target>.json`, the best expected configuration of each target, into the run folder.

    Raises:
        RunFolderError: There is no such run.
        SearchError: The run has too few trials, or nothing fits.
        BudgetError: The board is too small for the network.
    """
    run = RunFolder.open(cfg.run_dir)
    space, costs, budgets = plan(cfg)
    # Beside the bounds of the search, the schedule must exist on the new board.
    targets = [Target(target.name, {**target.bounds, "fits": (1, None)}) for target in budgets]
    with TrialStore(run.path / TRIALS, read_only=True) as store:
        trials = store.trials()
        stored = store.document("profile")
    if stored is None:
        raise SearchError(f"run folder {run.path}: the search has not measured sensitivities yet; let it run first")
    profile = SensitivityProfile.from_dict(stored)
    found = [retarget(space, profile, trials, costs.evaluate, target, cfg.search.seed) for target in targets]
    folder = Path("retarget") / cfg.board.name
    for answer in found:
        run.write_json(folder / f"{answer.target.name}.json", answer.predicted.to_dict())
    text = _table(cfg, found)
    write_text(run.path / folder / "summary.txt", text)
    return found


def show_retargeted(cfg: Config, found: list[Retargeted]) -> None:
    """Prints the answers."""
    console = Console()
    console.print(_table(cfg, found), highlight=False, markup=False, soft_wrap=True)


def _table(cfg: Config, found: list[Retargeted]) -> str:
    table = Table(title=f"{cfg.name} on {cfg.board.name}, from trials already paid for")
    headers = ("target", "trials that fit", "best evaluated", "observed", "expected", "best predicted", "compression")
    for header in (*headers, "RAMB18", "fps"):
        table.add_column(header)
    for answer in found:
        winner = answer.evaluated
        table.add_row(
            answer.target.name,
            str(answer.trials_inside),
            "-" if winner is None else f"trial {winner.trial.id}",
            "-" if winner is None else f"{100 * winner.trial.accuracy:.2f} %",
            "-" if winner is None else f"{100 * winner.expected_accuracy:.2f} %",
            f"{100 * answer.expected_accuracy:.2f} +- {100 * answer.std:.2f} %",
            f"{answer.cost['compression']:.1f}x",
            f"{answer.cost['bram18']:.0f}",
            f"{answer.cost['fps']:,.0f}",
        )
    console = Console(width=LOG_WIDTH + 20, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()
