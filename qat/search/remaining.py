"""What is left to try inside the bounds of a target: all of it, where a space is small or its sizes rule most out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from qat.search.space import SearchSpace
from qat.search.trial import CostFunction, IntArray, Target

LIMIT = 1 << 18
"""Points whose costs are asked for; where more may be inside the bounds the question is left open."""

CHUNK = 1 << 14
"""Points whose costs are asked for at once."""

Point = tuple[int, ...]


@dataclass(frozen=True)
class Remaining:
    """The points of a space that are inside a target's bounds.

    Args:
        space: The choices.
        cost: Exact costs from layer indices.
        target: The bounds.
    """

    space: SearchSpace
    cost: CostFunction
    target: Target

    def some_new(self, taken: set[Point], known: IntArray) -> IntArray:
        """Points inside the bounds that are not taken; none where there are none, or none was found.

        Args:
            taken: Points that are out of the question.
            known: Points inside the bounds, shape (n, dimensions), around which is looked where not all can be.

        Returns:
            Shape (n, dimensions), n >= 0.  The same arguments give the same points.
        """
        parts = (
            self._changed(known)
            if self.candidates is None
            else np.split(self.candidates, range(CHUNK, len(self.candidates), CHUNK))
        )
        for points in parts:
            inside = points[self.target.feasible(self.cost(self.space.layer_indices(points)))]
            new = [point for point in inside.tolist() if tuple(point) not in taken]
            if new:
                return np.array(new, dtype=np.int64)
        return np.empty((0, len(self.space.sizes)), dtype=np.int64)

    def is_spent(self, taken: set[Point]) -> bool:
        """Whether it is certain that every point inside the bounds is taken."""
        return self.candidates is not None and not len(self.some_new(taken, self.candidates[:0]))

    @cached_property
    def candidates(self) -> IntArray | None:
        """All points that stored bits alone do not rule out, shape (n, dimensions); `None` if more than `LIMIT`."""
        low, high = self._stored_bits
        bits = self.space.dimension_bits
        least = np.cumsum([0.0, *(row.min() for row in bits[::-1])])[::-1]  # of a dimension and all after it
        most = np.cumsum([0.0, *(row.max() for row in bits[::-1])])[::-1]
        points: NDArray[np.int16] = np.zeros((1, 0), np.int16)
        sums = np.zeros(1)
        for dimension, row in enumerate(bits):
            sums = (sums[:, None] + row).ravel()
            kept = np.flatnonzero((sums + least[dimension + 1] <= high) & (sums + most[dimension + 1] >= low))
            if len(kept) > LIMIT:
                return None
            before, choices = np.divmod(kept, len(row))
            points = np.column_stack([points[before], choices.astype(np.int16)])
            sums = sums[kept]
        return points.astype(np.int64)

    @cached_property
    def _stored_bits(self) -> tuple[float, float]:
        """Between which sums of `dimension_bits` the bounds lie; all, unless costs count those and a constant beside.

        Whether they do is looked up at each choice of each dimension, beside the cheapest and the largest others.
        """
        sizes = self.space.sizes
        points = np.stack([np.zeros_like(sizes), sizes - 1])[:, None, :].repeat(sizes.sum(), axis=1)
        owners, choices = np.repeat(np.arange(len(sizes)), sizes), np.concatenate([np.arange(n) for n in sizes])
        points[:, np.arange(len(choices)), owners] = choices
        points = points.reshape(-1, len(sizes))
        columns = {name: np.asarray(v, np.float64) for name, v in self.cost(self.space.layer_indices(points)).items()}
        if self.space.searches_activations or "stored_bits" not in columns:
            return -np.inf, np.inf
        stored = columns["stored_bits"]
        beside = stored - np.sum([row[points[:, i]] for i, row in enumerate(self.space.dimension_bits)], axis=0)
        if np.ptp(beside) > 0:
            return -np.inf, np.inf
        lows, highs = [-np.inf], [np.inf]
        for name, (low, high) in self.target.bounds.items():
            if name not in ("stored_bits", "bits_per_weight", "compression") or name not in columns:
                continue
            is_inverse = name == "compression"
            factor = stored * columns[name] if is_inverse else stored / columns[name]
            if np.ptp(factor) > 1e-9 * factor.max():
                continue
            ends = [None if end is None else float(factor[0] / end if is_inverse else factor[0] * end)
                    for end in ((high, low) if is_inverse else (low, high))]  # fmt: skip
            lows.append(-np.inf if ends[0] is None else ends[0] - 1e-9 * abs(ends[0]))
            highs.append(np.inf if ends[1] is None else ends[1] + 1e-9 * abs(ends[1]))
        return max(lows) - beside[0], min(highs) - beside[0]

    def _changed(self, known: IntArray) -> Iterator[IntArray]:
        """Points that differ from a known one in one dimension, then those that differ in two; `LIMIT` in all."""
        parts: list[IntArray] = []
        left = LIMIT
        for count in (1, 2):
            for point, changed in product(known, combinations(range(len(self.space.sizes)), count)):
                parts.append(self._others(point, changed))
                waiting = sum(map(len, parts))
                if waiting >= min(CHUNK, left):
                    yield np.concatenate(parts)
                    left -= waiting
                    parts = []
                if left <= 0:
                    return
        if parts:
            yield np.concatenate(parts)

    def _others(self, point: IntArray, dimensions: Sequence[int]) -> IntArray:
        """Every point that differs in all of these dimensions."""
        choices = [np.delete(np.arange(self.space.sizes[d]), point[d]) for d in dimensions]
        grid = np.stack(np.meshgrid(*choices, indexing="ij"), axis=-1).reshape(-1, len(dimensions))
        points: IntArray = np.repeat(point[None, :], len(grid), axis=0)
        points[:, list(dimensions)] = grid
        return points
