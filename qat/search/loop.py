"""The search, from the first check to the winner; calling it again on the same store resumes it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from qat.errors import ConfigError, SearchError
from qat.search.executor import Executor, InProcess, Outcome, Task
from qat.search.interrupts import Interrupts
from qat.search.proposer import Proposal, Proposer, ProposerSettings
from qat.search.screening import screening_of
from qat.search.sensitivity import SensitivityProfile, gaussian_profile
from qat.search.space import SearchSpace
from qat.search.store import ADOPTED, TrialStore
from qat.search.trial import CostFunction, Evaluator, Fidelity, Target, Trial, TrialState
from qat.search.winner import Winner, select_winner

logger = logging.getLogger(__name__)

EXHAUSTED = "exhausted"
"""Document of the store: whether the search ended because it found nothing more to try inside the bounds.

False, `SPENT` where that is certain, else True.
"""

SPENT = "spent"
"""Everything that is inside the bounds of a target has been tried, of every target."""


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How long and how to search.

    Args:
        trials: Evaluations over all targets, failed ones included, >= 1; fewer where everything inside the bounds has
            been tried before.
        seed: Of the proposals and, with the trial's number, of each evaluation.
        max_failed_share: The search fails if more than this share of its trials fail; 0..1.
        max_attempts: A trial during which the process died this often counts as failed, >= 1.
        screening_share: Share of its training after which a bad trial is stopped, in [0, 1); `None` stops none.
            Accuracies do not depend on it, so it may change when a search is resumed.
        retry_failed: Whether trials that failed before are run again first: what made them fail has been mended.
        proposer: How proposals are made.

    Raises:
        ConfigError: A field is out of range.
    """

    trials: int = 40
    seed: int = 0
    max_failed_share: float = 0.5
    max_attempts: int = 3
    screening_share: float | None = None
    retry_failed: bool = False
    proposer: ProposerSettings = field(default_factory=ProposerSettings)

    def __post_init__(self) -> None:
        for name, low in (("trials", 1), ("seed", 0), ("max_attempts", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ConfigError(f"search.{name}={value!r}, expected an integer >= {low}")
        if not 0 <= self.max_failed_share <= 1:
            raise ConfigError(f"search.max_failed_share={self.max_failed_share!r}, expected a share in [0, 1]")
        share = self.screening_share
        if share is not None and not 0 <= share < 1:
            raise ConfigError(f"search.screening_share={share!r}, expected null or a share in [0, 1)")


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Args:
        trials: All trials of the store.
        winners: By target name, for every target that has one.
        profile: The sensitivities that were used.
    """

    trials: tuple[Trial, ...]
    winners: Mapping[str, Winner]
    profile: SensitivityProfile


class Observer(Protocol):
    """Watches a search, such as a display or a logger."""

    def search_started(self, trials: Sequence[Trial], total: int) -> None:
        """The search begins or resumes with these trials, and will have `total`."""

    def trial_started(self, trial: Trial) -> None:
        """An evaluation begins."""

    def trial_ended(self, trial: Trial) -> None:
        """An evaluation was recorded as completed, stopped or failed."""

    def search_ended(self) -> None:
        """The search ends, for whatever reason."""


ProfileSource = SensitivityProfile | Callable[[], SensitivityProfile] | None
"""A profile, or how to measure it (once per store), or `None` for `gaussian_profile`."""


def run_search(*, evaluator: Evaluator, **arguments: Any) -> SearchResult:
    """`search_on` with evaluations in this process.

    Args:
        evaluator: Turns a configuration into metrics; what it raises, or an accuracy outside 0..1, fails the trial.
        arguments: The other arguments of `search_on`.
    """
    return search_on(executor=InProcess(evaluator), **arguments)


def search_on(
    *,
    executor: Executor,
    space: SearchSpace,
    cost: CostFunction,
    targets: Sequence[Target],
    fidelity: Fidelity,
    store: TrialStore,
    settings: SearchSettings | None = None,
    profile: ProfileSource = None,
    context: Mapping[str, Any] | None = None,
    observers: Sequence[Observer] = (),
) -> SearchResult:
    """Searches, or resumes the search that the store holds.

    Args:
        executor: Runs the evaluations; closed by the caller.
        space: The choices.
        cost: Exact costs from layer indices.
        targets: Budgets; proposals alternate among them, trials serve all.
        fidelity: What each evaluation spends.
        store: Where trials are kept.
        settings: How long and how to search.
        profile: Sensitivities; measured ones are kept in the store and not measured again.
        context: Plain values that describe the evaluator and the cost (network, data, recipe, board): a store is not
            resumed with others.
        observers: Called as the search goes.

    Returns:
        All trials and the winners.

    Raises:
        SearchError: A target cannot be met, the store belongs to other settings, or too many trials failed.
        KeyboardInterrupt: After one interrupt as soon as the running trials have ended; after a second one, or one
            that an evaluation raises, at once: interrupted trials are rerun on resume.
    """
    settings = settings or SearchSettings()
    _check_targets(targets)
    for target in targets:  # before anything is measured or stored
        Proposer(space, cost, gaussian_profile(space)).check_reachable(target)
    store.bind(
        {
            "space": space.to_dict(),
            "targets": [target.to_dict() for target in targets],
            "fidelity": fidelity.to_dict(),
            "seed": settings.seed,
            "proposer": settings.proposer.to_dict(),
            "context": dict(context or {}),
        }
    )
    store.save_document(EXHAUSTED, False)
    for trial in store.trials():
        if trial.state is TrialState.RUNNING:  # of a process that was killed: nobody is to count it as running now
            store.retry(trial)
    if settings.retry_failed:
        for trial in store.retry_failed():
            logger.warning("trial %d is run again; it had failed: %s", trial.id, trial.error)
    used_profile = _profile(profile, space, store)
    proposer = Proposer(space, cost, used_profile, settings.proposer)
    for observer in observers:
        observer.search_started(store.trials(), settings.trials)
    try:
        with Interrupts() as interrupts:
            _Run(proposer, targets, fidelity, store, settings, executor, observers).to_the_end(interrupts)
            if interrupts.requested:
                raise KeyboardInterrupt
    finally:
        for observer in observers:
            observer.search_ended()
    trials = store.trials()
    winners = {target.name: select_winner(space, used_profile, trials, target) for target in targets}
    return SearchResult(trials, {name: winner for name, winner in winners.items() if winner}, used_profile)


def _check_targets(targets: Sequence[Target]) -> None:
    if not targets:
        raise ConfigError("search.targets is empty, expected at least one")
    repeated = [name for name, count in Counter(target.name for target in targets).items() if count > 1]
    if repeated:
        raise ConfigError(f"search.targets has the name {repeated[0]!r} twice, expected different names")


def _profile(source: ProfileSource, space: SearchSpace, store: TrialStore) -> SensitivityProfile:
    stored = store.document("profile")
    if stored is not None:
        used = SensitivityProfile.from_dict(stored)
    elif source is None:
        used = gaussian_profile(space)
    else:
        used = source if isinstance(source, SensitivityProfile) else source()
    used.check_matches(space)
    if stored is None:
        store.save_document("profile", used.to_dict())
    return used


@dataclass
class _Run:
    """Keeps the executor's workers busy until all trials are done."""

    proposer: Proposer
    targets: Sequence[Target]
    fidelity: Fidelity
    store: TrialStore
    settings: SearchSettings
    executor: Executor
    observers: Sequence[Observer]
    running: dict[int, Trial] = field(default_factory=dict)
    is_exhausted: bool = False

    def to_the_end(self, interrupts: Interrupts) -> None:
        """Returns when all trials are done, or the running ones after an interrupt or if nothing is left to try."""
        try:
            while True:
                _check_failures(self.store.trials(), self.settings)
                while len(self.running) < self.executor.workers and not interrupts.requested and self._start_one():
                    pass
                if not self.running:
                    return
                for outcome in self.executor.wait():
                    self._end(outcome)
        except BaseException:  # Ctrl-C and the like: not the configurations' fault
            for trial in self.running.values():
                self.store.release(trial)
            raise

    def _start_one(self) -> bool:
        """Starts an unfinished trial of an earlier process or worker, else a new one; False if there is none."""
        trial = self._next()
        if trial is None:
            return False
        if trial.attempts >= self.settings.max_attempts:
            error = f"the process died during each of {trial.attempts} attempts; was it out of memory?"
            self._ended(self.store.fail(trial, error))
            return True
        started = self.store.start(trial)
        self.running[started.id] = started
        for observer in self.observers:
            observer.trial_started(started)
        self.executor.submit(Task(started.id, started.config, started.fidelity, started.seed, started.screening))
        return True

    def _next(self) -> Trial | None:
        trials = self.store.trials()
        for trial in trials:
            if trial.state in (TrialState.PENDING, TrialState.RUNNING) and trial.id not in self.running:
                return trial
        number = len(trials)
        if number >= self.settings.trials:
            return None
        rng = np.random.default_rng([self.settings.seed, number])
        found = self._propose(trials, rng)
        if found is None:
            return None
        target, proposal = found
        return self.store.add(
            point=proposal.point,
            config=self.proposer.space.config(proposal.point),
            fidelity=self.fidelity,
            seed=int(rng.integers(2**31)),
            target=target.name,
            origin=proposal.origin,
            cost=proposal.cost,
            predicted=proposal.predicted,
            screening=screening_of(trials, target, proposal.cost, self.settings.screening_share),
        )

    def _propose(self, trials: Sequence[Trial], rng: np.random.Generator) -> tuple[Target, Proposal] | None:
        """For the target whose turn it is, or the next one that has something left to try; `None` if none has."""
        if self.is_exhausted:
            return None
        for turn in range(len(self.targets)):
            target = self.targets[(len(trials) + turn) % len(self.targets)]
            proposal = self.proposer.propose(trials, target, rng)
            if proposal is not None:
                return target, proposal
        self.is_exhausted = True
        is_spent = all(self.proposer.is_spent(trials, target) for target in self.targets)
        self.store.save_document(EXHAUSTED, SPENT if is_spent else True)
        logger.warning(
            "all configurations %sinside the bounds have been tried%s: the search ends after %d of %d trials",
            "" if is_spent else "found ",
            "" if is_spent else ", though there are too many to look at all",
            len(trials),
            self.settings.trials,
        )
        return None

    def _end(self, outcome: Outcome) -> None:
        trial = self.running[outcome.trial_id]
        if outcome.lost:
            logger.warning("trial %d: its worker died in attempt %d", trial.id, trial.attempts)
            self.store.retry(trial)
            del self.running[trial.id]
            return
        if outcome.error:
            ended = self.store.fail(trial, outcome.error)
        elif outcome.stopped:
            ended = self.store.stop(trial, outcome.metrics)
        else:
            ended = self.store.complete(trial, outcome.metrics)
        del self.running[trial.id]
        self._ended(ended)

    def _ended(self, trial: Trial) -> None:
        if trial.error:
            logger.warning("trial %d failed: %s", trial.id, trial.error)
        for observer in self.observers:
            observer.trial_ended(trial)


def _check_failures(trials: Sequence[Trial], settings: SearchSettings) -> None:
    """Raises `SearchError` as soon as more trials have failed than the whole search may have; adopted ones aside."""
    own = [trial for trial in trials if trial.origin != ADOPTED]
    failed = [trial for trial in own if trial.state is TrialState.FAILED]
    total = max(settings.trials, len(trials)) - (len(trials) - len(own))
    if failed and (len(failed) > settings.max_failed_share * total or len(failed) == total):
        error, count = Counter(trial.error for trial in failed).most_common(1)[0]
        raise SearchError(
            f"{len(failed)} of {len(own)} trials failed, more than search.max_failed_share="
            f"{settings.max_failed_share:g} of {total} allows; most often ({count}): {error}. Mend what made "
            "them fail and run the same command again with search.retry_failed=true, or allow more failures"
        )
