"""Plain BoTorch over all dimensions: its default Gaussian process and two of its acquisition functions.

What costs time and no quality is left out: a fit starts at the hyperparameters of the one before, and LogEI, which
needs one point at a time, takes means and variances of many points from one posterior.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from botorch.acquisition.analytic import LogExpectedImprovement
from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
from botorch.exceptions.warnings import OptimizationWarning
from botorch.fit import fit_gpytorch_mll
from botorch.models import ModelListGP, SingleTaskGP
from botorch.models.model import Model
from botorch.models.transforms import Standardize
from botorch.optim.fit import fit_gpytorch_mll_scipy
from botorch.posteriors.gpytorch import GPyTorchPosterior
from botorch.sampling import SobolQMCNormalSampler
from gpytorch.distributions import MultivariateNormal
from gpytorch.mlls import ExactMarginalLogLikelihood
from linear_operator.operators import DiagLinearOperator
from search_methods import INITIAL, Evaluations, Method, quasi_random

from qat.search.acquisition import LocalSearch
from qat.search.trial import FloatArray, IntArray, Target

LATER_ITERATIONS = 60
"""Most iterations of a fit that starts at the result of the one before."""

CHUNK = 256
"""Points whose acquisition is computed at once."""


class Fits:
    """BoTorch's default Gaussian process of growing data."""

    def __init__(self) -> None:
        self._last: dict[str, torch.Tensor] = {}

    def __call__(self, inputs: FloatArray, values: FloatArray) -> Any:
        """The process, fitted to inputs of shape (n, dimensions) in [0, 1] and values of shape (n,)."""
        outcomes = torch.from_numpy(np.asarray(values, np.float64))[:, None]
        model = SingleTaskGP(torch.from_numpy(inputs), outcomes, outcome_transform=Standardize(m=1))
        fit = ExactMarginalLogLikelihood(model.likelihood, model)
        if self._last:
            for name, value in self._last.items():
                model.get_parameter(name).data.copy_(value)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", OptimizationWarning)  # it goes on with the next fit
                fit_gpytorch_mll_scipy(fit, options={"maxiter": LATER_ITERATIONS})
        else:
            fit_gpytorch_mll(fit)
        self._last = {name: value.detach().clone() for name, value in model.named_parameters()}
        return model.eval()


class OneByOne(Model):  # type: ignore[misc]
    """A model of one output without the correlations between points, for acquisitions of one point (q = 1).

    Args:
        model: Fitted.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @property
    def num_outputs(self) -> int:
        """1."""
        return 1

    @property
    def batch_shape(self) -> torch.Size:
        """No batches of models."""
        return torch.Size([])

    def posterior(self, X: torch.Tensor, *args: object, **kwargs: object) -> GPyTorchPosterior:
        """Normal posterior at points of shape (n, 1, dimensions)."""
        joint = self.model.posterior(X[:, 0, :])
        return GPyTorchPosterior(MultivariateNormal(joint.mean, DiagLinearOperator(joint.variance)))


def plain_logei(run: Evaluations) -> None:
    """BoTorch's default Gaussian process over all dimensions, LogEI climbed inside the budget."""
    scale = np.maximum(run.problem.space.sizes - 1, 1)
    fitted = Fits()
    quasi_random(run, INITIAL)
    while not run.done:
        known, target = np.array(run.points), run.target
        model = fitted(known / scale, np.array(run.values))
        inside = known[run.feasible(known, target)]
        with torch.no_grad():
            best = model.posterior(torch.from_numpy((inside if len(inside) else known) / scale)).mean.max()
        acquisition = LogExpectedImprovement(OneByOne(model), best_f=best)
        climb = LocalSearch(run.problem.space, steps=20, singles=128, pairs=128)
        run(_climb(run, climb, lambda rows, f=acquisition: _in_chunks(f, rows / scale), target))


def plain_qlognehvi(run: Evaluations) -> None:
    """BoTorch's default Gaussian processes of accuracy and size, qLogNEHVI climbed inside the widest budget."""
    scale = np.maximum(run.problem.space.sizes - 1, 1)
    accuracy_fitted, bits_fitted = Fits(), Fits()
    quasi_random(run, INITIAL)
    while not run.done:
        known = np.array(run.points)
        bits = run.bits(known)
        inputs = known / scale
        acquisition = qLogNoisyExpectedHypervolumeImprovement(
            ModelListGP(accuracy_fitted(inputs, np.array(run.values)), bits_fitted(inputs, -bits)),
            ref_point=[float(np.median(run.values)), -float(run.targets[-1].bounds["bits_per_weight"][1] or np.inf)],
            X_baseline=torch.from_numpy(inputs),
            sampler=SobolQMCNormalSampler(torch.Size([64]), seed=run.seed),
            prune_baseline=True,
        )
        # A value costs five times that of LogEI: about 4000 of them are looked at, not 20000.
        climb = LocalSearch(run.problem.space, steps=12, singles=40, pairs=40)
        run(_climb(run, climb, lambda rows, f=acquisition: _in_chunks(f, rows / scale), run.targets[-1]))


def _climb(run: Evaluations, climb: LocalSearch, score: Callable[[IntArray], FloatArray], target: Target) -> IntArray:
    """The best new point inside a target's bounds that a climb finds."""
    rng = np.random.default_rng([run.seed, len(run.points)])
    known = np.array(run.points)
    taken = {tuple(point) for point in known.tolist()}

    def allowed(rows: IntArray) -> np.ndarray:
        return run.feasible(rows, target) & np.array([tuple(row) not in taken for row in rows.tolist()])

    starts = np.array([run.repaired(point, target) for point in run.problem.space.sample(20, rng)])
    inside = known[run.feasible(known, target)]
    if len(inside):
        values = np.array(run.values)[run.feasible(known, target)]
        starts = np.concatenate([starts, climb.neighbours(inside[np.argsort(-values)[:3]], rng)[:400]])
    starts = starts[allowed(starts)]
    starts = starts[np.argsort(-score(starts), kind="stable")[:4]]
    return climb.run(starts, score, allowed, rng)[0][0]


def _in_chunks(function: Callable[[torch.Tensor], torch.Tensor], rows: FloatArray) -> FloatArray:
    with torch.no_grad():
        parts = [
            function(torch.from_numpy(part)[:, None, :]).numpy()
            for part in np.array_split(rows, len(rows) // CHUNK + 1)
        ]
    return np.concatenate(parts)


BOTORCH: dict[str, Method] = {"BoTorch LogEI": plain_logei, "BoTorch qLogNEHVI": plain_qlognehvi}
