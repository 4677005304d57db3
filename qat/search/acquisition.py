"""The search for the best feasible point of an acquisition function over discrete choices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qat.search.space import SearchSpace
from qat.search.trial import BoolArray, FloatArray, IntArray

Score = Callable[[IntArray], FloatArray]
"""Points (n, dimensions) -> what to maximise, shape (n,)."""

Feasible = Callable[[IntArray], BoolArray]
"""Points (n, dimensions) -> whether each may be proposed, shape (n,)."""


@dataclass(frozen=True)
class LocalSearch:
    """Hill climbing over discrete choices from several starts at once, inside a hard constraint.

    A step looks at every point that differs in one dimension (or a sample of them), and at a sample of pairs that
    raise the bits of one dimension and lower those of another: moves along the boundary of a budget.

    Args:
        space: The choices.
        steps: Most steps.
        singles: Most one-dimension neighbours looked at per start and step.
        pairs: Two-dimension neighbours looked at per start and step.
        patience: Steps without any improvement, each with another sample, after which the search ends.
    """

    space: SearchSpace
    steps: int = 40
    singles: int = 256
    pairs: int = 256
    patience: int = 2

    def run(
        self, starts: IntArray, score: Score, feasible: Feasible, rng: np.random.Generator
    ) -> tuple[IntArray, FloatArray]:
        """Climbs from every start.

        Args:
            starts: Feasible points, shape (n, dimensions), n >= 1.
            score: What to maximise.
            feasible: The constraint.
            rng: Source of the samples.

        Returns:
            Where each climb ended, shape (n, dimensions), and the scores there, best first.
        """
        points = starts.copy()
        scores = score(points)
        idle = 0
        for _ in range(self.steps):
            neighbours, owners = self._owned_neighbours(points, rng)
            inside = feasible(neighbours)
            neighbours, owners = neighbours[inside], owners[inside]
            improved = False
            if len(neighbours):
                values = score(neighbours)
                for start in range(len(points)):
                    own = np.flatnonzero(owners == start)
                    if own.size and values[own].max() > scores[start] + 1e-12:
                        best = own[int(np.argmax(values[own]))]
                        points[start], scores[start] = neighbours[best], values[best]
                        improved = True
            idle = 0 if improved else idle + 1
            if idle >= self.patience:
                break
        order = np.argsort(-scores, kind="stable")
        return points[order], scores[order]

    def neighbours(self, points: IntArray, rng: np.random.Generator) -> IntArray:
        """A sample of points one step from any of `points`; shape (n, dimensions)."""
        return self._owned_neighbours(points, rng)[0]

    def _owned_neighbours(self, points: IntArray, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        sizes = self.space.sizes
        dimensions = np.repeat(np.arange(len(sizes)), sizes)
        choices = np.concatenate([np.arange(size) for size in sizes])
        found, owners = [], []
        for start, point in enumerate(points):
            moves = np.flatnonzero(point[dimensions] != choices)
            if len(moves) > self.singles:
                moves = rng.choice(moves, self.singles, replace=False)
            singles = np.repeat(point[None, :], len(moves), axis=0)
            singles[np.arange(len(moves)), dimensions[moves]] = choices[moves]
            pairs = self._exchanges(point, rng)
            found += [singles, pairs]
            owners.append(np.full(len(singles) + len(pairs), start))
        return np.concatenate(found), np.concatenate(owners)

    def _exchanges(self, point: IntArray, rng: np.random.Generator) -> IntArray:
        sizes = self.space.sizes
        up = np.flatnonzero(point < sizes - 1)
        down = np.flatnonzero(point > 0)
        if not up.size or not down.size:
            return np.empty((0, len(point)), dtype=np.int64)
        raised, lowered = rng.choice(up, self.pairs), rng.choice(down, self.pairs)
        apart = raised != lowered
        raised, lowered = raised[apart], lowered[apart]
        rows = np.arange(len(raised))
        pairs = np.repeat(point[None, :], len(raised), axis=0)
        pairs[rows, raised] = rng.integers(point[raised] + 1, sizes[raised])
        pairs[rows, lowered] = rng.integers(0, point[lowered])
        return pairs
