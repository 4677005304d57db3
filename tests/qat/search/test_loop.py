from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwmodel.precision import NetworkConfig
from qat.errors import ConfigError, SearchError
from qat.search.loop import EXHAUSTED, SearchResult, SearchSettings, run_search
from qat.search.sensitivity import SensitivityProfile
from qat.search.store import TrialStore
from qat.search.trial import Evaluator, Fidelity, Target, Trial, TrialState
from tests.qat.search.problems import FIDELITY, TARGET, Problem

PROBLEM = Problem(layers=6, seed=2)
LARGE = Target("large", {"compression": (6, None)})


def run(path: Path, trials: int = 8, evaluator: Evaluator = PROBLEM.evaluate, **changes: Any) -> SearchResult:
    settings = changes.pop("settings", SearchSettings(trials=trials, seed=1))
    arguments = {
        "space": PROBLEM.space,
        "evaluator": evaluator,
        "cost": PROBLEM.cost,
        "targets": [TARGET, LARGE],
        "fidelity": FIDELITY,
        "settings": settings,
        "profile": PROBLEM.profile,
    }
    with TrialStore(path) as store:
        return run_search(store=store, **(arguments | changes))


def sequence(trials: tuple[Trial, ...]) -> list[tuple[object, ...]]:
    """Everything of the trials but times."""
    names = ("id", "point", "seed", "target", "origin", "state", "metrics", "cost", "predicted", "screening")
    return [tuple(getattr(trial, name) for name in names) for trial in trials]


def test_a_search_from_start_to_winner(tmp_path: Path) -> None:
    result = run(tmp_path / "s.sqlite", trials=14)
    assert [t.target for t in result.trials] == ["small", "large"] * 7
    assert len({t.point for t in result.trials}) == 14
    assert all(t.is_completed for t in result.trials)
    for target in (TARGET, LARGE):
        winner = result.winners[target.name]
        assert target.admits(winner.trial.cost)
        inside = [t for t in result.trials if target.admits(t.cost)]
        truth = PROBLEM.accuracy(np.array([t.point for t in inside]))
        assert PROBLEM.accuracy(np.array([winner.trial.point]))[0] > truth.max() - 0.005
        assert winner.expected_accuracy == pytest.approx(winner.trial.accuracy, abs=0.01)


def test_same_seed_same_trials_and_resuming_is_not_seen(tmp_path: Path) -> None:
    whole = sequence(run(tmp_path / "a.sqlite", trials=12).trials)
    run(tmp_path / "b.sqlite", trials=5)
    run(tmp_path / "b.sqlite", trials=9)
    assert sequence(run(tmp_path / "b.sqlite", trials=12).trials) == whole
    assert sequence(run(tmp_path / "b.sqlite", trials=12).trials) == whole
    other = run(tmp_path / "c.sqlite", settings=SearchSettings(trials=12, seed=2))
    assert sequence(other.trials) != whole


SCREENED = SearchSettings(trials=24, seed=1, screening_share=0.5)


def test_bad_trials_are_stopped_and_nothing_else_changes(tmp_path: Path) -> None:
    result = run(tmp_path / "s.sqlite", settings=SCREENED, evaluator=PROBLEM.unlucky)
    stopped = [t for t in result.trials if t.state is TrialState.STOPPED]
    assert stopped and all(t.is_completed for t in result.trials if t not in stopped)
    for trial in stopped:
        assert trial.screening is not None
        assert trial.metrics.keys() == {"screening_accuracy"}
        assert trial.screening_accuracy < trial.screening.least
        assert trial.effort == 0.5
    for target in (TARGET, LARGE):
        assert result.winners[target.name].trial not in stopped
    # Up to the first one that is stopped, screening changes no proposal and no accuracy.
    plain = run(tmp_path / "plain.sqlite", trials=stopped[0].id, evaluator=PROBLEM.unlucky)
    assert [(t.point, t.seed) for t in plain.trials] == [(t.point, t.seed) for t in result.trials[: stopped[0].id]]
    before = stopped[0].id - 1
    assert [t.accuracy for t in plain.trials[:before]] == [t.accuracy for t in result.trials[:before]]


