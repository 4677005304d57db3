"""Posterior of accuracy from completed trials; costs are never modelled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from qat.errors import SearchError
from qat.search.damage import DamageKernel, fit_damage
from qat.search.noise import relative_noise
from qat.search.sensitivity import SensitivityProfile
from qat.search.space import SearchSpace
from qat.search.trial import FloatArray, IntArray, Trial

OUTLIER_DEVIATIONS = 3.0
"""Accuracies further below the median than this many robust standard deviations are clipped."""


@dataclass(frozen=True)
class _Features:
    """Points -> kernel inputs, centred and scaled by the training points."""

    tables: tuple[tuple[FloatArray, FloatArray, FloatArray], ...]  # per dimension: v, q and n of each choice
    centre: FloatArray
    scale: FloatArray

    @classmethod
    def of(cls, space: SearchSpace, profile: SensitivityProfile, points: IntArray) -> Self:
        tables = tuple(
            (row, np.sqrt(row), np.sqrt([relative_noise(choice) for choice in choices]))
            for row, choices in zip(profile.table, space.dimension_choices, strict=True)
        )
        count = len(tables)
        raw = cls(tables, np.zeros(3 * count), np.ones(3 * count))(points)
        centre = np.median(raw, axis=0)
        # One scale per kind: the median squared distance from the centre becomes 1, relations between layers stay.
        squares = np.median(((raw - centre) ** 2).reshape(len(points), 3, count).sum(axis=2), axis=0)
        return cls(tables, centre, np.repeat(np.where(squares > 0, np.sqrt(squares), 1.0), count))

    def __call__(self, points: IntArray) -> FloatArray:
        columns = [table[points[:, i]] for kind in range(3) for i, table in enumerate(t[kind] for t in self.tables)]
        return (np.stack(columns, axis=1) - self.centre) / self.scale


@dataclass(frozen=True)
class _Warp:
    """Accuracy -> standardised value, with drops far below the best compressed and outliers clipped.

    Otherwise configurations at chance level would flatten the differences between good ones.
    """

    best: float
    knee: float
    lowest: float
    mean: float
    std: float

    @classmethod
    def of(cls, accuracy: FloatArray) -> Self:
        drop = accuracy.max() - accuracy
        knee = max(2 * float(np.median(drop)), 1e-3)
        warped = -knee * np.log1p(drop / knee)
        middle = np.median(warped)
        deviation = 1.4826 * np.median(np.abs(warped - middle))  # estimates the standard deviation of a Gaussian
        lowest = float(middle - OUTLIER_DEVIATIONS * max(deviation, 1e-3))
        warped = np.maximum(warped, lowest)
        return cls(float(accuracy.max()), knee, lowest, float(warped.mean()), float(warped.std()) or 1.0)

    def __call__(self, accuracy: FloatArray) -> FloatArray:
        warped: FloatArray = -self.knee * np.log1p((self.best - accuracy) / self.knee)
        return (np.maximum(warped, self.lowest) - self.mean) / self.std

    def accuracy(self, value: FloatArray) -> FloatArray:
        """Inverse."""
        warped = np.clip(value * self.std + self.mean, -20 * self.knee, self.knee)
        result: FloatArray = self.best - self.knee * np.expm1(-warped / self.knee)
        return result

    def slope(self, value: FloatArray) -> FloatArray:
        """Derivative of `accuracy`."""
        warped = np.clip(value * self.std + self.mean, -20 * self.knee, self.knee)
        result: FloatArray = self.std * np.exp(-warped / self.knee)
        return result


@dataclass(frozen=True)
class AccuracySurrogate:
    """Posterior of the accuracy of any point.  Made by `fit`."""

    features: _Features
    warp: _Warp
    kernel: DamageKernel
    inputs: Tensor
    constant: float
    noise_variance: float
    cholesky: Tensor
    weights: Tensor

    @classmethod
    def fit(cls, space: SearchSpace, profile: SensitivityProfile, trials: Sequence[Trial]) -> AccuracySurrogate:
        """Infers the hyperparameters from completed trials of one fidelity.

        Args:
            space: The choices.
            profile: Sensitivities of the space's dimensions.
            trials: Completed ones count; pending and running ones with a prediction count as observed there, so that
                the next proposal goes elsewhere.

        Raises:
            SearchError: Fewer than two trials are completed.
        """
        completed = [trial for trial in trials if trial.is_completed]
        if len(completed) < 2:
            raise SearchError(f"the surrogate needs at least 2 completed trials, got {len(completed)}")
        waiting = [t for t in trials if t.ended_s is None and not t.is_completed and t.predicted is not None]
        accuracy = np.array([t.accuracy for t in completed] + [t.predicted[0] for t in waiting if t.predicted])
        points = np.array([t.point for t in (*completed, *waiting)], dtype=np.int64)
        features = _Features.of(space, profile, points)
        warp = _Warp.of(accuracy)
        inputs = torch.from_numpy(features(points))
        outcomes = torch.from_numpy(warp(accuracy))[:, None]
        kernel, mean, noise = fit_damage(inputs, outcomes)
        with torch.no_grad():
            covariance = kernel.forward(inputs, inputs) + noise * torch.eye(len(inputs), dtype=torch.double)
            cholesky = torch.linalg.cholesky(covariance)
            weights = torch.cholesky_solve(outcomes - mean(inputs)[:, None], cholesky)
        return cls(features, warp, kernel, inputs, float(mean.constant.detach()), noise, cholesky, weights)

    def posterior(self, points: IntArray) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation on the warped scale, where the process is Gaussian: for acquisitions.

        Args:
            points: Shape (n, dimensions).

        Returns:
            Shape (n,) each; larger is more accurate.
        """
        with torch.no_grad():
            inputs = torch.from_numpy(self.features(points))
            cross = self.kernel.forward(inputs, self.inputs)
            mean = self.constant + self.kernel.expected_effect(inputs) + (cross @ self.weights)[:, 0]
            solved = torch.linalg.solve_triangular(self.cholesky, cross.mT, upper=False)
            variance = self.kernel.forward(inputs, inputs, diag=True) - (solved**2).sum(0)
        return mean.numpy(), np.sqrt(np.maximum(variance.numpy(), 1e-10))

    def predict(self, points: IntArray) -> tuple[FloatArray, FloatArray]:
        """Median and standard deviation (to first order) of the noise-free accuracy; shape (n,) each.

        Args:
            points: Shape (n, dimensions).
        """
        mean, std = self.posterior(points)
        return self.warp.accuracy(mean), std * self.warp.slope(mean)

    @property
    def observation_std(self) -> float:
        """Inferred standard deviation of one observation near the best accuracy."""
        return math.sqrt(self.noise_variance) * self.warp.std
