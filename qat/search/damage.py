"""Model behind the accuracy surrogate: quantization damage is close to a sum over layers, and never negative.

A point's features are d[l, k] >= 0, damage of kind k in dimension l (see `qat.search.surrogate`).  Standardised
accuracy is

    y(x) = constant - sum_l exp(tau * z_l) * sum_k beta_k * d[l, k](x) + u(x) + noise,   z_l ~ Normal(0, 1),

has the kinds' effects beta_k > 0, a layer's own weight exp(tau * z_l) > 0, and a smooth Gaussian process u of small
variance for what layers do together.  Since all weights are positive, no finite number of noisy trials can make
damage look like a gain: with weights of either sign that is what a search finds first, because it looks for it.

Parameters are at the maximum of their posterior; around it y is linear in them, so the posterior of y is that of a
Gaussian process (Laplace's approximation) whose mean is y at that maximum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import minimize
from scipy.spatial.distance import cdist

from qat.search.trial import FloatArray

CONSTANT_STD = 1.5
EFFECT_MEDIAN, EFFECT_STD = 0.5, 1.0
DISAGREEMENT_MEDIAN, DISAGREEMENT_STD = 0.7, 0.4
NOISE_MEDIAN, NOISE_STD = 0.05, 1.0
SMOOTH_MEDIAN, SMOOTH_STD = 0.03, 1.0
"""Priors for outcomes of unit variance: medians, and standard deviations of the logarithm; the constant's prior is
normal around the best outcome."""

SMALLEST_NOISE_VARIANCE = 1e-4
"""Keeps the covariance matrix well conditioned in double precision."""


@dataclass(frozen=True)
class DamageModel:
    """Posterior of standardised accuracy.  Made by `fit_damage`.

    Args:
        constant: Value of a point without damage.
        effects: beta, shape (kinds,).
        weights: exp(tau * z), shape (dimensions,).
        disagreement: tau.
        noise_variance: Of one observation.
        smooth_variance: Of u.
        length_squared: Of u's covariance, which is that variance times exp(-distance^2 / (2 * length_squared)).
        inputs: Damages of the trials, shape (n, dimensions, kinds).
        smooth_weights: Shape (n,): u(x) is its covariance with the trials times these.
        slopes: Derivative of y to the parameters at the trials, shape (n, parameters).
        cholesky: Of the trials' covariance, shape (n, n).
    """

    constant: float
    effects: FloatArray
    weights: FloatArray
    disagreement: float
    noise_variance: float
    smooth_variance: float
    length_squared: float
    inputs: FloatArray
    smooth_weights: FloatArray
    slopes: FloatArray
    cholesky: FloatArray

    def posterior(self, damages: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation of noise-free y.

        Args:
            damages: Shape (m, dimensions, kinds).

        Returns:
            Shape (m,) each; standard deviations are > 0.
        """
        smooth = self._smooth(damages)
        mean = self.constant - (damages @ self.effects) @ self.weights + smooth @ self.smooth_weights
        slopes = _slopes(damages, self.effects, self.weights, self.disagreement)
        solved = solve_triangular(self.cholesky, (slopes @ self.slopes.T + smooth).T, lower=True)
        variance = (slopes**2).sum(axis=1) + self.smooth_variance - (solved**2).sum(axis=0)
        return mean, np.sqrt(np.maximum(variance, 1e-10))

    def draw(self, rng: np.random.Generator) -> Callable[[FloatArray], FloatArray]:
        """One y that the trials allow, noise-free: parameters drawn by Laplace's approximation, u at its mean.

        Effects and weights stay positive.  As u does not take back what parameters change at the trials, draws scatter
        about twice as widely as `posterior` says: exploration, as it was measured to help.

        Args:
            rng: Source of randomness.

        Returns:
            Function of damages (m, dimensions, kinds) to values of shape (m,).
        """
        # The posterior of the parameters, in units of their prior's deviation, has the covariance 1 - solved^T solved.
        solved = solve_triangular(self.cholesky, self.slopes, lower=True)
        variances, axes = np.linalg.eigh(np.eye(solved.shape[1]) - solved.T @ solved)
        steps = axes @ (np.sqrt(np.maximum(variances, 0.0)) * rng.normal(size=len(variances)))
        kinds = len(self.effects)
        constant = self.constant + CONSTANT_STD * steps[0]
        effects = self.effects * np.exp(EFFECT_STD * steps[1 : 1 + kinds])
        weights = self.weights * np.exp(self.disagreement * steps[1 + kinds :])

        def drawn(damages: FloatArray) -> FloatArray:
            values: FloatArray = constant - (damages @ effects) @ weights + self._smooth(damages) @ self.smooth_weights
            return values

        return drawn

    def _smooth(self, damages: FloatArray) -> FloatArray:
        """Covariance of u with the trials; shape (m, n)."""
        distances = _distances_by_product(damages, self.inputs)
        covariance: FloatArray = self.smooth_variance * np.exp(-distances / (2 * self.length_squared))
        return covariance


