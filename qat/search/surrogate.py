"""Posterior of accuracy from completed trials; costs are never modelled."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from hwmodel.precision import WeightFormat
from qat.errors import SearchError
from qat.search.damage import DamageModel, fit_damage
from qat.search.noise import activation_noise
from qat.search.sensitivity import SensitivityProfile
from qat.search.space import SearchSpace
from qat.search.trial import FloatArray, IntArray, Trial

OUTLIER_DEVIATIONS = 3.0
"""Accuracies further below the median than this many robust standard deviations are clipped."""


@dataclass(frozen=True)
class _Features:
    """Points -> damages of two kinds per dimension, of three where activation bits are searched.

    The first is the profile's loss increase, measured before training.  The second is the noise of pruned formats:
    training repairs coarse weights better than absent ones, which the profile cannot know (measured on ResNet-20: with
    it the error of predicting a left-out trial fell from 3.6 to 2.3 points).
    The third is the noise of the codes that are read, which training repairs in its own measure too.
    """

    tables: tuple[FloatArray, ...]  # per dimension: shape (choices, kinds)
    scale: FloatArray  # (kinds,)

    @classmethod
    def of(cls, space: SearchSpace, profile: SensitivityProfile, points: IntArray) -> Self:
        kinds = [_pruning_noise(space), *([_code_noise(space)] if space.searches_activations else [])]
        tables = tuple(np.stack(rows, axis=1) for rows in zip(profile.table, *kinds, strict=True))
        # The total over dimensions becomes about 1 in the trials; a kind that they hardly have is scaled by the space.
        typical = np.median(cls(tables, np.ones(1 + len(kinds)))(points).sum(axis=1), axis=0)
        anywhere = np.sum([table.mean(axis=0) for table in tables], axis=0)
        scale = np.maximum(typical, 0.1 * anywhere)
        return cls(tables, np.where(scale > 0, scale, 1.0))

    def __call__(self, points: IntArray) -> FloatArray:
        rows, starts = self._rows
        found: FloatArray = rows[points + starts]
        return found

    @cached_property
    def _rows(self) -> tuple[FloatArray, IntArray]:
        """All tables in one, scaled, and where each begins."""
        starts = np.cumsum([0, *(len(table) for table in self.tables[:-1])])
        return np.concatenate(self.tables) / self.scale, starts


def _pruning_noise(space: SearchSpace) -> list[FloatArray]:
    pruned = [[c.weight_format is WeightFormat.SPARSE for c in choices] for choices in space.dimension_choices]
    return [np.where(mask, noise, 0.0) for mask, noise in zip(pruned, space.dimension_noise, strict=True)]


def _code_noise(space: SearchSpace) -> list[FloatArray]:
    return [np.array([activation_noise(c.act_bit_width) for c in choices]) for choices in space.dimension_choices]


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
    model: DamageModel

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
        return cls(features, warp, fit_damage(features(points), warp(accuracy)))

    def posterior(self, points: IntArray) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation on the warped scale, where the process is Gaussian: for acquisitions.

        Args:
            points: Shape (n, dimensions).

        Returns:
            Shape (n,) each; larger is more accurate.
        """
        return self.model.posterior(self.features(points))

    def draw(self, rng: np.random.Generator) -> Callable[[IntArray], FloatArray]:
        """One accuracy function that the trials allow, on the warped scale; points (n, dimensions) -> shape (n,)."""
        drawn = self.model.draw(rng)
        return lambda points: drawn(self.features(points))

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
        return math.sqrt(self.model.noise_variance) * self.warp.std
