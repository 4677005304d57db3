"""Another board from the trials of an earlier search."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hwmodel.table import HIGHER_IS_BETTER
from qat.config import Config
from qat.errors import ConfigError, SearchError
from qat.files import write_rows, write_text
from qat.inputs import check_inputs
from qat.pipeline.evaluation import executor_of
from qat.pipeline.planning import plan
from qat.pipeline.records import LOG_WIDTH, TRIALS
from qat.pipeline.searching import complete_fingerprint, completed, context_of, fidelity_of, settings_of
from qat.pipeline.setup import train
from qat.runs import RunFolder
from qat.search.display import SearchDisplay
from qat.search.front import Front
from qat.search.loop import search_on
from qat.search.retarget import Retargeted, RetargetedFront, retarget, retarget_front, with_costs
from qat.search.sensitivity import SensitivityProfile
from qat.search.space import SearchSpace
from qat.search.store import TrialStore, setting_differences
from qat.search.trial import CostFunction, Fidelity, Target, Trial
from qat.search.winner import ended_at_highest_fidelity

FIRST_DESIGNS = 1
"""Of a budget that the search had not; the surrogate knows the earlier trials already."""


Answer = Retargeted | RetargetedFront


def retarget_run(cfg: Config, more_trials: int = 0) -> list[Answer]:
    """Answers for the board and the budgets, or the front, of `cfg` from the trials in `cfg.run_dir`.

    Writes into `retarget/<board>` of the run folder: of each budget `<target>.json`, the best expected configuration;
    of a front `front/trial<id>.json` for each evaluated configuration, `front/predicted<number>.json` for each other
    one, and `front.csv` with accuracies and all costs; `summary.txt` is what is printed.

    Args:
        cfg: The search's configuration, with the other board, and other budgets or another front.
        more_trials: How many trials to add, proposed for this board from those there are; none trains nothing. They are
            kept in `retarget/<board>/trials.sqlite`, so that the same call goes on where it stopped.

    Raises:
        ConfigError: Budgets were changed that a front makes void, or a GPU is asked for that is not there.
        RunFolderError: There is no such run.
        SearchError: The run has too few trials, nothing fits, or more trials would not be comparable.
        BudgetError: The board is too small for the network.
    """
    run = RunFolder.open(cfg.run_dir)
    _check_goal(cfg, run)
    if more_trials:
        check_inputs(cfg)
    space, costs, targets = plan(cfg)
    with TrialStore(run.path / TRIALS, read_only=True) as store:
        trials = store.trials()
        stored, settings = store.document("profile"), store.document("fingerprint")
    if stored is None or settings is None:
        raise SearchError(f"run folder {run.path}: the search has not measured sensitivities yet; let it run first")
    profile = SensitivityProfile.from_dict(stored)
    if more_trials:
        start = Continuation(space, costs.evaluate, targets, profile, settings)
        trials = _with_more(cfg, run, start, trials, more_trials)
    found: list[Answer] = []
    folder = Path("retarget") / cfg.board.name
    for target in targets:
        if isinstance(target, Front):
            few = cfg.search.front_networks
            front = retarget_front(space, profile, trials, costs.evaluate, target, few, cfg.search.seed)
            _write_front(run, folder, space, front)
            found.append(front)
        else:
            answer = retarget(space, profile, trials, costs.evaluate, target, cfg.search.seed)
            run.write_json(folder / f"{target.name}.json", answer.predicted.to_dict())
            found.append(answer)
    write_text(run.path / folder / "summary.txt", _text(cfg, found))
    return found


def _check_goal(cfg: Config, run: RunFolder) -> None:
    """Raises `ConfigError` where budgets were given that a front, of the search or given too, makes void."""
    before = run.config_values()["search"].get("min_compression")
    if cfg.search.front and list(cfg.search.min_compression) != before:
        raise ConfigError(
            f"search.min_compression={list(cfg.search.min_compression)} says nothing beside search.front="
            f"{list(cfg.search.front)}; give search.front=[] for budgets, or for a smaller front bounds, as in "
            "search.bounds=[{column: compression, low: 18}]"
        )


def _write_front(run: RunFolder, folder: Path, space: SearchSpace, front: RetargetedFront) -> None:
    """The front's configurations and their table; those of an earlier answer go."""
    name = front.target.name
    configs = {f"trial{winner.trial.id}": winner.trial.config for winner in front.evaluated}
    configs |= {f"predicted{i}": space.config(each.point) for i, each in enumerate(front.predicted, 1)}
    for key, config in configs.items():
        run.write_json(folder / name / f"{key}.json", config.to_dict())
    for path in (run.path / folder / name).glob("*.json"):
        if path.stem not in configs:
            path.unlink()
    rows = [
        {
            "configuration": key, "observed_accuracy": observed, "expected_accuracy": expected, "std": std, **cost
        }
        for key, (observed, expected, std, cost) in zip(configs, _points(front), strict=True)
    ]  # fmt: skip
    write_rows(run.path / folder / name, rows)


