from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hwmodel.precision import NetworkConfig
from qat.errors import ConfigError, SearchError
from qat.search.executor import Executor, InProcess, Outcome, Task, evaluate
from qat.search.loop import SearchSettings, search_on
from qat.search.pool import ProcessPool
from qat.search.store import TrialStore
from qat.search.trial import Evaluator, Fidelity, Screening, TrialState
from tests.qat.search.problems import FIDELITY, TARGET, Problem

PROBLEM = Problem(layers=3)
CONFIG = PROBLEM.space.config((0, 0, 0))


def task(number: int, seed: int = 0) -> Task:
    return Task(number, CONFIG, FIDELITY, seed)


def behave(folder: Path, config: NetworkConfig, fidelity: Fidelity, seed: int) -> Mapping[str, float]:
    """Does what its seed says; leaves a line per call in a file."""
    with open(folder / "calls", "a", encoding="utf-8") as file:
        file.write(f"{seed} {os.getpid()} {os.environ['OMP_NUM_THREADS']}\n")
    if seed == 1:
        raise ValueError("no such layer")
    if seed == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if seed == 3:
        time.sleep(60)
    if seed == 4:
        return {"accuracy": float("nan")}
    return {"accuracy": 0.5, "seed": seed}


def make(folder: Path) -> Evaluator:
    return functools.partial(behave, folder)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[ProcessPool]:
    with ProcessPool(functools.partial(make, tmp_path), workers=2, threads=3, time_limit_s=0.5) as executor:
        yield executor


def drain(executor: Executor, count: int) -> dict[int, Outcome]:
    found: list[Outcome] = []
    while len(found) < count:
        found += executor.wait()
    return {outcome.trial_id: outcome for outcome in found}


def test_here_one_after_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with InProcess(make(tmp_path), time_limit_s=0.2) as executor:
        with pytest.raises(SearchError, match="no task was submitted"):
            executor.wait()
        for number, seed in enumerate((0, 1, 3, 4)):
            executor.submit(task(number, seed))
        found = drain(executor, 4)
    assert found[0].metrics == {"accuracy": 0.5, "seed": 0.0}
    assert found[1].error == "ValueError: no such layer"
    assert found[2].error == "TimeoutError: took longer than the time limit of 0.2 s"
    assert found[3].error == "accuracy is nan, expected a number in [0, 1]"
    assert not any(outcome.lost for outcome in found.values())


def test_the_end_of_a_screened_trial() -> None:
    answers = {
        0: {"accuracy": 0.9, "screening_accuracy": 0.8},
        1: {"screening_accuracy": 0.6},
        2: {"accuracy": 0.9},
        3: {"screening_accuracy": 0.8},
        4: {"screening_accuracy": float("nan")},
        5: {"accuracy": 0.9, "screening_accuracy": 1.5},
    }

    def evaluator(config: NetworkConfig, fidelity: Fidelity, seed: int, screening: Screening) -> Mapping[str, float]:
        assert screening == Screening(0.5, 0.7)
        return answers[seed]

    with InProcess(evaluator) as executor:
        for seed in answers:
            executor.submit(replace(task(seed, seed), screening=Screening(0.5, 0.7)))
        found = drain(executor, len(answers))
    assert found[0] == Outcome(0, answers[0])
    assert found[1] == Outcome(1, answers[1], stopped=True)
    assert found[2].error == "the evaluator returned no 'screening_accuracy', only ['accuracy']"
    assert found[3].error == "the evaluator returned no 'accuracy', only ['screening_accuracy']"
    assert found[4].error == "the evaluator returned no 'accuracy', only ['screening_accuracy']"
    assert found[5].error == "screening_accuracy is 1.5, expected a number in [0, 1]"


def test_a_pool_survives_what_its_workers_do(pool: ProcessPool, tmp_path: Path) -> None:
    assert pool.workers == 2
    pool.submit(task(1, seed=2))
    pool.submit(task(2, seed=7))
    with pytest.raises(SearchError, match="all 2 workers are busy"):
        pool.submit(task(9))
    found = drain(pool, 2)
    assert found[1] == Outcome(1, lost=True)
    assert found[2].metrics["seed"] == 7
    for number, seed in ((3, 1), (4, 3)):
        pool.submit(task(number, seed))
    found = drain(pool, 2)
    assert found[3].error == "ValueError: no such layer"
    assert found[4].error == "TimeoutError: took longer than the time limit of 0.5 s"
    pool.submit(task(5, seed=8))
    assert drain(pool, 1)[5].metrics["seed"] == 8
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    assert {threads for _, _, threads in calls} == {"3"}
    assert str(os.getpid()) not in {process for _, process, _ in calls}
    assert len({process for _, process, _ in calls}) == 3  # two, and one in the place of the killed one


