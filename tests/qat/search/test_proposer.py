from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qat.errors import ConfigError, SearchError
from qat.search.proposer import Proposer, ProposerSettings
from qat.search.surrogate import AccuracySurrogate
from qat.search.trial import Target, Trial, TrialState
from qat.search.trust import error_scale, trusted_radius
from tests.qat.search.problems import TARGET, Problem, searched

PROBLEM = Problem(layers=10, seed=3)
PROPOSER = Proposer(PROBLEM.space, PROBLEM.cost, PROBLEM.profile)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def search(problem: Problem, count: int, seed: int, target: Target = TARGET) -> list[Trial]:
    return searched(problem, Proposer(problem.space, problem.cost, problem.profile), target, count, seed)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(0, 8), bits=st.floats(1.7, 5), compression=st.floats(1, 15))
def test_proposals_are_inside_the_bounds_and_new(seed: int, count: int, bits: float, compression: float) -> None:
    target = Target("both", {"bits_per_weight": (None, bits), "compression": (compression, None)})
    trials = PROBLEM.completed(PROBLEM.space.sample(count, rng(seed)), target="both")
    proposal = PROPOSER.propose(trials, target, rng(seed))
    assert target.admits(proposal.cost)
    assert proposal.point not in {trial.point for trial in trials}
    columns = PROBLEM.cost(PROBLEM.space.layer_indices([proposal.point]))
    assert proposal.cost == {name: float(values[0]) for name, values in columns.items()}


def test_first_designs_are_the_allocation_then_perturbed_then_uniform() -> None:
    trials = search(PROBLEM, 5, seed=0)
    assert [t.origin for t in trials] == ["lagrange", "perturbed", "perturbed", "uniform", "acquisition"]
    uniform = {(c.weight_bit_width, c.sparsity, c.weight_format) for c in trials[3].config.by_name.values()}
    assert len(uniform) == 1
    assert trials[4].predicted is not None


def test_allocation_fills_the_budget() -> None:
    point = PROPOSER.allocate(PROBLEM.profile, TARGET, rng())
    spent = PROBLEM.cost(PROBLEM.space.layer_indices(point[None, :]))["bits_per_weight"][0]
    assert 0.97 * 2.5 < spent <= 2.5


def test_search_beats_random_feasible_configurations() -> None:
    gains = []
    for seed in range(3):
        problem = Problem(layers=10, seed=seed)
        best = max(search(problem, 16, seed), key=lambda t: t.accuracy)
        ours = problem.accuracy(np.array([best.point]))[0]
        sample = problem.space.sample(4000, rng(seed))
        inside = sample[TARGET.feasible(problem.cost(problem.space.layer_indices(sample)))][:16]
        assert len(inside) == 16
        gains.append(ours - problem.accuracy(inside).max())
    assert min(gains) > 0
    assert np.median(gains) > 0.005


def test_search_improves_on_a_misleading_profile() -> None:
    gains = []
    for seed in range(3):
        problem = Problem(layers=10, seed=seed)
        factors = np.random.default_rng(seed).lognormal(0, 1.5, 10)
        problem.profile = problem.profile.reweighted(factors)
        trials = search(problem, 16, seed)
        accuracies = problem.accuracy(np.array([t.point for t in trials]))
        gains.append(accuracies[4:].max() - accuracies[:4].max())
    assert np.mean(gains) > 0.001


def test_the_radius_follows_what_became_of_predictions() -> None:
    trial = replace(PROBLEM.completed(PROBLEM.space.sample(1, rng()))[0], metrics={"accuracy": 0.9})
    kept, broken = replace(trial, predicted=(0.905, 0.003)), replace(trial, predicted=(0.95, 0.003))
    assert trusted_radius([trial], 6, 0.004) == 6  # a first design promised nothing
    assert trusted_radius([kept], 6, 0.004) == 9
    assert trusted_radius([kept] * 9, 6, 0.004) == 10  # all dimensions
    assert trusted_radius([broken], 6, 0.004) == 3
    assert trusted_radius([broken] * 9, 6, 0.004) == 2
    assert trusted_radius([broken, kept], 6, 0.004) == 4
    assert trusted_radius([broken], 6, 0.1) == 9  # within the noise
    assert trusted_radius([], 1, 0.004) == 1


def test_standard_deviations_are_widened_by_the_record() -> None:
    trial = replace(PROBLEM.completed(PROBLEM.space.sample(1, rng()))[0], metrics={"accuracy": 0.9})
    assert error_scale([trial], 0.004) == 1.0
    assert error_scale([replace(trial, predicted=(0.9, 0.003))] * 9, 0.004) == 1.0
    assert error_scale([replace(trial, predicted=(0.915, 0.003))] * 4, 0.004) == pytest.approx(5**0.5)  # 3 deviations


def test_first_proposals_stay_near_a_good_trial() -> None:
    trials = search(PROBLEM, 4, seed=0)
    proposer = Proposer(PROBLEM.space, PROBLEM.cost, PROBLEM.profile, ProposerSettings(radius=2))
    point = np.array(proposer.propose(trials, TARGET, rng()).point)
    assert min((point != np.array(t.point)).sum() for t in trials) <= 2


