"""What to evaluate next: budgeted first designs, then expected improvement inside the exact cost constraint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from qat.errors import ConfigError, SearchError
from qat.search.acquisition import LocalSearch
from qat.search.front import Front, non_dominated
from qat.search.goal import NO_GAIN, BestGoal, FrontGoal, Goal
from qat.search.prices import Prices, prices_of
from qat.search.remaining import Remaining
from qat.search.screening import with_estimates
from qat.search.sensitivity import SensitivityProfile, lagrange_path
from qat.search.space import SearchSpace
from qat.search.surrogate import AccuracySurrogate
from qat.search.trial import BoolArray, CostFunction, FloatArray, IntArray, Target, Trial, TrialState
from qat.search.trust import error_scale, trusted_radius

DRAW_EVERY = 2
"""One in so many proposals is the best point of the expected improvement, the others of a draw from the posterior."""


@dataclass(frozen=True, kw_only=True)
class ProposerSettings:
    """How proposals are made.

    Args:
        initial_trials: First designs per target before the surrogate takes over, >= 1.
        perturbation: Standard deviation of the logarithm by which first designs reweight the sensitivities, >= 0.
        starts: Climbs per acquisition, >= 1.
        radius: Most dimensions in which the first proposal may differ from the nearest of the best trials, >= 1: far
            from everything that was tried the surrogate knows little, and there is always more room far away.  Later
            ones may go further while predictions prove right, and less far when they do not (`trusted_radius`).

    Raises:
        ConfigError: A field is out of range.
    """

    initial_trials: int = 4
    perturbation: float = 0.7
    starts: int = 8
    radius: int = 6

    def __post_init__(self) -> None:
        for name, low in (("initial_trials", 1), ("starts", 1), ("radius", 1)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name}={getattr(self, name)!r}, expected an integer >= {low}")
        if not self.perturbation >= 0:
            raise ConfigError(f"perturbation={self.perturbation!r}, expected a number >= 0")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "initial_trials": self.initial_trials,
            "perturbation": self.perturbation,
            "starts": self.starts,
            "radius": self.radius,
        }


@dataclass(frozen=True)
class Proposal:
    """A point to evaluate.

    Args:
        point: Choice of each dimension; inside the target's bounds, and new.
        origin: How it was found, as in `Trial.origin`.
        cost: Exact cost columns.
        predicted: Expected accuracy and its standard deviation; `None` for first designs.
    """

    point: tuple[int, ...]
    origin: str
    cost: dict[str, float]
    predicted: tuple[float, float] | None = None


@dataclass(frozen=True)
class Proposer:
    """Proposes points from all trials so far; keeps no state of its own.

    Args:
        space: The choices.
        cost: Exact costs from layer indices; never modelled.
        profile: Sensitivities of the space's dimensions.
        settings: How to propose.
    """

    space: SearchSpace
    cost: CostFunction
    profile: SensitivityProfile
    settings: ProposerSettings = field(default_factory=ProposerSettings)

    def __post_init__(self) -> None:
        self.profile.check_matches(self.space)

    def propose(self, trials: Sequence[Trial], target: Target, rng: np.random.Generator) -> Proposal | None:
        """The next point to evaluate for a target.

        Args:
            trials: All trials of one fidelity: completed, failed, stopped ones, which count as `with_estimates` says,
                and pending or running ones, which count as evaluated at their predicted accuracy.
            target: The budget.
            rng: Source of randomness; the same state and trials give the same proposal.

        Returns:
            The proposal, or `None` if everything feasible that was found has been tried; `is_spent` says whether that
            is all there is.

        Raises:
            SearchError: Nothing feasible exists.
        """
        taken = {trial.point for trial in trials}
        earlier = [trial.point for trial in trials if trial.target == target.name]
        seen = with_estimates(trials)
        if len(earlier) >= self.settings.initial_trials and sum(trial.is_completed for trial in seen) >= 2:
            return self._improve(seen, taken, target, rng)
        if isinstance(target, Front):
            return self._front_design(earlier, taken, target, rng)
        return self._first_design(len(earlier), taken, target, rng)

    def is_spent(self, trials: Sequence[Trial], target: Target) -> bool:
        """Whether it is certain that everything inside the target's bounds has been tried."""
        return Remaining(self.space, self.cost, target).is_spent({trial.point for trial in trials})

    # -- feasibility ----------------------------------------------------------------------------------------------

    def feasible(self, points: IntArray, target: Target) -> BoolArray:
        """Which points are inside the target's bounds; shape (n,)."""
        return target.feasible(self.cost(self.space.layer_indices(points)))

    def check_reachable(self, target: Target) -> IntArray:
        """Feasible points to start from, shape (n, dimensions), n >= 1.

        Raises:
            SearchError: None was found; the message names the column that binds and the best value reached.
        """
        uniform = np.minimum(np.arange(self.space.sizes.max())[:, None], self.space.sizes - 1)
        points = np.concatenate([lagrange_path(self.profile, self.space.dimension_bits), uniform])
        inside = self.feasible(points, target)
        if inside.any():
            return points[inside]

        def closeness(rows: IntArray) -> FloatArray:
            outside = target.violations(self.cost(self.space.layer_indices(rows)))
            near: FloatArray = -np.minimum(np.sum(list(outside.values()), axis=0), 1e300)
            return near

        starts = points[np.argsort(-closeness(points), kind="stable")[:8]]
        climb = LocalSearch(self.space, steps=200, patience=5)
        found, scores = climb.run(starts, closeness, lambda rows: np.ones(len(rows), bool), np.random.default_rng(0))
        if scores[0] >= 0:
            return found[scores >= 0]
        remaining = Remaining(self.space, self.cost, target)
        hidden = remaining.some_new(set(), points[:0])
        if len(hidden):
            return hidden
        columns = self.cost(self.space.layer_indices(found[:1]))
        outside = {column: float(values[0]) for column, values in target.violations(columns).items()}
        column = max(outside, key=lambda name: outside[name])
        low, high = target.bounds[column]
        value = float(np.asarray(columns[column], dtype=np.float64)[0])
        wanted = f">= {low:g}" if low is not None and not value >= low else f"<= {high:g}"
        extent = "" if remaining.candidates is not None else " among those that were looked at, not all of them"
        raise SearchError(
            f"target {target.name!r}: no configuration of the search space fits; {column} must be {wanted}, the best "
            f"reached is {value:g}{extent}. Loosen the bound, allow fewer bits or lower densities, or take a larger "
            "board"
        )

    # -- first designs --------------------------------------------------------------------------------------------

    def _first_design(
        self, number: int, taken: set[tuple[int, ...]], target: Target, rng: np.random.Generator
    ) -> Proposal | None:
        if number == 0:
            point = self.allocate(self.profile, target, rng)
            if tuple(point) not in taken:
                return self._proposal(point, "lagrange")
        # The last one, as it is most often far behind: by then the others say what a trial has to reach early.
        if number == self.settings.initial_trials - 1:
            for point in self._uniform_designs(target):
                if tuple(point) not in taken:
                    return self._proposal(point, "uniform")
        spread = self.settings.perturbation
        for _ in range(20):
            factors = np.exp(rng.normal(0.0, spread, len(self.space.sizes)))
            point = self.allocate(self.profile.reweighted(factors), target, rng)
            if tuple(point) not in taken:
                return self._proposal(point, "perturbed")
            spread += 0.2
        return self._random_design(taken, target, rng)

    def _front_design(
        self, earlier: Sequence[tuple[int, ...]], taken: set[tuple[int, ...]], front: Front, rng: np.random.Generator
    ) -> Proposal | None:
        """The ends of the front, then what lies farthest from all that was designed so far.

        In turn an allocation of the profile, a uniform one, and an allocation of the profile reweighted at random.
        """
        origin = ("lagrange", "uniform", "perturbed")[max(0, len(earlier) - 1) % 3]
        factors = np.exp(rng.normal(0.0, self.settings.perturbation, len(self.space.sizes)))
        if origin == "uniform":
            points = np.array(self._uniform_designs(front), dtype=np.int64).reshape(-1, len(self.space.sizes))
        else:
            points = self._path(self.profile.reweighted(factors) if origin == "perturbed" else self.profile, front)
        points = np.array([point for point in points.tolist() if tuple(point) not in taken], dtype=np.int64)
        if not len(points):
            return self._random_design(taken, front, rng)
        if not earlier:
            return self._proposal(points[int(np.argmin(self.profile.predicted(points)))], origin)
        costs = self._costs_of(front)
        before, now = costs(np.array(earlier, dtype=np.int64)), costs(points)
        scale = np.ptp(np.concatenate([before, now]), axis=0)
        apart = cdist(now / np.where(scale > 0, scale, 1.0), before / np.where(scale > 0, scale, 1.0))
        return self._proposal(points[int(np.argmax(apart.min(axis=1)))], origin)

    def _path(self, profile: SensitivityProfile, target: Target) -> IntArray:
        """The parts of the Lagrange paths that are inside the bounds; shape (n, dimensions), n >= 0."""
        return np.concatenate(self._paths(profile, self._prices(target), target))

    def _paths(self, profile: SensitivityProfile, prices: Sequence[Prices], target: Target) -> list[IntArray]:
        """Of each price of the choices the part of the Lagrange path that is inside the bounds."""
        paths = [lagrange_path(profile, price) for price in prices]
        return [path[self.feasible(path, target)] for path in paths]

    def _prices(self, target: Target) -> list[Prices]:
        """What the choices of each dimension cost, for Lagrange paths."""
        named = (*target.bounds, *(target.columns if isinstance(target, Front) else ()))
        return prices_of(self.space, self.cost, named)

    def _costs_of(self, front: Front) -> Callable[[IntArray], FloatArray]:
        return lambda points: front.costs(self.cost(self.space.layer_indices(points)))

    def allocate(self, profile: SensitivityProfile, target: Target, rng: np.random.Generator) -> IntArray:
        """The feasible point of least predicted loss: the Lagrange path's best, then filled up to the bounds.

        Args:
            profile: Whose predicted loss counts.
            target: The budget.
            rng: Source of the samples of the local search.

        Returns:
            Shape (dimensions,).

        Raises:
            SearchError: Nothing feasible exists.
        """
        path = self._path(profile, target)
        starts = path if len(path) else self.check_reachable(target)
        best = starts[np.argsort(profile.predicted(starts), kind="stable")[:1]]
        climb = LocalSearch(self.space, steps=60)
        found, _ = climb.run(best, lambda rows: -profile.predicted(rows), lambda rows: self.feasible(rows, target), rng)
        allocated: IntArray = found[0]
        return allocated

    def _uniform_designs(self, target: Target) -> list[IntArray]:
        """Feasible points with the same choice everywhere (or the nearest one that a layer has), least loss first."""
        noise = [np.log(row) for row in self.space.dimension_noise]
        read = [np.array([c.act_bit_width for c in choices]) for choices in self.space.dimension_choices]
        levels = np.unique(np.concatenate(noise))
        points = []
        for width in sorted({width for widths in self.space.act_bit_widths if len(widths) > 1 for width in widths}) or [
            0
        ]:
            # Choices of another width than the nearest one are out of the question.
            far = [np.where(np.abs(bits - width) > np.abs(bits - width).min(), np.inf, 0.0) for bits in read]
            points += [
                [int(np.argmin(np.abs(r - level) + f)) for r, f in zip(noise, far, strict=True)] for level in levels
            ]
        unique = np.unique(np.array(points, dtype=np.int64), axis=0)
        inside = unique[self.feasible(unique, target)]
        return list(inside[np.argsort(self.profile.predicted(inside), kind="stable")])

    def _random_design(self, taken: set[tuple[int, ...]], target: Target, rng: np.random.Generator) -> Proposal | None:
        point = self._any_new(taken, target, rng)
        return None if point is None else self._proposal(point, "random")

    def _any_new(self, taken: set[tuple[int, ...]], target: Target, rng: np.random.Generator) -> IntArray | None:
        """A feasible point that was not tried, `None` if none was found.

        Random steps from known feasible points look for it, and where they fail `Remaining`.
        """
        points = self.check_reachable(target)
        climb = LocalSearch(self.space)
        for _ in range(50):
            new = [point for point in points if tuple(point) not in taken]
            if new:
                found: IntArray = new[int(rng.integers(len(new)))]
                return found
            start = points[rng.integers(len(points), size=4)]
            neighbours = climb.neighbours(start, rng)
            points = np.concatenate([points, neighbours[self.feasible(neighbours, target)]])
        known = np.array(sorted(taken), dtype=np.int64)
        left = Remaining(self.space, self.cost, target).some_new(taken, known[self.feasible(known, target)])
        return left[int(np.argmin(self.profile.predicted(left)))] if len(left) else None

    # -- surrogate ------------------------------------------------------------------------------------------------

    def _improve(
        self, trials: Sequence[Trial], taken: set[tuple[int, ...]], target: Target, rng: np.random.Generator
    ) -> Proposal | None:
        surrogate = AccuracySurrogate.fit(self.space, self.profile, trials)
        failures = np.array([t.point for t in trials if t.state is TrialState.FAILED], dtype=np.int64)
        finished = np.array([t.point for t in trials if t.is_completed], dtype=np.int64)
        goal = self._goal(surrogate, finished, target)
        centres = goal.centres
        # Expected improvement alone settles on small steps around the best trials, too small to be told from noise.
        is_drawn = sum(t.predicted is not None for t in trials) % DRAW_EVERY
        gain = goal.under(surrogate.draw(rng)) if is_drawn else goal.expected

        def score(points: IntArray) -> FloatArray:
            return gain(points) + _log_success(points, failures, finished)

        allowed = self._allowed(surrogate, trials, centres, taken, target)
        starts = self._starts(centres, target, rng)
        starts = starts[allowed(starts)]
        if not len(starts):
            new = self._any_new(taken, target, rng)
            if new is None:
                return None
            starts = new[None, :]
        starts = starts[np.argsort(-score(starts), kind="stable")[: self.settings.starts]]
        found, _ = LocalSearch(self.space).run(starts, score, allowed, rng)
        mean, std = surrogate.predict(found[:1])
        return self._proposal(found[0], "acquisition", (float(mean[0]), float(std[0])))

    def best_predicted(self, trials: Sequence[Trial], target: Target, rng: np.random.Generator) -> Proposal:
        """The point of the highest expected accuracy inside a target's bounds, evaluated or not.

        It lies within `trusted_radius` of a good trial that is inside the bounds, if there is one.  Its standard
        deviation is widened by `error_scale`.  What failed or was stopped is not recommended.

        Args:
            trials: Of one fidelity.
            target: The budget.
            rng: Source of the samples of the local search.

        Raises:
            SearchError: Fewer than two trials are completed, or nothing is inside the bounds but what failed or was
                stopped.
        """
        seen = with_estimates(trials)
        surrogate = AccuracySurrogate.fit(self.space, self.profile, seen)
        finished = np.array([t.point for t in trials if t.is_completed], dtype=np.int64)
        centres = self._goal(surrogate, finished, target).centres
        given_up = {t.point for t in trials if t.state in (TrialState.FAILED, TrialState.STOPPED)}

        def score(points: IntArray) -> FloatArray:
            return surrogate.posterior(points)[0]

        allowed = self._allowed(surrogate, seen, centres, given_up, target)
        starts = np.concatenate([centres, self._starts(centres, target, rng)])
        starts = starts[allowed(starts)]
        if not len(starts):
            new = self._any_new(given_up, target, rng)
            if new is None:
                raise SearchError(f"target {target.name!r}: everything inside its bounds failed or was stopped")
            starts = new[None, :]
        starts = starts[np.argsort(-score(starts), kind="stable")[: self.settings.starts]]
        found, _ = LocalSearch(self.space).run(starts, score, allowed, rng)
        mean, std = surrogate.predict(found[:1])
        wider = error_scale(seen, surrogate.observation_std)
        return self._proposal(found[0], "predicted", (float(mean[0]), wider * float(std[0])))

    def predicted_front(
        self, trials: Sequence[Trial], front: Front, count: int, rng: np.random.Generator
    ) -> list[Proposal]:
        """Points, not evaluated ones, that are expected to improve the front of the evaluated ones.

        Each is the one that adds most hypervolume, by expected accuracy, to the trials and to those before it; where it
        may lie, and its standard deviation, are as in `best_predicted`.

        Args:
            trials: Of one fidelity.
            front: What is sought.
            count: Most points, >= 0.
            rng: Source of the samples of the local search.

        Returns:
            Cheapest first; fewer than `count` where nothing more is expected to improve the front.

        Raises:
            SearchError: Fewer than two trials are completed, or nothing is inside the bounds.
        """
        seen = with_estimates(trials)
        surrogate = AccuracySurrogate.fit(self.space, self.profile, seen)
        finished = np.array([t.point for t in trials if t.is_completed], dtype=np.int64)
        goal = self._front_goal(surrogate, finished, front)
        evaluated = len(goal.finished)
        taken = {trial.point for trial in trials}
        allowed = self._allowed(surrogate, seen, goal.centres, taken, front)
        starts = self._starts(goal.centres, front, rng)
        for _ in range(count):
            score = goal.under(lambda points: surrogate.posterior(points)[0])
            inside = starts[allowed(starts)]
            if not len(inside):
                break
            inside = inside[np.argsort(-score(inside), kind="stable")[: self.settings.starts]]
            found, scores = LocalSearch(self.space).run(inside, score, allowed, rng)
            if scores[0] <= NO_GAIN and len(goal.finished):
                break
            taken.add(tuple(found[0].tolist()))
            goal = replace(goal, finished=np.concatenate([goal.finished, found[:1]]))
        mean, std = surrogate.predict(goal.finished)
        wider = error_scale(seen, surrogate.observation_std)
        costs = self._costs_of(front)(goal.finished)
        best = [i for i in np.flatnonzero(non_dominated(mean, costs)) if i >= evaluated]
        return [
            self._proposal(goal.finished[i], "predicted", (float(mean[i]), wider * float(std[i])))
            for i in sorted(best, key=lambda i: tuple(costs[i]))
        ]

    def _goal(self, surrogate: AccuracySurrogate, finished: IntArray, target: Target) -> Goal:
        """What is to be improved, from the points of all completed trials."""
        if isinstance(target, Front):
            return self._front_goal(surrogate, finished, target)
        return BestGoal(surrogate, finished[self.feasible(finished, target)])

    def _front_goal(self, surrogate: AccuracySurrogate, finished: IntArray, target: Front) -> FrontGoal:
        inside = finished[self.feasible(finished, target)]
        known = np.concatenate([inside, self.check_reachable(target)])
        return FrontGoal(surrogate, inside, self._costs_of(target), target.worst(self._costs_of(target)(known)))

    def _allowed(
        self,
        surrogate: AccuracySurrogate,
        trials: Sequence[Trial],
        centres: IntArray,
        taken: set[tuple[int, ...]],
        target: Target,
    ) -> Callable[[IntArray], BoolArray]:
        """Whether points are new, inside the bounds, and near enough to a centre to be trusted."""
        radius = trusted_radius(trials, self.settings.radius, surrogate.observation_std)

        def allowed(points: IntArray) -> BoolArray:
            allowed: BoolArray = np.zeros(len(points), bool) if len(centres) else np.ones(len(points), bool)
            for centre in centres:
                allowed |= (points != centre).sum(axis=1) <= radius
            # The dearer questions are asked about what is left.
            if allowed.any():
                allowed[allowed] = self.feasible(points[allowed], target)
            allowed[allowed] = np.array([tuple(point) not in taken for point in points[allowed].tolist()], dtype=bool)
            return allowed

        return allowed

    def _starts(self, centres: IntArray, target: Target, rng: np.random.Generator) -> IntArray:
        """Where climbs may start: best feasible trials' neighbours, and allocations by reweighted sensitivities."""
        points = []
        if len(centres):
            points.append(LocalSearch(self.space, singles=64, pairs=128).neighbours(centres, rng))
        prices = self._prices(target)
        for spread in (0.0, 0.3, 0.7, 1.0):
            for _ in range(4):
                factors = np.exp(rng.normal(0.0, spread, len(self.space.sizes)))
                paths = self._paths(self.profile.reweighted(factors), prices, target)
                points += paths if isinstance(target, Front) else [inside[-6:] for inside in paths]
        points.append(self.check_reachable(target)[-4:])
        return np.unique(np.concatenate(points), axis=0)

    def _proposal(self, point: IntArray, origin: str, predicted: tuple[float, float] | None = None) -> Proposal:
        columns = self.cost(self.space.layer_indices(point[None, :]))
        cost = {name: float(np.asarray(values)[0]) for name, values in columns.items()}
        return Proposal(tuple(int(i) for i in point), origin, cost, predicted)


def _log_success(points: IntArray, failures: IntArray, finished: IntArray) -> FloatArray:
    """Logarithm of a kernel estimate of the chance that an evaluation succeeds; 0 while nothing has failed.

    Trials weigh exp(-differing dimensions / 2) of their own point, on top of a prior of one success.
    """
    if not len(failures):
        return np.zeros(len(points))

    def weight(others: IntArray) -> FloatArray:
        if not len(others):
            return np.zeros(len(points))
        differing = (points[:, None, :] != others[None, :, :]).sum(axis=2)
        total: FloatArray = np.exp(-differing / 2).sum(axis=1)
        return total

    success = 1.0 + weight(finished)
    chance: FloatArray = np.log(success / (success + weight(failures)))
    return chance
