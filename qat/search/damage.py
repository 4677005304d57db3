"""Prior of the accuracy surrogate: quantization damage is close to a sum over layers.

Inputs are x = (v_1 .. v_D, q_1 .. q_D, n_1 .. n_D): v_l is layer l's measured loss increase, q_l its square root
(training repairs large damage by more than small damage), n_l the square root of its format's noise (what remains if
the measurement says nothing).  Layer l's accuracy falls by w_l per unit of each kind, with unknown weights

    w_l ~ Normal(beta, (tau * beta)^2),  beta > 0 per kind,

so that the prior knows the direction of every effect, expects sizes as the profile has them, and learns each layer's
own.  Integrating the weights out gives a Gaussian process with

    mean(x) = constant - beta_v * sum(v) - beta_q * sum(q) - beta_n * sum(n)
    k(x, x') = tau^2 * (beta_v^2 <v, v'> + beta_q^2 <q, q'> + beta_n^2 <n, n'>) + s * exp(-|q - q'|^2 / (2 l^2)),

whose last term leaves room for interactions.  Seven numbers are inferred, noise and constant included, whatever the
number of layers: the fit is sound from a handful of trials on.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

with warnings.catch_warnings():
    # linear_operator 0.6 decorates a function with torch.jit.script while it is imported; nothing here uses it.
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from gpytorch.constraints import GreaterThan, Positive
    from gpytorch.kernels import Kernel
    from gpytorch.likelihoods import GaussianLikelihood
    from gpytorch.means import Mean
    from gpytorch.mlls import ExactMarginalLogLikelihood
    from gpytorch.priors import LogNormalPrior

KINDS = ("loss_effect", "root_effect", "noise_effect")
"""The betas of v, q and n, in the order of the inputs."""

LENGTH_SCALE = 2.0
"""l, for inputs at mean squared distance 1 from their centre.

Fixed: inferred from few trials it tends to shrink until the smooth term explains the observation noise.
"""

SMALLEST_NOISE_VARIANCE = 1e-4
"""Of standardised accuracies; keeps the covariance matrix well conditioned in double precision."""


class DamageKernel(Kernel):
    """The covariance of the module's docstring.

    Args:
        dimensions: D.
    """

    has_lengthscale = False

    # Name, and median and spread (of the logarithm) of the prior, for accuracies of unit variance.
    HYPERPARAMETERS = (
        *((name, 0.3, 1.0) for name in KINDS),
        ("disagreement", 0.7, 0.4),  # tau; near 1 or above, many layers would gain from damage
        ("smooth_scale", 0.03, 1.0),  # s
    )

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self._parts = [slice(i * dimensions, (i + 1) * dimensions) for i in range(3)]
        for name, median, spread in self.HYPERPARAMETERS:
            self.register_parameter(f"raw_{name}", torch.nn.Parameter(torch.zeros(1, dtype=torch.double)))
            self.register_constraint(f"raw_{name}", Positive())
            self.register_prior(
                f"{name}_prior",
                LogNormalPrior(math.log(median), spread),
                lambda module, name=name: module.value(name),
                lambda module, value, name=name: module.set_value(name, value),
            )
            self.set_value(name, median)

    def value(self, name: str) -> Tensor:
        """The hyperparameter of this name, > 0."""
        raw: Tensor = getattr(self, f"raw_{name}_constraint").transform(getattr(self, f"raw_{name}"))
        return raw

    def set_value(self, name: str, value: float | Tensor) -> None:
        """Sets a hyperparameter to a value > 0."""
        constraint = getattr(self, f"raw_{name}_constraint")
        tensor = torch.as_tensor(value, dtype=torch.double).reshape(1)
        self.initialize(**{f"raw_{name}": constraint.inverse_transform(tensor)})

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: Any) -> Tensor:
        """Covariance of shape (..., n, m), or (..., n) with `diag`."""
        kinds = [(x1[..., part], x2[..., part]) for part in self._parts]
        if diag:
            dots = [(a * b).sum(-1) for a, b in kinds]
            squared = ((kinds[1][0] - kinds[1][1]) ** 2).sum(-1)
        else:
            dots = [a @ b.mT for a, b in kinds]
            a, b = kinds[1]
            squared = ((a**2).sum(-1)[..., :, None] + (b**2).sum(-1)[..., None, :] - 2 * dots[1]).clamp_min(0)
        total: Tensor = self.value("smooth_scale") * torch.exp(-0.5 / LENGTH_SCALE**2 * squared)
        for name, dot in zip(KINDS, dots, strict=True):
            total = total + (self.value("disagreement") * self.value(name)) ** 2 * dot
        return total

    def expected_effect(self, x: Tensor) -> Tensor:
        """The mean without its constant; shape (..., n)."""
        effects = [-self.value(name) * x[..., part].sum(-1) for name, part in zip(KINDS, self._parts, strict=True)]
        total: Tensor = torch.stack(effects).sum(0)
        return total


class DamageMean(Mean):
    """The mean of the module's docstring.

    Args:
        kernel: Holds the betas.
    """

    def __init__(self, kernel: DamageKernel) -> None:
        super().__init__()
        self._kernel = (kernel,)  # in a tuple, so that its parameters are not registered twice
        self.register_parameter("constant", torch.nn.Parameter(torch.zeros((), dtype=torch.double)))

    def forward(self, x: Tensor) -> Tensor:
        """Prior mean of shape (..., n)."""
        mean: Tensor = self.constant + self._kernel[0].expected_effect(x)
        return mean


def fit_damage(inputs: Tensor, outcomes: Tensor) -> tuple[DamageKernel, DamageMean, float]:
    """Infers the hyperparameters: the maximum of likelihood times prior.

    Args:
        inputs: Shape (n, 3 * dimensions), double precision.
        outcomes: Standardised accuracies, shape (n, 1).

    Returns:
        Kernel and mean, and the variance of the observation noise.
    """
    kernel = DamageKernel(inputs.shape[-1] // 3)
    mean = DamageMean(kernel)
    likelihood = GaussianLikelihood(
        noise_prior=LogNormalPrior(-3.0, 1.0),
        noise_constraint=GreaterThan(SMALLEST_NOISE_VARIANCE, transform=None, initial_value=0.05),
    )
    model = SingleTaskGP(
        inputs, outcomes, likelihood=likelihood, covar_module=kernel, mean_module=mean, outcome_transform=None
    )
    # A fit that fails is retried from a sample of the priors: keep that apart from the caller's random numbers.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mll = ExactMarginalLogLikelihood(model.likelihood, model)
        fit_gpytorch_mll(mll, optimizer_kwargs={"options": {"ftol": 1e-6}})
    model.eval()
    return kernel, mean, float(likelihood.noise.detach())
