"""Evaluations on a Ray cluster: one machine's processors and GPUs, or many machines'.

Ray is an extra: `pip install qat-fpga[cluster]`.
"""

from __future__ import annotations

import functools
import os
import pickle
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from qat.errors import ConfigError, SearchError
from qat.search.executor import EvaluatorFactory, Outcome, Task, check_time_limit, evaluate
from qat.search.pool import THREAD_VARIABLES, pickled
from qat.search.trial import Evaluator


class RayCluster:
    """Evaluates on the machines of a Ray cluster.

    Tasks wait in Ray until a machine has room, so that machines which join later take their share; tasks of a machine
    that dies are reported as lost.

    Args:
        factory: Makes the evaluator in each worker process; its modules must be importable on every machine.
        workers: Tasks under way at once, >= 1; more than the cluster holds now lets machines join.
        address: `host:port` of a cluster, or "auto" for the one that this machine belongs to; `None` starts one here.
        cpus: Processor cores of each evaluation, > 0; also its number of threads.
        gpus: GPUs of each evaluation, >= 0; a fraction shares one.
        time_limit_s: Seconds that an evaluation may take, > 0; `None` for no limit.

    Raises:
        ConfigError: A number is out of range, or the factory cannot be pickled.
        SearchError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(
        self,
        factory: EvaluatorFactory,
        workers: int,
        *,
        address: str | None = None,
        cpus: float = 1.0,
        gpus: float = 0.0,
        time_limit_s: float | None = None,
    ) -> None:
        check_time_limit(time_limit_s)
        if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
            raise ConfigError(f"workers={workers!r}, expected an integer >= 1")
        if not cpus > 0 or not gpus >= 0:
            raise ConfigError(f"cpus={cpus!r} and gpus={gpus!r}, expected cpus > 0 and gpus >= 0")
        description = pickled(factory)
        try:
            import ray
        except ImportError as error:
            raise SearchError(f"Ray is not installed ({error}); pip install 'qat-fpga[cluster]'") from error
        self._ray = ray
        self._workers = workers
        threads = max(1, int(cpus))
        try:
            ray.init(
                address=address,
                ignore_reinit_error=False,
                include_dashboard=False if address is None else None,
                log_to_driver=False,
                configure_logging=False,
                runtime_env={"env_vars": dict.fromkeys(THREAD_VARIABLES, str(threads))},
            )
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise SearchError(
                f"no Ray cluster at address {address!r}: {error}; start one with 'ray start --head'"
            ) from error
        self._description = ray.put(description)
        # Ray must not retry by itself: the search counts attempts and records them.
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)
        self._remote = remote(_evaluate_there)
        self._time_limit_s = time_limit_s
        self._tasks: dict[Any, Task] = {}

    @property
    def workers(self) -> int:
        """Tasks that may be under way at once."""
        return self._workers

    def submit(self, task: Task) -> None:
        """Hands the task to Ray."""
        self._tasks[self._remote.remote(self._description, task, self._time_limit_s)] = task

    def wait(self) -> Sequence[Outcome]:
        """Blocks until a task has ended or its worker or machine has died."""
        if not self._tasks:
            raise SearchError("no task was submitted, nothing to wait for")
        ready, _ = self._ray.wait(list(self._tasks), num_returns=1)
        return [self._outcome(reference) for reference in ready]

    def _outcome(self, reference: Any) -> Outcome:
        task = self._tasks.pop(reference)
        errors = self._ray.exceptions
        try:
            outcome: Outcome = self._ray.get(reference)
        except errors.RayTaskError as error:  # raised by our own function: making the evaluator failed
            return Outcome(task.trial_id, error=f"on a worker: {error.cause!r}")
        except errors.RayError:  # the worker, its machine or the object's owner died
            return Outcome(task.trial_id, lost=True)
        return outcome

    def close(self) -> None:
        """Cancels what runs, and leaves the cluster; one that was started here ends."""
        if self._ray.is_initialized():
            for reference in self._tasks:
                self._ray.cancel(reference, force=True)
            self._tasks.clear()
            self._ray.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _evaluate_there(description: bytes, task: Task, time_limit_s: float | None) -> Outcome:
    """Runs on a worker."""
    return evaluate(_evaluator(description, os.getpid()), task, time_limit_s)


@functools.lru_cache(maxsize=1)
def _evaluator(description: bytes, _process: int) -> Evaluator:
    """The evaluator of this worker process, made for its first task and kept for the next."""
    evaluator: Evaluator = pickle.loads(description)()
    return evaluator
