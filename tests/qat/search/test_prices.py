"""Searches that choose activation bits: what they cost, where first designs put them, what the surrogate sees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qat.search.front import Front
from qat.search.noise import activation_noise
from qat.search.prices import prices_of
from qat.search.proposer import Proposer
from qat.search.sensitivity import gaussian_profile
from qat.search.space import SearchSpace, SpaceSettings
from qat.search.surrogate import AccuracySurrogate
from qat.search.trial import FloatArray, IntArray, Target, Trial
from tests.qat.search.problems import RULE, Problem, chain

PROBLEM = Problem(layers=8, seed=5)
SPACE = SearchSpace.from_network(
    chain(8), SpaceSettings(rule=replace(RULE, act_bit_widths=(2, 4, 8)), layers=[("fc", {"act_bit_widths": [8]})])
)
PROFILE = gaussian_profile(SPACE)
ACTS = [np.array([choice.act_bit_width for choice in choices]) for choices in SPACE.choices]


def cost(indices: IntArray) -> dict[str, FloatArray]:
    """Stored bits, and what crosses the chip's border: the codes that layers read."""
    bits = np.sum([np.array(row)[indices[:, i]] for i, row in enumerate(SPACE.stored_bits)], axis=0)
    read = np.sum([row[indices[:, i]] for i, row in enumerate(ACTS)], axis=0)
    stored = bits.astype(np.float64)
    return {"stored_bits": stored, "compression": 32 * sum(SPACE.weights) / stored, "offchip_bits": 100.0 * read}


PROPOSER = Proposer(SPACE, cost, PROFILE)


def mean_act(point: IntArray) -> float:
    return float(np.mean([row[i] for row, i in zip(ACTS[1:-1], point[1:-1], strict=True)]))


def test_prices_are_differences_of_the_exact_cost() -> None:
    stored, offchip, both = prices_of(SPACE, cost, ["compression", "offchip_bits"])
    assert stored is SPACE.dimension_bits
    for price, acts in zip(offchip, ACTS, strict=True):
        np.testing.assert_allclose(np.diff(price), 100 * np.diff(acts))
    span = [sum(np.ptp(row) for row in price) for price in (stored, offchip)]
    for i, row in enumerate(both):
        np.testing.assert_allclose(row, stored[i] / span[0] + offchip[i] / span[1])
    assert prices_of(PROBLEM.space, PROBLEM.cost, ["offchip_bits"]) == [PROBLEM.space.dimension_bits]


def test_activations_are_as_wide_as_their_own_bound_allows() -> None:
    rng = np.random.default_rng(0)
    size = {"compression": (6.0, None)}
    free = PROPOSER.allocate(PROFILE, Target("size", size), rng)
    assert mean_act(free) == 8  # they cost nothing
    bound = 100.0 * (8 + 8 + 6 * 4)  # ends, and four bits in between
    narrow = PROPOSER.allocate(PROFILE, Target("both", {**size, "offchip_bits": (None, bound)}), rng)
    assert 3.5 <= mean_act(narrow) <= 4
    columns = cost(SPACE.layer_indices(narrow[None, :]))
    assert columns["compression"][0] < 7


def test_uniform_designs_come_at_every_width() -> None:
    designs = PROPOSER._uniform_designs(Target("any", {"compression": (4.0, None)}))
    assert {mean_act(point) for point in designs} == {2.0, 4.0, 8.0}


def accuracy(point: IntArray) -> float:
    """Falls with the codes' noise alone."""
    return 0.9 - 0.5 * float(np.mean([activation_noise(int(row[i])) for row, i in zip(ACTS, point, strict=True)]))


def trials_of(points: IntArray) -> list[Trial]:
    template = PROBLEM.completed(PROBLEM.space.sample(1, np.random.default_rng(0)))[0]
    columns = cost(SPACE.layer_indices(points))
    return [
        replace(
            template, id=i + 1, point=tuple(point.tolist()), config=SPACE.config(point),
            cost={name: float(values[i]) for name, values in columns.items()},
            metrics={"accuracy": accuracy(point)},
        )
        for i, point in enumerate(points)
    ]  # fmt: skip


def test_the_surrogate_learns_what_activations_lose() -> None:
    points = SPACE.sample(30, np.random.default_rng(1))
    surrogate = AccuracySurrogate.fit(SPACE, PROFILE, trials_of(points))
    assert len(surrogate.model.effects) == 3
    others = SPACE.sample(60, np.random.default_rng(2))
    predicted = surrogate.predict(others)[0]
    truth = [accuracy(point) for point in others]
    assert np.corrcoef(predicted, truth)[0, 1] > 0.8


@pytest.mark.parametrize(
    "target",
    [
        Target("both", {"compression": (5.0, None), "offchip_bits": (None, 4500.0)}),
        Front("two", {"compression": (3.0, None)}, ("stored_bits", "offchip_bits")),
    ],
    ids=["budget", "front"],
)
def test_proposals_stay_inside(target: Target) -> None:
    trials: list[Trial] = []
    for number in range(6):
        proposal = PROPOSER.propose(trials, target, np.random.default_rng([0, number]))
        assert target.admits(proposal.cost)
        (trial,) = trials_of(np.array([proposal.point]))
        trials.append(replace(trial, id=number + 1, target=target.name, origin=proposal.origin))
    assert len({trial.point for trial in trials}) == 6
    if isinstance(target, Front):
        assert len({trial.cost["offchip_bits"] for trial in trials}) > 2
