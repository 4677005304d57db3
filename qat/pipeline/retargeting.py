"""Another board from the trials of an earlier search."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from qat.config import Config
from qat.errors import ConfigError, SearchError
from qat.files import write_text
from qat.pipeline.evaluation import executor_of
from qat.pipeline.planning import plan
from qat.pipeline.records import LOG_WIDTH, TRIALS
from qat.pipeline.searching import context_of, fidelity_of, screening_share_of
from qat.pipeline.setup import train
from qat.runs import RunFolder
from qat.search.display import SearchDisplay
from qat.search.loop import SearchSettings, search_on
from qat.search.proposer import ProposerSettings
from qat.search.retarget import Retargeted, retarget, with_costs
from qat.search.sensitivity import SensitivityProfile
from qat.search.space import SearchSpace
from qat.search.store import TrialStore, setting_differences
from qat.search.trial import CostFunction, Fidelity, Target, Trial
from qat.search.winner import highest_fidelity

FIRST_DESIGNS = 2
"""Of a budget that the search had not; the surrogate knows the earlier trials already."""


def retarget_run(cfg: Config, more_trials: int = 0) -> list[Retargeted]:
    """Answers for the board and the budgets of `cfg` from the trials in `cfg.run_dir`.

    Writes `retarget/<board>/<target>.json`, the best expected configuration of each target, into the run folder.

    Args:
        cfg: The search's configuration, with the other board and budgets.
        more_trials: How many trials to add, proposed for this board from those there are; none trains nothing. They are
            kept in `retarget/<board>/trials.sqlite`, so that the same call goes on where it stopped.

    Raises:
        ConfigError: A front is asked for.
        RunFolderError: There is no such run.
        SearchError: The run has too few trials, nothing fits, or more trials would not be comparable.
        BudgetError: The board is too small for the network.
    """
    if cfg.search.front:
        raise ConfigError(
            f"search.front={list(cfg.search.front)}: another board is answered for budgets; give search.front=[] and "
            "search.min_compression=[...]"
        )
    run = RunFolder.open(cfg.run_dir)
    space, costs, budgets = plan(cfg)
    # Beside the bounds of the search, the schedule must exist on the new board.
    targets = [Target(target.name, {**target.bounds, "fits": (1, None)}) for target in budgets]
    with TrialStore(run.path / TRIALS, read_only=True) as store:
        trials = store.trials()
        stored, settings = store.document("profile"), store.document("fingerprint")
    if stored is None or settings is None:
        raise SearchError(f"run folder {run.path}: the search has not measured sensitivities yet; let it run first")
    profile = SensitivityProfile.from_dict(stored)
    if more_trials:
        start = Continuation(space, costs.evaluate, targets, profile, settings)
        trials = _with_more(cfg, run, start, trials, more_trials)
    found = [retarget(space, profile, trials, costs.evaluate, target, cfg.search.seed) for target in targets]
    folder = Path("retarget") / cfg.board.name
    for answer in found:
        run.write_json(folder / f"{answer.target.name}.json", answer.predicted.to_dict())
    text = _table(cfg, found)
    write_text(run.path / folder / "summary.txt", text)
    return found


@dataclass(frozen=True)
class Continuation:
    """What a search on another board starts from: choices, costs and budgets there, and how the trials were made."""

    space: SearchSpace
    cost: CostFunction
    targets: Sequence[Target]
    profile: SensitivityProfile
    settings: Mapping[str, Any]


def _with_more(
    cfg: Config, run: RunFolder, start: Continuation, trials: Sequence[Trial], count: int
) -> tuple[Trial, ...]:
    setup = train(cfg, run)
    fidelity, context = fidelity_of(cfg, setup), context_of(cfg, setup.recipe)
    _check_comparable(run, start, fidelity, context)
    path = run.path / "retarget" / cfg.board.name / TRIALS
    with TrialStore(path) as store, executor_of(cfg, run, setup) as executor:
        adopted = store.adopt(with_costs(highest_fidelity(trials), start.space, start.cost))
        found = search_on(
            executor=executor,
            space=start.space,
            cost=start.cost,
            targets=start.targets,
            fidelity=fidelity,
            store=store,
            settings=SearchSettings(
                trials=adopted + count,
                seed=cfg.search.seed,
                max_failure_share=cfg.search.max_failed_share,
                screening_share=screening_share_of(cfg),
                proposer=ProposerSettings(initial_trials=FIRST_DESIGNS),
            ),
            profile=start.profile,
            context=context,
            observers=[SearchDisplay(start.space, start.targets)],
        )
        store.export_csv(path.with_suffix(".csv"))
    return found.trials


def _check_comparable(run: RunFolder, start: Continuation, fidelity: Fidelity, context: Mapping[str, Any]) -> None:
    """Raises `SearchError` unless new trials would be made as the earlier ones were; the board may differ."""
    made = {"space": start.space.to_dict(), "fidelity": fidelity.to_dict(), "context": context}
    now = json.loads(json.dumps(made))
    then = {key: start.settings[key] for key in now}
    now["context"], then["context"] = ({**values["context"], "board": None} for values in (now, then))
    if now != then:
        lines = "\n".join(f"  {line}" for line in setting_differences(then, now))
        raise SearchError(
            f"run folder {run.path}: more trials would be made with other settings:\n{lines}\n"
            "leave them as they were; only the board and the budgets may change"
        )


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