def _points(front: RetargetedFront) -> list[tuple[float | None, float, float | None, Mapping[str, float]]]:
    """Observed accuracy, expected accuracy, its standard deviation, and costs: trials, then predicted points."""
    trials = [
        (w.trial.accuracy, w.expected_accuracy, None if isnan(w.std) else w.std, w.trial.cost) for w in front.evaluated
    ]
    return [*trials, *((None, *each.predicted, each.cost) for each in front.predicted if each.predicted)]


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
        complete_fingerprint(store, run)
        adopted = store.adopt(with_costs(ended_at_highest_fidelity(trials), start.space, start.cost))
        found = search_on(
            executor=executor,
            space=start.space,
            cost=start.cost,
            targets=start.targets,
            fidelity=fidelity,
            store=store,
            settings=settings_of(cfg, adopted + count, FIRST_DESIGNS),
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
    before = completed(start.settings, run)
    then = {key: before[key] for key in now}
    now["context"], then["context"] = ({**values["context"], "board": None} for values in (now, then))
    if now != then:
        lines = "\n".join(f"  {line}" for line in setting_differences(then, now))
        raise SearchError(
            f"run folder {run.path}: more trials would be made with other settings:\n{lines}\n"
            "leave them as they were; only the board and the budgets may change"
        )


def show_retargeted(cfg: Config, found: Sequence[Answer]) -> None:
    """Prints the answers."""
    console = Console()
    console.print(_text(cfg, found), highlight=False, markup=False, soft_wrap=True)


def _text(cfg: Config, found: Sequence[Answer]) -> str:
    title = f"{cfg.name} on {cfg.board.name}, from trials already paid for"
    tables = [_front_table(title, answer) for answer in found if isinstance(answer, RetargetedFront)]
    budgets = [answer for answer in found if isinstance(answer, Retargeted)]
    tables += [_table(title, budgets)] if budgets else []
    console = Console(width=LOG_WIDTH + 20, record=True, file=io.StringIO())
    console.print(*tables)
    return console.export_text()


def _front_table(title: str, front: RetargetedFront) -> Table:
    """Evaluated and predicted points together, cheapest first."""
    columns = list(dict.fromkeys((*front.target.columns, "compression", "bram18", "fps")))
    table = Table(title=f"{title}; {front.trials_inside} trials are inside the bounds")
    for header in ("configuration", "observed", "expected", *columns):
        table.add_column(header)
    names = [f"trial {winner.trial.id}" for winner in front.evaluated]
    names += [f"predicted {number}" for number, _ in enumerate(front.predicted, 1)]
    named = list(zip(names, _points(front), strict=True))
    first = front.target.columns[0]
    named.sort(key=lambda each: each[1][3][first], reverse=first in HIGHER_IS_BETTER)
    for name, (observed, expected, std, cost) in named:
        table.add_row(
            name,
            "-" if observed is None else f"{100 * observed:.2f} %",
            f"{100 * expected:.2f} {'' if std is None else f'+- {100 * std:.2f} '}%",
            *(f"{cost[column]:,.6g}" for column in columns),
        )
    return table


def _table(title: str, found: Sequence[Retargeted]) -> Table:
    table = Table(title=title)
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
    return table
