"""Search problem on measured one-shot accuracies of ResNet-20 on CIFAR-10 (`search_table.py` measured them).

A point of the table has its measured accuracy.  Any other point has that of a surrogate fitted to the table: ridge
regression on the choice of every layer, and kernel regression of what is left.  The surrogate is no measurement; its
cross-validated error stands beside every figure.  It knows nothing of sensitivities, formats or bits, so that it does
not share assumptions with a method under test.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import cdist
from search_problems import stored_costs
from search_rows import table_space

from hwmodel.networks import load_network
from qat.search.sensitivity import SensitivityProfile
from qat.search.space import SearchSpace
from qat.search.trial import FloatArray, IntArray

TABLE = Path(__file__).parent / "data" / "resnet20_oneshot.npz"
OBSERVATION_NOISE = 0.002
RIDGES = (0.3, 1.0, 3.0)
LENGTHS = (0.5, 1.0, 2.0)
NOISES = (0.03, 0.1, 0.3)
FOLDS = 5
CHANCE = 0.1


@dataclass(frozen=True)
class TableSurrogate:
    """Accuracy of any point, from the table.

    Args:
        sizes: Choices of each dimension.
        effects: Per dimension and choice, concatenated.
        constant: Mean on the transformed scale.
        inputs: Effects of the table's rows, shape (n, dimensions).
        weights: Of the kernel, shape (n,).
        length: Of the kernel.
    """

    sizes: IntArray
    effects: FloatArray
    constant: float
    inputs: FloatArray
    weights: FloatArray
    length: float

    @classmethod
    def fit(
        cls, sizes: IntArray, points: IntArray, accuracy: FloatArray, ridge: float, length: float, noise: float
    ) -> TableSurrogate:
        """Fits both parts to rows of shape (n, dimensions)."""
        ones = _one_hot(sizes, points)
        target = _transform(accuracy)
        constant = float(target.mean())
        effects = np.linalg.solve(ones.T @ ones + ridge * np.eye(ones.shape[1]), ones.T @ (target - constant))
        inputs = effects[points + _offsets(sizes)]
        rest = target - constant - inputs.sum(axis=1)
        kernel = _kernel(inputs, inputs, length) + noise * np.eye(len(points))
        return cls(sizes, effects, constant, inputs, cho_solve(cho_factor(kernel), rest), length)

    def __call__(self, points: IntArray) -> FloatArray:
        """Accuracy in [0, 1]; shape (n,)."""
        inputs = self.effects[points + _offsets(self.sizes)]
        value = self.constant + inputs.sum(axis=1) + _kernel(inputs, self.inputs, self.length) @ self.weights
        return _accuracy(value)


@dataclass(frozen=True)
class TabularProblem:
    """The table as a search problem.

    Args:
        space: The choices.
        profile: Measured sensitivities.
        known: Accuracy by measured point.
        surrogate: For the others.
        error: Root mean square error of the surrogate on left-out rows, in points.
    """

    space: SearchSpace
    profile: SensitivityProfile
    known: dict[tuple[int, ...], float] = field(repr=False)
    surrogate: TableSurrogate = field(repr=False)
    error: float
    budget = 1.6
    widest_budget = 3.0  # of a front, whose narrowest is the least size that there is
    lowest_accuracy = 0.5  # of the point from which a front's hypervolume is measured

    def cost(self, indices: IntArray) -> dict[str, FloatArray]:
        """Exact costs; shape (n,) each, from layer indices (n, layers)."""
        return stored_costs(self.space, indices)

    def true_accuracy(self, indices: IntArray) -> FloatArray:
        """Measured accuracy, or the surrogate's; shape (n,)."""
        found = self.surrogate(indices)
        for i, point in enumerate(indices.tolist()):
            found[i] = self.known.get(tuple(point), found[i])
        return found

    def observe(self, point: IntArray, seed: int, number: int) -> float:
        """Accuracy with the noise of another evaluation."""
        noise = np.random.default_rng(100_000 * seed + number).normal(0, OBSERVATION_NOISE)
        return float(np.clip(self.true_accuracy(np.asarray(point)[None, :])[0] + noise, 0, 1))


def tabular_problem(path: Path = TABLE) -> TabularProblem:
    """The problem; the surrogate's settings are those of the least cross-validated error.

    Raises:
        FileNotFoundError: There is no table; the message says how to make it.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: make it with benchmarks/search_table.py, or use --problems synthetic20 synthetic54"
        )
    with np.load(path) as data:
        points, accuracy = data["points"].astype(np.int64), data["accuracy"].astype(np.float64)
        profile = SensitivityProfile.from_dict(json.loads(str(data["profile"])))
        settings = tuple(float(value) for value in data["surrogate"])
        error = float(data["surrogate_error_points"])
    space = table_space(load_network("resnet20"))
    profile.check_matches(space)
    known = {tuple(point): float(value) for point, value in zip(points.tolist(), accuracy, strict=True)}
    return TabularProblem(space, profile, known, TableSurrogate.fit(space.sizes, points, accuracy, *settings), error)


def cross_validate(sizes: IntArray, points: IntArray, accuracy: FloatArray) -> tuple[tuple[float, float, float], float]:
    """Ridge, length and noise of the least cross-validated error, and that error in points."""
    fold = np.random.default_rng(0).permutation(len(points)) % FOLDS
    best: tuple[tuple[float, float, float], float] = ((RIDGES[0], LENGTHS[0], NOISES[0]), np.inf)
    for ridge in RIDGES:
        for length in LENGTHS:
            for noise in NOISES:
                squares = []
                for number in range(FOLDS):
                    kept = fold != number
                    model = TableSurrogate.fit(sizes, points[kept], accuracy[kept], ridge, length, noise)
                    squares.append((model(points[~kept]) - accuracy[~kept]) ** 2)
                error = 100 * float(np.sqrt(np.mean(np.concatenate(squares))))
                if error < best[1]:
                    best = ((ridge, length, noise), error)
    return best


def _offsets(sizes: IntArray) -> IntArray:
    found: IntArray = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return found


def _one_hot(sizes: IntArray, points: IntArray) -> FloatArray:
    found = np.zeros((len(points), int(sizes.sum())))
    np.put_along_axis(found, points + _offsets(sizes), 1.0, axis=1)
    return found


def _kernel(first: FloatArray, second: FloatArray, length: float) -> FloatArray:
    found: FloatArray = np.exp(-cdist(first, second, "sqeuclidean") / (2 * length**2))
    return found


def _transform(accuracy: FloatArray) -> FloatArray:
    """Log odds of the accuracy between chance and certainty, kept finite."""
    share = np.clip((accuracy - CHANCE) / (1 - CHANCE), 0.002, 0.998)
    found: FloatArray = np.log(share / (1 - share))
    return found


def _accuracy(value: FloatArray) -> FloatArray:
    found: FloatArray = CHANCE + (1 - CHANCE) / (1 + np.exp(-value))
    return found