def test_a_worker_that_is_dead_and_late_is_lost_once(pool: ProcessPool) -> None:
    """As when the search is busy while a worker hangs, is killed for its memory, and its time passes."""
    for number in (1, 2):
        pool.submit(task(number, seed=3))
    for worker in pool._workers:
        worker.process.kill()
        worker.process.join()
        worker.deadline_s = 0.0
    assert sorted((one.trial_id, one.lost) for one in pool.wait()) == [(1, True), (2, True)]
    pool.submit(task(3))
    assert drain(pool, 1)[3].metrics["seed"] == 0


def test_a_pool_refuses_what_cannot_be_sent_and_bad_numbers() -> None:
    with pytest.raises(ConfigError, match="description cannot be sent to another process"):
        ProcessPool(lambda: PROBLEM.evaluate, workers=1)
    with pytest.raises(ConfigError, match="workers=0, expected an integer >= 1"):
        ProcessPool(functools.partial(Problem, 3), workers=0)
    with pytest.raises(ConfigError, match=r"time_limit_s=0, expected seconds > 0"):
        InProcess(PROBLEM.evaluate, time_limit_s=0)


class Backwards:
    """Keeps three tasks under way, ends the newest first, and loses every fifth."""

    workers = 3

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self.submitted: list[int] = []

    def submit(self, task: Task) -> None:
        self.tasks.append(task)
        self.submitted.append(task.trial_id)
        assert len(self.tasks) <= self.workers

    def wait(self) -> Sequence[Outcome]:
        task = self.tasks.pop()
        if len(self.submitted) % 5 == 0:
            return [Outcome(task.trial_id, lost=True)]
        return [evaluate(PROBLEM.unlucky, task, None)]

    def close(self) -> None:
        self.tasks.clear()


@pytest.mark.parametrize("share", [None, 0.5])
def test_proposals_are_asynchronous_and_lost_trials_run_again(tmp_path: Path, share: float | None) -> None:
    executor = Backwards()
    with TrialStore(tmp_path / "s.sqlite") as store:
        result = search_on(
            executor=executor, space=PROBLEM.space, cost=PROBLEM.cost, targets=[TARGET], fidelity=FIDELITY,
            store=store, settings=SearchSettings(trials=24, seed=3, screening_share=share), profile=PROBLEM.profile,
        )  # fmt: skip
        store.check_integrity()
    stopped = sum(t.state is TrialState.STOPPED for t in result.trials)
    assert sum(t.is_completed for t in result.trials) == 24 - stopped
    assert (stopped > 0) == (share is not None)
    assert len({t.point for t in result.trials}) == 24
    again = len(executor.submitted) - 24
    assert again >= 2
    assert sum(t.attempts - 1 for t in result.trials) == again


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_search_on_ray(tmp_path: Path) -> None:
    """On a cluster of its own; a worker that dies is reported as lost, what it raises is recorded."""
    pytest.importorskip("ray", reason="Ray is an extra: pip install 'qat-fpga[cluster]'")
    from qat.search.cluster import RayCluster

    with RayCluster(functools.partial(make, tmp_path), workers=2, time_limit_s=2.0) as executor:
        for number, seed in enumerate((0, 1, 2, 4, 5)):
            executor.submit(task(number, seed))
        found = drain(executor, 5)
    assert found[0].metrics == {"accuracy": 0.5, "seed": 0.0}
    assert found[1].error == "ValueError: no such layer"
    assert found[2].lost
    assert found[3].error == "accuracy is nan, expected a number in [0, 1]"
    assert found[4].metrics == {"accuracy": 0.5, "seed": 5.0}
    calls = (tmp_path / "calls").read_text().splitlines()
    assert sorted(line.split()[0] for line in calls) == ["0", "1", "2", "4", "5"]  # Ray itself tries nothing again
    assert {line.split()[2] for line in calls} == {"1"}
