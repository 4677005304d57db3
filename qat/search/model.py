"""The surrogate as a BoTorch model: BoTorch's acquisition functions work on it."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

with warnings.catch_warnings():
    # linear_operator compiles a function in a way that torch calls deprecated: nothing that a user could mend.
    warnings.filterwarnings("ignore", message=r".*torch\.jit\.script")
    from botorch.acquisition.analytic import LogExpectedImprovement
    from botorch.exceptions.errors import UnsupportedError
    from botorch.models.model import Model
    from botorch.posteriors.gpytorch import GPyTorchPosterior
    from gpytorch.distributions import MultivariateNormal
    from linear_operator.operators import DiagLinearOperator

from qat.search.surrogate import AccuracySurrogate
from qat.search.trial import FloatArray, IntArray


class SurrogateModel(Model):
    """Posterior of standardised accuracy, noise-free, one point at a time (q = 1), in double precision.

    Args:
        surrogate: Fitted to the trials so far.
    """

    def __init__(self, surrogate: AccuracySurrogate) -> None:
        super().__init__()
        self._surrogate = surrogate

    @property
    def num_outputs(self) -> int:
        """1: accuracy.  Costs are exact and no output of a model."""
        return 1

    @property
    def batch_shape(self) -> torch.Size:
        """No batches of models."""
        return torch.Size([])

    def posterior(  # type: ignore[override]
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool = False,
        posterior_transform: object | None = None,
    ) -> GPyTorchPosterior:
        """Normal posterior at points of shape (n, 1, dimensions), whose entries are numbers of choices.

        Raises:
            UnsupportedError: q is not 1, or noise or a transform is asked for.
        """
        if (
            X.shape[-2] != 1
            or observation_noise
            or posterior_transform is not None
            or output_indices not in (None, [0])
        ):
            raise UnsupportedError("SurrogateModel: q = 1, without observation noise and transforms")
        points = X.detach().round().to(torch.int64).reshape(-1, X.shape[-1]).numpy()
        mean, std = (torch.from_numpy(np.asarray(part, np.float64)) for part in self._surrogate.posterior(points))
        shape = X.shape[:-2]
        covariance = DiagLinearOperator((std**2).reshape(*shape, 1))
        return GPyTorchPosterior(MultivariateNormal(mean.reshape(*shape, 1), covariance))


@torch.no_grad()
def log_expected_improvement(model: Model, points: IntArray, best: float) -> FloatArray:
    """Logarithm of the expected improvement over `best`, accurate where the improvement itself underflows.

    Args:
        model: Of one output.
        points: Numbers of choices, shape (n, dimensions).
        best: Value to improve on, on the model's scale.

    Returns:
        Shape (n,).

    Source:
        Ament et al., Unexpected Improvements to Expected Improvement for Bayesian Optimization, NeurIPS 2023;
        `botorch.acquisition.LogExpectedImprovement`.
    """
    acquisition = LogExpectedImprovement(model, best_f=best)
    values: FloatArray = acquisition(torch.from_numpy(np.asarray(points, np.float64))[:, None, :]).numpy()
    return values
