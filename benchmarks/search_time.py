"""How long a proposal takes.

    python benchmarks/search_time.py

Reach: under 3 s at 120 trials and 40 dimensions, under 10 s at 300 trials and 110 dimensions.  CPU time of one thread
is printed beside the time on the clock, which a busy machine stretches.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from search_problems import FIDELITY, SyntheticProblem, synthetic_problem

from qat.search.proposer import Proposer
from qat.search.sensitivity import lagrange_path
from qat.search.trial import Target, Trial, TrialState

SIZES = ((120, 40, 3.0), (300, 110, 10.0))
"""Trials, dimensions, seconds to stay below."""

TARGET = Target("weights", {"bits_per_weight": (None, 1.4)})


def some_trials(problem: SyntheticProblem, proposer: Proposer, count: int) -> list[Trial]:
    """Trials inside the budget such as a search makes: allocations by reweighted sensitivities."""
    rng = np.random.default_rng(0)
    points: dict[tuple[int, ...], None] = {}
    while len(points) < count:
        factors = np.exp(rng.normal(0, 0.7, len(problem.space.sizes)))
        path = lagrange_path(problem.profile.reweighted(factors), problem.space.dimension_bits)
        for point in path[proposer.feasible(path, TARGET)][-3:]:
            points[tuple(int(i) for i in point)] = None
    return [
        Trial(
            number + 1,
            point,
            problem.space.config(point),
            FIDELITY,
            0,
            TARGET.name,
            "perturbed",
            TrialState.COMPLETED,
            {},
            {"accuracy": problem.observe(np.array(point), 0, number)},
            # Kept promises widen the radius to all dimensions: the largest neighbourhood, the slowest case.
            predicted=(problem.observe(np.array(point), 0, number), 0.005),
            ended_s=0.0,
        )
        for number, point in enumerate(list(points)[:count])
    ]


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| trials | dimensions | CPU s, median | s on the clock, median | reach, s |\n|---|---|---|---|---|")
    for count, layers, reach in SIZES:
        problem = synthetic_problem(layers, 0)
        proposer = Proposer(problem.space, problem.cost, problem.profile)
        trials = some_trials(problem, proposer, count)
        taken = []
        for seed in range(arguments.repeats):
            cpu, clock = time.process_time(), time.perf_counter()
            proposal = proposer.propose(trials, TARGET, np.random.default_rng(seed))
            taken.append((time.process_time() - cpu, time.perf_counter() - clock))
            if proposal.origin != "acquisition":
                raise RuntimeError(f"the proposal came from {proposal.origin!r}, expected the acquisition")
        cpu_s, clock_s = np.median(taken, axis=0)
        print(f"| {count} | {layers} | {cpu_s:.2f} | {clock_s:.2f} | {reach:g} |", flush=True)


if __name__ == "__main__":
    main()
