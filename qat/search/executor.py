"""Where evaluations run: here one after another, in local processes (`pool`), or on a Ray cluster (`cluster`).

An executor knows nothing of stores and proposals: tasks go in, outcomes come out, in whatever order they end.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Protocol, Self

from hwmodel.precision import NetworkConfig
from qat.errors import ConfigError, SearchError
from qat.search.trial import ACCURACY, SCREENING_ACCURACY, Evaluator, Fidelity, Screening

EvaluatorFactory = Callable[[], Evaluator]
"""Makes an evaluator in the process that will use it.

It has to be picklable, so it is a description (network, data, recipe; names and plain values), as an instance of a
module-level class with `__call__` or a `functools.partial` of a module-level function.
"""


@dataclass(frozen=True)
class Task:
    """One evaluation to run; plain values, picklable.

    Args:
        trial_id: Of the trial.
        config: What to evaluate.
        fidelity: How much to spend.
        seed: Of everything random.
        screening: What it must reach on the way, and when; `None` lets it run to its end.
    """

    trial_id: int
    config: NetworkConfig
    fidelity: Fidelity
    seed: int
    screening: Screening | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Args:
        trial_id: Of the trial.
        metrics: What was measured; empty after a failure.
        error: Why there are none: the configuration's fault, it is not tried again.
        lost: The worker died: may be tried again.
        stopped: The configuration did not reach what its screening asked; metrics have the screening's accuracy only.
    """

    trial_id: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    lost: bool = False
    stopped: bool = False


class Executor(Protocol):
    """Runs tasks; a context manager that stops what is left when it is closed."""

    @property
    def workers(self) -> int:
        """Tasks that may be under way at once, >= 1."""

    def submit(self, task: Task) -> None:
        """Takes a task; at most `workers` are under way."""

    def wait(self) -> Sequence[Outcome]:
        """Blocks until at least one task has ended, and returns all that have."""

    def close(self) -> None:
        """Stops running tasks and gives back every resource."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class InProcess:
    """Evaluates in this process, one task at a time.

    Args:
        evaluator: Turns a configuration into metrics.
        time_limit_s: Seconds that an evaluation may take, > 0; `None` for no limit.

    Raises:
        ConfigError: The limit is out of range.
    """

    def __init__(self, evaluator: Evaluator, time_limit_s: float | None = None) -> None:
        check_time_limit(time_limit_s)
        self._evaluator = evaluator
        self._time_limit_s = time_limit_s
        self._tasks: list[Task] = []

    @property
    def workers(self) -> int:
        """One."""
        return 1

    def submit(self, task: Task) -> None:
        """Keeps the task until `wait`."""
        self._tasks.append(task)

    def wait(self) -> Sequence[Outcome]:
        """Evaluates the oldest task.

        Raises:
            SearchError: There is none.
        """
        if not self._tasks:
            raise SearchError("no task was submitted, nothing to wait for")
        return [evaluate(self._evaluator, self._tasks.pop(0), self._time_limit_s)]

    def close(self) -> None:
        """Forgets tasks that were not evaluated."""
        self._tasks.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def evaluate(evaluator: Evaluator, task: Task, time_limit_s: float | None) -> Outcome:
    """Evaluates a task; whatever it raises is knowledge about its configuration."""
    screening = () if task.screening is None else (task.screening,)
    try:
        with time_limit(time_limit_s):
            found = evaluator(task.config, task.fidelity, task.seed, *screening)
        metrics = {str(name): float(value) for name, value in found.items()}
    except Exception as error:
        return Outcome(task.trial_id, error=f"{type(error).__name__}: {error}")
    screened = metrics.get(SCREENING_ACCURACY, math.nan)
    stopped = task.screening is not None and screened < task.screening.least and ACCURACY not in metrics
    expected = [*([] if stopped else [ACCURACY]), *([] if task.screening is None else [SCREENING_ACCURACY])]
    for name in expected:
        if name not in metrics:
            return Outcome(task.trial_id, error=f"the evaluator returned no {name!r}, only {sorted(metrics)}")
        if not 0 <= metrics[name] <= 1:
            return Outcome(task.trial_id, error=f"{name} is {metrics[name]}, expected a number in [0, 1]")
    return Outcome(task.trial_id, metrics, stopped=stopped)


def check_time_limit(time_limit_s: float | None) -> None:
    """Raises `ConfigError` unless the limit is `None` or > 0."""
    if time_limit_s is not None and not (math.isfinite(time_limit_s) and time_limit_s > 0):
        raise ConfigError(f"time_limit_s={time_limit_s!r}, expected seconds > 0, or null for no limit")


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raises `TimeoutError` inside the block after some seconds, between two steps of Python code.

    Python delivers signals to the main thread only: in another thread there is no limit.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expired(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"took longer than the time limit of {seconds:g} s")

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
