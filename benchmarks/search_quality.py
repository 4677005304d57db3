"""Accuracy found per evaluation, by method, on the synthetic problems of `search_problems.py`.

    python benchmarks/search_quality.py --layers 20 --evaluations 60 --seeds 5

Each method gets the same problems, budget (1.4 stored bits per weight) and noisy evaluations.  The figure is the
noise-free accuracy of the best configuration evaluated so far that fits, in points below a reference: what the exact
allocation finds when it knows the true damage of every layer (which is not the optimum, as layers interact).
"""

from __future__ import annotations

import argparse
import datetime
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from search_problems import SyntheticProblem, synthetic_problem
from torch.quasirandom import SobolEngine

from qat.search.acquisition import LocalSearch, log_expected_improvement
from qat.search.proposer import Proposer
from qat.search.sensitivity import SensitivityProfile, gaussian_profile
from qat.search.trial import Fidelity, FloatArray, IntArray, Target, Trial, TrialState

FIDELITY = Fidelity("benchmark", 1)
TARGET = Target("weights", {"bits_per_weight": (None, 1.4)})
MARKS = (10, 20, 30, 60, 120)

Method = Callable[[SyntheticProblem, int, int], IntArray]
"""(problem, evaluations, seed) -> the points evaluated, in order."""


def feasible(problem: SyntheticProblem, points: IntArray) -> np.ndarray:
    """Which points fit the budget."""
    return TARGET.feasible(problem.cost(problem.space.layer_indices(points)))


def repaired(problem: SyntheticProblem, point: IntArray, rng: np.random.Generator) -> IntArray:
    """Lowers randomly picked layers until the point fits."""
    point = point.copy()
    while not feasible(problem, point[None, :])[0]:
        layer = rng.choice(np.flatnonzero(point > 0))
        point[layer] = rng.integers(0, point[layer])
    return point


def observe(problem: SyntheticProblem, point: IntArray, seed: int, number: int) -> float:
    """A noisy evaluation; every method sees the same noise at the same number."""
    config = problem.space.config(point)
    return problem.evaluate(config, FIDELITY, 100_000 * seed + number)["accuracy"]


def proposed(problem: SyntheticProblem, evaluations: int, seed: int, profile: SensitivityProfile) -> IntArray:
    """This project's search with some profile."""
    proposer = Proposer(problem.space, problem.cost, profile)
    trials: list[Trial] = []
    for number in range(evaluations):
        proposal = proposer.propose(trials, TARGET, np.random.default_rng([seed, number]))
        metrics = {"accuracy": observe(problem, np.array(proposal.point), seed, number)}
        config = problem.space.config(proposal.point)
        state = TrialState.COMPLETED
        trials.append(
            Trial(number + 1, proposal.point, config, FIDELITY, 0, TARGET.name, proposal.origin, state, proposal.cost,
                  metrics, proposal.predicted, ended_s=0.0)
        )  # fmt: skip
    return np.array([trial.point for trial in trials])


def ours(problem: SyntheticProblem, evaluations: int, seed: int) -> IntArray:
    """This project's search."""
    return proposed(problem, evaluations, seed, problem.profile)


def ours_without_profile(problem: SyntheticProblem, evaluations: int, seed: int) -> IntArray:
    """This project's search without measured sensitivities."""
    return proposed(problem, evaluations, seed, gaussian_profile(problem.space))


def sobol(problem: SyntheticProblem, evaluations: int, seed: int) -> IntArray:
    """Quasi-random points, repaired."""
    rng = np.random.default_rng(seed)
    unit = SobolEngine(len(problem.space.sizes), scramble=True, seed=seed).draw(evaluations).double().numpy()
    points = np.minimum((unit * problem.space.sizes).astype(np.int64), problem.space.sizes - 1)
    return np.array([repaired(problem, point, rng) for point in points])


def evolutionary(problem: SyntheticProblem, evaluations: int, seed: int) -> IntArray:
    """Steady state: mutate 1..3 layers of the best of three survivors out of ten, then repair."""
    rng = np.random.default_rng(seed)
    points = list(sobol(problem, min(10, evaluations), seed))
    values = [observe(problem, point, seed, number) for number, point in enumerate(points)]
    while len(points) < evaluations:
        ranked = np.argsort(values)[::-1][:10]
        child = points[ranked[rng.choice(len(ranked), 3).min()]].copy()
        layers = rng.choice(len(child), int(rng.integers(1, 4)), replace=False)
        child[layers] = rng.integers(0, problem.space.sizes[layers])
        child = repaired(problem, child, rng)
        values.append(observe(problem, child, seed, len(points)))
        points.append(child)
    return np.array(points)


