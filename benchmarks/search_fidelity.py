"""What stopping bad trials early saves, and whether it costs accuracy.

    python benchmarks/search_fidelity.py synthetic --seeds 8
    python benchmarks/search_fidelity.py digits --seeds 4

Each seed is searched without screening and with it (`search.screening_share`), the same number of trials.

`synthetic`: `search_problems.py`, with an accuracy on the way: damage is half as large again, differently for each
layer, and noise is twice that of the end.  The score is the true accuracy of the winner, in points below the reference.

`digits`: the network of `experiment=digits_demo` with 2-bit activations at 22.66x and 32x, a training step as it is
there.  The score is the accuracy of the winners of both targets, each trained anew with three other seeds, on the
images that no trial has seen; CPU seconds are those of the evaluations.
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from search_problems import FIDELITY, SyntheticProblem, synthetic_problem
from search_quality import environment

from hwmodel.precision import NetworkConfig
from qat.search.loop import SearchResult, SearchSettings, run_search
from qat.search.proposer import Proposer, ProposerSettings
from qat.search.store import TrialStore
from qat.search.trial import Evaluator, Fidelity, Screening, Target, TrialState

NOISE = 0.002
EARLY_NOISE = 0.004
AGAIN = 3
"""Seeds with which a winner on real images is trained anew."""


@dataclass(frozen=True)
class Measured:
    """One search.

    Args:
        score: Larger is better.
        effort: Training as a share of that of as many trials in full.
        stopped: Trials that were stopped.
        cpu_s: Of the evaluations.
    """

    score: float
    effort: float
    stopped: int
    cpu_s: float


@dataclass
class Timed:
    """An evaluator that counts its CPU seconds."""

    evaluator: Evaluator
    cpu_s: float = field(default=0.0)

    def __call__(self, *arguments: Any) -> Mapping[str, float]:
        """Evaluates."""
        start = time.process_time()
        try:
            return self.evaluator(*arguments)
        finally:
            self.cpu_s += time.process_time() - start


class Early:
    """A synthetic problem with an accuracy on the way."""

    def __init__(self, problem: SyntheticProblem, seed: int) -> None:
        self.problem = problem
        factors = 1.5 * np.random.default_rng([seed, 1]).lognormal(0, 0.4, len(problem.damage))
        rows = tuple(row * factor for row, factor in zip(problem.damage, factors, strict=True))
        self.early = replace(problem, damage=rows)

    def __call__(
        self, config: NetworkConfig, fidelity: Fidelity, seed: int, screening: Screening | None = None
    ) -> dict[str, float]:
        """Noisy accuracies."""
        indices = self.problem.space.layer_indices(np.array([self.problem.space.point(config)]))
        noise = np.random.default_rng(seed).normal(0, 1, 2)
        accuracy = np.clip(self.problem.true_accuracy(indices)[0] + NOISE * noise[0], 0, 1)
        if screening is None:
            return {"accuracy": float(accuracy)}
        early = np.clip(self.early.true_accuracy(indices)[0] + EARLY_NOISE * noise[1], 0, 1)
        found = {"screening_accuracy": float(early)}
        return found if early < screening.least else found | {"accuracy": float(accuracy)}


def measured(result: SearchResult, score: float, cpu_s: float) -> Measured:
    """Sums a search up."""
    effort = sum(t.effort for t in result.trials) / sum(t.fidelity.effort for t in result.trials)
    return Measured(score, effort, sum(t.state is TrialState.STOPPED for t in result.trials), cpu_s)


def searched(store: Path, settings: SearchSettings, evaluator: Timed, **arguments: Any) -> SearchResult:
    """One search in a new store."""
    with TrialStore(store) as opened:
        return run_search(evaluator=evaluator, store=opened, settings=settings, **arguments)


def synthetic(layers: int, seed: int, trials: int, share: float | None, folder: Path) -> Measured:
    """One search of the synthetic problem."""
    problem = synthetic_problem(layers, seed)
    target = Target("budget", {"bits_per_weight": (None, problem.budget)})
    evaluator = Timed(Early(problem, seed))
    settings = SearchSettings(trials=trials, seed=seed, screening_share=share)
    result = searched(
        folder / f"synthetic_{seed}_{share}.sqlite", settings, evaluator, space=problem.space, cost=problem.cost,
        targets=[target], fidelity=FIDELITY, profile=problem.profile,
    )  # fmt: skip
    truth = problem.reference_profile()
    best = Proposer(problem.space, problem.cost, truth).allocate(truth, target, np.random.default_rng(0))
    points = np.array([best, result.winners[target.name].trial.point])
    reached = problem.true_accuracy(problem.space.layer_indices(points))
    return measured(result, 100 * float(reached[1] - reached[0]), evaluator.cpu_s)


def digits(seed: int, trials: int, share: float | None, folder: Path) -> Measured:
    """One search of the digits network; the float network is trained once for all."""
    import pytorch_lightning as pl
    import torch

    from qat.compose import compose_config
    from qat.pipeline.evaluation import evaluator_of
    from qat.pipeline.planning import plan
    from qat.pipeline.searching import _sensitivity, fidelity_of
    from qat.pipeline.setup import train
    from qat.runs import RunFolder
    from qat.tasks import TrainingTask, evaluate, fit
    from qat.tasks.quantize import quantize

    torch.set_num_threads(1)
    overrides = ["search.min_compression=[22.66,32]", "quant.act_bit_width=2", "search.sparse_densities=[0.1,0.25,0.5]"]
    plain = ["trainer.progress_bar=false", "trainer.accelerator=cpu", f"run_dir={folder / 'digits'}"]
    config = compose_config(["experiment=digits_demo", *overrides, *plain])
    run = RunFolder(folder / "digits") if (folder / "digits").is_dir() else RunFolder.create(config)
    setup = train(config, run)
    space, costs, targets = plan(config)
    fidelity = fidelity_of(config, setup)
    evaluator = Timed(evaluator_of(config, setup))
    settings = SearchSettings(
        trials=trials, seed=seed, screening_share=share, proposer=ProposerSettings(initial_trials=4)
    )
    result = searched(
        folder / f"digits_{seed}_{share}.sqlite", settings, evaluator, space=space, cost=costs.evaluate,
        targets=targets, fidelity=fidelity, profile=lambda: _sensitivity(config, setup, space),
    )  # fmt: skip
    cpu_s = evaluator.cpu_s

    def unseen(network: NetworkConfig, again: int) -> float:
        pl.seed_everything(10_000 + again, verbose=False)
        model = quantize(setup.float_model, network, setup.data, setup.normalization)
        teacher = copy.deepcopy(setup.float_model)
        task = TrainingTask(model, setup.normalization, setup.recipe, setup.objective, teacher)
        fit(task, setup.data, replace(setup.machine, progress_bar=False), steps=config.search.train_steps)
        return evaluate(model, setup.data.test_dataloader(), setup.normalization, setup.objective)["accuracy"]

    scores = [unseen(winner.trial.config, again) for winner in result.winners.values() for again in range(AGAIN)]
    return measured(result, 100 * float(np.mean(scores)), cpu_s)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problem", choices=("synthetic", "digits"))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--share", type=float, nargs="+", default=[0.0], help="shares of the training to look after")
    parser.add_argument("--layers", type=int, default=20, help="of the synthetic problem")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    logging.disable(logging.WARNING)
    search = {"synthetic": partial(synthetic, arguments.layers), "digits": digits}[arguments.problem]
    print(environment())
    print("| share | seed | score | training | stopped | CPU s of the evaluations |\n|---|---|---|---|---|---|")
    found: dict[float | None, list[Measured]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            for share in (None, *arguments.share):
                one = search(seed, arguments.trials, share, Path(folder))
                found.setdefault(share, []).append(one)
                print(f"| {share} | {seed} | {one.score:.2f} | {one.effort:.2f} | {one.stopped} | {one.cpu_s:.1f} |")
                sys.stdout.flush()
    for share, ones in found.items():
        scores = np.array([one.score for one in ones])
        gain = scores - np.array([one.score for one in found[None]])
        error = gain.std(ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else float("nan")
        print(
            f"share {share}: score mean {scores.mean():.3f}, median {np.median(scores):.3f}; against none "
            f"{gain.mean():+.3f} +- {error:.3f}; training {np.mean([one.effort for one in ones]):.3f}; CPU s "
            f"{np.mean([one.cpu_s for one in ones]):.1f}; stopped {np.mean([one.stopped for one in ones]):.1f}"
        )


if __name__ == "__main__":
    main()
