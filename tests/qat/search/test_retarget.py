from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from hwmodel.precision import NetworkConfig
from qat.errors import SearchError
from qat.search.front import Front, Hypervolume, non_dominated, select_front
from qat.search.loop import SearchSettings, run_search
from qat.search.retarget import retarget, retarget_front, with_costs
from qat.search.store import TrialStore
from qat.search.trial import Fidelity, FloatArray, IntArray, Screening, Target, TrialState
from tests.qat.search.problems import FIDELITY, Problem

PROBLEM = Problem(layers=8, seed=4)


def other_board(indices: IntArray) -> dict[str, FloatArray]:
    """A board on which the first four layers cost nothing."""
    bits = sum(np.array(row)[indices[:, i]] for i, row in enumerate(PROBLEM.space.stored_bits) if i >= 4)
    return {"late_bits": np.asarray(bits, dtype=np.float64)}


def test_answers_another_board_from_trials_already_paid_for() -> None:
    points = PROBLEM.space.sample(40, np.random.default_rng(0))
    trials = PROBLEM.completed(points)
    recosted = with_costs(trials, PROBLEM.space, other_board)
    assert all(set(trial.cost) == {"late_bits"} for trial in recosted)
    assert [t.metrics for t in recosted] == [t.metrics for t in trials]
    limit = float(np.median([t.cost["late_bits"] for t in recosted]))
    target = Target("late", {"late_bits": (None, limit)})
    answer = retarget(PROBLEM.space, PROBLEM.profile, trials, other_board, target)
    assert answer == retarget(PROBLEM.space, PROBLEM.profile, trials, other_board, target)
    assert answer.evaluated is not None
    assert answer.evaluated.trial.cost["late_bits"] <= limit
    assert answer.trials_inside == sum(t.cost["late_bits"] <= limit for t in recosted)
    assert answer.cost["late_bits"] <= limit
    truth = PROBLEM.accuracy(np.array([PROBLEM.space.point(answer.predicted)]))[0]
    inside = PROBLEM.accuracy(np.array([t.point for t in recosted if t.cost["late_bits"] <= limit]))
    assert truth > inside.max()
    assert abs(truth - answer.expected_accuracy) < 4 * answer.std + 0.01


@pytest.mark.parametrize("seed", range(4))
def test_the_same_board_has_the_same_winner_where_trials_were_stopped_or_failed(seed: int, tmp_path: Path) -> None:
    def evaluator(config: NetworkConfig, fidelity: Fidelity, number: int, screening: Screening) -> Mapping[str, float]:
        if number % 5 == 1:
            raise MemoryError("too large")
        return PROBLEM.unlucky(config, fidelity, number, screening)

    target = Target("small", {"bits_per_weight": (None, 2.5)})
    with TrialStore(tmp_path / "s.sqlite") as store:
        found = run_search(
            evaluator=evaluator, space=PROBLEM.space, cost=PROBLEM.cost, targets=[target], fidelity=FIDELITY,
            store=store, settings=SearchSettings(trials=24, seed=seed, screening_share=0.5), profile=PROBLEM.profile,
        )  # fmt: skip
    states = [trial.state for trial in found.trials]
    assert TrialState.STOPPED in states and TrialState.FAILED in states
    answer = retarget(PROBLEM.space, PROBLEM.profile, found.trials, PROBLEM.cost, target)
    assert answer.evaluated == found.winners["small"]
    assert answer.trials_inside == sum(t.is_completed and target.admits(t.cost) for t in found.trials)
    front = Front("front", target.bounds, ("stored_bits",))
    fronts = retarget_front(PROBLEM.space, PROBLEM.profile, found.trials, PROBLEM.cost, front, 3)
    assert fronts.evaluated == select_front(PROBLEM.space, PROBLEM.profile, found.trials, front, 24)
    assert fronts.trials_inside == answer.trials_inside
    given_up = {trial.config for trial in found.trials if not trial.is_completed}
    assert answer.predicted not in given_up


def test_no_evaluated_trial_fits_but_a_predicted_one_does() -> None:
    expensive = np.tile(PROBLEM.space.sizes - 1, (3, 1))
    expensive[1, 0] -= 1
    expensive[2, 1] -= 1
    target = Target("late", {"late_bits": (None, float(other_board(expensive)["late_bits"].min()) / 3)})
    answer = retarget(PROBLEM.space, PROBLEM.profile, PROBLEM.completed(expensive), other_board, target)
    assert answer.evaluated is None and answer.trials_inside == 0
    assert target.admits(answer.cost)


