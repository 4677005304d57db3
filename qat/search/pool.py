"""Evaluations in local processes, with the machine's threads shared out among them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Self

from qat.errors import ConfigError, SearchError
from qat.search.executor import EvaluatorFactory, Outcome, Task, check_time_limit, evaluate

GRACE_S = 10.0
"""A worker that has not stopped by itself this long after its time limit is killed: it hangs outside Python."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    task: Task | None = None
    deadline_s: float | None = None


class ProcessPool:
    """Evaluates in processes of their own, which outlive their tasks.

    A worker that dies (killed, out of memory) loses its task and is replaced.

    Args:
        factory: Makes the evaluator in each worker.
        workers: Processes, >= 1.
        threads: Threads of each worker, >= 1; `None` shares the machine's cores out.
        time_limit_s: Seconds that an evaluation may take, > 0; `None` for no limit.

    Raises:
        ConfigError: A number is out of range, or the factory cannot be pickled.
    """

    def __init__(
        self,
        factory: EvaluatorFactory,
        workers: int,
        threads: int | None = None,
        time_limit_s: float | None = None,
    ) -> None:
        check_time_limit(time_limit_s)
        for name, value in (("workers", workers), ("threads", 1 if threads is None else threads)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name}={value!r}, expected an integer >= 1")
        self._description = pickled(factory)
        self._threads = threads or max(1, (os.cpu_count() or 1) // workers)
        self._time_limit_s = time_limit_s
        self._context = multiprocessing.get_context("spawn")  # forked threads of torch hang
        self._workers: list[_Worker] = []
        self._size = workers
        # Not daemons, which may start no processes of their own (data loaders, one training on several devices).
        weakref.finalize(self, _kill, self._workers)

    @property
    def workers(self) -> int:
        """Number of processes."""
        return self._size

    def submit(self, task: Task) -> None:
        """Gives the task to a free worker, starting it if need be.

        Raises:
            SearchError: All workers are busy.
        """
        worker = next((w for w in self._workers if w.task is None), None)
        if worker is None:
            if len(self._workers) >= self._size:
                raise SearchError(f"all {self._size} workers are busy")
            worker = self._start()
        worker.task = task
        worker.deadline_s = None
        try:
            worker.connection.send(task)
        except OSError:  # died while idle; `wait` reports the task as lost
            return

    def wait(self) -> Sequence[Outcome]:
        """Blocks until a task has ended, its worker has died, or its time is up."""
        while True:
            busy = [worker for worker in self._workers if worker.task is not None]
            if not busy:
                raise SearchError("no task was submitted, nothing to wait for")
            limits = [w.deadline_s - time.monotonic() for w in busy if w.deadline_s is not None]
            ready = wait([w.connection for w in busy], max(0.0, min(limits)) if limits else None)
            found = [self._receive(w) for w in busy if w.connection in ready]
            late = [w for w in busy if w.task and w.deadline_s is not None and w.deadline_s <= time.monotonic()]
            found += [self._abandon(worker) for worker in late]
            outcomes = [outcome for outcome in found if outcome is not None]
            if outcomes:
                return outcomes

    def close(self) -> None:
        """Kills all workers."""
        _kill(self._workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(theirs, self._description, self._threads, self._time_limit_s)
        )
        process.start()
        theirs.close()  # else the end of the process would not end the connection
        worker = _Worker(process, ours)
        self._workers.append(worker)
        return worker

    def _receive(self, worker: _Worker) -> Outcome | None:
        task = worker.task
        assert task is not None
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            self._remove(worker)
            return Outcome(task.trial_id, lost=True)
        if message is None:  # the evaluator is made: the task's own time starts
            if self._time_limit_s is not None:
                worker.deadline_s = time.monotonic() + self._time_limit_s + GRACE_S
            return None
        worker.task = worker.deadline_s = None
        outcome: Outcome = message
        return outcome

    def _abandon(self, worker: _Worker) -> Outcome:
        task = worker.task
        assert task is not None
        worker.process.kill()
        self._remove(worker)
        return Outcome(
            task.trial_id, error=f"TimeoutError: took longer than the time limit of {self._time_limit_s:g} s"
        )

    def _remove(self, worker: _Worker) -> None:
        worker.task = worker.deadline_s = None
        worker.process.join(GRACE_S)
        worker.connection.close()
        self._workers.remove(worker)


def pickled(factory: EvaluatorFactory) -> bytes:
    """The factory as bytes.

    Raises:
        ConfigError: It cannot be pickled.
    """
    try:
        return pickle.dumps(factory)
    except Exception as error:
        raise ConfigError(
            f"the evaluator's description cannot be sent to another process: {error}; give an instance of a "
            "module-level class with plain values"
        ) from error


def _kill(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.process.join()
        worker.connection.close()
    workers.clear()


def _serve(connection: Connection, description: bytes, threads: int, time_limit_s: float | None) -> None:
    """Evaluates tasks until the connection ends; the life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the search decides
    for name in THREAD_VARIABLES:  # before the evaluator's modules are imported, which read them once
        os.environ[name] = str(threads)
    evaluator = None
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):  # the search is gone
            return
        try:
            if evaluator is None:
                evaluator = pickle.loads(description)()
            connection.send(None)
            outcome = evaluate(evaluator, task, time_limit_s)
        except Exception as error:
            outcome = Outcome(task.trial_id, error=f"{type(error).__name__} while the evaluator was made: {error}")
        connection.send(outcome)
