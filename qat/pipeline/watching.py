"""Progress of a search that runs or ran, in this process or another."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from qat.config import Config
from qat.pipeline.planning import targets_of
from qat.pipeline.records import LOG_WIDTH, TRIALS
from qat.runs import RunFolder
from qat.search.display import duration
from qat.search.loop import EXHAUSTED, SPENT
from qat.search.progress import SearchProgress, progress_of
from qat.search.store import TrialStore, is_being_written


def status(cfg: Config) -> SearchProgress:
    """Prints how far the search in `cfg.run_dir` is; reads only, so that it may run beside the search.

    Raises:
        RunFolderError: There is no such run.
        SearchError: The search has not started yet.
    """
    run = RunFolder.open(cfg.run_dir)
    with TrialStore(run.path / TRIALS, read_only=True) as store:
        trials, exhausted = store.trials(), store.document(EXHAUSTED)
    found = progress_of(trials, targets_of(cfg), cfg.search.trials)
    console = Console()
    if not console.is_terminal:
        console.width = LOG_WIDTH
    states = ", ".join(f"{count} {state}" for state, count in found.states.items() if count)
    console.print(
        f"{run.path.name}: {found.done} of {found.total} trials done ({states or 'none yet'})", highlight=False
    )
    if not is_being_written(run.path / TRIALS):  # what an earlier process had running is not
        if exhausted and found.done == len(trials):
            what = "everything" if exhausted == SPENT else "everything that it found"
            console.print(f"no search is running now; {what} inside the bounds has been tried", highlight=False)
        elif found.done < found.total:
            console.print("no search is running now; the same command goes on where it stopped", highlight=False)
    else:
        if found.left_s is not None and found.done < found.total:
            console.print(f"about {duration(found.left_s)} left", highlight=False)
        for number, seconds in found.running_s.items():
            console.print(f"trial {number} has been running for {duration(seconds)}", highlight=False)
    table = Table("target", "trial", "accuracy", "bits/weight", "compression", "RAMB18")
    for target, trial in found.best.items():
        if trial is None:
            table.add_row(target, "-", "-", "-", "-", "-")
            continue
        cost = trial.cost
        table.add_row(
            target, str(trial.id), f"{100 * trial.accuracy:.2f} %", f"{cost['bits_per_weight']:.2f}",
            f"{cost['compression']:.1f}x", f"{cost['bram18']:.0f}",
        )  # fmt: skip
    console.print(table)
    for error, count in found.errors:
        console.print(f"failed {count}x: {error}", highlight=False, markup=False)
    return found