def test_screening_may_change_when_a_search_goes_on(tmp_path: Path) -> None:
    screened = partial(run, settings=SCREENED, evaluator=PROBLEM.unlucky)
    whole = sequence(screened(tmp_path / "a.sqlite").trials)
    screened(tmp_path / "b.sqlite", settings=replace(SCREENED, trials=13))
    assert sequence(screened(tmp_path / "b.sqlite").trials) == whole
    plain = run(tmp_path / "c.sqlite", trials=8, evaluator=PROBLEM.unlucky)
    on = screened(tmp_path / "c.sqlite")
    assert on.trials[:8] == plain.trials
    assert all(t.screening is not None and t.screening.share == 0.5 for t in on.trials[8:])


def test_other_settings_are_refused(tmp_path: Path) -> None:
    run(tmp_path / "s.sqlite", trials=2)
    with pytest.raises(SearchError, match=r"fidelity\.epochs: stored 1\.0, now 2\.0"):
        run(tmp_path / "s.sqlite", fidelity=Fidelity("short", 2))
    with pytest.raises(SearchError, match=r"context\.network: stored nothing, now \"other\""):
        run(tmp_path / "s.sqlite", context={"network": "other"})
    with pytest.raises(SearchError, match=r"targets: stored .*large.*, now"):
        run(tmp_path / "s.sqlite", targets=[TARGET])


def test_the_profile_is_measured_once(tmp_path: Path) -> None:
    measured = []

    def measure() -> SensitivityProfile:
        measured.append(1)
        return PROBLEM.profile

    run(tmp_path / "s.sqlite", trials=2, profile=measure)
    result = run(tmp_path / "s.sqlite", trials=4, profile=measure)
    assert len(measured) == 1
    assert result.profile == PROBLEM.profile
    assert run(tmp_path / "none.sqlite", trials=2, profile=None).profile.source == "gaussian"


def test_failures_are_recorded_and_the_search_goes_on(tmp_path: Path) -> None:
    outcomes: list[Mapping[str, float] | Exception] = [
        ValueError("shape"),
        {"accuracy": float("nan")},
        {"loss": 1.0},
        {"accuracy": 75.0},
    ]

    def evaluator(config: NetworkConfig, fidelity: Fidelity, seed: int) -> Mapping[str, float]:
        if outcomes:
            outcome = outcomes.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome
        return PROBLEM.evaluate(config, fidelity, seed)

    result = run(tmp_path / "s.sqlite", trials=12, evaluator=evaluator)
    assert [t.error for t in result.trials[:4]] == [
        "ValueError: shape",
        "accuracy is nan, expected a number in [0, 1]",
        "the evaluator returned no 'accuracy', only ['loss']",
        "accuracy is 75.0, expected a number in [0, 1]",
    ]
    assert all(t.is_completed for t in result.trials[4:])
    assert result.winners["small"].trial.is_completed


def test_too_many_failures_end_the_search(tmp_path: Path) -> None:
    def evaluator(config: NetworkConfig, fidelity: Fidelity, seed: int) -> Mapping[str, float]:
        raise RuntimeError("out of memory")

    message = r"5 of 5 trials failed, more than search.max_failed_share=0.5 of 8 .* \(5\): RuntimeError: out of memory"
    with pytest.raises(SearchError, match=message):
        run(tmp_path / "s.sqlite", evaluator=evaluator)
    with TrialStore(tmp_path / "s.sqlite", read_only=True) as store:
        assert len(store.trials()) == 5
    with pytest.raises(SearchError, match="3 of 3 trials failed"):
        run(tmp_path / "all.sqlite", evaluator=evaluator, settings=SearchSettings(trials=3, max_failed_share=1.0))