def test_every_second_proposal_follows_a_draw_from_the_posterior(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    draw = AccuracySurrogate.draw
    monkeypatch.setattr(AccuracySurrogate, "draw", lambda self, rng: drawn.append(1) or draw(self, rng))  # type: ignore[func-returns-value]
    counts = [len(drawn) for _ in (search(PROBLEM, count, seed=0) for count in (4, 5, 6, 8))]
    assert counts == [0, 0, 1, 3]


def test_same_random_state_and_trials_give_the_same_proposal() -> None:
    assert search(PROBLEM, 7, seed=5) == search(PROBLEM, 7, seed=5)
    assert search(PROBLEM, 4, seed=5)[2:] != search(PROBLEM, 4, seed=6)[2:]


def test_failures_are_avoided() -> None:
    trials = search(PROBLEM, 8, seed=1)
    plain = PROPOSER.propose(trials, TARGET, rng(9))
    # The neighbourhood of what would have been proposed turns out to fail.
    failed = []
    for number in range(10):
        point = list(plain.point)
        if number:
            point[number - 1] = (point[number - 1] + 1) % int(PROBLEM.space.sizes[number - 1])
        failed.append(replace(trials[0], id=20 + number, point=tuple(point), state=TrialState.FAILED, metrics={}))
    other = PROPOSER.propose([*trials, *failed], TARGET, rng(9))
    assert other.point not in {trial.point for trial in failed}
    assert sum(a != b for a, b in zip(other.point, plain.point, strict=True)) > 1


def test_what_failed_or_was_stopped_is_not_recommended() -> None:
    trials = search(PROBLEM, 12, seed=1)
    best = PROPOSER.best_predicted(trials, TARGET, rng())
    known = [t for t in trials if t.point != best.point]
    for changes in (
        {"state": TrialState.FAILED, "metrics": {}},
        {"state": TrialState.STOPPED, "metrics": {"screening_accuracy": 0.8}},
    ):
        gone = replace(trials[0], id=99, point=best.point, cost=best.cost, **changes)
        assert PROPOSER.best_predicted([*known, gone], TARGET, rng()).point != best.point


def test_only_failures_so_far_still_gives_a_new_design() -> None:
    first = search(PROBLEM, 5, seed=2)
    failed = [replace(t, state=TrialState.FAILED, metrics={}, predicted=None) for t in first]
    proposal = PROPOSER.propose(failed, TARGET, rng(1))
    assert proposal.point not in {t.point for t in failed}
    assert TARGET.admits(proposal.cost)


def test_nothing_feasible_names_the_column_and_the_best_value() -> None:
    lowest = PROBLEM.cost(np.zeros((1, 10), dtype=np.int64))["bits_per_weight"][0]
    target = Target("tiny", {"bits_per_weight": (None, 0.1), "compression": (1, None)})
    message = rf"target 'tiny': no configuration .*; bits_per_weight must be <= 0.1, the best reached is {lowest:.4g}"
    with pytest.raises(SearchError, match=message):
        PROPOSER.check_reachable(target)
    with pytest.raises(SearchError, match=r"compression must be >= 1000, the best reached is"):
        PROPOSER.propose([], Target("tiny", {"compression": (1000, None)}), rng())


def test_costs_that_fall_with_more_bits_are_reached_too() -> None:
    def cost(indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"quality": indices.sum(axis=1), "parity": (indices[:, 0] % 2).astype(float)}

    proposer = Proposer(PROBLEM.space, cost, PROBLEM.profile)
    target = Target("odd", {"quality": (3, 20), "parity": (1, 1)})
    assert target.admits(proposer.propose([], target, rng()).cost)


def test_everything_feasible_tried() -> None:
    problem = Problem(layers=2, seed=0)
    proposer = Proposer(problem.space, problem.cost, problem.profile)
    target = Target("two", {"stored_bits": (None, _second_cheapest(problem))})
    trials: list[Trial] = []
    for number in range(2):
        proposal = proposer.propose(trials, target, rng(number))
        trials.append(replace(problem.completed(np.array([proposal.point]), "two")[0], id=number))
    assert len({t.point for t in trials}) == 2
    assert proposer.propose(trials, target, rng()) is None
    few = Proposer(problem.space, problem.cost, problem.profile, ProposerSettings(initial_trials=1))
    assert few.propose(trials, target, rng()) is None  # by the surrogate
    failed = [trials[0], replace(trials[1], point=(8, 8)), replace(trials[1], state=TrialState.FAILED, metrics={})]
    assert few.best_predicted(failed, target, rng()).point == trials[0].point
    failed[0] = replace(trials[0], point=(7, 7))
    stopped = replace(trials[0], id=3, state=TrialState.STOPPED, metrics={"screening_accuracy": 0.1})
    with pytest.raises(SearchError, match="target 'two': everything inside its bounds failed or was stopped"):
        few.best_predicted([*failed, stopped], target, rng())


def _second_cheapest(problem: Problem) -> float:
    grid = np.stack(np.meshgrid(*map(np.arange, problem.space.sizes)), axis=-1).reshape(-1, 2)
    return float(np.sort(problem.cost(grid)["stored_bits"])[1])


def test_settings_out_of_range() -> None:
    with pytest.raises(ConfigError, match="initial_trials=0, expected an integer >= 1"):
        ProposerSettings(initial_trials=0)
    with pytest.raises(ConfigError, match="perturbation=nan"):
        ProposerSettings(perturbation=float("nan"))
