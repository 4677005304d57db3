"""What a proposal is to improve: the best accuracy inside bounds, or a front."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from qat.search.front import Hypervolume, non_dominated
from qat.search.model import SurrogateModel, log_expected_improvement
from qat.search.surrogate import AccuracySurrogate
from qat.search.trial import FloatArray, IntArray

CENTRES = 4
"""Best trials around which the acquisition is searched."""

NO_GAIN = -1e3
"""Score of a point that adds nothing to a front; below that of every point that adds something."""

Score = Callable[[IntArray], FloatArray]
"""Points (n, dimensions) -> a value for each, shape (n,)."""


class Goal(Protocol):
    """What a proposal is to improve."""

    @property
    def centres(self) -> IntArray:
        """Trials near which proposals are sought, shape (n, dimensions)."""

    def expected(self, points: IntArray) -> FloatArray:
        """Logarithm of the expected gain, or what stands for it; shape (n,)."""

    def under(self, accuracy: Score) -> Score:
        """What to maximise if this were the accuracy, on the surrogate's warped scale."""


@dataclass(frozen=True)
class BestGoal:
    """The best accuracy.

    Args:
        surrogate: Posterior of accuracy.
        finished: Points of the completed trials inside the bounds, shape (n, dimensions).
    """

    surrogate: AccuracySurrogate
    finished: IntArray

    @cached_property
    def _means(self) -> FloatArray:
        return self.surrogate.posterior(self.finished)[0] if len(self.finished) else np.empty(0)

    @property
    def centres(self) -> IntArray:
        """The trials that are expected to be best."""
        return self.finished[np.argsort(-self._means, kind="stable")[:CENTRES]]

    def expected(self, points: IntArray) -> FloatArray:
        """Logarithm of the expected improvement; mean plus deviation while there is nothing to improve on."""
        if len(self.finished):
            return log_expected_improvement(SurrogateModel(self.surrogate), points, float(self._means.max()))
        optimistic: FloatArray = np.sum(self.surrogate.posterior(points), axis=0)
        return optimistic

    def under(self, accuracy: Score) -> Score:
        """The accuracy itself."""
        return accuracy


@dataclass(frozen=True)
class FrontGoal:
    """Hypervolume of accuracy, on the surrogate's warped scale, and exact costs.

    Args:
        surrogate: Posterior of accuracy.
        finished: Points of the completed trials inside the bounds, shape (n, dimensions).
        costs: Points -> costs of which less is better, shape (n, 1 or 2).
        worst: Costs of the reference point.
    """

    surrogate: AccuracySurrogate
    finished: IntArray
    costs: Callable[[IntArray], FloatArray]
    worst: FloatArray

    @cached_property
    def _means(self) -> FloatArray:
        return self.surrogate.posterior(self.finished)[0] if len(self.finished) else np.empty(0)

    @cached_property
    def _volume(self) -> Hypervolume:
        return Hypervolume.of(self._means, self.costs(self.finished), self.worst)

    @property
    def centres(self) -> IntArray:
        """The trials of which the front is expected to consist."""
        return self.finished[non_dominated(self._means, self.costs(self.finished))]

    def expected(self, points: IntArray) -> FloatArray:
        """Logarithm of the expected gain in hypervolume."""
        return self._volume.log_expected_gain(*self.surrogate.posterior(points), self.costs(points))

    def under(self, accuracy: Score) -> Score:
        """Logarithm of the gain in hypervolume; where there is none, how near the front is."""
        known = accuracy(self.finished) if len(self.finished) else np.empty(0)
        volume = Hypervolume.of(known, self.costs(self.finished), self.worst)

        def score(points: IntArray) -> FloatArray:
            values, costs = accuracy(points), self.costs(points)
            gain = volume.gain(values, costs)
            near: FloatArray = NO_GAIN - volume.shortfall(values, costs)
            return np.where(gain > 0, np.log(np.maximum(gain, 1e-300)), near)

        return score
