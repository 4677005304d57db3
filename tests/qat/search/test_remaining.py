"""What is left to try where few configurations, among very many, are inside the bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from qat.errors import SearchError
from qat.search.loop import EXHAUSTED, SPENT, SearchSettings, run_search
from qat.search.proposer import Proposer, ProposerSettings
from qat.search.remaining import LIMIT, Remaining
from qat.search.store import TrialStore
from qat.search.trial import FloatArray, IntArray, Target
from tests.qat.search.problems import FIDELITY, Problem

SMALL, LARGE = Problem(layers=4, seed=0), Problem(layers=10, seed=0)
LISTED = Target("listed", {"listed": (1, None)})


def listing(problem: Problem, points: Sequence[Sequence[int]]) -> Callable[[IntArray], dict[str, FloatArray]]:
    """The problem's costs, and whether a point is one of these."""

    def cost(indices: IntArray) -> dict[str, FloatArray]:
        listed = (indices[:, None, :] == np.array(points)[None]).all(axis=2).any(axis=1)
        return {**problem.cost(indices), "listed": listed.astype(float)}

    return cost


def proposed(proposer: Proposer, problem: Problem, target: Target) -> list[tuple[int, ...]]:
    """All that is proposed until nothing is."""
    points: list[tuple[int, ...]] = []
    while True:
        trials = problem.completed(np.array(points), target.name) if points else []
        proposal = proposer.propose(trials, target, np.random.default_rng(len(points)))
        if proposal is None:
            assert len(set(points)) == len(points)
            return points
        points.append(proposal.point)


@pytest.mark.parametrize("initial_trials", [1, 9])
def test_scattered_points_of_a_small_space_are_all_found(initial_trials: int) -> None:
    points = [(2, 2, 2, 2), (0, 5, 1, 0), (6, 0, 0, 3), (1, 1, 6, 6), (5, 6, 5, 1)]
    cost = listing(SMALL, points)
    proposer = Proposer(SMALL.space, cost, SMALL.profile, ProposerSettings(initial_trials=initial_trials))
    assert sorted(proposed(proposer, SMALL, LISTED)) == sorted(points)
    assert proposer.is_spent(SMALL.completed(np.array(points)), LISTED)
    assert not proposer.is_spent(SMALL.completed(np.array(points[:4])), LISTED)


def test_a_start_that_no_climb_finds() -> None:
    """Every point but one is equally far outside."""
    point = (6, 0, 3, 1)
    assert Proposer(SMALL.space, listing(SMALL, [point]), SMALL.profile).check_reachable(LISTED).tolist() == [[*point]]


def test_all_changes_of_two_layers_are_tried_in_a_large_space() -> None:
    """Two layers with more bits at once: random exchanges raise one and lower the other."""
    start = [2] * 10
    points = [start, [2, 2, 4, 2, 2, 2, 2, 5, 2, 2], [2, 2, 4, 2, 2, 0, 2, 5, 2, 0]]
    far = [6, 0, 4, 6, 6, 0, 6, 5, 6, 0]
    proposer = Proposer(LARGE.space, listing(LARGE, [*points, far]), LARGE.profile)
    assert sorted(map(list, proposed(proposer, LARGE, LISTED))) == sorted(points)
    assert not proposer.is_spent(LARGE.completed(np.array(points)), LISTED)  # and it is not


@pytest.mark.parametrize("column", ["stored_bits", "bits_per_weight", "compression"])
def test_sizes_rule_out_most_of_a_large_space(column: str) -> None:
    """All within a budget, found by counting up from the cheapest."""
    cheapest = LARGE.cost(np.zeros((1, 10), dtype=np.int64))
    singles = np.concatenate([np.eye(10, dtype=np.int64) * step for step in (1, 2)])
    bound = float(np.sort(LARGE.cost(singles)["stored_bits"])[2])
    scale = float(cheapest[column][0] / cheapest["stored_bits"][0])
    bounds: tuple[float | None, float | None] = (None, bound * scale)
    if column == "compression":
        bounds = (float(cheapest[column][0] * cheapest["stored_bits"][0]) / bound, None)
    target = Target("budget", {column: bounds})
    found = Remaining(LARGE.space, LARGE.cost, target)
    assert found.candidates is not None and 3 < len(found.candidates) < 1000 < LIMIT < np.prod(LARGE.space.sizes)
    costs = LARGE.cost(found.candidates)["stored_bits"]
    assert (costs <= bound * (1 + 1e-6)).all()
    sample = np.random.default_rng(0).integers(0, 3, (20000, 10)) * (np.random.default_rng(1).random((20000, 10)) < 0.1)
    inside = sample[LARGE.cost(sample)["stored_bits"] <= bound]
    assert len(np.unique(inside, axis=0)) > 3
    assert {*map(tuple, inside.tolist())} <= {*map(tuple, found.candidates.tolist())}
    everything = {*map(tuple, found.candidates.tolist())}
    assert found.is_spent(everything) and not found.is_spent(everything - {tuple(found.candidates[-1].tolist())})


def test_sizes_that_are_no_sum_rule_out_nothing() -> None:
    def cost(indices: IntArray) -> dict[str, FloatArray]:
        return {"stored_bits": LARGE.cost(indices)["stored_bits"] * (1.0 + (indices[:, 0] == 1))}

    assert Remaining(LARGE.space, cost, Target("b", {"stored_bits": (None, 1.0)})).candidates is None


@pytest.mark.parametrize(
    ("problem", "word", "message"),
    [
        (SMALL, SPENT, "all configurations inside the bounds have been tried: the search ends after 2 of 9 trials"),
        (LARGE, True, "all configurations found inside the bounds have been tried, though there are too many to look"),
    ],
)
def test_what_the_search_says_is_true(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, problem: Problem, word: object, message: str
) -> None:
    layers = len(problem.space.sizes)
    points = [[2] * layers, [2, 4, *[2] * (layers - 2)]]
    with TrialStore(tmp_path / "s.sqlite") as store:
        found = run_search(
            evaluator=problem.evaluate, space=problem.space, cost=listing(problem, points), targets=[LISTED],
            fidelity=FIDELITY, store=store, settings=SearchSettings(trials=9), profile=problem.profile,
        )  # fmt: skip
        assert store.document(EXHAUSTED) == word
    assert sorted(list(trial.point) for trial in found.trials) == sorted(points)
    assert message in caplog.text


def test_a_bound_that_nothing_meets_says_how_much_was_looked_at() -> None:
    for problem, end in (
        (SMALL, r"is 0\. Loosen"),
        (LARGE, r"is 0 among those that were looked at, not all of them\. L"),
    ):
        proposer = Proposer(problem.space, listing(problem, [[99] * len(problem.space.sizes)]), problem.profile)
        with pytest.raises(SearchError, match=rf"listed must be >= 1, the best reached {end}"):
            proposer.check_reachable(LISTED)