def fit_damage(damages: FloatArray, outcomes: FloatArray) -> DamageModel:
    """Infers the parameters: the maximum of likelihood times prior.

    Args:
        damages: Shape (n, dimensions, kinds), >= 0, scaled so that the sum over dimensions is about 1.
        outcomes: Standardised accuracies, shape (n,).
    """
    count, dimensions, kinds = damages.shape
    distances = _distances(damages, damages)
    apart = distances[distances > 0]
    length_squared = float(np.median(apart)) if apart.size else 1.0
    correlation = np.exp(-distances / (2 * length_squared))
    # In the eigenvectors of the correlation every covariance matrix of the search for the maximum is diagonal.
    eigenvalues, vectors = np.linalg.eigh(correlation)
    eigenvalues = np.maximum(eigenvalues, 0.0)
    rotated_inputs = np.tensordot(vectors.T, damages, 1)
    rotated_ones, rotated_outcomes = vectors.sum(axis=0), vectors.T @ outcomes

    centre = np.concatenate(
        [
            [outcomes.max()],
            np.full(kinds, math.log(EFFECT_MEDIAN)),
            np.zeros(dimensions),
            np.log([DISAGREEMENT_MEDIAN, NOISE_MEDIAN, SMOOTH_MEDIAN]),
        ]
    )
    last_spread = [DISAGREEMENT_STD, NOISE_STD, SMOOTH_STD]
    spread = np.concatenate([[CONSTANT_STD], np.full(kinds, EFFECT_STD), np.ones(dimensions), last_spread])
    split = np.cumsum([1, kinds, dimensions])

    def unpack(parameters: FloatArray) -> tuple[float, FloatArray, FloatArray, float, float, float]:
        constant, effects, own, last = np.split(parameters, split)
        tau, noise, smooth = np.exp(last).tolist()
        return float(constant[0]), np.exp(effects), np.exp(tau * own), tau, noise, smooth

    def objective(parameters: FloatArray) -> tuple[float, FloatArray]:
        """Negative logarithm of likelihood times prior, and its gradient."""
        constant, effects, weights, tau, noise, smooth = unpack(parameters)
        variances = smooth * eigenvalues + noise + SMALLEST_NOISE_VARIANCE
        by_dimension, by_kind = rotated_inputs @ effects, np.einsum("ndk,d->nk", rotated_inputs, weights)
        residual = rotated_outcomes - constant * rotated_ones + by_dimension @ weights
        scaled = residual / variances
        off = (parameters - centre) / spread
        value = 0.5 * (residual @ scaled + np.log(variances).sum() + off @ off)
        curvature = 1 / variances - scaled**2
        by_logarithm = weights * (scaled @ by_dimension)
        gradient = np.concatenate(
            [
                [-rotated_ones @ scaled],
                effects * (scaled @ by_kind),
                tau * by_logarithm,
                [
                    np.log(weights) @ by_logarithm,
                    0.5 * noise * curvature.sum(),
                    0.5 * smooth * (eigenvalues @ curvature),
                ],
            ]
        )
        return float(value), gradient + off / spread

    # Bounds far outside the priors keep a line search from overflowing.
    bounds = [(low - 8 * width, low + 8 * width) for low, width in zip(centre, spread, strict=True)]
    found = minimize(objective, centre, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500})
    constant, effects, weights, tau, noise, smooth = unpack(found.x)
    noise += SMALLEST_NOISE_VARIANCE
    residual = outcomes - constant + (damages @ effects) @ weights
    smooth_weights = np.linalg.solve(smooth * correlation + noise * np.eye(count), residual).astype(np.float64)
    slopes = _slopes(damages, effects, weights, tau)
    covariance = slopes @ slopes.T + smooth * correlation + noise * np.eye(count)
    cholesky = np.linalg.cholesky(covariance).astype(np.float64)
    return DamageModel(
        constant,
        effects,
        weights,
        tau,
        noise,
        smooth,
        length_squared,
        damages,
        smooth_weights,
        slopes,
        cholesky,
    )


def _slopes(damages: FloatArray, effects: FloatArray, weights: FloatArray, disagreement: float) -> FloatArray:
    """Derivative of y to constant, effects and weights, each times its prior standard deviation."""
    return np.concatenate(
        [
            np.full((len(damages), 1), CONSTANT_STD),
            -EFFECT_STD * effects * np.einsum("ndk,d->nk", damages, weights),
            -disagreement * weights * (damages @ effects),
        ],
        axis=1,
    )


def _distances(first: FloatArray, second: FloatArray) -> FloatArray:
    """Squared distances between roots of total damage, which training brings closer together; shape (n, m)."""
    squared: FloatArray = cdist(np.sqrt(first.sum(axis=2)), np.sqrt(second.sum(axis=2)), "sqeuclidean")
    return squared


def _distances_by_product(first: FloatArray, second: FloatArray) -> FloatArray:
    """`_distances` by a matrix product: for thousands of candidates, to within rounding."""
    a, b = np.sqrt(first.sum(axis=2)), np.sqrt(second.sum(axis=2))
    squared: FloatArray = np.maximum((a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * (a @ b.T), 0.0)
    return squared
