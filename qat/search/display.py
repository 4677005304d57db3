"""Shows a search as it runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from qat.search.progress import RECENT
from qat.search.space import SearchSpace
from qat.search.trial import Target, Trial, TrialState

BITS_PER_KIB = 8 * 1024

HEADERS = (
    "trial",
    "target",
    "origin",
    "bits",
    "density",
    "accuracy",
    "best",
    "bits/weight",
    "compression",
    "RAMB18",
    "off-chip KiB",
    "time",
)
"""Columns of the table; `best` is the best accuracy so far under the trial's target."""


class SearchDisplay:
    """An `Observer` that shows each trial, the best so far, and the time left.

    Args:
        space: For bits and density.
        targets: For the best so far.
        console: Where to write; a terminal gets a live table, anything else one line per trial.
        rows: Trials shown in the live table: the last ones.
    """

    def __init__(
        self, space: SearchSpace, targets: Sequence[Target], console: Console | None = None, rows: int = 20
    ) -> None:
        self._space = space
        self._targets = {target.name: target for target in targets}
        self._console = console or Console()
        self._rows = rows
        self._trials: dict[int, Trial] = {}
        self._total = 0
        self._parallel = 1
        self._live: Live | None = None
        self._progress = Progress(
            TextColumn("search"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
        )
        self._task = self._progress.add_task("search", total=None, left="")

    # -- observer -------------------------------------------------------------------------------------------------

    def search_started(self, trials: Sequence[Trial], total: int) -> None:
        """Shows what a resumed search already has."""
        self._trials = {trial.id: trial for trial in trials}
        self._total = total
        if self._console.is_terminal:
            self._live = Live(self.table(), console=self._console, refresh_per_second=4)
            self._live.start()
        else:
            self._print(f"search: {self._done} of {total} trials done")
            self._print("  ".join(f"{name:>{width}}" for name, width in zip(HEADERS, _WIDTHS, strict=True)))
        self._refresh()

    def trial_started(self, trial: Trial) -> None:
        """Shows the running trial."""
        self._trials[trial.id] = trial
        running = sum(known.state is TrialState.RUNNING for known in self._trials.values())
        self._parallel = max(self._parallel, running)
        self._refresh()

    def trial_ended(self, trial: Trial) -> None:
        """Shows the result of a trial."""
        self._trials[trial.id] = trial
        if self._live is None:
            cells = self.cells(trial)
            line = "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))
            self._print(f"{line}  {self._left()}".rstrip())
        self._refresh()

    def search_ended(self) -> None:
        """Leaves the last state of the table on the terminal."""
        self._refresh()
        if self._live is not None:
            self._live.stop()
            self._live = None

    # -- content --------------------------------------------------------------------------------------------------

    def cells(self, trial: Trial) -> tuple[str, ...]:
        """One row of the table as text."""
        best = self._best(trial)
        accuracy = {
            TrialState.COMPLETED: f"{100 * trial.accuracy:.2f} %",
            TrialState.STOPPED: "stopped",
            TrialState.FAILED: "failed",
        }
        return (
            str(trial.id),
            trial.target,
            trial.origin,
            f"{self._space.mean_bits(trial.config):.2f}",
            f"{100 * self._space.mean_density(trial.config):.0f} %",
            accuracy.get(trial.state, "..."),
            "-" if best is None else f"{100 * best:.2f} %",
            _number(trial.cost, "bits_per_weight", ".2f"),
            _number(trial.cost, "compression", ".1f", "x"),
            _number(trial.cost, "bram18", ".0f"),
            _number(trial.cost, "offchip_bits", ",.0f", scale=1 / BITS_PER_KIB),
            "..." if trial.duration_s is None else duration(trial.duration_s),
        )

    def table(self) -> RenderableType:
        """The table of the last trials, and the progress bar."""
        table = Table(caption=self._caption(), caption_justify="left")
        for header in HEADERS:
            table.add_column(header, justify="left" if header in ("target", "origin") else "right", no_wrap=True)
        for trial in list(self._trials.values())[-self._rows :]:
            is_best = trial.is_completed and trial.accuracy == self._best(trial)
            styles = {TrialState.STOPPED: "dim", TrialState.FAILED: "red"}
            style = "bold green" if is_best else styles.get(trial.state)
            table.add_row(*self.cells(trial), style=style)
        return Group(table, self._progress)

    def _caption(self) -> str:
        hidden = max(0, len(self._trials) - self._rows)
        parts = [f"{hidden} earlier trials not shown"] if hidden else []
        for state in (TrialState.STOPPED, TrialState.FAILED):
            count = sum(trial.state is state for trial in self._trials.values())
            parts += [f"{count} {state}"] if count else []
        return "; ".join(parts)

    def _best(self, trial: Trial) -> float | None:
        """Best accuracy inside the bounds of the trial's target, up to and including this trial."""
        target = self._targets.get(trial.target)
        seen = [t for t in self._trials.values() if t.id <= trial.id and t.is_completed and target]
        return max((t.accuracy for t in seen if target is not None and target.admits(t.cost)), default=None)

    @property
    def _done(self) -> int:
        return sum(trial.has_ended for trial in self._trials.values())

    def _left(self) -> str:
        times = [trial.duration_s for trial in self._trials.values() if trial.duration_s is not None]
        left = self._total - self._done
        if not times or left <= 0:
            return ""
        recent = times[-RECENT:]
        return f"about {duration(left * sum(recent) / len(recent) / self._parallel)} left"

    def _refresh(self) -> None:
        self._progress.update(self._task, total=self._total, completed=self._done, left=self._left())
        if self._live is not None:
            self._live.update(self.table())

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


_WIDTHS = (5, 14, 11, 5, 7, 9, 9, 11, 11, 6, 12, 6)


def _number(cost: Mapping[str, float], column: str, form: str, unit: str = "", *, scale: float = 1.0) -> str:
    return f"{cost[column] * scale:{form}}{unit}" if column in cost else "-"


def duration(seconds: float) -> str:
    """Seconds as text: `12.3 s`, `3 min 05 s`, `2 h 07 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