def test_failed_trials_are_run_again_where_that_is_asked_for(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole.sqlite", trials=6)
    calls: list[int] = []

    def evaluator(config: NetworkConfig, fidelity: Fidelity, seed: int) -> Mapping[str, float]:
        calls.append(seed)
        if len(calls) > 4:
            raise RuntimeError("no driver")
        return PROBLEM.evaluate(config, fidelity, seed)

    settings = SearchSettings(trials=6, seed=1, max_failed_share=0.1)
    with pytest.raises(SearchError, match=r"1 of 5 trials failed.*no driver.*search\.retry_failed=true"):
        run(tmp_path / "s.sqlite", evaluator=evaluator, settings=settings)
    with pytest.raises(SearchError, match="1 of 5 trials failed"):  # the same command changes nothing
        run(tmp_path / "s.sqlite", settings=settings)
    mended = run(tmp_path / "s.sqlite", settings=replace(settings, retry_failed=True))
    assert sequence(mended.trials) == sequence(whole.trials)
    assert all(t.error is None and t.attempts == 1 for t in mended.trials)
    with TrialStore(tmp_path / "s.sqlite") as store:
        assert store.retry_failed() == ()


def cheapest(problem: Problem, count: int) -> float:
    """The bound that so many configurations of two layers keep."""
    grid = np.stack(np.meshgrid(*map(np.arange, problem.space.sizes)), axis=-1).reshape(-1, 2)
    return float(np.sort(problem.cost(grid)["stored_bits"])[count - 1])


def test_a_search_ends_where_everything_has_been_tried(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    problem = Problem(layers=2, seed=0)
    narrow = Target("narrow", {"stored_bits": (None, cheapest(problem, 3))})
    wide = Target("wide", {"stored_bits": (None, 1e9)})
    small = {"space": problem.space, "cost": problem.cost, "profile": problem.profile, "evaluator": problem.evaluate}
    found = run(tmp_path / "a.sqlite", trials=20, targets=[narrow], **small)
    assert len(found.trials) == 3 and all(t.is_completed for t in found.trials)
    truth = problem.accuracy(np.array([t.point for t in found.trials]))
    assert found.winners["narrow"].trial == found.trials[int(np.argmax(truth))]
    assert "the search ends after 3 of 20 trials" in caplog.text
    assert run(tmp_path / "a.sqlite", trials=30, targets=[narrow], **small).trials == found.trials
    # Another target goes on in its place.
    both = run(tmp_path / "b.sqlite", trials=12, targets=[narrow, wide], **small)
    assert len(both.trials) == 12 and set(both.winners) == {"narrow", "wide"}
    assert [t.target for t in both.trials][-4:] == ["wide"] * 4
    turns = [t.target for t in both.trials]
    count = turns.count("narrow")
    assert count > 1 and turns == count * ["narrow", "wide"] + (12 - 2 * count) * ["wide"]


def test_the_store_says_whether_everything_has_been_tried(tmp_path: Path) -> None:
    problem = Problem(layers=2, seed=0)
    small = {"space": problem.space, "cost": problem.cost, "profile": problem.profile, "evaluator": problem.evaluate}
    targets = [Target("narrow", {"stored_bits": (None, cheapest(problem, 3))})]

    def is_exhausted() -> bool:
        with TrialStore(tmp_path / "s.sqlite", read_only=True) as store:
            return bool(store.document(EXHAUSTED))

    run(tmp_path / "s.sqlite", trials=2, targets=targets, **small)
    assert not is_exhausted()
    assert len(run(tmp_path / "s.sqlite", trials=20, targets=targets, **small).trials) == 3
    assert is_exhausted()
    run(tmp_path / "s.sqlite", trials=3, targets=targets, **small)
    assert not is_exhausted()  # as many as were asked for


def test_what_a_killed_search_had_running_is_not_seen_as_running(tmp_path: Path) -> None:
    whole = sequence(run(tmp_path / "whole.sqlite").trials)
    run(tmp_path / "s.sqlite", trials=3)
    with TrialStore(tmp_path / "s.sqlite") as store:
        store.start(store.trials()[2])
    seen: list[list[tuple[TrialState, int]]] = []

    class Watcher:
        def search_started(self, trials: Sequence[Trial], total: int) -> None:
            seen.append([(trial.state, trial.attempts) for trial in trials])

        def trial_started(self, trial: Trial) -> None: ...

        def trial_ended(self, trial: Trial) -> None: ...

        def search_ended(self) -> None: ...

    found = run(tmp_path / "s.sqlite", observers=[Watcher()])
    assert seen == [[(TrialState.COMPLETED, 1), (TrialState.COMPLETED, 1), (TrialState.PENDING, 2)]]
    assert sequence(found.trials) == whole


def test_failures_are_counted_against_the_longer_search_and_without_adopted_ones(tmp_path: Path) -> None:
    def evaluator(config: NetworkConfig, fidelity: Fidelity, seed: int) -> Mapping[str, float]:
        calls.append(seed)
        if len(calls) <= 3:
            raise RuntimeError("no driver")
        return PROBLEM.evaluate(config, fidelity, seed)

    calls: list[int] = []
    longer = run(tmp_path / "s.sqlite", trials=8, evaluator=evaluator)
    assert run(tmp_path / "s.sqlite", trials=3).trials == longer.trials
    with TrialStore(tmp_path / "other.sqlite") as store:
        assert store.adopt(longer.trials[:4]) == 4
    settings = SearchSettings(trials=6, seed=1, retry_failed=True)
    more = run(tmp_path / "other.sqlite", settings=settings).trials
    assert [t.state for t in more] == 3 * [TrialState.FAILED] + 3 * [TrialState.COMPLETED]
    with TrialStore(tmp_path / "failing.sqlite") as store:
        store.adopt(longer.trials[:4])
    calls.clear()
    with pytest.raises(SearchError, match=r"2 of 2 trials failed, more than search.max_failed_share=0.5 of 2 allows"):
        run(tmp_path / "failing.sqlite", settings=replace(settings, retry_failed=False), evaluator=evaluator)


def test_ctrl_c_leaves_a_store_that_resumes_the_same(tmp_path: Path) -> None:
    whole = sequence(run(tmp_path / "a.sqlite", trials=8).trials)
    calls = []

    def evaluator(config: NetworkConfig, fidelity: Fidelity, seed: int) -> Mapping[str, float]:
        calls.append(seed)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return PROBLEM.evaluate(config, fidelity, seed)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b.sqlite", evaluator=evaluator)
    with TrialStore(tmp_path / "b.sqlite", read_only=True) as store:
        assert [t.state for t in store.trials()] == [TrialState.COMPLETED] * 5 + [TrialState.PENDING]
        assert store.trials()[5].attempts == 0
    assert sequence(run(tmp_path / "b.sqlite").trials) == whole


def test_one_interrupt_finishes_the_running_trial_and_two_stop_at_once(tmp_path: Path) -> None:
    whole = sequence(run(tmp_path / "a.sqlite", trials=8).trials)
    calls: list[int] = []

    def evaluator(config: NetworkConfig, fidelity: Fidelity, seed: int) -> Mapping[str, float]:
        calls.append(seed)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return PROBLEM.evaluate(config, fidelity, seed)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b.sqlite", evaluator=evaluator)
    assert signal.getsignal(signal.SIGINT) is before
    with TrialStore(tmp_path / "b.sqlite", read_only=True) as store:
        assert [t.state for t in store.trials()] == [TrialState.COMPLETED] * 3
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b.sqlite", evaluator=evaluator)
    with TrialStore(tmp_path / "b.sqlite", read_only=True) as store:
        assert [t.state for t in store.trials()] == [TrialState.COMPLETED] * 4 + [TrialState.PENDING]
        assert store.trials()[4].attempts == 0
    assert sequence(run(tmp_path / "b.sqlite").trials) == whole


def test_a_trial_that_kills_the_process_again_and_again_fails(tmp_path: Path) -> None:
    with TrialStore(tmp_path / "s.sqlite") as store:
        point = tuple(np.zeros(6, dtype=int).tolist())
        trial = store.add(
            point=point, config=PROBLEM.space.config(point), fidelity=FIDELITY, seed=1, target="small",
            origin="random", cost={"bits_per_weight": 1.0, "compression": 32.0},
        )  # fmt: skip
        for _ in range(3):
            trial = store.start(trial)
    result = run(tmp_path / "s.sqlite", trials=4)
    assert result.trials[0].error == "the process died during each of 3 attempts; was it out of memory?"
    assert all(t.is_completed for t in result.trials[1:])


def test_impossible_targets_fail_before_anything_is_stored(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match=r"target 'none': .*compression must be >= 100"):
        run(tmp_path / "s.sqlite", targets=[TARGET, Target("none", {"compression": (100, None)})])
    with TrialStore(tmp_path / "s.sqlite") as store:
        assert store.document("fingerprint") is None
        assert not store.trials()


def test_bad_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"search\.trials=0, expected an integer >= 1"):
        SearchSettings(trials=0)
    with pytest.raises(ConfigError, match=r"search\.max_failed_share=2, expected a share"):
        SearchSettings(max_failed_share=2)
    with pytest.raises(ConfigError, match=r"search\.screening_share=1\.0, expected null or a share in \[0, 1\)"):
        SearchSettings(screening_share=1.0)
    with pytest.raises(ConfigError, match=r"search\.targets is empty"):
        run(tmp_path / "s.sqlite", targets=[])
    with pytest.raises(ConfigError, match=r"search\.targets has the name 'small' twice"):
        run(tmp_path / "s.sqlite", targets=[TARGET, replace(TARGET)])


CRASHING = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
from qat.search.loop import SearchSettings
from qat.search.proposer import ProposerSettings
from qat.search.store import TrialStore
from tests.qat.search.test_loop import PROBLEM, run, sequence

proposer = ProposerSettings(initial_trials=27)
settings = SearchSettings(trials=60, seed=1, max_attempts=1000, screening_share=0.5, proposer=proposer)

def evaluator(*arguments):
    time.sleep(0.03)
    return PROBLEM.unlucky(*arguments)

folder = Path(sys.argv[1])
path, ended, interrupted = folder / "killed.sqlite", {}, 0
for delay in np.random.default_rng(0).uniform(0.0, 0.25, 50):
    child = os.fork()  # every process anew would spend its time on imports
    if child == 0:
        run(path, settings=settings, evaluator=evaluator)
        os._exit(0)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if not path.exists():
        continue
    with TrialStore(path) as store:
        store.check_integrity()
        trials = store.trials()
    done = {t.id: t.ended_s for t in trials if t.has_ended}
    assert ended.items() <= done.items(), "a finished trial was lost or changed"
    unfinished = [t.id for t in trials if not t.has_ended]
    assert len(unfinished) <= 1 and [t.id for t in trials] == list(range(1, len(trials) + 1))
    interrupted += bool(unfinished)
    ended = done
killed = run(path, settings=settings, evaluator=evaluator)
whole = run(folder / "whole.sqlite", settings=settings, evaluator=PROBLEM.unlucky)
assert sequence(killed.trials) == sequence(whole.trials), "proposals went another way"
print(interrupted, len(ended), sum(t.state == "stopped" for t in killed.trials))
"""


def test_killed_at_fifty_moments_loses_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", CRASHING, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    interrupted, finished, stopped = map(int, result.stdout.split())
    assert interrupted > 5 and finished > 0 and stopped > 0, result.stdout
