"""What a search gains from evaluating its leading configurations again in its last evaluations.

    python benchmarks/search_replicates.py --seeds 7

For each instance of `search_problems.py` one search is made.  With r replicates its first n - r trials are kept and r
evaluations of earlier configurations, chosen by posterior mean plus standard deviation, take the place of the others.
Printed is what the winner's true accuracy is short of the best of all n, in points.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from search_problems import FIDELITY, OBSERVATION_NOISE, SyntheticProblem, synthetic_problem
from search_quality import environment

from qat.search.loop import SearchSettings, run_search
from qat.search.store import TrialStore
from qat.search.surrogate import AccuracySurrogate
from qat.search.trial import FloatArray, Target, Trial

DRAWS = 4


def searched(problem: SyntheticProblem, count: int, seed: int) -> tuple[Trial, ...]:
    """Trials of one search."""
    target = Target("budget", {"bits_per_weight": (None, problem.budget)})
    with tempfile.TemporaryDirectory() as folder, TrialStore(Path(folder) / "trials.sqlite") as store:
        found = run_search(
            evaluator=problem.evaluate, space=problem.space, cost=problem.cost, targets=[target], fidelity=FIDELITY,
            store=store, settings=SearchSettings(trials=count, seed=seed), profile=problem.profile,
        )  # fmt: skip
    return found.trials


def winner(
    problem: SyntheticProblem, trials: Sequence[Trial], truth: FloatArray, replicates: int, rng: np.random.Generator
) -> float:
    """True accuracy of the winner after replicates of the given trials, whose true accuracies are `truth`."""
    points = np.array([trial.point for trial in trials])
    seen = list(trials)
    for _ in range(replicates):
        mean, std = AccuracySurrogate.fit(problem.space, problem.profile, seen).posterior(points)
        row = int(np.argmax(mean + std))
        observed = float(truth[row] + rng.normal(0, OBSERVATION_NOISE))
        seen.append(replace(trials[row], id=len(seen) + 1, metrics={"accuracy": observed}))
    mean, _ = AccuracySurrogate.fit(problem.space, problem.profile, seen).posterior(points)
    return float(truth[int(np.argmax(mean))])


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--evaluations", type=int, nargs="+", default=[30, 60])
    parser.add_argument("--replicates", type=int, nargs="+", default=[0, 4, 8])
    arguments = parser.parse_args()
    short: dict[tuple[int, int], list[float]] = {}
    for seed in range(arguments.seeds):
        problem = synthetic_problem(arguments.layers, seed)
        trials = searched(problem, max(arguments.evaluations), seed)
        truth = problem.true_accuracy(problem.space.layer_indices(np.array([trial.point for trial in trials])))
        for count in arguments.evaluations:
            for replicates in arguments.replicates:
                kept = count - replicates
                reached = [
                    winner(problem, trials[:kept], truth[:kept], replicates, np.random.default_rng([seed, count, draw]))
                    for draw in range(DRAWS if replicates else 1)
                ]
                short.setdefault((count, replicates), []).append(100 * float(truth[:count].max() - np.mean(reached)))
    print(environment())
    print("| evaluations | replicates | points short, mean | by seed |\n|---|---|---|---|")
    for (count, replicates), values in short.items():
        print(f"| {count} | {replicates} | {np.mean(values):.3f} | {np.round(values, 3).tolist()} |")


if __name__ == "__main__":
    main()