def two_columns(indices: IntArray) -> dict[str, FloatArray]:
    """Another board: bits of the last four layers, and how many choices above the cheapest the first four are."""
    return {**other_board(indices), "early": indices[:, :4].sum(axis=1).astype(np.float64), "fps": 1e6 / (
        1 + other_board(indices)["late_bits"])}  # fmt: skip


@pytest.mark.parametrize("columns", [("late_bits",), ("late_bits", "early"), ("fps",)])
def test_a_front_on_another_board(columns: tuple[str, ...]) -> None:
    trials = PROBLEM.completed(PROBLEM.space.sample(40, np.random.default_rng(0)))
    recosted = {t.id: t for t in with_costs(trials, PROBLEM.space, two_columns)}
    limit = float(np.quantile([t.cost["late_bits"] for t in recosted.values()], 0.8))
    front = Front("front", {"late_bits": (None, limit)}, columns)
    answer = retarget_front(PROBLEM.space, PROBLEM.profile, trials, two_columns, front, 5)
    assert answer == retarget_front(PROBLEM.space, PROBLEM.profile, trials, two_columns, front, 5)
    assert answer.trials_inside == sum(t.cost["late_bits"] <= limit for t in recosted.values())
    # The evaluated ones: exact costs of that board, inside the bounds, and none beats another one.
    assert answer.evaluated
    for winner in answer.evaluated:
        assert winner.trial == recosted[winner.trial.id]
        assert front.admits(winner.trial.cost)
    points = np.array([w.trial.point for w in answer.evaluated])
    accuracy = np.array([w.expected_accuracy for w in answer.evaluated])
    costs = front.costs(two_columns(points))
    assert non_dominated(accuracy, costs).all()
    assert (np.diff(costs[:, 0]) >= 0).all()
    # The predicted ones: new, inside, no better answered by an evaluated one, and they do improve the true front.
    assert 1 <= len(answer.predicted) <= 5
    found = np.array([each.point for each in answer.predicted])
    assert not {tuple(point) for point in found.tolist()} & {t.point for t in trials}
    assert front.feasible(two_columns(found)).all()
    np.testing.assert_array_equal(front.costs(two_columns(found)), [front.costs(
        {name: np.array([value]) for name, value in each.cost.items()})[0] for each in answer.predicted])  # fmt: skip
    expected = np.array([each.predicted[0] for each in answer.predicted if each.predicted])
    together = np.concatenate([costs, front.costs(two_columns(found))])
    assert non_dominated(np.concatenate([accuracy, expected]), together)[len(accuracy) :].all()
    truth, worst = PROBLEM.accuracy(points), together.max(axis=0) + 1
    gain = Hypervolume.of(truth, costs, worst).gain(PROBLEM.accuracy(found), front.costs(two_columns(found)))
    assert gain.max() > 0
    assert all(each.predicted and each.predicted[1] > 0 for each in answer.predicted)


def test_a_front_of_no_trial_is_predicted() -> None:
    expensive = np.tile(PROBLEM.space.sizes - 1, (3, 1))
    expensive[1, 0] -= 1
    expensive[2, 1] -= 1
    front = Front("f", {"late_bits": (None, float(other_board(expensive)["late_bits"].min()) / 3)}, ("late_bits",))
    answer = retarget_front(PROBLEM.space, PROBLEM.profile, PROBLEM.completed(expensive), other_board, front, 3)
    assert not answer.evaluated and answer.trials_inside == 0
    assert answer.predicted and all(front.admits(each.cost) for each in answer.predicted)
    assert not retarget_front(
        PROBLEM.space, PROBLEM.profile, PROBLEM.completed(expensive), other_board, front, 0
    ).predicted


def test_a_front_against_what_is_no_cost_is_refused() -> None:
    trials = PROBLEM.completed(PROBLEM.space.sample(3, np.random.default_rng(0)))
    front = Front("f", {"late_bits": (None, 1e9)}, ("lut",))
    with pytest.raises(
        SearchError, match=r"front 'f' is against \['lut'\], which are no cost columns; there are \['late_"
    ):
        retarget_front(PROBLEM.space, PROBLEM.profile, trials, other_board, front, 3)


def test_what_it_needs() -> None:
    trials = PROBLEM.completed(PROBLEM.space.sample(3, np.random.default_rng(0)))
    with pytest.raises(SearchError, match="needs at least 2 completed trials, the search has 1"):
        retarget(PROBLEM.space, PROBLEM.profile, trials[:1], other_board, Target("x", {"late_bits": (None, 1e9)}))
    with pytest.raises(SearchError, match=r"no configuration of the search space fits; late_bits must be <= 1"):
        retarget(PROBLEM.space, PROBLEM.profile, trials, other_board, Target("x", {"late_bits": (None, 1)}))
    assert with_costs([], PROBLEM.space, other_board) == ()
