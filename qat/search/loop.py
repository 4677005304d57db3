"""The search, from the first check to the winner; calling it again on the same store resumes it."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from qat.errors import ConfigError, SearchError
from qat.search.proposer import Proposer, ProposerSettings
from qat.search.sensitivity import SensitivityProfile, gaussian_profile
from qat.search.space import SearchSpace
from qat.search.store import TrialStore
from qat.search.trial import ACCURACY, CostFunction, Evaluator, Fidelity, Target, Trial, TrialState
from qat.search.winner import Winner, select_winner

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How long and how to search.

    Args:
        trials: Evaluations over all targets, failed ones included, >= 1.
        seed: Of the proposals and, with the trial's number, of each evaluation.
        max_failure_share: The search fails if more than this share of its trials fail; 0..1.
        max_attempts: A trial during which the process died this often counts as failed, >= 1.
        proposer: How proposals are made.

    Raises:
        ConfigError: A field is out of range.
    """

    trials: int = 40
    seed: int = 0
    max_failure_share: float = 0.5
    max_attempts: int = 3
    proposer: ProposerSettings = field(default_factory=ProposerSettings)

    def __post_init__(self) -> None:
        for name, low in (("trials", 1), ("seed", 0), ("max_attempts", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ConfigError(f"search.{name}={value!r}, expected an integer >= {low}")
        if not 0 <= self.max_failure_share <= 1:
            raise ConfigError(f"search.max_failure_share={self.max_failure_share!r}, expected a share in [0, 1]")


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
        """An evaluation was recorded as completed or failed."""

    def search_ended(self) -> None:
        """The search ends, for whatever reason."""


ProfileSource = SensitivityProfile | Callable[[], SensitivityProfile] | None
"""A profile, or how to measure it (once per store), or `None` for `gaussian_profile`."""


def run_search(
    *,
    space: SearchSpace,
    evaluator: Evaluator,
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
        space: The choices.
        evaluator: Turns a configuration into metrics; what it raises, or an accuracy outside 0..1, fails the trial.
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
        KeyboardInterrupt: As it came; the interrupted trial is rerun on resume.
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
    used_profile = _profile(profile, space, store)
    proposer = Proposer(space, cost, used_profile, settings.proposer)
    for observer in observers:
        observer.search_started(store.trials(), settings.trials)
    try:
        while True:
            trials = store.trials()
            _check_failures(trials, settings)
            trial = _next_trial(trials, proposer, targets, fidelity, store, settings)
            if trial is None:
                break
            _evaluate(trial, evaluator, store, settings, observers)
    finally:
        for observer in observers:
            observer.search_ended()
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


def _next_trial(
    trials: Sequence[Trial],
    proposer: Proposer,
    targets: Sequence[Target],
    fidelity: Fidelity,
    store: TrialStore,
    settings: SearchSettings,
) -> Trial | None:
    """A trial that a crash left unfinished, else a new one, else `None` when all are done."""
    for trial in trials:
        if trial.state in (TrialState.PENDING, TrialState.RUNNING):
            return trial
    if len(trials) >= settings.trials:
        return None
    number = len(trials)
    rng = np.random.default_rng([settings.seed, number])
    target = targets[number % len(targets)]
    proposal = proposer.propose(trials, target, rng)
    return store.add(
        point=proposal.point,
        config=proposer.space.config(proposal.point),
        fidelity=fidelity,
        seed=int(rng.integers(2**31)),
        target=target.name,
        origin=proposal.origin,
        cost=proposal.cost,
        predicted=proposal.predicted,
    )


def _evaluate(
    trial: Trial,
    evaluator: Evaluator,
    store: TrialStore,
    settings: SearchSettings,
    observers: Sequence[Observer],
) -> None:
    if trial.attempts >= settings.max_attempts:
        error = f"the process died during each of {trial.attempts} attempts; was it out of memory?"
        ended = store.fail(trial, error)
    else:
        running = store.start(trial)
        for observer in observers:
            observer.trial_started(running)
        try:
            metrics, error = _metrics_of(evaluator, running)
        except BaseException:  # Ctrl-C and the like: not the configuration's fault
            store.release(running)
            raise
        ended = store.fail(running, error) if error else store.complete(running, metrics)
    if ended.error:
        logger.warning("trial %d failed: %s", ended.id, ended.error)
    for observer in observers:
        observer.trial_ended(ended)


def _metrics_of(evaluator: Evaluator, trial: Trial) -> tuple[dict[str, float], str]:
    """Metrics and "", or nothing and what went wrong."""
    try:
        metrics = {
            str(name): float(value) for name, value in evaluator(trial.config, trial.fidelity, trial.seed).items()
        }
    except Exception as error:  # whatever an evaluation raises is knowledge about its configuration
        return {}, f"{type(error).__name__}: {error}"
    accuracy = metrics.get(ACCURACY)
    if accuracy is None:
        return {}, f"the evaluator returned no {ACCURACY!r}, only {sorted(metrics)}"
    if math.isnan(accuracy) or not 0 <= accuracy <= 1:
        return {}, f"{ACCURACY} is {accuracy}, expected a number in [0, 1]"
    return metrics, ""


def _check_failures(trials: Sequence[Trial], settings: SearchSettings) -> None:
    """Raises `SearchError` as soon as more trials have failed than the whole search may have."""
    failed = [trial for trial in trials if trial.state is TrialState.FAILED]
    allowed = settings.max_failure_share * max(settings.trials, len(trials))
    if failed and (len(failed) > allowed or len(failed) == settings.trials):
        error, count = Counter(trial.error for trial in failed).most_common(1)[0]
        raise SearchError(
            f"{len(failed)} of {len(trials)} trials failed, more than search.max_failure_share="
            f"{settings.max_failure_share:g} of {settings.trials} allows; most often ({count}): {error}"
        )
