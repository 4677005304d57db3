"""The front of accuracy against one or two exact costs: what a point adds to it, and which of its points to keep.

Only accuracy is uncertain.  So the expected gain in hypervolume has a closed form: the costs that a point dominates
fall into cells in which the front so far has one accuracy, and each cell gains its area times the expected
improvement over that accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from scipy.special import erfcx, logsumexp, ndtr

from hwmodel.table import HIGHER_IS_BETTER
from qat.errors import ConfigError, SearchError
from qat.search.screening import with_estimates
from qat.search.sensitivity import SensitivityProfile
from qat.search.space import SearchSpace
from qat.search.surrogate import AccuracySurrogate
from qat.search.trial import BoolArray, CostColumns, FloatArray, Target, Trial
from qat.search.winner import Winner, highest_fidelity

MARGIN = 0.1
"""How far below the front's lowest accuracy the reference of its hypervolume lies, as a share of the front's range.

Source: `botorch.utils.multi_objective.hypervolume.infer_reference_point`.
"""

FAR = 1e4
"""Deviations below a level beyond which the asymptote of the expected improvement is exact in double precision."""


@dataclass(frozen=True)
class Front(Target):
    """The best accuracy at every value of one or two costs, inside bounds.

    Args:
        columns: One or two different cost columns; more is better for those in `hwmodel.table.HIGHER_IS_BETTER`.

    Raises:
        ConfigError: Neither one nor two columns.
    """

    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "columns", tuple(self.columns))
        if len(self.columns) not in (1, 2) or len(set(self.columns)) != len(self.columns):
            raise ConfigError(f"front {self.name!r}: columns={list(self.columns)}, expected one or two cost columns")

    def costs(self, columns: CostColumns) -> FloatArray:
        """What is minimised; shape (n, 1 or 2).

        Raises:
            SearchError: The cost function has no such column.
        """
        missing = [name for name in self.columns if name not in columns]
        if missing:
            raise SearchError(
                f"front {self.name!r} is against {missing}, which are no cost columns; there are {sorted(columns)}"
            )
        signs = [-1.0 if name in HIGHER_IS_BETTER else 1.0 for name in self.columns]
        rows = [sign * np.asarray(columns[name], np.float64) for sign, name in zip(signs, self.columns, strict=True)]
        return np.stack(rows, axis=1)

    def compares(self, cost: Mapping[str, float], other: Mapping[str, float]) -> bool:
        """Only with those that cost no more: whoever costs less may be less accurate."""
        rows = [self.costs({name: np.array([value]) for name, value in one.items()}) for one in (cost, other)]
        return bool((rows[1] <= rows[0]).all())

    def worst(self, costs: FloatArray) -> FloatArray:
        """The costs from which hypervolume is measured: the bounds, or else the highest of `costs` (n, columns)."""
        found: FloatArray = costs.max(axis=0)
        for i, name in enumerate(self.columns):
            low, high = self.bounds.get(name, (None, None))
            bound = low if name in HIGHER_IS_BETTER else high
            if bound is not None:
                found[i] = -bound if name in HIGHER_IS_BETTER else bound
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**super().to_dict(), "columns": list(self.columns)}


@dataclass(frozen=True)
class Hypervolume:
    """What a point adds to the hypervolume of a front.  Made by `of`.

    Args:
        levels: The different accuracies that the front has somewhere, the reference among them, shape (levels,).
        edges: Per cost column where cells begin, the first one at minus infinity, and where the last one ends.
        cells: Which cells have which level, shape (levels, cells of column 1, cells of column 2).
    """

    levels: FloatArray
    edges: tuple[FloatArray, ...]
    cells: FloatArray

    @classmethod
    def of(cls, accuracy: FloatArray, costs: FloatArray, worst: FloatArray, lowest: float | None = None) -> Self:
        """The front of some points.

        Args:
            accuracy: On any scale, shape (n,), n >= 0.
            costs: Less is better, shape (n, 1 or 2).
            worst: Costs of the reference point, shape (1 or 2,); points beyond it do not count.
            lowest: Accuracy of the reference point; `None` puts it a little below the front's lowest.
        """
        kept = non_dominated(accuracy, costs) & (costs < worst).all(axis=1)
        accuracy, costs = accuracy[kept], costs[kept]
        if lowest is None:
            spread = float(np.ptp(accuracy)) if len(accuracy) > 1 else 1.0
            lowest = float(accuracy.min()) - MARGIN * (spread or 1.0) if len(accuracy) else 0.0
        edges = tuple(
            np.concatenate([[-np.inf], np.unique(column), [end]]) for column, end in zip(costs.T, worst, strict=True)
        )
        begins = [row[:-1] for row in edges] + [np.zeros(1)] * (2 - len(edges))
        levels = np.full((len(begins[0]), len(begins[1])), lowest)
        for value, cost in zip(accuracy, costs, strict=True):
            inside = [column >= own for column, own in zip(begins, cost, strict=False)] + [np.ones(1, bool)]
            levels = np.where(np.logical_and.outer(inside[0], inside[1]), np.maximum(levels, value), levels)
        different = np.unique(levels)
        return cls(different, edges, (levels == different[:, None, None]).astype(np.float64))

    def areas(self, costs: FloatArray) -> FloatArray:
        """How much of each level points with these costs dominate; shape (n, levels) from (n, 1 or 2)."""
        widths = [
            np.maximum(0.0, row[1:] - np.maximum(row[:-1], own[:, None]))
            for row, own in zip(self.edges, costs.T, strict=True)
        ] + [np.ones((len(costs), 1))]
        first = np.tensordot(widths[0], self.cells, axes=(1, 1))  # (n, levels, cells of column 2)
        found: FloatArray = np.einsum("nlj,nj->nl", first, widths[1])
        return found

    def log_expected_gain(self, mean: FloatArray, std: FloatArray, costs: FloatArray) -> FloatArray:
        """Logarithm of the expected gain of points of normal accuracy and known costs; minus infinity for none.

        Args:
            mean: Shape (n,), on the scale of the front's accuracies.
            std: Shape (n,), > 0.
            costs: Shape (n, 1 or 2).

        Source:
            Emmerich, Giannakoglou and Naujoks, Single- and multiobjective evolutionary optimization assisted by
            Gaussian random field metamodels, IEEE TEVC 10(4), 2006, with costs that are known.
        """
        improvements = np.log(std)[:, None] + log_improvement((mean[:, None] - self.levels) / std[:, None])
        with np.errstate(divide="ignore"):
            gains: FloatArray = logsumexp(improvements, b=self.areas(costs), axis=1)
        return gains

    def gain(self, accuracy: FloatArray, costs: FloatArray) -> FloatArray:
        """Gain of points of known accuracy, shape (n,), and costs, shape (n, 1 or 2)."""
        total: FloatArray = (self.areas(costs) * np.maximum(0.0, accuracy[:, None] - self.levels)).sum(axis=1)
        return total

    def shortfall(self, accuracy: FloatArray, costs: FloatArray) -> FloatArray:
        """How far accuracies are below the front at their costs, >= 0; infinite beyond the reference point."""
        reached = np.where(self.areas(costs) > 0, self.levels, np.inf).min(axis=1)
        missing: FloatArray = np.maximum(0.0, reached - accuracy)
        return missing


def log_improvement(scaled: FloatArray) -> FloatArray:
    """Logarithm of the expected improvement of a standard normal variable over `-scaled`, without underflow.

    Source:
        Ament et al., Unexpected Improvements to Expected Improvement for Bayesian Optimization, NeurIPS 2023, eq. 9.
    """
    near = np.maximum(scaled, -1.0)
    density = np.exp(-(near**2) / 2) / np.sqrt(2 * np.pi)
    below = np.clip(-scaled, 1.0, FAR)
    tail = -np.log(2 * np.pi) / 2 + np.log1p(-np.sqrt(np.pi / 2) * below * erfcx(below / np.sqrt(2)))
    tail += 2 * np.log(below) - 2 * np.log(np.maximum(-scaled, 1.0)) - np.minimum(scaled, 0.0) ** 2 / 2
    found: FloatArray = np.where(scaled > -1, np.log(density + near * ndtr(near)), tail)
    return found


def non_dominated(accuracy: FloatArray, costs: FloatArray) -> BoolArray:
    """Which points no other one beats in accuracy, shape (n,), and costs, shape (n, columns); of equals the first."""
    order = np.lexsort([*costs.T, -accuracy])  # a point can be dominated by an earlier one only
    kept = np.zeros(len(order), dtype=bool)
    for i in order:
        kept[i] = not (costs[kept] <= costs[i]).all(axis=1).any()
    return kept


def select_front(
    space: SearchSpace, profile: SensitivityProfile, trials: Sequence[Trial], front: Front, count: int
) -> tuple[Winner, ...]:
    """Trials that make up most of a front: each adds the most hypervolume to those before it.

    Accuracies are posterior means, as in `qat.search.winner.select_winner`.

    Args:
        space: The choices.
        profile: Sensitivities that the search used.
        trials: Of the search; completed ones inside the bounds count, at the highest fidelity that has one.
        front: What was sought.
        count: Most trials to keep, >= 1.

    Returns:
        Cheapest first; empty if no completed trial is inside the bounds.
    """
    inside = highest_fidelity([trial for trial in trials if trial.is_completed and front.admits(trial.cost)])
    if not inside:
        return ()
    peers = [t for t in with_estimates(trials) if t.is_completed and t.fidelity == inside[0].fidelity]
    means, stds = np.array([trial.accuracy for trial in inside]), np.full(len(inside), np.nan)
    if len(peers) > 2:
        points = np.array([trial.point for trial in inside], dtype=np.int64)
        means, stds = AccuracySurrogate.fit(space, profile, peers).predict(points)
    known = [name for name in inside[0].cost if all(name in trial.cost for trial in inside)]
    costs = front.costs({name: np.array([trial.cost[name] for trial in inside]) for name in known})
    best = np.flatnonzero(non_dominated(means, costs))
    # A little beyond the dearest, which would else add nothing.
    worst = costs[best].max(axis=0)
    worst = np.maximum(front.worst(costs), worst + MARGIN * np.maximum(np.ptp(costs[best], axis=0), 1e-9 * abs(worst)))
    lowest = float(Hypervolume.of(means[best], costs[best], worst).levels[0])
    chosen: list[int] = []
    while len(chosen) < min(count, len(best)):
        so_far = Hypervolume.of(means[chosen], costs[chosen], worst, lowest)
        gains = so_far.gain(means[best], costs[best])
        gains[np.isin(best, chosen)] = -1.0
        chosen.append(int(best[int(np.argmax(gains))]))
    chosen.sort(key=lambda i: tuple(costs[i]))
    return tuple(Winner(front, inside[i], float(means[i]), float(stds[i])) for i in chosen)