def plain_logei(problem: SyntheticProblem, evaluations: int, seed: int) -> IntArray:
    """BoTorch's default Gaussian process over all dimensions, LogEI climbed inside the budget; 10 Sobol points."""
    from botorch.fit import fit_gpytorch_mll  # after qat.search.damage, which imports BoTorch without its warning
    from botorch.models import SingleTaskGP
    from botorch.models.transforms import Standardize
    from gpytorch.mlls import ExactMarginalLogLikelihood

    rng = np.random.default_rng(seed)
    space = problem.space
    points = list(sobol(problem, min(10, evaluations), seed))
    values = [observe(problem, point, seed, number) for number, point in enumerate(points)]
    scale = np.maximum(space.sizes - 1, 1)
    while len(points) < evaluations:
        known = np.array(points)
        model = SingleTaskGP(
            torch.from_numpy(known / scale), torch.tensor(values)[:, None].double(), outcome_transform=Standardize(m=1)
        )
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        model.eval()

        def posterior(rows: IntArray, model: SingleTaskGP = model) -> tuple[FloatArray, FloatArray]:
            chunks = []
            with torch.no_grad():
                for part in np.array_split(rows, max(1, len(rows) // 500)):
                    found = model.posterior(torch.from_numpy(part / scale))
                    chunks.append((found.mean[:, 0].numpy(), found.variance[:, 0].sqrt().numpy()))
            return np.concatenate([c[0] for c in chunks]), np.concatenate([c[1] for c in chunks])

        best = posterior(known)[0].max()
        taken = {tuple(point) for point in known.tolist()}

        def score(rows: IntArray, best: float = best) -> FloatArray:
            return log_expected_improvement(*posterior(rows), best)

        def allowed(rows: IntArray, taken: set[tuple[int, ...]] = taken) -> np.ndarray:
            return feasible(problem, rows) & np.array([tuple(row) not in taken for row in rows.tolist()])

        climb = LocalSearch(space, steps=20)
        starts = np.array([repaired(problem, point, rng) for point in space.sample(20, rng)])
        near = climb.neighbours(known[np.argsort(values)[::-1][:3]], rng)
        starts = np.concatenate([starts, near[allowed(near)][:200]])
        starts = starts[allowed(starts)]
        starts = starts[np.argsort(-score(starts))[:4]]
        point = climb.run(starts, score, allowed, rng)[0][0]
        values.append(observe(problem, point, seed, len(points)))
        points.append(point)
    return np.array(points)


METHODS: dict[str, Method] = {
    "ours": ours,
    "ours, no profile": ours_without_profile,
    "plain LogEI": plain_logei,
    "evolutionary": evolutionary,
    "sobol": sobol,
}


def reference(problem: SyntheticProblem) -> float:
    """Accuracy of the allocation that knows the true damage of every layer."""
    truth = SensitivityProfile(problem.space.dimensions, tuple(tuple(row) for row in problem.damage))
    point = Proposer(problem.space, problem.cost, truth).allocate(truth, TARGET, np.random.default_rng(0))
    return float(problem.true_accuracy(problem.space.layer_indices(point[None, :]))[0])


def run(layers: int, evaluations: int, seeds: int, methods: Sequence[str]) -> None:
    """Runs every method on every problem and prints medians and quartiles."""
    marks = [mark for mark in MARKS if mark <= evaluations]
    gaps: dict[str, list[list[float]]] = {name: [] for name in methods}
    seconds: dict[str, float] = dict.fromkeys(methods, 0.0)
    for seed in range(seeds):
        problem = synthetic_problem(layers, seed)
        best = reference(problem)
        for name in methods:
            start = time.perf_counter()
            points = METHODS[name](problem, evaluations, seed)
            seconds[name] += time.perf_counter() - start
            if not feasible(problem, points).all():
                raise RuntimeError(f"{name} evaluated a configuration outside the budget")
            truth = problem.true_accuracy(problem.space.layer_indices(points))
            gaps[name].append([100 * (best - float(truth[:mark].max())) for mark in marks])
            print(f"seed {seed}  {name:<18}" + "".join(f"{gap:8.2f}" for gap in gaps[name][-1]), flush=True)
    print_environment()
    print(f"{layers} layers, {seeds} problems, points below the reference after n evaluations: median [quartiles]")
    print(f"{'method':<18}" + "".join(f"{f'n={mark}':>22}" for mark in marks) + f"{'s/proposal':>12}")
    for name in methods:
        low, middle, high = np.percentile(gaps[name], (25, 50, 75), axis=0)
        cells = (f"{m:.2f} [{a:.2f}, {b:.2f}]" for a, m, b in zip(low, middle, high, strict=True))
        print(f"{name:<18}" + "".join(f"{cell:>22}" for cell in cells) + f"{seconds[name] / seeds / evaluations:12.2f}")


def print_environment() -> None:
    """What the figures were taken on."""
    revision = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    ).stdout.strip()
    print(
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}  revision {revision or 'unknown'}  "
        f"{platform.machine()}, {torch.get_num_threads()} threads  torch {torch.__version__}  "
        f"botorch {version('botorch')}  numpy {np.__version__}"
    )


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run(arguments.layers, arguments.evaluations, arguments.seeds, arguments.methods)


if __name__ == "__main__":
    main()
