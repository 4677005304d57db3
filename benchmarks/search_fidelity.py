"""What stopping bad trials early saves, and whether it costs accuracy.

    python benchmarks/search_fidelity.py synthetic --seeds 8
    python benchmarks/search_fidelity.py digits --seeds 16 --trials 24 --workers 8
    python benchmarks/search_fidelity.py cifar10 --seeds 6 --trials 24 --workers 12 --data-root ../shared/data
    python benchmarks/search_fidelity.py digits --seeds 16 --trials 24 --replay

Each seed is searched without screening and with it (`search.screening_share`), the same number of trials.  Searches
without screening look too, after every share that is asked for, without consequence: `--replay` applies the rule of
this revision to what they recorded (proposals do not react to it).

`synthetic`: `search_problems.py`, with an accuracy on the way: damage is half as large again, differently for each
layer, and noise is twice that of the end.  The score is the true accuracy of the winner, in points below the reference.

`digits`: the network of `experiment=digits_demo` with 2-bit activations at 22.66x and 32x.
`cifar10`: `experiment=cifar10_resnet20` at 28.7x.
Training steps are those of the experiment.  The score is the accuracy of the winners, each trained anew as long as a
trial with three other seeds, on images that no trial has seen: test images, of CIFAR-10 those validation images that
score no trial.  Seconds are those of the evaluations.

Each search is a job with a store and a result file in `--folder`; what is there is not done again, and a search that
was killed goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from search_images import EXPERIMENTS, Images, looked
from search_problems import FIDELITY, SyntheticProblem, synthetic_problem
from search_quality import environment
from workers import spread

from hwmodel.precision import NetworkConfig
from qat.files import write_text
from qat.search.loop import SearchResult, SearchSettings, run_search
from qat.search.pool import THREAD_VARIABLES
from qat.search.proposer import Proposer, ProposerSettings
from qat.search.screening import screening_of
from qat.search.store import TrialStore
from qat.search.trial import SCREENING_ACCURACY, Evaluator, Fidelity, Screening, Target, Trial, TrialState

NOISE = 0.002
EARLY_NOISE = 0.004
AGAIN = 3
"""Seeds with which a winner on real images is trained anew."""


@dataclass(frozen=True)
class Measured:
    """One search.

    Args:
        score: Larger is better.
        observed: Mean accuracy of the winners' trials, points.
        effort: Training as a share of that of as many trials in full.
        stopped: Trials that were stopped.
        seconds: Of the evaluations.
    """

    score: float
    observed: float
    effort: float
    stopped: int
    seconds: float


@dataclass(frozen=True)
class Job:
    """One search to do."""

    problem: str
    seed: int
    share: float | None
    looks: tuple[float, ...]
    trials: int
    layers: int
    folder: Path
    data_root: Path | None

    @property
    def path(self) -> Path:
        """Its result."""
        size = f"-{self.layers}" if self.problem == "synthetic" else ""
        return self.folder / f"{self.problem}{size}-{self.trials}-{self.seed}-{self.share}.json"


class Early:
    """A synthetic problem with an accuracy on the way, the same wherever it is measured."""

    def __init__(self, problem: SyntheticProblem, job: Job) -> None:
        self.problem, self.looks = problem, job.looks
        factors = 1.5 * np.random.default_rng([job.seed, 1]).lognormal(0, 0.4, len(problem.damage))
        rows = tuple(row * factor for row, factor in zip(problem.damage, factors, strict=True))
        self.early = replace(problem, damage=rows)

    def __call__(
        self, config: NetworkConfig, fidelity: Fidelity, seed: int, screening: Screening | None = None
    ) -> dict[str, float]:
        """Noisy accuracies."""
        indices = self.problem.space.layer_indices(np.array([self.problem.space.point(config)]))
        noise = np.random.default_rng(seed).normal(0, 1, 2)
        accuracy = np.clip(self.problem.true_accuracy(indices)[0] + NOISE * noise[0], 0, 1)
        early = float(np.clip(self.early.true_accuracy(indices)[0] + EARLY_NOISE * noise[1], 0, 1))
        if screening is None:
            return {"accuracy": float(accuracy)} | {looked(share): early for share in self.looks}
        found = {"screening_accuracy": early}
        return found if early < screening.least else found | {"accuracy": float(accuracy)}


def searched(job: Job, evaluator: Evaluator, **arguments: Any) -> SearchResult:
    """The search of a job, in a store of its own."""
    settings = SearchSettings(
        trials=job.trials, seed=job.seed, screening_share=job.share, proposer=ProposerSettings(initial_trials=4)
    )
    with TrialStore(job.path.with_suffix(".sqlite")) as store:
        return run_search(evaluator=evaluator, store=store, settings=settings, **arguments)


def synthetic(job: Job) -> tuple[float, SearchResult]:
    """One search of the synthetic problem, and its score."""
    problem = synthetic_problem(job.layers, job.seed)
    target = Target("budget", {"bits_per_weight": (None, problem.budget)})
    result = searched(
        job, Early(problem, job), space=problem.space, cost=problem.cost, targets=[target], fidelity=FIDELITY,
        profile=problem.profile,
    )  # fmt: skip
    truth = problem.reference_profile()
    best = Proposer(problem.space, problem.cost, truth).allocate(truth, target, np.random.default_rng(0))
    points = np.array([best, result.winners[target.name].trial.point])
    reached = problem.true_accuracy(problem.space.layer_indices(points))
    return 100 * float(reached[1] - reached[0]), result


def images(job: Job) -> tuple[float, SearchResult]:
    """One search on real images, and its score."""
    images = Images.of(job.problem, job.folder, job.data_root)
    result = searched(job, **images.arguments(job.looks))
    winners = [winner.trial.config for winner in result.winners.values()]
    scores = [images.unseen(config, 10_000 + again) for config in winners for again in range(AGAIN)]
    return 100 * float(np.mean(scores)), result


def work(job: Job) -> None:
    """Does a job and leaves its file."""
    quiet()
    score, result = synthetic(job) if job.problem == "synthetic" else images(job)
    effort = sum(t.effort for t in result.trials) / sum(t.fidelity.effort for t in result.trials)
    found = Measured(
        score,
        100 * float(np.mean([winner.trial.accuracy for winner in result.winners.values()])),
        effort,
        sum(t.state is TrialState.STOPPED for t in result.trials),
        sum(t.duration_s or 0.0 for t in result.trials),
    )
    write_text(job.path, json.dumps(asdict(found)))


def quiet() -> None:
    """Nothing but results is printed."""
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    logging.disable(logging.WARNING)


def replay(job: Job, share: float) -> tuple[list[float], float]:
    """The rule of this revision on the trials of a search without screening, in their order.

    Returns:
        Of each trial that it stops, how many points it ended below the best trial of its target; the share of the
        training that is left.
    """
    with TrialStore(job.path.with_suffix(".sqlite"), read_only=True) as store:
        trials, settings = store.trials(), store.document("fingerprint") or {}
    targets = {each["name"]: Target(each["name"], each["bounds"]) for each in settings["targets"]}
    seen: list[Trial] = []
    behind: list[float] = []
    for trial in trials:
        target, early = targets[trial.target], trial.metrics.get(looked(share), float("nan"))
        screening = screening_of(seen, target, trial.cost, share) or Screening(share)
        state = TrialState.STOPPED if early < screening.least else trial.state
        if state is TrialState.STOPPED:
            best = max(t.accuracy for t in trials if t.is_completed and target.admits(t.cost))
            behind.append(100 * (best - trial.accuracy))
        metrics = {**trial.metrics, SCREENING_ACCURACY: early}
        seen.append(replace(trial, screening=screening, state=state, metrics=metrics))
    return behind, sum(t.effort for t in seen) / sum(t.fidelity.effort for t in seen)


def show_replayed(jobs: Sequence[Job]) -> None:
    """Prints what the rule stops in the searches without screening."""
    done = [job for job in jobs if job.share is None and job.path.is_file()]
    print(
        "| share | seed | stopped | points that these ended below the best of their target | training |\n"
        + 5 * "|---"
        + "|"
    )
    for share in jobs[0].looks if jobs else ():
        replayed = {job.seed: replay(job, share) for job in done}
        for seed, (behind, effort) in replayed.items():
            print(f"| {share} | {seed} | {len(behind)} | {' '.join(f'{one:.1f}' for one in behind)} | {effort:.3f} |")
        print(f"| {share} | mean | | | {np.mean([effort for _, effort in replayed.values()]):.3f} |")


def show(jobs: Sequence[Job]) -> None:
    """Prints a table of all jobs that are done, and means."""
    found: dict[float | None, dict[int, Measured]] = {}
    for job in jobs:
        if job.path.is_file():
            one = Measured(**json.loads(job.path.read_text(encoding="utf-8")))
            found.setdefault(job.share, {})[job.seed] = one
    print("| share | seed | score | winner's trial | training | stopped | s in evaluations |\n" + 7 * "|---" + "|")
    for share, by_seed in found.items():
        for seed, one in sorted(by_seed.items()):
            cells = (f"{one.score:.2f}", f"{one.observed:.2f}", f"{one.effort:.3f}", one.stopped, f"{one.seconds:.1f}")
            print(f"| {share} | {seed} | {' | '.join(map(str, cells))} |")
    for share, by_seed in found.items():
        seeds = sorted(set(by_seed) & set(found.get(None, {})))
        ones = [by_seed[seed] for seed in seeds]
        gain = np.array([by_seed[seed].score - found[None][seed].score for seed in seeds])
        error = gain.std(ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else float("nan")
        print(
            f"share {share}, {len(seeds)} seeds: score mean {np.mean([one.score for one in ones]):.3f}, median "
            f"{np.median([one.score for one in ones]):.3f}; against none {gain.mean():+.3f} +- {error:.3f}; training "
            f"{np.mean([one.effort for one in ones]):.3f}; s in evaluations "
            f"{np.mean([one.seconds for one in ones]):.1f}; stopped {np.mean([one.stopped for one in ones]):.1f}"
        )


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problem", choices=("synthetic", *EXPERIMENTS))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--share", type=float, nargs="+", default=[0.0], help="shares of the training to look after")
    parser.add_argument("--layers", type=int, default=20, help="of the synthetic problem")
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--folder", type=Path, default=Path("runs/search_fidelity"), help="stores and results")
    parser.add_argument("--data-root", type=Path, help="folder with CIFAR-10 and weights/")
    parser.add_argument("--replay", action="store_true", help="apply the rule to what was recorded without screening")
    arguments = parser.parse_args()
    folder, root = arguments.folder.resolve(), arguments.data_root and arguments.data_root.resolve()
    make = partial(
        Job, arguments.problem, looks=tuple(arguments.share), trials=arguments.trials, layers=arguments.layers,
        folder=folder, data_root=root,
    )  # fmt: skip
    jobs = [make(seed, share=share) for seed in range(arguments.seeds) for share in (None, *arguments.share)]
    quiet()
    print(environment())
    if arguments.replay:
        show_replayed(jobs)
        return
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    if arguments.problem in EXPERIMENTS:
        Images.of(arguments.problem, folder, root)  # before several processes do it at once
    spread(jobs, work, lambda job: job.path, arguments.workers)
    show(jobs)


if __name__ == "__main__":
    main()
